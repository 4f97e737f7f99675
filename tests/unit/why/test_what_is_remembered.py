"""What is remembered of tasks: in order, for so many, and nothing that goes wrong in it reaches Dask."""

from __future__ import annotations

import random

import pytest
from distributed.scheduler import TaskState, WorkerState

from scheduler_plugins.decide.load import Given, Load
from scheduler_plugins.decide.placement import Choice
from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask.estimates import Estimates
from scheduler_plugins.on_dask.why import BATCH, MOST_ENTRIES, Why
from swarm.story import named
from tests.support.scheduler_tasks import Tasks, details


def work(number: int = 0) -> None:
    """A function that is never called."""


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def estimates(tasks: Tasks) -> Estimates:
    return Estimates(tasks.scheduler, Costs(random.Random(0)))


@pytest.fixture
def why(estimates: Estimates) -> Why:
    return Why(estimates)


def run(why: Why, task: TaskState, worker: WorkerState, took_s: float = 0.1) -> None:
    """All that a task goes through when all goes well."""
    why.transition(task, "waiting", "queued", {})
    why.chosen(Choice(task, worker, "order"), 1.0)
    why.transition(task, "queued", "processing", {})
    why.transition(task, "processing", "memory", details(took_s) | {"worker": worker.address})


def whats(why: Why, task: TaskState) -> list[str]:
    return [entry[0] for entry in why.story(task.key)]


def test_a_task_from_ready_to_done(tasks: Tasks, why: Why) -> None:
    first, worker = tasks.task(work), tasks.worker("tcp://a:1")
    second = tasks.task(work, inputs=[first])
    run(why, first, worker)
    run(why, second, worker, 0.25)
    ready, given, done = map(named, why.story(second.key))
    assert ready["last_input"] == first.key
    assert (given["rule"], given["worker"], given["samples"]) == ("order", "tcp://a:1", 0)
    assert done["stop_s"] - done["start_s"] == pytest.approx(0.25)
    assert named(why.story(first.key)[0])["last_input"] is None


def test_the_strategy_is_that_of_the_time_when_the_task_was_given(tasks: Tasks, why: Why) -> None:
    task, worker = tasks.task(work), tasks.worker("tcp://a:1")
    why.strategy = "gravity=4"
    run(why, task, worker)
    why.strategy = None
    given = why.story(task.key)[1]
    assert named(given)["strategy"] == "gravity=4"
    assert named(given[:-1])["strategy"] is None, "an older journal"


def test_a_prediction_is_kept_as_it_was_when_the_task_was_given(tasks: Tasks, estimates: Estimates, why: Why) -> None:
    worker = tasks.worker("tcp://a:1")
    for seconds in (0.1, 0.1, 0.1):
        estimates.finished(tasks.task(work), worker.address, details(seconds))
    task = tasks.task(work)
    run(why, task, worker, 5.0)
    estimates.finished(task, worker.address, details(5.0))
    given = named(why.story(task.key)[1])
    assert given["p50_s"] == pytest.approx(0.1, rel=0.2)
    assert given["p50_s"] < given["p99_s"] < 5.0
    assert given["samples"] == 3
    assert given["model"]


def test_those_that_are_over_longest_are_forgotten_first(tasks: Tasks, estimates: Estimates) -> None:
    why, worker = Why(estimates, kept=10), tasks.worker("tcp://a:1")
    made = [tasks.task(work) for _ in range(3 * BATCH)]
    alive = made.pop(0)
    why.transition(alive, "waiting", "queued", {})
    for task in made:
        run(why, task, worker)
        why.transition(task, "released", "forgotten", {})
        assert len(why.keys()) <= 10 + BATCH + 1
    assert all(task.key in why for task in made[-10:])
    assert made[0].key not in why
    assert whats(why, alive) == ["ready"]


def test_one_task_that_comes_back_for_ever_is_bounded(tasks: Tasks, why: Why) -> None:
    task, worker = tasks.task(work), tasks.worker("tcp://a:1")
    for _ in range(MOST_ENTRIES):
        run(why, task, worker)
        assert len(why.story(task.key)) <= MOST_ENTRIES + 2
    assert whats(why, task)[-3:] == ["ready", "given", "done"]
    assert why.keys() == [task.key]


def test_dasks_own_placement_failure_and_a_worker_that_leaves(tasks: Tasks, why: Why) -> None:
    worker = tasks.worker("tcp://a:1")
    bound, failed = tasks.task(work), tasks.task(work)
    bound.processing_on = failed.processing_on = worker
    why.transition(bound, "waiting", "processing", {})
    why.transition(bound, "processing", "released", {"stimulus_id": "handle-worker-cleanup-17.5"})
    assert [entry[0] for entry in why.story(bound.key)] == ["given by Dask", "left"]
    assert named(why.story(bound.key)[1]) | {"at_s": 0} == {
        "what": "left", "at_s": 0, "worker": "tcp://a:1", "state": "released", "reason": "handle-worker-cleanup",
    }  # fmt: skip
    failed.exception_text = "ZeroDivisionError: division by zero"
    why.transition(failed, "waiting", "processing", {})
    why.transition(failed, "processing", "erred", {})
    assert named(why.story(failed.key)[-1])["reason"] == "ZeroDivisionError: division by zero"


def test_a_recall_names_what_the_task_waited_behind(tasks: Tasks, why: Why) -> None:
    task, behind, worker = tasks.task(work), tasks.task(work), tasks.worker("tcp://a:1")
    load = Load(1)
    load.give(Given(behind, 0.1, 0.2, True, sent_at_s=1e9))
    load.give(Given(task, 0.1, 0.2, True, sent_at_s=1e9))
    why.recalled("asked back", task, worker, load)
    why.recalled("given back", task, worker)
    asked, _ = map(named, why.story(task.key))
    assert asked["behind"] == behind.key
    assert asked["behind_p99_s"] == 0.2
    assert asked["behind_for_s"] > 1.0
    assert why.counts["tcp://a:1"] == {"asked back": 1, "given back": 1}
    assert [key for key, _ in why.recent("tcp://a:1")] == [task.key] * 2
    why.worker_left("tcp://a:1")
    assert not why.recent("tcp://a:1")


def test_the_end_of_a_copy_may_come_after_the_result(tasks: Tasks, why: Why) -> None:
    task, first, second = tasks.task(work), tasks.worker("tcp://a:1"), tasks.worker("tcp://b:1")
    why.transition(task, "waiting", "queued", {})
    why.copied(task, first, second, 3.0, 0.1, 0.2)
    why.transition(task, "processing", "memory", details(0.1) | {"worker": second.address})
    why.waits(task, "something")
    assert whats(why, task) == ["ready", "copied", "done", "waits"]


def test_a_failure_in_here_is_told_and_nothing_else(tasks: Tasks, estimates: Estimates) -> None:
    failures: list[Exception] = []
    why, task, worker = Why(estimates, failures.append), tasks.task(work), tasks.worker("tcp://a:1")
    why.transition(task, "processing", "memory", {"startstops": [{"action": "compute"}], "worker": "tcp://a:1"})
    assert [type(error) for error in failures] == [KeyError]
    why.is_on = False
    run(why, task, worker)
    assert why.keys() == []


@pytest.mark.parametrize("entry", [(), ("ready",), ("ready", 1.0), ("unheard of", 1.0), 5, None, ("kept", 1.0, "w", 2)])
def test_what_is_no_entry_is_refused(entry: object) -> None:
    with pytest.raises(ValueError, match="no entry of a story"):
        named(entry)  # type: ignore[arg-type]
