"""Who takes part: which workers have agents, of which version and settings, and how the others get theirs."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

import swarm
from swarm import errors
from swarm.config import Resolved, conflict_error, conflicts
from swarm.errors import (
    MissingPackageError,
    SettingsError,
    SwarmError,
    VersionMismatchError,
)
from swarm.protocol import AgentRefused, AgentStarted, Event
from swarm.versions import mismatch

if TYPE_CHECKING:
    from distributed import Scheduler

INSTALL_TIMEOUT_S = 30.0
WITNESS = "fault_tolerance"
"""Name of the agent in a worker's nanny."""
UNCLAIMED_HELLOS = 1000
"""Hellos of workers that have not registered (yet): a bound, since a worker may end in between."""

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hello:
    """What the agents of a worker say of themselves."""

    version: str
    agents: tuple[str, ...]
    absent: Mapping[str, str]
    process: tuple[int, float, str] | None = None
    """`swarm.agents.watch.process_state.identity` of the worker."""


class Membership:
    """Answers hellos, remembers who runs what, and installs agents where they are asked for.

    `changed` is called when a worker that is registered has got its agents, or its witness.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        resolved: Resolved,
        publish: Callable[[Event], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._resolved = resolved
        self._publish = publish
        self._changed = changed
        self._hellos: dict[str, Hello] = {}
        self._refused: dict[str, SwarmError] = {}
        self._clients: dict[str, str] = {}
        self._install_on_join = False

    # -- Dask's hooks ------------------------------------------------------------------------------------------

    def has_agents(self, worker: str) -> bool:
        return worker in self._hellos

    def has_witness(self, worker: str) -> bool:
        """Whether the worker's nanny has the agent that says what became of the worker."""
        hello = self._hellos.get(worker)
        return hello is not None and WITNESS in hello.agents

    def host_of(self, worker: str) -> str | None:
        """What is the same for workers of one host; None for a worker without agents."""
        hello = self._hellos.get(worker)
        return None if hello is None else (hello.process[2] if hello.process is not None else worker)

    def neighbour_of(self, worker: str, silent: Collection[str]) -> tuple[str, int, float] | None:
        """Another worker that can look at this one's process, the number of that, and when it started; None: nobody."""
        hello = self._hellos.get(worker)
        if hello is None or hello.process is None:
            return None
        pid, created_s, place = hello.process
        near = (
            address
            for address, other in self._hellos.items()
            if other.process is not None
            and other.process[2] == place
            and address != worker
            and address in self._scheduler.workers
            and address not in silent
        )
        address = next(near, None)
        return None if address is None else (address, pid, created_s)

    def runs_agent(self, worker: str, agent: str) -> bool:
        hello = self._hellos.get(worker)
        return hello is not None and agent in hello.agents

    def worker_joined(self, worker: str) -> list[Event]:
        """The events about the agents of a worker that just registered."""
        now_s = time.time()
        if hello := self._hellos.get(worker):
            return [_started(worker, hello, now_s)]
        if refusal := self._refused.get(worker):
            return [AgentRefused(at_s=now_s, worker=worker, reason=str(refusal))]
        if self._install_on_join:
            self._scheduler._ongoing_background_tasks.call_soon(self._install_one, worker)
        return []

    def worker_left(self, worker: str) -> None:
        self._hellos.pop(worker, None)
        self._refused.pop(worker, None)

    def client_left(self, client: str) -> None:
        self._clients.pop(client, None)

    # -- handlers ----------------------------------------------------------------------------------------------

    async def hello_worker(
        self,
        worker: str,
        version: str,
        explicit: dict[str, Any],
        agents: Collection[str] = (),
        absent: Mapping[str, str] | None = None,
        process: Sequence[Any] | None = None,
    ) -> Reply:
        """The agents of a worker want to start: check versions, then settings; answer with the settings to use."""
        try:
            self._check_versions(workers={worker: version})
            self._check_settings(explicit, where=f"on worker {worker}")
        except SwarmError as error:
            return self._refuse(worker, error)
        self._refused.pop(worker, None)
        self._bound(self._hellos)
        before, hello = self._hellos.get(worker), Hello(version, tuple(agents), dict(absent or {}), _process(process))
        self._hellos[worker] = hello
        if hello != before and worker in self._scheduler.workers:
            self._publish(_started(worker, hello, time.time()))
            self._changed()
        return {"version": swarm.__version__, "settings": self._resolved.settings.flat()}

    async def witness_started(self, worker: str) -> Reply:
        """The nanny of a worker watches it."""
        if (hello := self._hellos.get(worker)) is not None and WITNESS not in hello.agents:
            self._hellos[worker] = hello = replace(hello, agents=(*hello.agents, WITNESS))
            if worker in self._scheduler.workers:
                self._publish(_started(worker, hello, time.time()))
        return {}

    async def hello_client(self, client: str, version: str, explicit: dict[str, Any]) -> Reply:
        """A client connects: check versions of everybody, then its settings."""
        try:
            self._check_versions(clients={client: version})
            self._check_settings(explicit, where="on the client")
        except SwarmError as error:
            return _refusal(error)
        self._clients[client] = version
        bare = [worker for worker in self._scheduler.workers if worker not in self._hellos]
        return {"version": swarm.__version__, "settings": self._resolved.settings.flat(), "without_agents": bare}

    async def install_agents(self) -> dict[str, Reply]:
        """Start agents on every worker that has none, now and whenever one joins.

        Returns worker → the refusal (`error`, `message`), for those that still have none.
        """
        self._install_on_join = True
        return await self._install([w for w in self._scheduler.workers if w not in self._hellos])

    async def _install_one(self, worker: str) -> None:
        await self._install([worker])

    async def _install(self, workers: list[str]) -> dict[str, Reply]:
        # By reference, so that a worker without the package answers with an error and is otherwise unharmed. A
        # worker plugin would travel in the registration itself and keep such a worker from joining.
        from swarm.agents import install

        message = {"op": "run", "function": pickle.dumps(install)}
        failed: dict[str, Reply] = {}

        async def install_on(worker: str) -> None:
            broadcast = self._scheduler.broadcast(msg=message, workers=[worker], on_error="return")
            try:
                answer = (await asyncio.wait_for(broadcast, INSTALL_TIMEOUT_S))[worker]
            except TimeoutError:
                answer = TimeoutError(f"the worker did not answer within {INSTALL_TIMEOUT_S:.0f} s")
            if isinstance(answer, Mapping) and answer.get("status") == "OK":
                if refusal := self._refused.get(worker):  # it had asked by itself
                    failed[worker] = _refusal(refusal)
                return
            failed[worker] = self._refuse(worker, _explained(_said(answer), worker))

        await asyncio.gather(*map(install_on, workers))
        return failed

    def _refuse(self, worker: str, error: SwarmError) -> Reply:
        """Remember and tell once why a worker has no agents."""
        is_news = str(self._refused.get(worker, "")) != str(error)
        self._bound(self._refused)
        self._refused[worker] = error
        if is_news and worker in self._scheduler.workers:
            self._publish(AgentRefused(at_s=time.time(), worker=worker, reason=str(error)))
        return _refusal(error)

    # -- checks ------------------------------------------------------------------------------------------------

    def _check_versions(
        self, clients: Mapping[str, str] | None = None, workers: Mapping[str, str] | None = None
    ) -> None:
        known = {worker: hello.version for worker, hello in self._hellos.items()}
        line = mismatch(swarm.__version__, {**self._clients, **(clients or {})}, {**known, **(workers or {})})
        if line:
            raise VersionMismatchError(line)

    def _check_settings(self, explicit: dict[str, Any], where: str) -> None:
        if not isinstance(explicit, Mapping):
            raise SettingsError(f"the settings {where} are a {type(explicit).__name__}, must be a mapping")
        if differences := conflicts(explicit, self._resolved.settings):
            raise conflict_error(differences, scheduler=self._scheduler.address, where=where)

    def _bound(self, known: dict[str, Any]) -> None:
        unclaimed = [worker for worker in known if worker not in self._scheduler.workers]
        for worker in unclaimed[: max(0, len(unclaimed) - UNCLAIMED_HELLOS)]:
            del known[worker]


