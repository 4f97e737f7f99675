"""What this process may claim of cores and disks: `nice` and the I/O priority of all its threads, and back again.

On Linux both belong to a thread, and a new one has those of the thread that starts it (setpriority(2), ioprio_set(2)).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import psutil

from swarm.errors import AgentError, MessageError

IoClass: TypeAlias = Literal["none", "best_effort", "idle"]
"""That all may have; "none" is as `nice` says."""
CAP_SYS_NICE = 23


class Priority:
    """Of this process.

    Parameters
    ----------
    audit
        Told before each change.
    """

    def __init__(self, audit: Callable[..., None]) -> None:
        self._audit = audit
        self._before: dict[int, tuple[int, Any]] = {}
        """Thread → its `nice` and I/O priority."""

    def set(self, nice: Any, io_class: Any, io_level: Any = 4) -> int:
        """Change either, or both; returns the number of threads.

        Raises
        ------
        MessageError
            A value that there is not.
        AgentError
            This process has no right to it, or could not take it back, or it is no Linux.
        """
        if nice is not None and (isinstance(nice, bool) or not isinstance(nice, int) or not -20 <= nice <= 19):
            raise MessageError(f"nice is {nice!r}, must be a whole number from -20 to 19")
        if io_class is not None and io_class not in get_args(IoClass):
            raise MessageError(f"io_class is {io_class!r}, must be one of {', '.join(get_args(IoClass))}")
        if isinstance(io_level, bool) or not isinstance(io_level, int) or not 0 <= io_level <= 7:
            raise MessageError(f"io_level is {io_level!r}, must be a whole number from 0, which goes first, to 7")
        if not hasattr(psutil.Process, "ionice") or not Path("/proc/self/task").exists():
            raise AgentError("priorities of threads can be set on Linux only")
        if nice is not None and (lowest := lowest_nice()) > min(nice, os.getpriority(os.PRIO_PROCESS, 0)):
            raise AgentError(
                f"nice {nice} is refused: this process could not go back below {lowest} at the end; it takes the "
                f"capability CAP_SYS_NICE, or a limit RLIMIT_NICE (`ulimit -e`)"
            )
        self._audit("set_priority", nice=nice, io_class=io_class, io_level=io_level)
        threads = _threads()
        for thread in threads:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has ended
                self._before.setdefault(thread, (os.getpriority(os.PRIO_PROCESS, thread), _io(thread)))
                if nice is not None:
                    os.setpriority(os.PRIO_PROCESS, thread, nice)
                if io_class is not None:
                    _set_io(thread, io_class, io_level)
        return len(threads)

    def undo(self) -> None:
        """As it was; threads that came later get what the main thread had. Doing it twice does no harm."""
        if not self._before:
            return
        self._audit("unset_priority", threads=len(self._before))
        usual = self._before.get(os.getpid()) or next(iter(self._before.values()))
        for thread in _threads():
            nice, io = self._before.get(thread, usual)
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getpriority(os.PRIO_PROCESS, thread) != nice:
                    os.setpriority(os.PRIO_PROCESS, thread, nice)
                if _io(thread) != io:
                    psutil.Process(thread).ionice(io.ioclass, io.value)
        self._before.clear()


def lowest_nice() -> int:
    """The lowest value that this process may set."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> CAP_SYS_NICE & 1:
            return -20
    return 20 - resource.getrlimit(resource.RLIMIT_NICE)[0]


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


def _io(thread: int) -> Any:
    return psutil.Process(thread).ionice()


def _set_io(thread: int, io_class: str, level: int) -> None:
    classes = {
        "none": psutil.IOPRIO_CLASS_NONE,
        "best_effort": psutil.IOPRIO_CLASS_BE,
        "idle": psutil.IOPRIO_CLASS_IDLE,
    }
    psutil.Process(thread).ionice(classes[io_class], level if io_class == "best_effort" else 0)
