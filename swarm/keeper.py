"""Durable runs on the client: what was submitted survives the scheduler, and its futures resolve in the end.

Dask's client cancels all futures when the connection breaks, and closes for good after half a minute. For durable work
it waits instead, for as long as it takes; then it hands its graphs to the new scheduler, which loads what is stored and
computes the rest. The futures stay the same objects. Futures of other work are cancelled, as Dask does.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from distributed import Client
from distributed.client import FutureState
from distributed.protocol import pickle

from swarm.errors import DurabilityError, SchedulerLostError, SwarmError
from swarm.submission import Submission
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from swarm.client import Swarm

NAME = "swarm-durable"
ATTEMPT_S = 2.0
"""For one attempt to connect; a scheduler that starts up takes as long to answer."""
PAUSE_S = 0.1
REMIND_S = 30.0
"""Between two lines in the log while nobody answers."""

_current: ContextVar[tuple[Keeper, Kept] | None] = ContextVar("swarm_durable", default=None)


@dataclass(eq=False)
class Kept:
    """A durable run: what was sent of it, so that it can be sent again."""

    run: str
    name: str
    described: bytes = b""
    graphs: list[dict[str, Any]] = field(default_factory=list)
    """Messages as Dask's client made them; none for a run that was resumed from the store."""
    keys: set[Any] = field(default_factory=set)
    is_from_store: bool = False
    is_over: bool = False
    """Its results were fetched; it is kept only for runs that came later and may use them."""


