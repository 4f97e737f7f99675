"""A task that raises: Dask's real client hears of it, and what does not need its result goes on."""

from __future__ import annotations

from typing import Any

import pytest

from swarm import twin
from swarm.twin.computing import Execution
from swarm.twin.models import Constant, Cost, Memory
from swarm.twin.worker import SimulatedWorker
from tests.support.twin_runs import SOON_S, executions, ideal


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Key → how many of its executions raise."""
    times: dict[str, int] = {}
    own = SimulatedWorker._report

    def report(self: SimulatedWorker, execution: Execution) -> None:
        if times.get(execution.key, 0) > 0:
            times[execution.key] -= 1
            self.fail(execution.key, ValueError(f"{execution.key} is bad"))
        else:
            own(self, execution)

    monkeypatch.setattr(SimulatedWorker, "_report", report)
    return times


CHAIN = [("a", (), Cost(1.0)), ("b", ("a",), Cost(1.0)), ("c", ("b",), Cost(1.0)), ("alone", (), Cost(5.0))]


def test_an_error_reaches_all_that_depend_on_the_task(raising: dict[str, int]) -> None:
    raising["b"] = 1
    outcome = twin.simulate(twin.made_up(CHAIN), ideal(2), validate=True)
    assert outcome.status == "failed"
    assert outcome.failed == {"c": "ValueError: b is bad"}
    assert not executions(outcome, "c")
    assert [entry.outcome for entry in executions(outcome, "b")] == ["erred"]
    assert outcome.makespan_s == pytest.approx(5.0, abs=SOON_S)  # what does not need it is waited for


def test_a_retry_is_another_execution(raising: dict[str, int]) -> None:
    raising["b"] = 2
    work = twin.made_up(CHAIN, annotations={"retries": {"b": 2}})
    outcome = twin.simulate(work, ideal(2), validate=True)
    assert (outcome.status, outcome.failed) == ("finished", {})
    assert [entry.outcome for entry in executions(outcome, "b")] == ["erred", "erred", "done"]


def test_too_few_retries_are_an_error(raising: dict[str, int]) -> None:
    raising["b"] = 2
    outcome = twin.simulate(twin.made_up(CHAIN, annotations={"retries": {"b": 1}}), ideal(2))
    assert outcome.status == "failed"
    assert len(executions(outcome, "b")) == 2


def test_a_task_that_raised_gives_its_thread_and_its_memory_back(raising: dict[str, int]) -> None:
    """Found here: it kept both for ever."""
    raising.update({f"bad-{i}": 1 for i in range(10)})
    bad: list[Any] = [(f"bad-{i}", (), Cost(1.0, 28, 100 << 20)) for i in range(10)]
    good: list[Any] = [(f"good-{i}", (), Cost(1.0)) for i in range(10)]
    outcome = twin.simulate(twin.made_up([*bad, *good]), ideal(1, 2, memory=Memory(1 << 30)))
    assert len(outcome.failed) == 10
    assert outcome.makespan_s == pytest.approx(10.0, abs=0.2)
    assert {entry.lane for entry in outcome.executions} == {0, 1}
    assert outcome.peak_bytes["w0"] < 400 << 20


def test_retries_of_a_graph_are_kept(raising: dict[str, int]) -> None:
    import dask
    from dask import delayed

    raising["flaky"] = 1
    with dask.annotate(retries=1):
        flaky = delayed(abs)(1, dask_key_name="flaky")
    assert twin.simulate(twin.from_graph(flaky, Constant(1.0)), ideal(1)).status == "finished"