def _process(said: Sequence[Any] | None) -> tuple[int, float, str] | None:
    match said:
        case [int() as pid, float() as created_s, str() as place]:
            return pid, created_s, place
    return None


def _started(worker: str, hello: Hello, at_s: float) -> AgentStarted:
    return AgentStarted(at_s=at_s, worker=worker, agents=hello.agents, version=hello.version, absent=hello.absent)


def _refusal(error: SwarmError) -> Reply:
    return {"error": type(error).__name__, "message": str(error)}


def _said(answer: object) -> str:
    """The repr of what a worker raised: the scheduler's comms leave the exception itself pickled."""
    if isinstance(answer, Mapping):
        return str(answer.get("exception_text"))
    return str(answer) if type(answer) is Exception else repr(answer)  # Dask wraps the repr of an uncaught one


def _explained(said: str, worker: str) -> SwarmError:
    """What a person should know of an installation that failed."""
    name, _, rest = said.partition("(")
    try:
        message = str(ast.literal_eval(rest.removesuffix(")")))
    except (ValueError, SyntaxError):  # an exception that prints itself in a way of its own
        name = message = said
    if name == ModuleNotFoundError.__name__:
        install = f"install dask-swarm=={swarm.__version__} there, or remove that worker"
        return MissingPackageError(f"worker {worker} can't import swarm ({message}); {install}")
    if isinstance(kind := getattr(errors, name, None), type) and issubclass(kind, SwarmError):
        return kind(message)
    return SwarmError(f"worker {worker} could not start its agents: {said}; see its log")
