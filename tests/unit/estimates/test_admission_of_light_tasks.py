"""No books are kept of tasks that are short and small, and yet the death of their worker teaches."""

from __future__ import annotations

import random
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from distributed.scheduler import TaskState, WorkerState

from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask.admission import Admission
from scheduler_plugins.on_dask.estimates import Estimates
from tests.support.scheduler_tasks import Tasks, learn


def work(*args: Any) -> None:
    """A function that is never called."""


class Stage:
    def __init__(self) -> None:
        self.tasks = Tasks()
        self.estimates = Estimates(self.tasks.scheduler, Costs(random.Random(0)))
        self.on: dict[TaskState, WorkerState] = {}
        log = cast("Any", MagicMock())
        self.admission = Admission(
            self.tasks.scheduler, self.estimates, log, lambda worker: list(self.on), self.on.get
        )  # fmt: skip
        self.worker = self.tasks.worker("tcp://10.0.0.1:1")
        self.worker.metrics = {"memory": 10**8, "managed_bytes": 0, "spilled_bytes": {"memory": 0, "disk": 0}}
        self.admission.add_worker(self.worker)
        self.ran: list[TaskState] = []

    def send(self, number: int) -> TaskState:
        task = self.tasks.task(work, number)
        self.estimates.of(task)
        task.processing_on = self.on[task] = self.worker
        self.admission.transition(task, "queued", "processing")
        return task

    def end(self, task: TaskState, seconds: float) -> None:
        learn(self.estimates, task, seconds, self.worker.address)
        self.admission.transition(task, "processing", "memory")
        task.processing_on = None
        del self.on[task]

    def die(self) -> None:
        """As Dask: its tasks are released and blamed, then the plugin is told."""
        self.admission.log_event("worker-restart-memory", {"worker": self.worker.address})
        del self.tasks.scheduler.workers[self.worker.address]
        for task in list(self.on):
            task.suspicious += 1
            task.processing_on = None
            self.admission.transition(task, "processing", "released")
        death = self.admission.remove_worker(self.worker)
        assert death is not None
        self.admission.excuse(death)
        self.admission.died(death, by_memory=death.by_memory)


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    for number in range(1000):
        stage.end(stage.send(number), 2e-4)
    return stage


def test_no_books_are_kept(stage: Stage) -> None:
    task = stage.send(1)
    assert stage.estimates.is_light(task)
    assert stage.admission.memory.worker(task) is None
    assert stage.admission.fits(stage.tasks.task(work, 2), stage.worker)
    stage.admission.transition(task, "processing", "released")
    assert not stage.admission._lost


def test_books_are_kept_again_of_what_became_long(stage: Stage) -> None:
    for number in range(4):
        stage.end(stage.send(number), 5.0)
    task = stage.send(2)
    assert stage.admission.memory.worker(task) is stage.worker


def test_the_one_of_which_its_worker_dies_is_suspect(stage: Stage) -> None:
    task = stage.send(1)
    stage.die()
    function = stage.estimates.function(task)
    assert list(stage.admission.memory.lessons) == [function]
    assert stage.admission.memory.proven_bytes[task] > 0
    assert task.suspicious == 1, "it was alone, and is to blame"


def test_those_beside_it_are_excused_and_from_then_on_books_are_kept(stage: Stage) -> None:
    several = [stage.send(number) for number in range(3)]
    stage.die()
    assert [task.suspicious for task in several] == [0, 0, 0]
    other = stage.tasks.worker("tcp://10.0.0.2:1")
    other.metrics = stage.worker.metrics
    stage.admission.add_worker(other)
    stage.worker = other
    stage.on.clear()
    task = stage.send(9)
    assert stage.admission.memory.worker(task) is other
