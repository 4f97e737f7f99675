"""A pool, workers and a clock, for tests of placement without Dask."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from scheduler_plugins.decide.placement import Choice, Placement
from scheduler_plugins.decide.shelves import ROOTS, Cost

NOW_S = 1.8e9
"""As on a real clock: sums of such times lose digits."""


class Pool:
    """Placement with costs, transfers and workers that a test sets."""

    def __init__(self, *workers: float, threads: int = 1) -> None:
        """A worker w0, w1, … for each factor."""
        self.now_s = NOW_S
        self.costs: dict[str, Cost] = {}
        self.away_s: dict[str, float] = {}
        """Task → how long its inputs take to another worker than its home."""
        self.homes: dict[str, Any] = {}
        self.closed: set[str] = set()
        self.misfits: set[tuple[str, str]] = set()
        self.left_s: float | None = None
        """All that is left to do; None: what is in the pool and on workers."""
        self.factors: dict[str, float] = {}
        self.given: dict[str, str] = {}
        self.placement = Placement(
            factor=lambda task, worker: self.factors[worker],
            transfer_s=lambda task, worker: 0.0 if self.homes.get(task) == worker else self.away_s.get(task, 0.0),
            remaining_s=self.remaining_s,
            is_open=lambda worker: worker not in self.closed,
            fits=lambda task, worker: (task, worker) not in self.misfits,
        )
        for number, factor in enumerate(workers):
            self.join(f"w{number}", factor, threads)

    def remaining_s(self) -> float:
        if self.left_s is not None:
            return self.left_s
        return sum(self.costs[task].p50_s for task in (*self.placement._entries, *self.given))

    def join(self, worker: str, factor: float = 1.0, threads: int = 1, *, tried: bool = True) -> None:
        self.factors[worker] = factor
        self.placement.join(worker, threads)
        self.placement.set_speed(worker, factor)
        if tried:
            self.placement.views[worker].seen = 10

    def leave(self, worker: str) -> list[str]:
        """Returns what it had, which is ready no more, nor anywhere."""
        lost = [task for task, where in self.given.items() if where == worker]
        for task in lost:
            self.end(task)
        self.placement.leave(worker)
        return lost

    def ready(
        self,
        task: str,
        seconds: float = 1.0,
        *,
        rank_s: float = 0.0,
        level: float = 0,
        order: int | None = None,
        home: Any = ROOTS,
        away_s: float = 0.0,
        kind: Any = None,
        is_known: bool = True,
        output_bytes: float = 0.0,
        is_last: bool = False,
    ) -> None:
        self.costs[task] = Cost(seconds, 2 * seconds, is_known, output_bytes, kind)
        self.homes[task], self.away_s[task] = home, away_s
        priority = (level, 0, len(self.costs) if order is None else order)
        nbytes = 1e6 if away_s else 0.0
        self.placement.ready(task, priority, self.costs[task], rank_s or seconds, home, nbytes, is_last=is_last)

    def give(self, task: str, worker: str) -> None:
        self.placement.given(task, worker, self.now_s, self.costs.__getitem__)
        self.given[task] = worker

    def end(self, task: str) -> None:
        del self.given[task]
        self.placement.ended(task, self.now_s)

    def choose(self, limit: int | None = None) -> list[Choice]:
        """All that is given now."""
        made = []
        for choice in self.placement.choices(self.now_s):
            for task in (choice.task, *choice.more):
                assert task in self.placement
                self.give(task, choice.worker)
                made.append(Choice(task, choice.worker, choice.rule))
            if limit is not None and len(made) >= limit:
                break
        return made

    def chosen(self, limit: int | None = None) -> list[tuple[str, str]]:
        return [(choice.task, choice.worker) for choice in self.choose(limit)]

    def rules(self) -> dict[str, str]:
        return {choice.task: choice.rule for choice in self.choose()}

    def on(self, worker: str) -> Collection[str]:
        return [task for task, where in self.given.items() if where == worker]
