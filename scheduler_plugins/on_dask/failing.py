"""Ending a task with an error of ours, so that it arrives at the client as one of the task's own."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState


def fail(scheduler: Scheduler, task: TaskState, error: Exception) -> None:
    """As `Scheduler.remove_worker` does with `KilledWorker`, from any state in which a task can still run."""
    key, worker = task.key, task.processing_on
    stimulus_id = f"swarm-fail-{time.time()}"
    exception: Any = pickle.dumps(error)
    if task.state in ("released", "waiting"):  # Dask takes blame from the task itself there
        task.exception, task.exception_text, task.exception_blame = exception, str(error), task
        scheduler.transitions({key: "erred"}, stimulus_id)
        return
    details = {"exception": exception, "exception_text": str(error), "cause": key}
    if worker is not None:
        details["worker"] = worker.address
    scheduler.transitions(scheduler.transition(key, "erred", stimulus_id, **details), stimulus_id)
    if worker is not None:
        scheduler.worker_send(worker.address, {"op": "free-keys", "keys": [key], "stimulus_id": stimulus_id})
