"""A simulated worker process: Dask's own worker state machine, with a model where the world would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import parse_bytes
from distributed.core import Status
from distributed.worker_state_machine import (
    AcquireReplicasEvent,
    CancelComputeEvent,
    ComputeTaskEvent,
    Execute,
    ExecuteFailureEvent,
    ExecuteSuccessEvent,
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
    WorkerState,
)

from swarm.twin.models import Cost, Key, WorkerModel
from swarm.twin.network import SCHEDULER, Fabric, Process
from swarm.twin.peers import Peers
from swarm.twin.store import Result, Store
from swarm.twin.wire import Stream

if TYPE_CHECKING:
    from swarm.twin.clock import VirtualLoop
    from swarm.twin.record import Recorder

STREAM_INTERVAL_S = 0.002
"""`Worker.batched_stream`."""
RETRY_BUSY_S = 0.15
"""`Worker.retry_busy_worker_later`."""


class _Compute(ComputeTaskEvent):
    """Makes no copy of itself for a log that keeps nothing here."""

    __slots__ = ()

    def to_loggable(self, *, handled: float) -> StateMachineEvent:
        return self


class _Success(ExecuteSuccessEvent):
    __slots__ = ()

    def to_loggable(self, *, handled: float) -> StateMachineEvent:
        return self


STIMULI: dict[str, type[StateMachineEvent]] = {
    "compute-task": _Compute,
    "free-keys": FreeKeysEvent,
    "cancel-compute": CancelComputeEvent,
    "acquire-replicas": AcquireReplicasEvent,
    "remove-replicas": RemoveReplicasEvent,
    "steal-request": StealRequestEvent,
    "refresh-who-has": RefreshWhoHasEvent,
}
"""As `Worker.stream_handlers`."""


@dataclass(slots=True, eq=False)
class Execution:
    """A task on a thread."""

    number: int
    key: Key
    run_id: int
    cost: Cost
    lane: int
    started_s: float
    left_s: float
    """Work that is left, at speed 1."""
    since_s: float
    """When `left_s` was true."""
    holds_gil: int | None = None
    """The fault that it is the cause of: it goes on while that one stops all others."""
    plan: int = 0
    """Grows when its end moves; an end that was planned before is void."""


class SimulatedWorker:
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
    lateness
        Draws the share of the interval by which a heartbeat is late.
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
        lateness: Callable[[], float] | None = None,
        validate: bool = False,
        agent: Callable[[SimulatedWorker], Mapping[str, Any] | None] | None = None,
        on_heartbeat: Callable[[SimulatedWorker, dict[str, Any]], None],
        on_end: Callable[[SimulatedWorker, str], None],
    ) -> None:
        self.model = model
        self.name = model.name
        self.address = address
        self.fabric = fabric
        self.loop: VirtualLoop = fabric.loop
        self.process: Process = fabric.process(address)
        self.status = Status.init
        self.heartbeats_lost = 0
        self.executed = 0
        self.executions: dict[Key, Execution] = {}
        self._cost_of = cost_of
        self.fleet = fleet
        self.record = record
        self._phase = phase
        self._lateness = lateness
        self._agent = agent
        self._on_heartbeat = on_heartbeat
        self._on_end = on_end
        self._free_lanes = list(range(model.threads - 1, -1, -1))
        self._rate = 1.0
        self._brakes: dict[int, float] = {}
        """Fault → factor by which it slows the worker down; 0 stops it."""
        self._heartbeat_interval_s = 0.5
        self._find_missing_s = 1.0
        self._stream = Stream(fabric, address, SCHEDULER, STREAM_INTERVAL_S, self._unregistered)
        limit = model.memory.limit_bytes
        self.store = Store(self) if limit else None
        """None without a memory limit: then nothing is spilled, and nothing counted."""
        self.state = WorkerState(
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

    def start_clock(self, zero_s: float) -> None:
        """Times of the speed model count from `zero_s`."""
        for at_s, factor in self.model.speed.changes():
            if zero_s + at_s <= self.loop.now_s:
                self._rate = factor
            else:
                self.loop.schedule(zero_s + at_s, self._set_rate, factor)

    # -- life ------------------------------------------------------------------------------------------------------

    def registered(self, reply: Mapping[str, Any], to_scheduler: Callable[[list[Any]], object]) -> None:
        """The scheduler's answer to the registration has arrived."""
        if not self.is_alive:
            return
        if reply.get("status") != "OK":
            self.end(f"refused: {reply.get('message')}")
            return
        self.status = Status.running
        self._stream = Stream(self.fabric, self.address, SCHEDULER, STREAM_INTERVAL_S, to_scheduler)
        self._heartbeat_interval_s = float(reply["heartbeat-interval"])
        now_s = self.loop.now_s
        self.loop.schedule(now_s + self._phase * self._heartbeat_interval_s, self._beat)
        self.loop.schedule(now_s + self._find_missing_s, self._find_missing)

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
        """End in good order, as `Worker.close`."""
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
            elif op == "close":
                self.close(str(message.get("reason", "scheduler-close")))
                return
            elif op != "close-stream":
                raise NotImplementedError(f"the twin's workers do not know the message {op!r} of Dask's scheduler")
        if stimuli:
            self.handle(*stimuli)

    def set_status(self, status: Status, stimulus_id: str) -> None:
        """As the setter of `Worker.status`."""
        if status is self.status:
            return
        was, self.status = self.status, status
        if self._stream is not None:
            self._stream.send({"op": "worker-status-change", "status": status.name, "stimulus_id": stimulus_id})
        if status in (Status.paused, Status.closing_gracefully):
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
                raise NotImplementedError(f"the twin's workers do not know the instruction {instruction!r} of Dask")

    def _retry_busy(self, peer: str) -> None:
        self.local(self.handle, RetryBusyWorkerEvent(worker=peer, stimulus_id=f"retry-busy-{self.loop.now_s}"))

    def local(self, call: Callable[..., object], *arguments: Any) -> None:
        """Something of the worker's own event loop is due: it waits while the loop stands still."""
        if self.process.frozen:
            self.process.backlog.append((call, arguments))
        elif self.is_alive:
            self.fabric.handle(call, *arguments)

    # -- execution -------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Seconds of work per second."""
        rate = self._rate
        for factor in self._brakes.values():
            rate *= factor
        return rate

    def _rate_of(self, execution: Execution) -> float:
        if execution.holds_gil is None:
            return self.rate
        return self._rate * math.prod(factor for fault, factor in self._brakes.items() if fault != execution.holds_gil)

    def _execute(self, key: Key) -> None:
        task = self.state.tasks[key]
        missing = [dep.key for dep in task.dependencies if dep.key not in self.state.data]
        now_s = self.loop.now_s
        cost = self._cost_of(key)
        self.executed += 1
        lane = self._free_lanes.pop() if self._free_lanes else -1
        task.start_time = now_s
        execution = Execution(
            number=self.record.next_execution(),
            key=key,
            run_id=task.run_id,
            cost=cost,
            lane=lane,
            started_s=now_s + self.model.task_overhead_s,
            left_s=cost.work_s,
            since_s=now_s + self.model.task_overhead_s,
        )
        self.executions[key] = execution
        self.record.started(self, execution, missing)
        if self.store is not None:
            execution.since_s += self.store.read_back([dep.key for dep in task.dependencies])
            self.store.running_bytes += cost.peak_bytes
        self._plan(execution)
        self.check_memory()

    def _plan(self, execution: Execution) -> None:
        execution.plan += 1
        rate = self._rate_of(execution)
        if rate > 0:
            self.loop.schedule(execution.since_s + execution.left_s / rate, self._finished, execution, execution.plan)

    def _finished(self, execution: Execution, plan: int) -> None:
        if plan == execution.plan:
            self.local(self._report, execution)

    def _report(self, execution: Execution) -> None:
        key, cost, now_s = execution.key, execution.cost, self.loop.now_s
        if self.executions.get(key) is not execution:
            return
        del self.executions[key]
        self._release(execution)
        task = self.state.tasks.get(key)
        self.record.stopped(self, execution, "done" if task is not None and task.state == "executing" else "unwanted")
        self.handle(
            _Success(
                key=key,
                run_id=execution.run_id,
                value=Result(key, cost.output_bytes, self.name, execution.number),
                start=execution.started_s,
                stop=now_s,
                nbytes=cost.output_bytes,
                type=Result,
                stimulus_id=f"task-finished-{now_s}",
            )
        )
        self.check_memory()

    def _release(self, execution: Execution) -> None:
        """Its thread and its memory are free."""
        if execution.lane >= 0:
            self._free_lanes.append(execution.lane)
        if self.store is not None:
            self.store.running_bytes -= execution.cost.peak_bytes

    def fail(self, key: Key, error: BaseException) -> None:
        """Let a running task raise."""
        execution = self.executions.pop(key)
        execution.plan += 1
        self._release(execution)
        self.record.stopped(self, execution, "erred")
        self.handle(
            ExecuteFailureEvent.from_exception(
                error,
                key=key,
                run_id=execution.run_id,
                start=execution.started_s,
                stop=self.loop.now_s,
                stimulus_id=f"task-erred-{self.loop.now_s}",
            )
        )

    def _retime(self) -> None:
        """The speed is about to change: note what is done so far."""
        now_s = self.loop.now_s
        for execution in self.executions.values():
            worked_s = max(0.0, now_s - execution.since_s) * self._rate_of(execution)
            execution.left_s = max(0.0, execution.left_s - worked_s)
            execution.since_s = max(now_s, execution.since_s)

    def _set_rate(self, factor: float) -> None:
        self._retime()
        self._rate = factor
        for execution in self.executions.values():
            self._plan(execution)

    def brake(self, fault: int, factor: float) -> None:
        """A fault slows the worker's tasks down; 0 stops them."""
        self._retime()
        self._brakes[fault] = factor
        for execution in self.executions.values():
            self._plan(execution)

    def release_brake(self, fault: int) -> None:
        self._retime()
        self._brakes.pop(fault, None)
        for execution in self.executions.values():
            if execution.holds_gil == fault:
                execution.holds_gil = None
            self._plan(execution)

    def _find_missing(self) -> None:
        if not self.is_alive:
            return
        if self.state.missing_dep_flight:
            self.local(self.handle, FindMissingEvent(stimulus_id=f"find-missing-{self.loop.now_s}"))
        self.loop.schedule(self.loop.now_s + max(self._find_missing_s, self._heartbeat_interval_s), self._find_missing)

    def let_one_hold_the_gil(self, fault: int) -> None:
        """One of the running tasks goes on while a fault stops all others."""
        self._retime()
        for execution in list(self.executions.values())[:1]:
            execution.holds_gil = fault

    # -- heartbeats ------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Send a heartbeat and plan the next one."""
        if not self.is_alive:
            return
        late = self._lateness() if self._lateness else 0.0
        self.loop.schedule(self.loop.now_s + self._heartbeat_interval_s * (1.0 + late), self._beat)
        if self.process.frozen or self.status not in (Status.running, Status.paused, Status.closing_gracefully):
            return
        now_s = self.loop.now_s
        message = {
            "address": self.address,
            "now": now_s,
            "metrics": self._metrics(),
            "executing": {key: now_s - e.started_s for key, e in self.executions.items()},
            "extensions": dict(self._agent(self) or {}) if self._agent else {},
        }
        self.peers.bandwidth_by_peer.clear()
        if not self.heartbeats_lost:
            self.fabric.carry(self.address, SCHEDULER, 0, 1, self._on_heartbeat, self, message)

    def hear_heartbeats_again(self) -> None:
        """One fault less that loses them."""
        self.heartbeats_lost -= 1

    def heartbeat_answered(self, reply: Mapping[str, Any]) -> None:
        if reply["status"] == "missing":
            self.close("worker-heartbeat-missing")
        else:
            self._heartbeat_interval_s = float(reply["heartbeat-interval"])

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
