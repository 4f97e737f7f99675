"""What each worker has been given, and when it will be free.  PURE

A worker starts what it was given in about the order in which it came, one task per thread. So nobody need say when a
task started: when a thread was free as it was sent, or when the one before it ended.
"""

from __future__ import annotations

from math import inf
from typing import Any

Task = Any
"""A task, as whoever uses this names it; hashable."""

OVERRUN_GROWTH = 1.0
"""Of what a task that has outlived its p99 still takes, over what it has taken: a heavy tail knows no better guess
(Zaharia et al.: "Improving MapReduce performance in heterogeneous environments", OSDI 2008)."""
FETCH_S = 0.02
"""A transfer that takes less is not worth a place of its own."""
PER_TASK_S = 0.00025
"""What any task costs a worker beside its own duration."""


class Given:
    """A task that a worker has."""

    __slots__ = (
        "arrives_at_s",
        "ends_at_s",
        "is_known",
        "nbytes",
        "p50_s",
        "p99_s",
        "ranked_s",
        "sent_at_s",
        "started_at_s",
        "tail_s",
        "task",
    )

    def __init__(
        self,
        task: Task,
        p50_s: float,
        p99_s: float,
        is_known: bool,
        sent_at_s: float,
        tail_s: float = 0.0,
        transfer_s: float = 0.0,
        nbytes: float = 0.0,
        ends_at_s: float = 0.0,
    ) -> None:
        self.task = task
        self.p50_s = p50_s
        """On this worker."""
        self.p99_s = p99_s
        self.is_known = is_known
        """Whether more than a guess is known of its function."""
        self.sent_at_s = sent_at_s
        self.tail_s = tail_s
        """The longest path that begins when it ends."""
        self.arrives_at_s = sent_at_s + transfer_s
        """When its inputs are there."""
        self.ends_at_s = ends_at_s
        """When it is thought to end, as it is sent."""
        self.nbytes = nbytes
        """Of its inputs and its result."""
        self.ranked_s = p50_s
        """What it was thought to take on a worker of average speed."""
        self.started_at_s: float | None = None
        """None: it waits for a thread."""

    @property
    def fetch_s(self) -> float:
        """How long its inputs take to arrive."""
        return self.arrives_at_s - self.sent_at_s

    def remaining_s(self, now_s: float) -> float:
        """How long it will still run, given that it has run so long."""
        if not self.is_known:
            return inf
        if self.started_at_s is None:
            return self.p50_s
        elapsed_s = now_s - self.started_at_s
        if elapsed_s < self.p50_s:
            return self.p50_s - elapsed_s
        if elapsed_s < self.p99_s:
            return (self.p99_s - elapsed_s) / 2
        return elapsed_s * OVERRUN_GROWTH


class Load:
    """The tasks of one worker: they wait for their inputs, then for a thread, then they run."""

    __slots__ = ("ahead_bytes", "fetching", "held", "running", "threads", "waiting", "waiting_s")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.held = 0
        """Threads that get nothing: they are lost (what they run is wanted no more, but cannot be stopped), or rest."""
        self.running: dict[Task, Given] = {}
        self.waiting: dict[Task, Given] = {}
        self.waiting_s = 0.0
        self.fetching: dict[Task, Given] = {}
        self.ahead_bytes = 0.0
        """Inputs and results of all tasks that do not run yet."""

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting) + len(self.fetching)

    @property
    def free_threads(self) -> int:
        return self.threads - self.held - len(self.running)

    def tasks(self) -> list[Task]:
        return [*self.running, *self.waiting, *self.fetching]

    def give(self, given: Given) -> None:
        """The worker is sent a task."""
        if given.arrives_at_s - given.sent_at_s > FETCH_S:
            self.fetching[given.task] = given
            self.ahead_bytes += given.nbytes
        elif self.threads - self.held > len(self.running):
            given.started_at_s = given.arrives_at_s
            self.running[given.task] = given
        else:
            self._wait(given)

    def _wait(self, given: Given) -> None:
        self.waiting[given.task] = given
        self.waiting_s += given.p50_s + PER_TASK_S
        self.ahead_bytes += given.nbytes

    def settle(self, now_s: float) -> None:
        """See which inputs have arrived."""
        for given in [each for each in self.fetching.values() if each.arrives_at_s <= now_s]:
            self._fetched(given)
            if self.free_threads > 0:
                given.started_at_s = given.arrives_at_s
                self.running[given.task] = given
            else:
                self._wait(given)

    def hold(self, threads: int, now_s: float) -> None:
        """So many threads are lost."""
        self.held = threads
        self._begin(now_s)

    def end(self, task: Task, now_s: float) -> Given | None:
        """The worker has the task no more: done, failed or taken away."""
        given = self.running.pop(task, None)
        if given is None:
            if (given := self.waiting.get(task)) is not None:
                self._waits_no_more(given)
            elif (given := self.fetching.get(task)) is not None:
                self._fetched(given)
        self._begin(now_s)
        return given

    def _begin(self, now_s: float) -> None:
        """What waits runs on the threads that are free."""
        waiting, running = self.waiting, self.running
        while waiting and self.threads - self.held > len(running):
            following = next(iter(waiting.values()))
            self._waits_no_more(following)
            following.started_at_s = now_s
            running[following.task] = following

    def _waits_no_more(self, given: Given) -> None:
        del self.waiting[given.task]
        self.waiting_s = self.waiting_s - given.p50_s - PER_TASK_S if self.waiting else 0.0
        self._ahead_no_more(given)

    def _fetched(self, given: Given) -> None:
        del self.fetching[given.task]
        self._ahead_no_more(given)

    def _ahead_no_more(self, given: Given) -> None:
        self.ahead_bytes = self.ahead_bytes - given.nbytes if self.waiting or self.fetching else 0.0

    def free_in_s(self, now_s: float) -> float:
        """Until a thread has nothing to do, if no more comes. 0: one is idle now."""
        over = -self.free_threads
        if over < 0:
            return 0.0
        if over >= len(self.running):
            return inf  # every thread is lost
        remaining = [given.remaining_s(now_s) for given in self.running.values()]
        if over:  # it runs more than it is to run from now on
            remaining = sorted(remaining)[over:]
        if not self.waiting:
            return min(remaining)
        return (sum(remaining) + self.waiting_s) / len(remaining)
