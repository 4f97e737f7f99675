"""Whose fault the death of a worker was, and what becomes of the task that did it.  PURE

Stock Dask counts each death against all that the worker had been given, and gives up what was on four that died. Here
the way in which the process ended decides: a fault or an exit of its own is the work of what ran there; a signal from
outside is nobody's. What merely waited never has a part in it.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

Task = Any
"""Hashable. So are workers."""
Worker = Any

Kind = Literal["memory", "crash", "killed", "stopped", "unknown"]
"""memory: it was killed for what it took; crash: the process ended itself, by a fault or `exit`; killed: somebody else
ended it; stopped: it stood still, and was removed; unknown: nobody saw it."""

FAULTS = frozenset(
    number
    for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
    if (number := getattr(signal, name, None)) is not None
)
"""Signals that a process gets for what it does itself."""
MOST_ALONE = 2
"""Crashes of its worker while nothing else ran there, after which a task is given up: one might be the worker's."""

PATIENCE_S = 10.0
"""Longest that a task in quarantine waits for a worker that has nothing to lose."""


class Cause(NamedTuple):
    """How a worker's process ended."""

    kind: Kind
    words: str
    """For a person."""


def cause_of(exitcode: int | None, oom_kills: int | None, *, by_nanny: bool) -> Cause:
    """What an exit code and the kernel's counters say.

    Parameters
    ----------
    exitcode
        As `multiprocessing.Process.exitcode`: negative for the signal that ended it.
    oom_kills
        Processes that the kernel killed for want of memory while this one lived, in its control group or on its host.
    by_nanny
        Whether its nanny said that it kills it for its memory.

    >>> cause_of(-11, 0, by_nanny=False)
    Cause(kind='crash', words='it crashed: SIGSEGV')
    >>> cause_of(7, 0, by_nanny=False).words
    'it ended itself with exit status 7'
    """
    if by_nanny:
        return Cause("memory", "its nanny killed it, since it took too much memory")
    if exitcode is None:
        return Cause("unknown", "nobody saw how it ended")
    if exitcode < 0:
        return _cause_of_signal(-exitcode, oom_kills)
    if exitcode > 0:
        return Cause("crash", f"it ended itself with exit status {exitcode}")
    return Cause("killed", "it ended in order, though nobody had asked it to")


def _cause_of_signal(number: int, oom_kills: int | None) -> Cause:
    name = signal_name(number)
    if number in FAULTS:
        return Cause("crash", f"it crashed: {name}")
    if number == signal.SIGKILL and oom_kills:
        return Cause("memory", "the kernel killed it (SIGKILL, out of memory)")
    return Cause("killed", f"somebody ended it: {name}")


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Blame:
    """Which tasks are suspected of crashing their workers."""

    def __init__(self) -> None:
        self.crashes: dict[Task, list[str]] = {}
        """Task in quarantine → how the workers ended on which it ran alone."""
        self._since_s: dict[Task, float] = {}
        self._for: dict[Worker, Task] = {}
        """Worker → the task in quarantine that it has to itself, or will have."""

    def crashed(self, ran: Collection[Task], words: str, now_s: float) -> Task | None:
        """A worker has crashed while these ran there; returns the one that is given up, now that it did it again."""
        for task in ran:
            self.crashes.setdefault(task, [])
            self._since_s[task] = now_s
        if len(ran) != 1:
            return None
        (task,) = ran
        self.crashes[task].append(words)
        return task if len(self.crashes[task]) >= MOST_ALONE else None

    def suspected(self, ran: Collection[Task], words: str, now_s: float) -> None:
        """A worker was lost while these ran there, and nobody saw how; the next crash of any will be its second."""
        for task in ran:
            self.crashes.setdefault(task, []).append(words)
            self._since_s[task] = now_s

    def fits(self, task: Task, worker: Worker, running: int, has_nothing: bool, now_s: float) -> bool:
        """Whether the worker may be given the task: what is in quarantine runs alone, one task at a time.

        Best on a worker that holds nothing, such as the one that its nanny starts after the crash: its end would take
        no result with it. For that it waits, but not for ever: then a worker is emptied for it.

        Parameters
        ----------
        running
            Tasks that the worker has been given and that are not over.
        has_nothing
            Whether it has no results, and somebody would see how it ends.
        """
        there = self._for.get(worker)
        if task not in self.crashes:
            return there is None
        if there is not task and self._for:
            return False
        is_due = (has_nothing and not running) or now_s - self._since_s[task] > PATIENCE_S
        if is_due:
            self._for[worker] = task
        return is_due and running == 0

    def taken(self, task: Task) -> None:
        """The worker that was given a task has it no more."""
        for worker in [worker for worker, there in self._for.items() if there is task]:
            del self._for[worker]

    def left(self, worker: Worker) -> None:
        self._for.pop(worker, None)

    def over(self, task: Task) -> None:
        """The task has a result or an error, or nobody wants it any more."""
        self.taken(task)
        self.crashes.pop(task, None)
        self._since_s.pop(task, None)
