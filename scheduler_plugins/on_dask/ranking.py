"""Ranks tasks beside all else that the scheduler's event loop does: a millisecond at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from scheduler_plugins.decide.ranks import Ranks

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

SLICE_S = 0.001
"""Longest that ranking holds up the event loop at a time."""
HOLD_S = 0.02
"""Longest that a graph waits for its tasks to be ranked, before the first are given to workers."""
WORTH = 0.1
"""Tasks that must end for one to be ranked anew: to rank costs a fiftieth of what Dask does for a task."""
ENOUGH = 3
"""Tasks that took less or longer than any should, or of which nothing was known, that call for ranking anew."""


class Ranking:
    """When tasks are ranked, and when all are ranked anew.

    Parameters
    ----------
    on_ranked
        Called when there is nothing more to rank for now.
    on_failure
        Told of what went wrong.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ranks: Ranks,
        on_ranked: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._loop = scheduler.loop.asyncio_loop  # type: ignore[attr-defined]  # tornado's own, since 5.0
        self._ranks = ranks
        self._on_ranked = on_ranked
        self._on_failure = on_failure
        self._visits: list[Iterator[None]] = []
        self._holds_until_s = 0.0
        self._surprises = 0
        self._credit = 0.0
        self.is_under_way = False

    @property
    def holds(self) -> bool:
        """Whether a graph has just come whose paths are not known yet: the first tasks would go anywhere."""
        return self.is_under_way and time.perf_counter() < self._holds_until_s

    def arrived(self, tasks: Iterable[TaskState]) -> None:
        """Rank a new graph, and hold it back for a moment if that takes longer than a slice."""
        was_under_way = self.is_under_way
        self.start(tasks)
        if self.is_under_way and not was_under_way:
            self._holds_until_s = time.perf_counter() + HOLD_S
            self._loop.call_later(HOLD_S, self._on_ranked)

    def start(self, tasks: Iterable[TaskState]) -> None:
        """Rank these, and what hangs on them."""
        unfinished = [task for task in tasks if task.state not in ("memory", "erred", "forgotten")]
        self._visits.append(self._ranks.visit(unfinished))
        if not self.is_under_way:
            self._go_on()

    def stop(self) -> None:
        self._visits.clear()

    def ended(self) -> None:
        """A task has ended, which makes it worth more to rank the others anew."""
        self._credit += 1.0

    def surprised(self, count: int = 1) -> None:
        """So many durations were not what they were thought to be: rank all anew, if enough were, and not just now."""
        self._surprises += count
        if self.is_under_way or self._surprises < ENOUGH or self._credit < 0.0:
            return
        self._surprises = 0
        self._ranks.is_stale = False
        self._credit = -len(self._ranks) * WORTH
        self.start(self._ranks.tasks())

    def _go_on(self) -> None:
        """Rank for a while, and go on in the next turn of the event loop."""
        self.is_under_way = False
        started_s = time.perf_counter()
        try:
            while self._visits:
                for count, _ in enumerate(self._visits[0]):
                    if count % 16 == 0 and time.perf_counter() - started_s > SLICE_S:
                        self.is_under_way = True
                        self._loop.call_soon(self._go_on)
                        return
                del self._visits[0]
            self._on_ranked()
        except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
            self._on_failure(error)