class Keeper:
    """Stands between a `distributed.Client` and its scheduler, from its first durable run on.

    Parameters
    ----------
    rejoin
        Called when the client is connected to a new scheduler, before anything is sent there.
    """

    def __init__(self, client: Client, rejoin: Callable[[], Any]) -> None:
        if why := missing():
            raise DurabilityError(f"runs can't be durable: {why}")
        self.client = client
        self.runs: dict[str, Kept] = {}
        self.reconnects = 0
        self._rejoin = rejoin
        self._log = get_logger(client=client.id)
        self._stock_send: Callable[[dict[str, Any]], None] = client._send_to_scheduler
        self._stock_reconnect: Callable[[], Awaitable[None]] = client._reconnect
        self._stock_gather_remote: Callable[[bool, Any], Awaitable[dict[str, Any]]] = client._gather_remote
        client._send_to_scheduler = self._send  # type: ignore[method-assign]
        client._reconnect = self._reconnect  # type: ignore[method-assign]
        client._gather_remote = self._gather_remote  # type: ignore[method-assign]

    @classmethod
    def of(cls, client: Client, rejoin: Callable[[], Any]) -> Keeper:
        """The keeper of a client."""
        keeper = client.extensions.get(NAME)
        if keeper is None:
            keeper = client.extensions[NAME] = cls(client, rejoin)
        return keeper

    @contextmanager
    def keeping(self, kept: Kept) -> Iterator[None]:
        """Graphs that this thread (or coroutine) sends inside belong to a run."""
        self._tidy()
        self.runs[kept.run] = kept
        token = _current.set((self, kept))
        try:
            yield
        finally:
            _current.reset(token)

    def over(self, run: str) -> None:
        """The results of a run are here, or nobody wants them."""
        if run in self.runs:
            self.runs[run].is_over = True
        self._tidy()

    def _tidy(self) -> None:
        """Forget the graphs of runs that are over, up to the first that is not: later ones may use their results."""
        for run, kept in list(self.runs.items()):
            if not kept.is_over and (not kept.keys or self.live(kept)):
                return
            del self.runs[run]

    @property
    def _is_connecting(self) -> bool:
        return bool(self.client.status == "connecting")

    def live(self, kept: Kept) -> list[Any]:
        """The keys of a run that somebody still holds a future of, and that have not failed."""
        futures = self.client.futures
        return [key for key in kept.keys if key in futures and futures[key].status != "error"]

    # -- in the place of methods of the client -----------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        current = _current.get()
        if current is not None and current[0] is self and message["op"] == "update-graph":
            kept = current[1]
            graph = {name: value for name, value in message.items() if name != "op"}
            number = len(kept.graphs)
            kept.graphs.append(graph)
            kept.keys.update(graph["keys"])
            message = {
                "op": "swarm-durable-graph",
                "run": kept.run,
                "name": kept.name,
                "described": kept.described,
                "number": number,
                "graph": graph,
            }
        self._stock_send(message)

    async def _reconnect(self) -> None:
        """In the place of `Client._reconnect`."""
        client = self.client
        if not any(map(self.live, self.runs.values())):
            await self._stock_reconnect()
            return
        client.status = "connecting"
        self._let_go_of_others()
        began_s = told_s = asyncio.get_running_loop().time()
        self._log.warning("scheduler_lost", consequence="durable runs wait for it to come back")
        while self._is_connecting:
            client.scheduler_comm = None
            try:
                await client._ensure_connected(timeout=ATTEMPT_S)
                # What is sent meanwhile waits in the buffer: the graphs come first.
                client.status = "connecting"
                await self._resume()
            except (OSError, TimeoutError, AssertionError, SchedulerLostError) as error:
                # It is not there, or it went away again.
                now_s = asyncio.get_running_loop().time()
                if now_s - told_s >= REMIND_S:
                    told_s = now_s
                    self._log.warning("scheduler_still_lost", since_s=round(now_s - began_s), reason=str(error))
                comm: Any = client.scheduler_comm
                if comm is not None:
                    comm.abort()
                await asyncio.sleep(PAUSE_S)
            except Exception as error:  # noqa: BLE001 - the new scheduler refuses: another version, no place for results
                self._log.critical("durable_runs_lost", reason=str(error), exc_info=error)
                self._cancel_all(str(error))
                client.status = "running"
            else:
                self.reconnects += 1
                client.status = "running"
                took_s = asyncio.get_running_loop().time() - began_s
                self._log.warning("scheduler_is_back", after_s=round(took_s, 1))
        waiting, client._pending_msg_buffer[:] = list(client._pending_msg_buffer), []
        for message in waiting:
            if message["op"] != "swarm-durable-graph":  # those are sent again already
                self._stock_send(message)

    async def _gather_remote(self, direct: bool, local_worker: Any) -> dict[str, Any]:
        """In the place of `Client._gather_remote`: a result that was under way is asked for again."""
        keys = list(self.client._gather_keys or ())
        try:
            return await self._stock_gather_remote(direct, local_worker)
        except OSError:
            durable = set().union(*(kept.keys for kept in self.runs.values()))
            if not durable.issuperset(keys):
                raise
            await asyncio.sleep(PAUSE_S)  # in which the client notices, if it is the scheduler that is gone
            while self._is_connecting:  # noqa: ASYNC110 - it may end in several ways
                await asyncio.sleep(PAUSE_S)
            return {"status": "error", "keys": keys}

    # -- inside ------------------------------------------------------------------------------------------------

    def _let_go_of_others(self) -> None:
        durable = set().union(*(kept.keys for kept in self.runs.values()))
        lost = "Client lost the connection to the scheduler, and this future is not of a durable run."
        for key, state in list(self.client.futures.items()):
            if key not in durable:
                state.cancel(reason="scheduler-connection-lost", msg=lost)
                del self.client.futures[key]
            elif state.status != "error":
                state.reset()

    def _cancel_all(self, reason: str) -> None:
        for state in self.client.futures.values():
            state.cancel(reason="scheduler-connection-lost", msg=reason)
        self.client.futures.clear()

    async def _resume(self) -> None:
        await self._rejoin()
        client = self.client
        for topic in client._event_handlers:
            self._stock_send({"op": "subscribe-topic", "topic": topic, "client": client.id})
        runs = [
            {
                "run": kept.run,
                "name": kept.name,
                "described": kept.described,
                "keys": self.live(kept),
                "graphs": []
                if kept.is_from_store
                else [{**graph, "keys": list(graph["keys"])} for graph in kept.graphs],
            }
            for kept in self.runs.values()
        ]
        await self.resume(runs)

    async def resume(self, runs: list[dict[str, Any]]) -> None:
        """Hand runs to the scheduler, which has to find out what is left to do of them."""
        assert self.client.scheduler is not None
        answer = await self.client.scheduler.swarm_durable_resume(client=self.client.id, runs=runs)
        if answer is None:
            raise DurabilityError("the scheduler that came back does not run swarm")
        if "error" in answer and "message" in answer:
            raise DurabilityError(answer["message"])


