"""Asking workers for tasks back that wait there: with Dask's own message for stealing, then without asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.comm.core import CommClosedError

from scheduler_plugins.decide.balance import CONSENT_S, MOST_MOVES

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.on_dask.why import Recall

GIVEN_UP = ("ready", "constrained", "waiting")
"""States in which a worker lets a task go, when it is asked (`WorkerState._handle_steal_request`)."""
ANSWER = "steal-response"
ONCE = "swarm_once"
"""Annotation of tasks that must not run twice."""


class _Asked(NamedTuple):
    worker: WorkerState
    run_id: int | None
    at_s: float
    stimulus_id: str


class Recalls:
    """Takes waiting tasks back from their workers, so that they are ready again.

    A worker that does not answer loses them all the same: should it have begun one, its result bears a run id that is
    no longer valid, and Dask ignores it. Tasks that must not run twice are only taken with consent.

    Parameters
    ----------
    tell
        Is told what becomes of each.
    """

    def __init__(self, scheduler: Scheduler, tell: Callable[[Recall, TaskState, WorkerState], None]) -> None:
        self._scheduler: Any = scheduler
        self._tell = tell
        self._asked: dict[TaskState, _Asked] = {}
        self._moves: dict[TaskState, int] = {}
        self._silent: dict[WorkerState, float] = {}
        """Workers that have not answered → when they were last heard of."""
        self._kept: dict[TaskState, int | None] = {}
        """Task → the run of it that its worker has begun, as it says: it need not be asked again."""
        self._count = 0
        self._is_leaving = False
        self._before = scheduler.stream_handlers.get(ANSWER)
        scheduler.stream_handlers[ANSWER] = self._on_response

    def uninstall(self) -> None:
        """Give Dask its handler back when all have answered: what a worker has given up, nobody else would know."""
        self._is_leaving = True
        handlers = self._scheduler.stream_handlers
        if handlers.get(ANSWER) != self._on_response:
            self._before = handlers.get(ANSWER)
            handlers[ANSWER] = self._on_response
        self._leave()

    def _leave(self) -> None:
        # Without stealing Dask has no handler, and an answer that nobody expects would break the worker's connection.
        handlers = self._scheduler.stream_handlers
        if not self._asked and self._before is not None and handlers.get(ANSWER) == self._on_response:
            handlers[ANSWER] = self._before

    def ask(self, task: TaskState, worker: WorkerState, now_s: float) -> None:
        """Ask a worker to let a task go that waits there; nothing happens when that was done before."""
        if task in self._asked or self.is_spent(task) or task.processing_on is not worker:
            return
        if task in self._kept and self._kept[task] == task.run_id:
            return
        self._count += 1
        stimulus_id = f"swarm-recall-{self._count}"
        try:
            self._scheduler.stream_comms[worker.address].send(
                {"op": "steal-request", "key": task.key, "stimulus_id": stimulus_id}
            )
        except (CommClosedError, KeyError):
            return  # the worker is leaving, and its tasks come back by themselves
        self._asked[task] = _Asked(worker, task.run_id, now_s, stimulus_id)
        self._tell("asked back", task, worker)

    def is_spent(self, task: TaskState) -> bool:
        """Whether a task was taken back so often that it is left where it goes next."""
        return self._moves.get(task, 0) >= MOST_MOVES

    def _on_response(self, *, key: Any, state: str | None, stimulus_id: str, worker: str | None = None) -> None:
        task = self._scheduler.tasks.get(key)
        asked = None if task is None else self._asked.get(task)
        if asked is None or asked.stimulus_id != stimulus_id:
            if self._before is not None and not stimulus_id.startswith("swarm-recall-"):
                self._before(key=key, state=state, stimulus_id=stimulus_id, worker=worker)
            return
        assert task is not None
        del self._asked[task]
        if self._is_leaving:
            self._leave()
        if state in GIVEN_UP:
            self._take(task, asked, stimulus_id, "given back")
        else:
            self._kept[task] = asked.run_id
            self._tell("kept", task, asked.worker)

    def _take(self, task: TaskState, asked: _Asked, stimulus_id: str, how: Recall) -> None:
        if self._is_there(task, asked):
            self._moves[task] = self._moves.get(task, 0) + 1
            self._tell(how, task, asked.worker)
            self._scheduler.transitions({task.key: "released"}, stimulus_id)

    @staticmethod
    def _is_there(task: TaskState, asked: _Asked) -> bool:
        return task.state == "processing" and task.processing_on is asked.worker and task.run_id == asked.run_id

    def insist(self, now_s: float) -> None:
        """Take back what workers were asked for long ago and have not answered."""
        late = [(task, asked) for task, asked in self._asked.items() if now_s - asked.at_s > CONSENT_S]
        for task, asked in late:
            self._silent.setdefault(asked.worker, asked.worker.last_seen)
            # The answer may still come, and then the worker has given the task up: nobody else may forget that.
            if not (task.annotations or {}).get(ONCE) or not self._is_there(task, asked):
                del self._asked[task]
                self._take(task, asked, f"swarm-taken-{asked.stimulus_id}", "taken back")

    def is_silent(self, worker: WorkerState) -> bool:
        """Whether a worker has not answered, and nothing was heard of it since: it is given nothing until then."""
        if worker not in self._silent:
            return False
        if worker.last_seen > self._silent[worker]:
            del self._silent[worker]
            return False
        return True

    def worker_left(self, worker: WorkerState) -> None:
        self._silent.pop(worker, None)

    def forget(self, task: TaskState) -> None:
        """The task is over."""
        for known in (self._asked, self._moves, self._kept):
            if known:
                known.pop(task, None)
