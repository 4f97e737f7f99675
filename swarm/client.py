"""The user's side: connect to a cluster, or start one, and submit work to it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from distributed import Client, Future, Security

import swarm as package
from swarm import config_sources
from swarm.agents.host import NAME, install_on_scheduler, settings_of
from swarm.config import Resolved, Settings
from swarm.errors import ConnectError, SchedulerLostError, SubmissionError, SwarmError, nearest
from swarm.explain import Account
from swarm.keeper import Durable, Keeper, Kept, begin, described, forget, remembered
from swarm.protocol import KINDS, TOPIC, Event, from_wire
from swarm.reach import SLACK_S, check, no_connection
from swarm.run import Run
from swarm.submission import prepare
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from swarm.deploy.local import LocalProcesses
    from swarm.orchestrator import Orchestrator

Handler = Callable[[Any], object]

INSTALL_TIMEOUT_S = 60.0
"""The scheduler gives the workers half of it to start their agents."""

_lock = threading.Lock()
_open: list[Swarm] = []
"""Swarms that are connected, the current one last."""


def connect(
    address: str | None = None,
    *,
    config: str | Path | None = None,
    timeout: float = 10.0,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    asynchronous: bool = False,
    security: Any = None,
    **settings: Any,
) -> Swarm:
    """Connect to a Dask cluster and make it a swarm.

    Parameters
    ----------
    address
        Of a Dask scheduler, `"tcp://host:8786"`, with or without swarm: a plain scheduler and plain workers get
        their side from here. None starts a local cluster in processes of its own, which ends with the `Swarm`.
    config
        A swarm_config file (JSON or YAML).
    timeout
        Seconds to wait for the scheduler.
    workers, threads_per_worker
        Size of the local cluster, by default that of the machine; only without an address.
    asynchronous
        For use in coroutines: `s = await swarm.connect(…, asynchronous=True)`.
    security
        `distributed.Security` for a cluster that uses TLS.
    **settings
        Settings by name, stronger than any file: `max_agents=8`. They must agree with those of the scheduler.

    Raises
    ------
    ConnectError
        No scheduler answers at the address.
    VersionMismatchError
        Client, scheduler and workers run different versions of swarm.
    MissingPackageError
        The scheduler or a worker can't import swarm.
    SettingsError, SettingsConflictError
        A setting is wrong, or differs from the scheduler's.

    Examples
    --------
    >>> s = swarm.connect()  # doctest: +SKIP
    >>> s.submit("kmeans", clusters=8).result()  # doctest: +SKIP
    """
    resolved = config_sources.load(config, **settings)
    if address is not None and (workers, threads_per_worker) != (None, None):
        raise ConnectError(f"workers and threads_per_worker are for a local cluster, not for the one at {address}")
    cluster = None
    if address is None:
        cluster = _start_cluster(resolved, workers, threads_per_worker)
        address = cluster.address
    try:
        client = _dask_client(address, timeout, asynchronous, security)
        return Swarm(client, resolved=resolved, cluster=cluster, own_client=True, timeout=timeout)
    except BaseException:
        if cluster is not None:
            cluster.close()
        raise


def _start_cluster(resolved: Resolved, workers: int | None, threads_per_worker: int | None) -> LocalProcesses:
    from swarm.deploy import state
    from swarm.deploy.local import LocalProcesses
    from swarm.deploy.spec import ClusterSpec

    env = state.environment(resolved)
    return LocalProcesses(ClusterSpec(workers=workers, threads_per_worker=threads_per_worker, env=env)).start()


def _dask_client(address: str, timeout: float, asynchronous: bool, security: Any) -> Client:
    if not asynchronous and (security is None or isinstance(security, Security)):
        check(address, timeout_s=timeout, security=security)
    try:
        return Client(address, timeout=timeout, asynchronous=asynchronous, security=security, name="swarm")
    except (OSError, ValueError, TypeError) as error:
        raise no_connection(address, error) from None


class Swarm:
    """A connection to a cluster that is a swarm; wraps a `distributed.Client`, which stays usable as `client`.

    Made by `connect`; `Swarm(client)` uses a client that exists already. A context manager. With an asynchronous
    client, await the Swarm itself once, then all that methods return.
    """

    def __init__(
        self,
        client: Client,
        *,
        resolved: Resolved | None = None,
        cluster: LocalProcesses | None = None,
        own_client: bool = False,
        timeout: float = 10.0,
    ) -> None:
        self.client = client
        self.cluster = cluster
        """The processes of the local cluster, when there is one."""
        self.settings: Settings
        """Those of the scheduler, which everybody follows."""
        self._resolved = resolved or config_sources.load()
        self._own_client = own_client
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._handlers: dict[str, list[Handler]] = {}
        self._log = get_logger(client=client.id)
        self._keeper: Keeper | None = None
        self._address = ""
        if not self.asynchronous:
            try:
                self.sync(self._join)
            except BaseException:
                if own_client:
                    client.close(timeout=2)
                raise

    def __repr__(self) -> str:
        return f"<Swarm at {self.address}>"

    def __await__(self) -> Any:
        async def join() -> Swarm:
            try:
                await self._connected()
                await self._join()
            except BaseException:
                if self._own_client:
                    await self.client.close()
                raise
            return self

        return join().__await__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self  # type: ignore[no-any-return]

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- the connection ----------------------------------------------------------------------------------------

    @property
    def asynchronous(self) -> bool:
        return bool(self.client.asynchronous)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return self._address

    @property
    def is_connected(self) -> bool:
        return bool(self.client.status == "running")

    @property
    def _is_coming_back(self) -> bool:
        """Whether durable work waits for the scheduler."""
        return self._keeper is not None and self.client.status == "connecting"

    def sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run a coroutine function on the client's event loop: its result, or an awaitable when asynchronous."""
        return self.client.sync(function, *args)

    async def ask(self, operation: str, *, within_s: float | None = None, **arguments: Any) -> Any:
        """Call one of swarm's handlers on the scheduler; raises the `SwarmError` that it answers with.

        Raises `SchedulerLostError` when there is no answer within so many seconds, by default those of `connect`.
        """
        if self.client.scheduler is None or not (self.is_connected or self._is_coming_back):
            raise SchedulerLostError(f"not connected to the scheduler at {self.address}; connect again")
        try:
            async with asyncio.timeout(limit_s := within_s or self._timeout):
                answer = await getattr(self.client.scheduler, operation)(**arguments)
        except TimeoutError:
            lost = f"the scheduler at {self.address} has not answered for {limit_s:g} s; it hangs, or is overloaded"
            raise SchedulerLostError(lost) from None
        except OSError as error:
            lost = f"the scheduler at {self.address} does not answer ({error}); start it again and connect again"
            raise SchedulerLostError(lost) from None
        if answer is None:  # what Dask answers when it has no such handler
            raise SwarmError(f"the scheduler at {self.address} does not run swarm any more; connect again")
        if isinstance(answer, Mapping) and "message" in answer and "error" in answer:
            settings_of(answer, self.address)  # raises
        return answer

    async def _connected(self) -> None:
        try:
            await asyncio.wait_for(self.client, self._timeout + SLACK_S)
        except (OSError, ValueError, TypeError) as error:
            raise no_connection(str(self.client._start_arg), error) from None

    async def _join(self) -> None:
        """Meet the scheduler: bring swarm where it is missing, and check versions and settings."""
        scheduler = self.client.scheduler
        assert scheduler is not None
        self._address = str(scheduler.address)
        await self._meet()
        await self._install_agents()
        with _lock:
            _open.append(self)

    async def _meet(self) -> None:
        """Say hello to the scheduler, after bringing swarm where it is missing."""
        scheduler = self.client.scheduler
        assert scheduler is not None
        explicit = self._resolved.explicit
        if await scheduler.get_metadata(keys=[NAME], default=None) is None:
            await install_on_scheduler(scheduler, explicit, sender=f"client {self.client.id}")
        version = package.__version__
        answer = await self.ask("swarm_hello_client", client=self.client.id, version=version, explicit=explicit)
        self.settings = settings_of(answer, self._address)

    async def _install_agents(self) -> None:
        for worker, refusal in (await self.ask("swarm_install_agents", within_s=INSTALL_TIMEOUT_S)).items():
            if refusal["error"] != SwarmError.__name__:
                settings_of(refusal, self._address)  # raises: it is a mistake in the set-up that will not go away
            self._log.warning("worker_without_agents", worker=worker, reason=refusal["message"])

    def close(self) -> Any:
        """Disconnect; ends the local cluster, when there is one."""
        with _lock, contextlib.suppress(ValueError):
            _open.remove(self)
        if self.asynchronous:
            return self._close()
        if self._own_client:
            self.client.close(timeout=5)
        if self.cluster is not None:
            self.cluster.close()
        return None

    async def _close(self) -> None:
        if self._own_client:
            await self.client.close()
        if self.cluster is not None:
            self.cluster.close()

    # -- work --------------------------------------------------------------------------------------------------

    def submit(
        self,
        what: object,
        /,
        *,
        keys: Sequence[Any] | None = None,
        name: str = "",
        durable: bool = False,
        **parameters: Any,
    ) -> Any:
        """Submit work; returns a `Run` at once.

        Parameters
        ----------
        what
            Name of a workload (its parameters follow as keywords), a `Workload`, a Dask collection or Delayed, a
            list of these, or a graph.
        keys
            Of a graph: the results that are wanted; by default those that no other task needs.
        name
            How the run is called on the dashboard.
        durable
            Whether it is to survive the scheduler and the workers; see docs/durable.md.

        Raises
        ------
        UnknownWorkloadError, WorkloadParameterError, UnreadableInputError, SubmissionError
            Before anything is sent.
        DurabilityError
            It is to be durable, and the scheduler has no place for results.
        """
        submission = prepare(what, parameters, keys=keys, name=name)
        run = f"{submission.name}-{next(self._numbers)}-{secrets.token_hex(3)}"
        return self.sync(self._submit, run, submission, durable)

    async def _submit(self, run: str, submission: Any, durable: bool) -> Run:
        keeping: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if durable:
            await begin(self, run, submission.name)
            keeping = self.keeper.keeping(Kept(run, submission.name, described(submission)))
        await self.ask(
            "swarm_announce_run",
            run=run,
            name=submission.name,
            client=self.client.id,
            wanted=list(submission.keys),
        )
        try:
            with keeping:
                futures = self.client.get(submission.graph, list(submission.keys), sync=False)
        except Exception as error:
            why = f"the graph of {submission.name} can't be sent: {' '.join(str(error).split())}"
            await self.ask("swarm_end_run", run=run, status="error", reason=why)
            if durable:
                await forget(self, run)
            raise SubmissionError(why) from error
        return Run(self, run, submission, dict(zip(submission.keys, futures, strict=True)), is_durable=durable)

    # -- durable work ------------------------------------------------------------------------------------------

    @property
    def keeper(self) -> Keeper:
        """Of durable runs; there since the first one."""
        assert self._keeper is not None
        return self._keeper

    def keep(self) -> None:
        """Let the client wait for its scheduler from now on, as long as it has durable work."""
        if self._keeper is None:
            self._keeper = Keeper.of(self.client, self._meet)

    def durable(self, name: str = "durable") -> Durable:
        """A context: plain Dask code inside makes a durable run. See docs/durable.md."""
        return Durable(self, name)

    def resume(self, run: str) -> Any:
        """Go on with a durable run after everything that knew of it has ended; returns its `Run`.

        Parameters
        ----------
        run
            The id of the run, or its beginning.

        Raises
        ------
        DurabilityError
            The scheduler's result store has no such run, or not its graph.
        """
        return self.sync(self._resume, run)

    async def _resume(self, run: str) -> Run:
        self.keep()
        found = await self.ask("swarm_durable_open", run=run, within_s=60.0)
        submission = remembered(found)
        futures: dict[Any, Future[Any]] = {key: Future(key, self.client) for key in submission.keys}
        kept = Kept(found["run"], found["name"], found["described"], keys=set(futures), is_from_store=True)
        self.keeper.runs[kept.run] = kept
        asked = {"run": kept.run, "name": kept.name, "described": kept.described, "keys": list(futures), "graphs": []}
        await self.keeper.resume([asked])
        return Run(self, kept.run, submission, futures, is_durable=True)

    def durable_runs(self) -> Any:
        """What the scheduler's result store has: a dict with `url`, and `runs`, the newest last."""
        return self.sync(self.ask, "swarm_durable_list")

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any], name: str = "", **constants: Any) -> Any:
        """Call `function` on each element, as `distributed.Client.map`; a `Run` whose result is the list of values."""
        from dask.delayed import delayed as make_delayed

        delayed = make_delayed(function, pure=False)
        calls = [delayed(*arguments, **constants) for arguments in zip(*iterables, strict=False)]
        return self.submit(calls, name=name or getattr(function, "__name__", "map"))

    # -- watching ----------------------------------------------------------------------------------------------

    def status(self) -> Any:
        """What `swarm status` prints, as a dict: workers, alerts, runs, settings, parts that are switched off."""
        return self.sync(self._status)

    async def _status(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("swarm_status")
        return answer

    def explain(self, what: Any) -> Any:
        """Why a task went where it went, or what a worker has and how fast it is: an `Account`, to be printed.

        Parameters
        ----------
        what
            A key or the beginning of one, a future, or the name or address of a worker.

        Raises
        ------
        UnknownKeyError
            The scheduler knows nothing of that kind; it forgets tasks that were over long ago.
        """
        return self.sync(self._explain, getattr(what, "key", what))

    async def _explain(self, what: Any) -> Account:
        return Account(await self.ask("swarm_explain", what=what))

    @property
    def page(self) -> Any:
        """Where the page `/swarm` is, or None."""
        return self.sync(self._page)

    async def _page(self) -> str | None:
        url: str | None = (await self._status())["page"]
        return url

    @property
    def orchestrator(self) -> Orchestrator:
        """Creates agents on this swarm, and speaks with them."""
        from swarm.orchestrator import Orchestrator

        return Orchestrator(self)

    def add_event_handler(self, event: str | type[Event], handler: Handler) -> None:
        """Call `handler` with each event of a kind, as it happens; a function or a coroutine function.

        Parameters
        ----------
        event
            A class of `swarm.protocol` or its name, `"AlertRaised"`; `"*"` for all.
        handler
            Gets the event. Runs on the client's event loop, so it must not block. What it raises is logged.
        """
        kind = event if isinstance(event, str) else event.__name__
        known = [name for name, cls in KINDS.items() if issubclass(cls, Event)]
        if kind != "*" and kind not in known:
            hint = f"; did you mean {near}?" if (near := nearest(kind, known)) else ""
            raise SwarmError(f"there is no event {kind!r}{hint} (known are * and {', '.join(sorted(known))})")
        if not self._handlers:
            self.client.subscribe_topic(TOPIC, self._on_event)
        self._handlers.setdefault(kind, []).append(handler)

    def remove_event_handler(self, event: str | type[Event], handler: Handler) -> None:
        """Take back `add_event_handler`."""
        kind = event if isinstance(event, str) else event.__name__
        if handler not in self._handlers.get(kind, ()):
            raise SwarmError(f"{handler!r} does not handle {kind}; give what add_event_handler was given")
        self._handlers[kind].remove(handler)

    async def _on_event(self, stamped: tuple[float, Any]) -> None:
        event = from_wire(stamped[1])
        kind = type(event).__name__
        for handler in [*self._handlers.get(kind, ()), *self._handlers.get("*", ())]:
            try:
                outcome = handler(event)
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:  # noqa: BLE001 — a user's handler; the others must still be called
                self._log.error("event_handler_failed", handler=repr(handler), kind=kind, exc_info=error)


def current() -> Swarm:
    """The swarm that was connected last and is still open."""
    with _lock:
        if _open:
            return _open[-1]
    raise ConnectError("there is no swarm to submit to: call swarm.connect() first, with an address or without")


def submit(what: object, /, **options: Any) -> Any:
    """`Swarm.submit` on the current swarm."""
    return current().submit(what, **options)


def durable(what: Swarm | Client | None = None, *, name: str = "durable") -> Durable:
    """A context in which plain Dask code makes a durable run, on a swarm, a Dask client, or the current swarm.

    Examples
    --------
    >>> with swarm.durable():  # doctest: +SKIP
    ...     array.mean().compute()
    """
    if isinstance(what, Client):
        found = next((each for each in reversed(_open) if each.client is what), None)
        what = found or Swarm(what)
    return (what or current()).durable(name)


def map(function: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> Any:  # noqa: A001
    """`Swarm.map` on the current swarm."""
    return current().map(function, *iterables, **options)


def _forget_in_child() -> None:
    """A fork has no event loop thread, so it has no connection either."""
    _open.clear()


os.register_at_fork(after_in_child=_forget_in_child)
