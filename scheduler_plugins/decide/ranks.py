"""How much work still hangs on each task: upward ranks and the total that remains.  PURE

The upward rank of a task is how long the longest path from it to an end takes, itself included, on workers of average
speed (Topcuoglu, Hariri, Wu: "Performance-effective and low-complexity task scheduling for heterogeneous computing",
IEEE TPDS 13(3), 2002). Transfers are left out: where dependents run on the worker that has the input, there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

Task = Any
"""With `dependencies` and `dependents`, as Dask's TaskState; hashable."""

FAR = 0.1
"""A rank that differs by less than this share from what it was is not passed on."""


class Ranks:
    """Upward ranks of all unfinished tasks that have been seen.

    Parameters
    ----------
    seconds
        How long a task takes on a worker of average speed.
    changed
        Is told a task and its new rank.
    is_over
        Whether a task is finished, or forgotten: it may have ended while others were ranked.
    """

    def __init__(
        self,
        seconds: Callable[[Task], float],
        changed: Callable[[Task, float], None],
        is_over: Callable[[Task], bool],
    ) -> None:
        self._seconds = seconds
        self._is_over = is_over
        self._changed = changed
        self._of: dict[Task, tuple[float, float]] = {}
        self.remaining_s = 0.0
        """Sum of the durations of all unfinished tasks."""
        self.is_stale = False
        """Whether a longer path was not passed on to inputs since this was last set to False. Along a chain that is
        submitted link by link, such differences add up: it is for the caller to `visit` all now and then."""

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, task: Task) -> bool:
        return task in self._of

    def rank_s(self, task: Task) -> float:
        """0 for a task that has not been seen."""
        known = self._of.get(task)
        return 0.0 if known is None else known[0]

    def seconds(self, task: Task) -> float:
        known = self._of.get(task)
        return self._seconds(task) if known is None else known[1]

    def tasks(self) -> list[Task]:
        """All unfinished ones."""
        return list(self._of)

    def visit(self, tasks: Iterable[Task]) -> Iterator[None]:
        """Rank these tasks, each after its dependents; yields after each, for the caller to pause."""
        left: dict[Task, int] = {}  # task → those of its dependents that are to be ranked before it
        waiting = dict.fromkeys(tasks)
        ends: list[Task] = []
        for task in waiting:
            count = sum([each in waiting for each in task.dependents]) if task.dependents else 0
            if count:
                left[task] = count
            else:
                ends.append(task)
            yield
        while ends or left:
            # What others wait for may have been forgotten meanwhile, with all that it depended on.
            task = ends.pop() if ends else left.popitem()[0]
            if not self._is_over(task):
                self._rank(task)
                if task.dependencies:
                    yield from self._raise_inputs(task, left)
            for each in task.dependencies:
                if each in left:
                    left[each] -= 1
                    if not left[each]:
                        del left[each]
                        ends.append(each)
            yield

    def alone(self, task: Task, seconds: float) -> None:
        """A task on which nothing depends, and that depends on nothing: its rank is what it takes."""
        known = self._of.get(task)
        self.remaining_s += seconds - (0.0 if known is None else known[1])
        self._of[task] = (seconds, seconds)

    def _rank(self, task: Task) -> None:
        seconds = self._seconds(task)
        known, below = self._of, 0.0
        for each in task.dependents:
            if each in known and known[each][0] > below:
                below = known[each][0]
        self._put(task, below + seconds, seconds)

    def _raise_inputs(self, task: Task, left: Container[Task]) -> Iterator[None]:
        """Pass a longer path on to inputs that were ranked before, such as those of an earlier graph; not to `left`."""
        stack = [task]
        while stack:
            task = stack.pop()
            below = self.rank_s(task)
            for each in task.dependencies:
                known = self._of.get(each)
                if each in left or known is None or known[0] >= below + known[1]:
                    continue
                if known[0] >= (below + known[1]) * (1.0 - FAR):
                    self.is_stale = True
                    continue
                self._of[each] = (below + known[1], known[1])
                self._changed(each, below + known[1])
                stack.append(each)
            yield

    def _put(self, task: Task, rank_s: float, seconds: float) -> None:
        known = self._of.get(task)
        self.remaining_s += seconds - (0.0 if known is None else known[1])
        self._of[task] = (rank_s, seconds)
        if known is None or known[0] != rank_s:
            self._changed(task, rank_s)

    def drop(self, task: Task) -> None:
        """The task is finished, or forgotten."""
        known = self._of.pop(task, None)
        if known is not None:
            self.remaining_s = self.remaining_s - known[1] if self._of else 0.0
