"""Dask's own scheduler with its two ends replaced: no HTTP server, and workers on simulated streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.http.routing import RoutingApplication

from swarm.twin.comm import SimulatedComm
from swarm.twin.network import SCHEDULER, Fabric
from swarm.twin.wire import Stream

if TYPE_CHECKING:
    from swarm.twin.worker import SimulatedWorker

CONFIRMED = ("ready", "constrained", "waiting")
"""States of a task in which a worker lets go of it (`distributed.stealing._WORKER_STATE_CONFIRM`)."""
STREAM_INTERVAL_S = 0.005
"""`Scheduler.stream_comms`."""
REPORT_INTERVAL_S = 0.002
"""`Scheduler.client_comms`."""


class TwinScheduler(Scheduler):
    """The real scheduler. Overrides what touches the world, and nothing that decides."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """A simulation has no pages; what adds some finds Dask's application, which nothing serves."""
        self.http_application = RoutingApplication()

    async def handle_worker(self, comm: Any, worker: str) -> None:
        """Put a simulated stream in the place of `BatchedSend`; what waits in that one goes first."""
        waiting = self.stream_comms[worker].buffer
        self.stream_comms[worker] = comm.stream
        if waiting:
            comm.stream.send(*waiting)


def report_by_stream(scheduler: Scheduler, fabric: Fabric, client: str) -> None:
    """Put a simulated stream in the place of the `BatchedSend` on which a client is told what became of its tasks."""
    comm = scheduler.client_comms[client].comm
    assert isinstance(comm, SimulatedComm)
    arrived = comm.other._arrived
    streams: dict[str, Any] = scheduler.client_comms
    streams[client] = Stream(fabric, SCHEDULER, comm.peer_address, REPORT_INTERVAL_S, arrived)


class Registration:
    """Stands for the comm on which a worker registers: takes the answer back to it."""

    def __init__(
        self, scheduler: TwinScheduler, fabric: Fabric, worker: SimulatedWorker, on_steal: Callable[[], None]
    ) -> None:
        self._on_steal = on_steal
        self._scheduler = scheduler
        self._fabric = fabric
        self._worker = worker
        self.stream = Stream(fabric, SCHEDULER, worker.address, STREAM_INTERVAL_S, worker.receive)
        self.name = ""

    async def write(self, message: dict[str, Any], **kwargs: Any) -> int:
        self._fabric.carry(SCHEDULER, self._worker.address, 0, 1, self._worker.registered, message, self.receive)
        return 1

    def receive(self, batch: list[Any]) -> None:
        """A batch of the worker's stream, as `Server.handle_stream`."""
        handlers, address = self._scheduler.stream_handlers, self._worker.address
        for message in batch:
            op = message.pop("op")
            if op == "steal-response" and message["state"] in CONFIRMED:
                self._on_steal()
            handlers[op](worker=address, **message)

    @property
    def peer_address(self) -> str:
        return self._worker.address


class GraphCharge(SchedulerPlugin):
    """Charges the scheduler's CPU for the graph when it arrives; the first plugin, so that all that follows waits.

    It is the only graph, and afterwards Dask would tell the plugin of every transition: so it goes.
    """

    name = "swarm-twin-graph-charge"

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def update_graph(self, scheduler: Scheduler, *, tasks: Any, **kwargs: Any) -> None:
        self._fabric.charge_scheduler(self._fabric.cpu.graph_task_s * len(tasks))
        scheduler.remove_plugin(self.name)


class ClockSetter(SchedulerPlugin):
    """Lets what the preloads have imported read the virtual clock, before their plugins start, and goes."""

    name = "swarm-twin-clock-setter"

    def __init__(self, patch: Callable[[], None]) -> None:
        self._patch = patch

    async def start(self, scheduler: Scheduler) -> None:
        self._patch()
        scheduler.remove_plugin(self.name)
