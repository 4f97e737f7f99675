"""What is known of each worker that may be given tasks, and of those that are about equally fast.  PURE"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from scheduler_plugins.decide.load import Load
from scheduler_plugins.decide.shelves import Worker


@dataclass(slots=True)
class Tally:
    """Workers that are about equally fast, together."""

    views: dict[Worker, WorkerView] = field(default_factory=dict)
    threads: int = 0
    speed: float = 0.0
    """Threads over factors."""
    given: int = 0
    """Tasks that they have."""
    ends_s: float = 0.0
    """Sum of the times at which these are thought to end."""


@dataclass(slots=True)
class WorkerView:
    """A worker that may be given tasks."""

    worker: Worker
    load: Load
    factor: float = 1.0
    """Of durations, over those on an average worker."""
    step: int = 0
    """Of the factor."""
    unsure_steps: int = 0
    ends_s: float = 0.0
    """Sum of the times at which its tasks are thought to end."""
    is_hungry: bool = False
    lost: int = 0
    """Threads that run what is wanted no more."""
    resting: int = 0
    """Threads that are to have nothing to do: its host is hot."""
    seen: int = 0
    """Tasks that it has ended."""
    wakes_at_s: float = inf
    """When it will be asked anyway."""
    sends_until_s: float = 0.0
    """When the inputs that others were told to fetch from it will have gone."""
    sends: dict[Worker, float] = field(default_factory=dict)
    """To whom, until when. What many tasks there need is fetched once."""

    def send(self, worker: Worker, seconds: float, now_s: float) -> None:
        """Another worker was given a task whose inputs are here."""
        if self.sends.get(worker, 0.0) < now_s:
            if self.sends_until_s < now_s:
                self.sends.clear()
            self.sends[worker] = self.sends_until_s = max(self.sends_until_s, now_s) + seconds
