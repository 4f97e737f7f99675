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
        self._count = 0
        self._before = scheduler.stream_handlers.get("steal-response")
        scheduler.stream_handlers["steal-response"] = self._on_response

    def uninstall(self) -> None:
        if self._before is not None:
            self._scheduler.stream_handlers["steal-response"] = self._before
        else:
            del self._scheduler.stream_handlers["steal-response"]

    def ask(self, task: TaskState, worker: WorkerState, now_s: float) -> None:
        """Ask a worker to let a task go that waits there; nothing happens when that was done before."""
        if task in self._asked or self._moves.get(task, 0) >= MOST_MOVES or task.processing_on is not worker:
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

    def _on_response(self, *, key: Any, state: str | None, stimulus_id: str, worker: str | None = None) -> None:
        task = self._scheduler.tasks.get(key)
        asked = None if task is None else self._asked.get(task)
        if asked is None or asked.stimulus_id != stimulus_id:
            if self._before is not None and not stimulus_id.startswith("swarm-recall-"):
                self._before(key=key, state=state, stimulus_id=stimulus_id, worker=worker)
            return
        assert task is not None
        del self._asked[task]
        if state in GIVEN_UP:
            self._take(task, asked, stimulus_id, "given back")
        else:
            self._tell("kept", task, asked.worker)

    def _take(self, task: TaskState, asked: _Asked, stimulus_id: str, how: Recall) -> None:
        if task.state == "processing" and task.processing_on is asked.worker and task.run_id == asked.run_id:
            self._moves[task] = self._moves.get(task, 0) + 1
            self._tell(how, task, asked.worker)
            self._scheduler.transitions({task.key: "released"}, stimulus_id)

    def insist(self, now_s: float) -> None:
        """Take back what workers were asked for long ago and have not answered."""
        late = [(task, asked) for task, asked in self._asked.items() if now_s - asked.at_s > CONSENT_S]
        for task, asked in late:
            del self._asked[task]
            if not (task.annotations or {}).get(ONCE):
                self._take(task, asked, f"swarm-taken-{asked.stimulus_id}", "taken back")

    def forget(self, task: TaskState) -> None:
        """The task is over."""
        self._asked.pop(task, None)
        self._moves.pop(task, None)
