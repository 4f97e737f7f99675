"""A simulated worker process: Dask's own worker state machine, with a model where the world would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import parse_bytes
from distributed.core import Status
from distributed.worker_state_machine import (
    AcquireReplicasEvent,
    CancelComputeEvent,
    Execute,
    FindMissingEvent,
    FreeKeysEvent,
    GatherDep,
    PauseEvent,
    RefreshWhoHasEvent,
    RemoveReplicasEvent,
    RemoveWorkerEvent,
    RetryBusyWorkerEvent,
    RetryBusyWorkerLater,
    SendMessageToScheduler,
    StateMachineEvent,
    StealRequestEvent,
    UnpauseEvent,
)

from swarm.errors import TwinError
from swarm.twin.computing import Computing
from swarm.twin.machine import Compute, Machine
from swarm.twin.models import Cost, Key, WorkerModel
from swarm.twin.network import SCHEDULER, Fabric, Process
from swarm.twin.peers import Peers
from swarm.twin.store import Store
from swarm.twin.wire import Stream

if TYPE_CHECKING:
    from swarm.twin.clock import VirtualLoop
    from swarm.twin.record import Recorder

STREAM_INTERVAL_S = 0.002
"""`Worker.batched_stream`."""
FIND_MISSING_S = 1.0
"""First call of `Worker.find_missing`; the others come with the heartbeats."""
RETRY_BUSY_S = 0.15
"""`Worker.retry_busy_worker_later`."""


STIMULI: dict[str, type[StateMachineEvent]] = {
    "compute-task": Compute,
    "free-keys": FreeKeysEvent,
    "cancel-compute": CancelComputeEvent,
    "acquire-replicas": AcquireReplicasEvent,
    "remove-replicas": RemoveReplicasEvent,
    "steal-request": StealRequestEvent,
    "refresh-who-has": RefreshWhoHasEvent,
}
"""As `Worker.stream_handlers`."""


class SimulatedWorker(Computing):
    """Executes what the state machine asks for, as `distributed.worker.Worker` does, in virtual time.

    Parameters
    ----------
    model
        What the process can do.
    address
        `sim://host:port`.
    fabric
        The network.
    cost_of
        Key and number of the attempt → what the execution takes.
    fleet
        Address → worker, of all that live.
    record
        Is told what happens.
    phase
        Share of the heartbeat interval after which the first one goes out.
    pause_s
        The interval that the scheduler asks for → seconds until the next heartbeat.
    """

    def __init__(
        self,
        model: WorkerModel,
        address: str,
        fabric: Fabric,
        cost_of: Callable[[Key], Cost],
        fleet: dict[str, SimulatedWorker],
        record: Recorder,
        *,
        phase: float = 1.0,
        pause_s: Callable[[float], float] = float,
        validate: bool = False,
        agent: Callable[[SimulatedWorker], Mapping[str, Any] | None] | None = None,
        on_heartbeat: Callable[[SimulatedWorker, dict[str, Any]], None],
        on_end: Callable[[SimulatedWorker, str], None],
    ) -> None:
        super().__init__(model.threads, cost_of, has_agents=agent is not None)
        self.model = model
        self.name = model.name
        self.address = address
        self.fabric = fabric
        self.loop: VirtualLoop = fabric.loop
        self.process: Process = fabric.process(address)
        self.status = Status.init
        self.has_nanny = model.nanny
        """Whether somebody starts the process again when it ends."""
        self.lingers_s = 0.0
        """How long the process outlives its connections when it ends."""
        self.heartbeats_lost = 0
        self.stopped = 0
        """By how many signals (SIGSTOP) its process stands still, as the kernel shows it."""
        self._awaits_answer = False
        self.fleet = fleet
        self.record = record
        self._phase = phase
        self._pause_s = pause_s
        self._agent = agent
        self._on_heartbeat = on_heartbeat
        self._on_end = on_end
        self._heartbeat_interval_s = 0.5
        self._stream = Stream(fabric, address, SCHEDULER, STREAM_INTERVAL_S, self._unregistered)
        limit = model.memory.limit_bytes
        self.store = Store(self) if limit else None
        """None without a memory limit: then nothing is spilled, and nothing counted."""
        self.state = Machine(
            nthreads=model.threads,
            address=address,
            data={} if self.store is None else self.store,
            resources=model.resources,
            validate=validate,
            transfer_incoming_count_limit=int(dask.config.get("distributed.worker.connections.incoming")),
            transfer_incoming_bytes_limit=0.1 * limit if limit else math.inf,
            transfer_message_bytes_limit=parse_bytes(
                dask.config.get("distributed.worker.transfer.message-bytes-limit")
            ),
        )
        self.peers = Peers(self)
        fleet[address] = self

    @staticmethod
    def _unregistered(batch: list[Any]) -> None:
        raise RuntimeError(f"a worker that is not registered sends {batch}")

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive

    # -- life ------------------------------------------------------------------------------------------------------

    def registered(self, reply: Mapping[str, Any], to_scheduler: Callable[[list[Any]], object]) -> None:
        """The scheduler's answer to the registration has arrived."""
        if not self.is_alive:
            return
        if reply.get("status") != "OK":
            self.close(f"refused: {reply.get('message')}")
            return
        self.status = Status.running
        self._stream = Stream(self.fabric, self.address, SCHEDULER, STREAM_INTERVAL_S, to_scheduler)
        self._heartbeat_interval_s = float(reply["heartbeat-interval"])
        now_s = self.loop.now_s
        self.loop.schedule(now_s + self._phase * self._pause_s(self._heartbeat_interval_s), self._beat)
        self.loop.schedule(now_s + FIND_MISSING_S, self._find_missing)
        self.check_memory()

    def registration(self) -> dict[str, Any]:
        """What `Worker._register_with_scheduler` sends."""
        model = self.model
        return {
            "address": self.address,
            "status": Status.running.name,
            "nthreads": model.threads,
            "name": self.name,
            "now": self.loop.now_s,
            "resources": dict(model.resources),
            "memory_limit": model.memory.limit_bytes or None,
            "local_directory": "",
            "services": {},
            "nanny": self.nanny_address if model.nanny else None,
            "pid": 0,
            "versions": {},
            "metrics": self._metrics(),
            "extra": {},
            "stimulus_id": f"worker-connect-{self.loop.now_s}",
            "server_id": f"Worker-{self.address}",
        }

    @property
    def nanny_address(self) -> str:
        scheme_host, _, port = self.address.rpartition(":")
        return f"{scheme_host}:{int(port) + 20_000}"

    def close(self, reason: str) -> None:
        """As `Worker.close`, which tells its nanny to end as well, whatever the reason."""
        self.has_nanny = False
        self.end(reason)

    def end(self, reason: str) -> None:
        """The process ends; whoever waits for it is told by the network."""
        if not self.is_alive:
            return
        self.status = Status.closed
        for execution in self.executions.values():
            execution.plan += 1
            self.record.stopped(self, execution, "lost")
        self.executions.clear()
        self._stream.abort()
        self.fleet.pop(self.address, None)
        self.fabric.kill(self.process)
        self._on_end(self, reason)

    # -- messages from the scheduler ---------------------------------------------------------------------------------

    def receive(self, batch: list[Any]) -> None:
        """A batch of the scheduler's stream."""
        stimuli: list[StateMachineEvent] = []
        for message in batch:
            op = message["op"]
            kind = STIMULI.get(op)
            if kind is not None:
                arguments = dict(message)
                del arguments["op"]
                if op == "compute-task":
                    arguments["run_spec"] = message["run_spec"].data
                stimuli.append(kind(**arguments))
                continue
            if stimuli:  # in the order in which they were sent
                self.handle(*stimuli)
                stimuli = []
            if op == "worker-status-change":
                self.set_status(Status.lookup[message["status"]], message["stimulus_id"])  # type: ignore[attr-defined]
            elif op == "remove-worker":
                self.handle(RemoveWorkerEvent(worker=message["worker"], stimulus_id=message["stimulus_id"]))
                self.peers.lost(message["worker"])  # `Worker._handle_remove_worker` closes its connections
            elif op == "close":
                self.close(str(message.get("reason", "scheduler-close")))
                return
            elif op != "close-stream":
                raise TwinError(f"a simulated worker does not know the message {op!r} of the scheduler")
        if stimuli:
            self.handle(*stimuli)

    def set_status(self, status: Status, stimulus_id: str) -> None:
        """As the setter of `Worker.status`."""
        if status is self.status:
            return
        was, self.status = self.status, status
        if self._stream is not None:
            self._stream.send({"op": "worker-status-change", "status": status.name, "stimulus_id": stimulus_id})
        if was is Status.running:
            self.handle(PauseEvent(stimulus_id=stimulus_id))
        elif status is Status.running and was in (Status.paused, Status.closing_gracefully):
            self.handle(UnpauseEvent(stimulus_id=stimulus_id))

    def handle(self, *stimuli: StateMachineEvent) -> None:
        if not self.is_alive:
            return
        send = self._stream.send
        for instruction in self.state.handle_stimulus(*stimuli):
            if not self.process.is_alive:  # what it was told before has used up its memory
                return
            if isinstance(instruction, SendMessageToScheduler):
                send(instruction.to_dict())
            elif isinstance(instruction, Execute):
                self._execute(instruction.key)
            elif isinstance(instruction, GatherDep):
                self.peers.gather(instruction)
            elif isinstance(instruction, RetryBusyWorkerLater):
                self.loop.schedule(self.loop.now_s + RETRY_BUSY_S, self._retry_busy, instruction.worker)
            else:
                raise TwinError(f"a simulated worker does not know the instruction {instruction!r} of Dask")
        if self.store is not None:
            self.check_memory()

    def _retry_busy(self, peer: str) -> None:
        self.local(self.handle, RetryBusyWorkerEvent(worker=peer, stimulus_id=f"retry-busy-{self.loop.now_s}"))

    def local(self, call: Callable[..., object], *arguments: Any) -> None:
        """Something of the worker's own event loop is due: it waits while the loop stands still."""
        if self.process.frozen:
            self.process.backlog.append((call, arguments))
        elif self.is_alive:
            self.fabric.handle(call, *arguments)

    def _find_missing(self) -> None:
        if not self.is_alive:
            return
        if self.process.frozen:
            self.process.backlog.append((self._find_missing, ()))
            return
        if self.state.missing_dep_flight:
            self.local(self.handle, FindMissingEvent(stimulus_id=f"find-missing-{self.loop.now_s}"))
        self.loop.schedule(self.loop.now_s + self._heartbeat_interval_s, self._find_missing)

    # -- heartbeats ------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Send a heartbeat, unless the last one is not answered yet, and plan the next one."""
        if not self.is_alive:
            return
        if self.process.frozen:
            self.process.backlog.append((self._beat, ()))
            return
        self.loop.schedule(self.loop.now_s + self._pause_s(self._heartbeat_interval_s), self._beat)
        if self._awaits_answer or self.status not in (Status.running, Status.paused, Status.closing_gracefully):
            return
        now_s = self.loop.now_s
        message = {
            "address": self.address,
            "now": now_s,
            "metrics": self._metrics(),
            "executing": {key: max(0.0, now_s - e.computes_from_s) for key, e in self.executions.items()},
            "extensions": dict(self._agent(self) or {}) if self._agent else {},
        }
        if not self.heartbeats_lost:
            self._awaits_answer = self.fabric.carry(self.address, SCHEDULER, 0, 1, self._on_heartbeat, self, message)

    def hear_heartbeats_again(self) -> None:
        """One fault less that loses them."""
        self.heartbeats_lost -= 1

    def heartbeat_answered(self, reply: Mapping[str, Any]) -> None:
        self._awaits_answer = False
        if reply["status"] == "missing":
            self.close("worker-heartbeat-missing")
        else:
            self._heartbeat_interval_s = float(reply["heartbeat-interval"])
            self.peers.bandwidth_by_peer.clear()

    def _metrics(self) -> dict[str, Any]:
        """As `Worker.get_metrics`, of the model."""
        state = self.state
        spilled_bytes = self.store.spilled_bytes if self.store is not None else 0
        return {
            "task_counts": state.task_counter.current_count(by_prefix=False),
            "bandwidth": {
                "total": self.peers.bandwidth,
                "workers": dict(self.peers.bandwidth_by_peer),
                "types": {},
            },
            "digests_total_since_heartbeat": {},
            "managed_bytes": state.nbytes,
            "spilled_bytes": {"memory": spilled_bytes, "disk": spilled_bytes},
            "transfer": {
                "incoming_bytes": state.transfer_incoming_bytes,
                "incoming_count": state.transfer_incoming_count,
                "incoming_count_total": state.transfer_incoming_count_total,
                "outgoing_bytes": 0,
                "outgoing_count": self.peers.outgoing,
                "outgoing_count_total": 0,
            },
            "event_loop_interval": 0.02,
            "cpu": 100.0 * len(self.executions),
            "memory": self.memory_bytes,
            "time": self.loop.now_s,
            "host_net_io": {"read_bps": 0.0, "write_bps": 0.0},
            "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
            "num_fds": 0,
        }

    # -- memory ----------------------------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        """Of the process."""
        if self.store is not None:
            return self.store.used_bytes
        return self.model.memory.baseline_bytes + self.state.nbytes

    @property
    def peak_bytes(self) -> int:
        return self.store.peak_bytes if self.store is not None else 0

    def check_memory(self) -> None:
        """Something came or went."""
        if self.store is not None and self.is_alive:
            self.store.check()
