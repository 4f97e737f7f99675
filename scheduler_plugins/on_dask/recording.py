"""What happens in runs, and what agents change, handed to the journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import swarm
from scheduler_plugins.io.journal import Journal
from swarm.protocol import ChangeAudited, Event, RunEnded, RunSubmitted, WorkerJoined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distributed import Scheduler
    from distributed.scheduler import TaskState

    from scheduler_plugins.on_dask.runs import Runs
    from swarm.story import Entry


class Recording:
    """Keeps the journal of the runs that swarm knows; all on the scheduler's event loop.

    Opens nothing before the first run or change, so that a scheduler of plain work keeps no file.
    """

    def __init__(self, scheduler: Scheduler, runs: Runs, folder: str) -> None:
        self.journal = Journal(Path(folder).expanduser(), version=swarm.__version__)
        self._scheduler = scheduler
        self._runs = runs
        self._under_way: set[str] = set()

    def on_event(self, event: Event) -> None:
        match event:
            case RunSubmitted():
                self._began(event)
            case RunEnded() if event.run in self._under_way:
                self._under_way.discard(event.run)
                self.journal.run_ended(event.run, event.status, event.reason, event.at_s)
            case WorkerJoined():
                for run in self._under_way:
                    self.journal.workers_take_part(run, (self._scheduler.workers[event.worker],))
            case ChangeAudited():
                self.journal.change_audited(event.at_s, event.place, event.agent, event.what, event.details)

    def on_task_finished(
        self,
        task: TaskState,
        function: str,
        worker: str,
        details: Mapping[str, Any],
        output_bytes: int,
        story: Sequence[Entry],
    ) -> None:
        """Before the runs hear of it: with its last task a run is over."""
        spans = details.get("startstops") or ()
        for run in self._runs.by_key.get(task.key, ()):
            self.journal.task_finished(
                run.run, run.wanted, task.key, function, tuple(task.dependencies), worker, spans, output_bytes, story
            )

    def _began(self, event: RunSubmitted) -> None:
        run = self._runs.get(event.run)
        assert run is not None
        self._under_way.add(event.run)
        self.journal.run_began(event.run, event.name, event.tasks, run.submitted_at_s)
        self.journal.workers_take_part(event.run, tuple(self._scheduler.workers.values()))
