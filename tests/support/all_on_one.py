"""A preload that sends every task to worker `w1`: a policy of a user's own, for tests of the twin."""

from __future__ import annotations

from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin


class AllOnOne(SchedulerPlugin):  # type: ignore[misc]
    name = "all-on-one"

    def update_graph(self, scheduler: Scheduler, *, tasks: Any, **kwargs: Any) -> None:
        for key in tasks:
            scheduler.tasks[key].worker_restrictions = {scheduler.aliases["w1"]}


def dask_setup(scheduler: Scheduler) -> None:
    scheduler.add_plugin(AllOnOne())