class Durable:
    """What `swarm.durable` gives: plain Dask code inside is a durable run."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        self.swarm = swarm
        self.run = new_run(name)
        """Its id, for `swarm resume`."""
        self._kept = Kept(self.run, name)

    def __enter__(self) -> Self:
        self.swarm.sync(self._begin)
        self._keeping = self.swarm.keeper.keeping(self._kept)
        self._keeping.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeping.__exit__(kind, error, trace)
        if kind is None:
            self.swarm.sync(self._end)

    async def __aenter__(self) -> Self:
        await self._begin()
        self._keeping = self.swarm.keeper.keeping(self._kept)
        self._keeping.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeping.__exit__(kind, error, trace)
        if kind is None:
            await self._end()

    async def _begin(self) -> None:
        await begin(self.swarm, self.run, self._kept.name)

    async def _end(self) -> None:
        """Where all results were fetched and let go of, nothing is kept."""
        await asyncio.sleep(0)  # Dask lets go of futures in a callback
        if not self.swarm.keeper.live(self._kept):
            await forget(self.swarm, self.run)


_numbers = itertools.count(1)


def new_run(name: str) -> str:
    """An id that no other run has."""
    return f"{name}-{next(_numbers)}-{secrets.token_hex(3)}"


async def begin(swarm: Swarm, run: str, name: str) -> None:
    """Announce a durable run. Raises `DurabilityError` where there can be none."""
    swarm.keep()
    await swarm.ask("swarm_durable_begin", run=run, name=name, client=swarm.client.id, within_s=60.0)


async def forget(swarm: Swarm, run: str) -> None:
    """The results of a run are here, or nobody wants them: it need not be kept. Never raises, for they are here."""
    swarm.keeper.over(run)
    try:
        await swarm.ask("swarm_durable_fetched", run=run, within_s=60.0)
    except SwarmError as error:
        swarm.keeper._log.warning("durable_run_not_removed", run=run, reason=str(error))


def described(submission: Any) -> bytes:
    """What a later client needs to make a result of the values of a run; b"" when that can't be pickled."""
    try:
        return pickle.dumps((submission.name, submission.keys, submission.assemble, submission.workload))  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - the values of the keys can be had without
        get_logger().warning("durable_run_not_described", name=submission.name, reason=str(error))
        return b""


def remembered(found: Mapping[str, Any]) -> Submission:
    """The submission that `described` was made of; without one, the values by key."""
    keys = tuple(found["keys"])
    if found["described"]:
        try:
            name, keys, assemble, workload = pickle.loads(found["described"])
            return Submission(name, None, tuple(keys), assemble, workload)
        except Exception as error:  # a module that is gone, another version of a class
            raise DurabilityError(
                f"run {found['run']} can't be resumed here: {type(error).__name__}: {error}"
            ) from error
    return Submission(found["name"], None, keys, lambda values: {key: values[key] for key in keys})


def missing() -> str:
    """What of distributed's client durable runs need and do not find, in words; empty when all is well."""
    gone = []
    for name, parameters in _NEEDS.items():
        method = getattr(Client, name, None)
        if method is None or list(inspect.signature(method).parameters)[1:] != parameters:
            gone.append(f"Client.{name}({', '.join(parameters)})")
    for caller, callee in _CALLS:
        if callee not in _names(getattr(Client, caller, None)):
            gone.append(f"{callee} in Client.{caller}")
    gone += [f"FutureState.{name}" for name in ("reset", "cancel", "status") if not hasattr(FutureState, name)]
    return f"this version of distributed lacks {', '.join(gone)}" if gone else ""


def _names(function: Any) -> set[str]:
    """What the code of a function mentions."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    if code is None:
        return set()
    return {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}


_NEEDS = {
    "_send_to_scheduler": ["msg"],
    "_reconnect": [],
    "_ensure_connected": ["timeout"],
    "_gather_remote": ["direct", "local_worker"],
}
_CALLS = (
    ("_handle_report", "_reconnect"),
    ("_graph_to_futures", "_send_to_scheduler"),
    ("_gather", "_gather_remote"),
    ("_gather_remote", "_gather_keys"),
    ("_send_to_scheduler_safe", "_pending_msg_buffer"),
    ("_ensure_connected", "scheduler_comm"),
)
