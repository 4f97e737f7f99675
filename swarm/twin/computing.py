"""The threads of a simulated worker: what runs on them, how fast, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from distributed.worker_state_machine import ExecuteFailureEvent, WorkerState

from swarm.twin.machine import Success
from swarm.twin.models import Cost, Key, WorkerModel
from swarm.twin.store import Result, Store

if TYPE_CHECKING:
    from swarm.twin.clock import VirtualLoop
    from swarm.twin.record import Recorder
    from swarm.twin.worker import SimulatedWorker

AGENTS = "swarm"
SAMPLED_S = 0.05
"""Under this name the agents of a worker say what memory a task took, if it ran that long
(`swarm.agents.watch.task_memory`)."""


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
    computes_from_s: float
    """When its inputs had been read back from disk."""
    holds_gil: int | None = None
    """The fault that it is the cause of: it goes on while that one stops all others."""
    beside_bytes: int = 0
    """What tasks that ran at some time beside it took."""
    plan: int = 0
    """Grows when its end moves; an end that was planned before is void."""


class Computing:
    """The part of a `SimulatedWorker` that executes tasks.

    Parameters
    ----------
    threads
        How many tasks run at a time.
    cost_of
        Key → what its execution takes.
    """

    model: WorkerModel
    name: str
    loop: VirtualLoop
    record: Recorder
    state: WorkerState
    store: Store | None
    handle: Callable[..., None]
    local: Callable[..., None]
    check_memory: Callable[[], None]

    def __init__(self, threads: int, cost_of: Callable[[Key], Cost], *, has_agents: bool = False) -> None:
        self._has_agents = has_agents
        self.executions: dict[Key, Execution] = {}
        self._cost_of = cost_of
        self._free_lanes = list(range(threads - 1, -1, -1))
        self._rate = 1.0
        self._brakes: dict[int, float] = {}
        """Fault → factor by which it slows the worker down; 0 stops it."""

    def start_clock(self, zero_s: float) -> None:
        """Times of the speed model count from `zero_s`."""
        for at_s, factor in self.model.speed.changes():
            if zero_s + at_s <= self.loop.now_s:
                self._rate = factor
            else:
                self.loop.schedule(zero_s + at_s, self._set_rate, factor)

    @property
    def _whole(self) -> SimulatedWorker:
        return cast("SimulatedWorker", self)

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

    def busy_for_s(self) -> float:
        """Seconds until no thread works any more."""
        now_s, ends_s = self.loop.now_s, [0.0]
        for execution in self.executions.values():
            rate = self._rate_of(execution)
            ends_s.append(execution.since_s + execution.left_s / rate - now_s if rate > 0 else math.inf)
        return max(ends_s)

    def _execute(self, key: Key) -> None:
        task = self.state.tasks[key]
        missing = [dep.key for dep in task.dependencies if dep.key not in self.state.data]
        now_s = self.loop.now_s
        if missing and task.state == "cancelled":  # freed before it began: `Worker.execute` finds no input, and raises
            self.local(self._never_began, key, task.run_id, missing[0])
            return
        cost = self._cost_of(key)
        lane = self._free_lanes.pop() if self._free_lanes else -1
        begins_s = computes_from_s = now_s + self.model.task_overhead_s
        if self.store is not None and (read_s := self.store.read_back([dep.key for dep in task.dependencies])):
            computes_from_s += read_s
            task.startstops.append({"action": "disk-read", "start": begins_s, "stop": computes_from_s})
        task.start_time = computes_from_s
        execution = Execution(
            number=self.record.next_execution(),
            key=key,
            run_id=task.run_id,
            cost=cost,
            lane=lane,
            started_s=begins_s,
            left_s=cost.work_s,
            since_s=computes_from_s,
            computes_from_s=computes_from_s,
        )
        for other in self.executions.values():
            other.beside_bytes += cost.peak_bytes + cost.output_bytes
            execution.beside_bytes += other.cost.peak_bytes + other.cost.output_bytes
        self.executions[key] = execution
        self.record.started(self._whole, execution, missing)
        if self.store is not None:
            self.store.running_bytes += cost.peak_bytes
        self._plan(execution)
        self.check_memory()

    def _never_began(self, key: Key, run_id: int, missing: Key) -> None:
        now_s = self.loop.now_s
        self.handle(
            ExecuteFailureEvent.from_exception(
                KeyError(missing), key=key, run_id=run_id, start=now_s, stop=now_s, stimulus_id=f"task-erred-{now_s}"
            )
        )

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
        self.record.stopped(
            self._whole, execution, "done" if task is not None and task.state == "executing" else "unwanted"
        )
        if task is not None and self.store is not None and self._has_agents and cost.work_s >= SAMPLED_S:
            what = "peak_at_most_bytes" if execution.beside_bytes else "peak_bytes"
            task.metadata[AGENTS] = {what: cost.peak_bytes + cost.output_bytes + execution.beside_bytes}
        self.handle(
            Success(
                key=key,
                run_id=execution.run_id,
                value=Result(key, cost.output_bytes, self.name, execution.number),
                start=execution.computes_from_s,
                stop=now_s,
                nbytes=cost.output_bytes,
                type=Result,
                stimulus_id=f"task-finished-{now_s}",
            )
        )

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
        self.record.stopped(self._whole, execution, "erred")
        self.handle(
            ExecuteFailureEvent.from_exception(
                error,
                key=key,
                run_id=execution.run_id,
                start=execution.computes_from_s,
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

    def let_one_hold_the_gil(self, fault: int) -> None:
        """One of the running tasks goes on while a fault stops all others."""
        self._retime()
        for execution in list(self.executions.values())[:1]:
            execution.holds_gil = fault
