"""What memory a task took: whose growth it was, and where that cannot be told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Worker

from swarm.agents.watch import task_memory
from swarm.agents.watch.task_memory import ProcessMemory, TaskMemory

MB = 10**6


class Process(ProcessMemory):
    """A process whose memory the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_now = 100 * MB
        self.reads = 0

    def _read(self) -> int:
        self.reads += 1
        return self.bytes_now


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class World:
    """A worker, what it runs, and its agent; `passes` lets time pass with the process at a size."""

    def __init__(self, process: Process, clock: Clock) -> None:
        self.process, self.clock = process, clock
        self.state = SimpleNamespace(transfer_incoming_count=0, tasks={}, all_running_tasks=[])
        self.memory = TaskMemory(process)
        self.memory.start(self.worker)

    @property
    def worker(self) -> Worker:
        return cast("Worker", SimpleNamespace(state=self.state))

    def starts(self, key: str) -> None:
        self.state.tasks[key] = SimpleNamespace(metadata={})
        self.memory.transition(key, "waiting", "ready")
        self.memory.transition(key, "ready", "executing")

    def passes(self, seconds: float, *sizes_mb: float) -> None:
        for size in sizes_mb or (self.process.bytes_now / MB,):
            self.clock.now_s += seconds
            self.process.bytes_now = round(size * MB)
            self.memory._on_time()

    def ends(self, key: str, finish: str = "memory", start: str = "executing") -> dict[str, Any] | None:
        self.memory.transition(key, start, finish)
        found: dict[str, Any] | None = self.state.tasks[key].metadata.get("swarm")
        return found


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(task_memory, "time", clock)
    world = World(Process(), clock)
    yield world
    world.memory.stop()
    assert not world.process.running


async def test_the_peak_of_a_task_alone_is_what_the_process_grew_by(world: World) -> None:
    world.starts("x")
    world.passes(0.02, 150, 450, 120)
    assert world.ends("x") == {"peak_bytes": 350 * MB}


async def test_a_short_task_is_not_looked_at(world: World) -> None:
    world.starts("x")
    world.passes(0.02, 400)
    assert world.ends("x") is None


async def test_what_falls_was_somebody_elses(world: World) -> None:
    """The result of the task before goes away while this one begins."""
    world.process.bytes_now = 500 * MB
    world.starts("x")
    world.passes(0.02, 500, 100, 250, 100)
    assert world.ends("x") == {"peak_bytes": 150 * MB}


async def test_of_two_at_once_there_is_only_a_bound(world: World) -> None:
    world.starts("x")
    world.passes(0.02, 200, 200, 200)
    world.starts("y")
    world.passes(0.02, 700, 700, 700)
    assert world.ends("x") == {"peak_at_most_bytes": 600 * MB}
    assert world.ends("y") == {"peak_at_most_bytes": 500 * MB}
    world.starts("z")
    world.passes(0.02, 710, 710, 710)
    assert world.ends("z") == {"peak_bytes": 10 * MB}


async def test_inputs_that_arrive_for_others_make_it_a_bound(world: World) -> None:
    world.starts("x")
    world.passes(0.03, 200)
    world.state.transfer_incoming_count = 1
    world.passes(0.03, 300)
    world.state.transfer_incoming_count = 0
    world.passes(0.03, 300)
    assert world.ends("x") == {"peak_at_most_bytes": 200 * MB}


async def test_workers_in_one_process_know_of_each_other(world: World) -> None:
    other = World(world.process, world.clock)
    world.starts("x")
    other.starts("x")
    world.passes(0.1, 300)
    assert world.ends("x") == {"peak_at_most_bytes": 200 * MB}
    assert other.ends("x") == {"peak_at_most_bytes": 200 * MB}
    other.memory.stop()


@pytest.mark.parametrize("finish", ["error", "rescheduled", "released"])
async def test_a_task_without_a_result_leaves_nothing(world: World, finish: str) -> None:
    world.starts("x")
    world.passes(0.1, 300)
    assert world.ends("x", finish) is None
    assert not world.process.running


async def test_a_cancelled_task_still_takes_memory_until_its_thread_is_free(world: World) -> None:
    world.starts("x")
    world.memory.transition("x", "executing", "cancelled")
    world.starts("y")
    world.passes(0.1, 300)
    assert world.ends("x", "released", "cancelled") is None
    assert world.ends("y") == {"peak_at_most_bytes": 200 * MB}


async def test_a_task_that_has_seceded_is_followed_to_its_end(world: World) -> None:
    world.starts("x")
    world.memory.transition("x", "executing", "long-running")
    world.passes(0.1, 300)
    assert world.ends("x", start="long-running") == {"peak_bytes": 200 * MB}


async def test_states_of_tasks_that_never_ran_here_mean_nothing(world: World) -> None:
    for start, finish in (("flight", "cancelled"), ("cancelled", "released"), ("resumed", "memory")):
        world.memory.transition("z", start, finish)
    assert not world.process.running


async def test_many_short_tasks_are_not_each_worth_a_reading(world: World) -> None:
    before = world.process.reads
    for i in range(1000):
        world.starts(f"{i}")
        world.clock.now_s += 0.0001
        world.ends(f"{i}")
    assert world.process.reads - before <= 0.1 / task_memory.FRESH_S + 1


async def test_beside_a_task_that_ran_before_the_agents_a_peak_is_a_bound(world: World) -> None:
    world.memory.stop()
    world.state.tasks["early"] = early = SimpleNamespace(key="early", metadata={})
    world.state.all_running_tasks.append(early)
    world.memory.start(world.worker)
    world.starts("beside")
    world.passes(0.1, 300)
    assert world.ends("beside") == {"peak_at_most_bytes": 200 * MB}
    assert world.ends("early") is None
    world.starts("alone")
    world.passes(0.1, 500)
    assert world.ends("alone") == {"peak_bytes": 200 * MB}


async def test_where_memory_cannot_be_read_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ProcessMemory) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(ProcessMemory, "_read", broken)
    memory = TaskMemory(ProcessMemory())
    memory.start(cast("Worker", SimpleNamespace(state=None)))
    assert memory.absent is not None
    assert "no" in memory.absent
    memory.transition("x", "ready", "executing")
    memory.transition("x", "executing", "memory")
    memory.stop()


async def test_the_real_reading_is_that_of_this_process() -> None:
    memory = ProcessMemory()
    memory.open()
    before = memory._read()
    block = bytearray(50 * MB)
    assert memory._read() - before == pytest.approx(50 * MB, rel=0.2)
    del block
    memory.close()
    assert memory._statm is None
    await asyncio.sleep(0)
