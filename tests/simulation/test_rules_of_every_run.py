"""The rules that every run must keep can be broken: each is broken on purpose here, and seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from distributed.worker_state_machine import UpdateDataEvent

from swarm import twin
from swarm.errors import InvariantError, TwinError
from swarm.twin.computing import Execution
from swarm.twin.faults import Crash
from swarm.twin.fleet import Fleet
from swarm.twin.isolated import simulate_isolated
from swarm.twin.models import MIB, Constant, Cost, Memory
from swarm.twin.store import Result, Store
from swarm.twin.worker import SimulatedWorker
from tests.support.twin_runs import ideal

WORK = twin.layered(3, 4, Constant(0.1))


def broken(work: twin.Work = WORK, **options: Any) -> str:
    with pytest.raises(InvariantError) as caught:
        twin.simulate(work, ideal(3, 2), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def after(monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[SimulatedWorker, Any], object]) -> None:
    """Let a method of workers do something more at its end."""
    own = getattr(SimulatedWorker, name)

    def both(self: SimulatedWorker, argument: Any) -> Any:
        answer = own(self, argument)
        then(self, argument)
        return answer

    monkeypatch.setattr(SimulatedWorker, name, both)


def test_nothing_is_broken_when_nothing_is_broken() -> None:
    assert twin.simulate(WORK, ideal(3, 2), gather=True, validate=True).status == "finished"


def test_a_worker_that_loses_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(worker: SimulatedWorker, execution: Execution) -> None:
        if execution.key == WORK.wanted[0]:
            worker.state.data.pop(execution.key)  # type: ignore[attr-defined]

    after(monkeypatch, "_report", lose)
    assert f"wanted task {WORK.wanted[0]!r} has 0 different results" in broken()


def test_a_task_that_begins_without_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimulatedWorker._execute

    def without_input(self: SimulatedWorker, key: str) -> None:
        data: Any = self.state.data
        hidden = {dep.key: data.pop(dep.key) for dep in self.state.tasks[key].dependencies}
        own(self, key)
        data.update(hidden)

    monkeypatch.setattr(SimulatedWorker, "_execute", without_input)
    assert "began on w" in (told := broken())
    assert "without 'layer" in told


def test_two_tasks_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def free_at_once(worker: SimulatedWorker, key: str) -> None:
        worker._free_lanes[:] = [0, 0]

    after(monkeypatch, "_execute", free_at_once)
    assert "began on a busy thread of w" in broken()


def test_more_tasks_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_is_free(worker: SimulatedWorker, key: str) -> None:
        worker._free_lanes.clear()

    after(monkeypatch, "_execute", none_is_free)
    assert "began on a busy thread of w" in broken()


def test_a_worker_above_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "check", lambda self: None)
    work = twin.independent(20, Constant(0.1), output_bytes=100 * MIB)
    with pytest.raises(InvariantError, match=r"w0 used \d+ bytes, its limit is 1073741824"):
        twin.simulate(work, ideal(1, memory=Memory(1024 * MIB)))


def test_a_worker_that_was_above_its_limit_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedWorker, "end", lambda self, reason: None)
    work = twin.made_up([("big", (), Cost(1.0, 28, 2000 * MIB))])
    with pytest.raises(InvariantError, match=r"w0 used \d+ bytes, its limit is 1073741824"):
        twin.simulate(work, ideal(1, memory=Memory(1024 * MIB)))


def test_a_result_that_was_made_twice_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(worker: SimulatedWorker, execution: Execution) -> None:
        if execution.key == "layer0-0" and worker.record.done["layer0-0"] == 1:
            worker.record.done["layer0-0"] += 1

    after(monkeypatch, "_report", again)
    assert "'layer0-0' finished 2 times, and nothing had failed" in broken()


def test_a_result_that_nobody_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(worker: SimulatedWorker, execution: Execution) -> None:
        worker.record.done.pop("layer0-0", None)

    after(monkeypatch, "_report", forget)
    assert "'layer0-0' is needed and never finished" in broken(twin.layered(3, 2, Constant(0.1)))


def test_two_results_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a result that is not a copy."""
    key = WORK.wanted[0]

    def elsewhere(worker: SimulatedWorker, execution: Execution) -> None:
        if execution.key == key:
            other = next(w for w in worker.fleet.values() if w is not worker)
            worker.loop.schedule(worker.loop.now_s + 0.2, forge, other)

    def forge(worker: SimulatedWorker) -> None:
        worker.handle(UpdateDataEvent(data={key: Result(key, 28, "nobody", 12345)}, stimulus_id="forged"))
        worker._stream.send({"op": "add-keys", "keys": [key], "stimulus_id": "forged"})

    after(monkeypatch, "_report", elsewhere)
    slow_end = twin.made_up(
        [*((k, sorted(WORK.dependencies[k]), c) for k, c in WORK.costs.items()), ("x", (), Cost(1.0))]
    )
    assert f"wanted task {key!r} has 2 different results" in broken(slow_end)


def test_the_wrong_result_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(worker: SimulatedWorker, execution: Execution) -> None:
        data: Any = worker.state.data
        if execution.key in data:
            data[execution.key].key = "another"

    after(monkeypatch, "_report", swap)
    assert "gathered <result of 'another'" in broken(gather=True)


def test_dasks_own_validation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(worker: SimulatedWorker, execution: Execution) -> None:
        worker.state.nbytes = -1

    after(monkeypatch, "_report", spoil)
    assert "Dask's own validation fails: AssertionError" in broken()


def test_it_may_be_left_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    after(monkeypatch, "_report", lambda worker, execution: worker.state.data.pop(execution.key))  # type: ignore[attr-defined]
    assert twin.simulate(twin.independent(3), ideal(1), checked=False).status == "finished"


def test_an_error_of_a_run_in_another_process_is_the_same_error() -> None:
    with pytest.raises(TwinError, match="there are no workers") as caught:
        simulate_isolated(twin.independent(2), ideal(1), faults=[Crash(worker="w0", at_s=0.0)])
    assert type(caught.value).__name__ == "DeadlockError"
    assert caught.value.case is not None
    assert caught.value.case.work.name == "2 independent tasks"


def test_an_error_in_a_coroutine_that_nobody_awaits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Fleet, worker: SimulatedWorker) -> None:
        await own(self, worker)
        raise ZeroDivisionError("unheard")

    own = Fleet._registration
    monkeypatch.setattr(Fleet, "_registration", fails)
    assert "ZeroDivisionError: unheard" in broken()
