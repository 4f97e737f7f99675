"""Small real Dask clusters inside the test's process and event loop, over TCP: quick, and all parts within reach."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import dask
from distributed import Client, Scheduler, Worker

from scheduler_plugins.on_dask.plugin import SwarmPlugin
from swarm.client import Swarm
from swarm.protocol import Event
from tests.support.waiting import eventually

T = TypeVar("T")

AGENTS = "swarm.agents"
ANYWHERE: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
"""Options of a scheduler that is in nobody's way."""


@dataclass
class Cluster:
    """A scheduler and its workers; whoever joins is closed with it."""

    scheduler: Scheduler
    workers: list[Worker] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> str:
        return str(self.scheduler.address)

    @property
    def plugin(self) -> SwarmPlugin:
        return cast("SwarmPlugin", self.scheduler.plugins["swarm"])

    async def join(self, *, agents: bool = False, **options: Any) -> Worker:
        """Add a worker, with agents as by `--preload swarm.agents`."""
        defaults: dict[str, Any] = {"nthreads": 1, "host": "127.0.0.1", "name": f"w{len(self.workers)}"}
        preload = [AGENTS] if agents else []
        worker = Worker(self.address, preload=preload, dashboard=False, **{**defaults, **options})
        self.workers.append(worker)
        await self.stack.enter_async_context(worker)
        if agents:
            await eventually(lambda: not _under_way("_once_joined"), "the agents of the worker have started, or not")
        return worker

    async def client(self) -> Client:
        client = Client(self.address, asynchronous=True, set_as_default=False)
        return cast("Client", await self.stack.enter_async_context(client))

    async def swarm(self, client: Client | None = None, **options: Any) -> Swarm:
        """Connect as a user does."""
        swarm: Swarm = await Swarm(client or await self.client(), **options)
        self.stack.push_async_callback(swarm.close)
        return swarm

    async def hears(self, client: Client) -> None:
        """Wait until the scheduler knows that the client listens; Dask sends a subscription without an answer."""
        topic = self.scheduler._broker._topics["swarm"]
        await eventually(lambda: client.id in topic.subscribers, f"{client.id} has subscribed")

    async def heartbeat(self) -> None:
        """Every worker takes a sample and sends it now; the regular heartbeat comes twice a second."""
        for worker in self.workers:
            if host := worker.extensions.get("swarm"):
                for agent in host.agents:
                    agent._on_time()
            await worker.heartbeat()


@asynccontextmanager
async def cluster(
    *,
    workers: int = 1,
    agents: bool = False,
    swarm: bool = False,
    settings: Mapping[str, Any] | None = None,
    dashboard: bool = False,
) -> AsyncIterator[Cluster]:
    """A cluster of `workers` with one thread each.

    Parameters
    ----------
    agents
        Start the workers with `--preload swarm.agents`.
    swarm
        Start the scheduler with `--preload scheduler_plugins`, and with `settings` as its own.
    """
    preload = ["scheduler_plugins"] if swarm else []
    with dask.config.set({"swarm": dict(settings or {})}):
        scheduler = await Scheduler(preload=preload, dashboard=dashboard, validate=True, **ANYWHERE)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(scheduler.close)
        running = Cluster(scheduler, stack=stack)
        for _ in range(workers):
            await running.join(agents=agents)
        yield running
        await eventually(
            lambda: not _under_way("Membership._install_one"),
            "no agents are being installed, which would hold connections",
        )


def _under_way(function: str) -> bool:
    """Is there a task of this event loop that runs the coroutine function of that name?"""
    return any(getattr(task.get_coro(), "__qualname__", "") == function for task in asyncio.all_tasks())


@contextlib.contextmanager
def own_settings(**values: Any) -> Iterator[None]:
    """What is started inside finds these settings in its Dask configuration."""
    with dask.config.set({"swarm": values}):
        yield


class Listener:
    """Collects the events that the scheduler publishes to a client."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def heard(self, kind: type[Any], **having: Any) -> Any:
        """The first event of this kind with these fields, also one that comes later."""

        def fits() -> list[Any]:
            return [e for e in self.of(kind) if all(getattr(e, name) == value for name, value in having.items())]

        return (await eventually(fits, f"{kind.__name__} is published"))[0]


_gate = threading.Event()


def held(value: T, timeout_s: float = 30.0) -> T:
    """A task that ends when the test opens the gate."""
    if not _gate.wait(timeout_s):
        raise TimeoutError(f"the gate was not opened within {timeout_s:g} s")
    return value


@contextlib.contextmanager
def closed_gate() -> Iterator[threading.Event]:
    """Tasks that are `held` wait inside; `set()` lets them go."""
    _gate.clear()
    try:
        yield _gate
    finally:
        _gate.set()
