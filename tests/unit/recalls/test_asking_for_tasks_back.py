"""Asking workers for tasks back: what a worker has given up is never lost, whatever was decided meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Scheduler
from distributed.comm.core import CommClosedError
from distributed.scheduler import TaskState, WorkerState

from scheduler_plugins.decide.balance import CONSENT_S, MOST_MOVES
from scheduler_plugins.on_dask.recalls import ANSWER, ONCE, Recalls
from tests.support.scheduler_tasks import Tasks


class Asker:
    """Plays the scheduler and its workers."""

    def __init__(self, *, stealing: bool = True) -> None:
        self.tasks = Tasks()
        self.sent: list[dict[str, Any]] = []
        self.released: list[str] = []
        self.of_dask: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.worker = self.tasks.worker("tcp://a:1")
        self.comm = SimpleNamespace(send=self.sent.append)
        own: dict[str, Callable[..., Any]] = {ANSWER: self._dasks} if stealing else {}
        self.scheduler = SimpleNamespace(
            tasks={}, stream_comms={self.worker.address: self.comm}, stream_handlers=own, transitions=self._transitions
        )
        self.recalls = Recalls(cast("Scheduler", self.scheduler), lambda what, *_: self.told.append(what))

    def _dasks(self, **message: Any) -> None:
        self.of_dask.append(message)

    def _transitions(self, recommendations: dict[str, str], stimulus_id: str) -> None:
        for key, state in recommendations.items():
            task = self.scheduler.tasks[key]
            self.released.append(key)
            task.state, task.processing_on, task.run_id = state, None, None

    def task(self, *, once: bool = False) -> TaskState:
        task = self.tasks.task(None, prefix="x")
        self.scheduler.tasks[task.key] = task
        task.annotations = {ONCE: True} if once else {}
        return self.process(task, self.worker)

    def process(self, task: TaskState, worker: WorkerState, run_id: int = 1) -> TaskState:
        task.state, task.processing_on, task.run_id = "processing", worker, run_id
        return task

    def ask(self, task: TaskState, at_s: float = 0.0) -> None:
        self.recalls.ask(task, self.worker, at_s)

    def answer(self, state: str | None, number: int = -1) -> None:
        asked = self.sent[number]
        handler = self.scheduler.stream_handlers[ANSWER]
        handler(key=asked["key"], state=state, stimulus_id=asked["stimulus_id"], worker=self.worker.address)


@pytest.fixture
def asker() -> Asker:
    return Asker()


def test_it_is_told_when_a_task_cannot_be_taken_back_any_more(asker: Asker) -> None:
    """It then waited 1.7 s behind a long task, beside idle workers."""
    task = asker.task()
    for _ in range(MOST_MOVES):
        assert not asker.recalls.is_spent(task)
        asker.ask(asker.process(task, asker.worker))
        asker.answer("ready")
    assert asker.recalls.is_spent(task)
    asker.recalls.forget(task)
    assert not asker.recalls.is_spent(task)


@pytest.mark.parametrize("state", ["ready", "waiting", "constrained"])
def test_what_the_worker_gives_up_is_ready_again(asker: Asker, state: str) -> None:
    task = asker.task()
    asker.ask(task)
    asker.answer(state)
    assert asker.released == [task.key]
    assert asker.told == ["asked back", "given back"]


def test_what_it_has_begun_it_keeps_and_is_not_asked_for_again(asker: Asker) -> None:
    task = asker.task()
    asker.ask(task)
    asker.answer("executing")
    asker.ask(task)
    assert len(asker.sent) == 1
    assert asker.released == []
    asker.process(task, asker.worker, run_id=2)
    asker.ask(task)
    assert len(asker.sent) == 2


def test_nobody_is_asked_twice_at_a_time(asker: Asker) -> None:
    task = asker.task()
    asker.ask(task)
    asker.ask(task)
    assert len(asker.sent) == 1


def test_a_task_is_taken_back_so_often_and_no_more(asker: Asker) -> None:
    task = asker.task()
    for run_id in range(MOST_MOVES + 3):
        asker.process(task, asker.worker, run_id)
        asker.ask(task)
        if len(asker.sent) > len(asker.released):
            asker.answer("ready")
    assert len(asker.released) == MOST_MOVES


def test_a_worker_that_does_not_answer_loses_its_tasks(asker: Asker) -> None:
    task = asker.task()
    asker.ask(task, at_s=10.0)
    asker.recalls.insist(10.0 + CONSENT_S)
    assert asker.released == []
    asker.recalls.insist(10.1 + CONSENT_S)
    assert asker.released == [task.key]
    asker.process(task, asker.worker, run_id=2)
    asker.answer("ready")  # of the run before
    assert task.state == "processing"


def test_a_task_that_must_not_run_twice_stays_until_the_answer_comes_however_late(asker: Asker) -> None:
    """The request was forgotten after a second, the worker gave the task up two seconds later: it never ran."""
    task = asker.task(once=True)
    asker.ask(task, at_s=10.0)
    asker.recalls.insist(12.0)
    assert asker.released == []
    asker.answer("ready")
    assert asker.released == [task.key]


def test_a_task_that_must_not_run_twice_and_is_elsewhere_by_now_can_be_asked_for_again(asker: Asker) -> None:
    task = asker.task(once=True)
    asker.ask(task, at_s=10.0)
    asker.process(task, asker.worker, run_id=2)
    asker.recalls.insist(12.0)
    asker.ask(task)
    assert len(asker.sent) == 2
    assert asker.released == []


def test_an_answer_about_a_task_that_is_over_is_nothing(asker: Asker) -> None:
    task = asker.task()
    asker.ask(task)
    asker.recalls.forget(task)
    del asker.scheduler.tasks[task.key]
    asker.answer("ready")
    assert asker.released == []
    assert asker.of_dask == []


def test_an_answer_to_dask_goes_to_dask(asker: Asker) -> None:
    asker.scheduler.stream_handlers[ANSWER](key="k", state="ready", stimulus_id="steal-1", worker="tcp://a:1")
    assert [message["key"] for message in asker.of_dask] == ["k"]


def test_a_worker_that_is_leaving_is_not_asked(asker: Asker) -> None:
    def closed(message: object) -> None:
        raise CommClosedError("gone")

    task = asker.task()
    asker.comm.send = closed
    asker.ask(task)
    asker.scheduler.stream_comms.clear()
    asker.ask(task)
    assert asker.told == []


def test_dask_has_its_handler_back_at_once_when_nobody_was_asked(asker: Asker) -> None:
    asker.recalls.uninstall()
    assert asker.scheduler.stream_handlers[ANSWER] == asker._dasks


def test_dask_has_its_handler_back_when_all_have_answered(asker: Asker) -> None:
    """Dask takes an answer that it does not expect for none: the task stayed with a worker that had given it up."""
    first, second = asker.task(), asker.task()
    asker.ask(first)
    asker.ask(second)
    asker.scheduler.stream_handlers[ANSWER] = asker._dasks  # stealing that starts again
    asker.recalls.uninstall()
    asker.answer("ready", 0)
    asker.answer("executing", 1)
    assert asker.released == [first.key]
    assert asker.scheduler.stream_handlers[ANSWER] == asker._dasks


def test_without_stealing_an_answer_that_comes_late_breaks_nothing() -> None:
    asker = Asker(stealing=False)
    asker.recalls.uninstall()
    asker.scheduler.stream_handlers[ANSWER](key="k", state="ready", stimulus_id="steal-1")
    assert asker.released == []
