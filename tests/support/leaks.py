"""Nothing may be left behind by a test that starts things: threads, processes, open files, shared memory.

What a wider fixture (a cluster for a whole module) has started before the test is not the test's.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from tornado.ioloop import IOLoop

from tests.support.processes import OPEN_FILES, descendants, orphaned_segments, shared_memory

THREADS_FOR_GOOD = ("Dask-Offload", "Dask-Callback-Thread", "TCP-Executor")
"""Names of threads that Dask and Python start once in a process and keep: pools, not leftovers."""

SEMAPHORES = "sem.mp-"
"""Of Python's multiprocessing, also in other programs on this machine; its resource tracker removes them."""


@contextmanager
def leaving_nothing_behind(timeout_s: float = 5.0, *, may_stay: frozenset[str] = frozenset()) -> Iterator[None]:
    """Fail when the block leaves more than it found, `timeout_s` after its end, open files in `may_stay` aside."""
    before = _Inventory()
    yield
    deadline_s = time.monotonic() + timeout_s
    while left := _Inventory().beyond(before, may_stay):
        assert time.monotonic() < deadline_s, f"left behind: {'; '.join(left)}"
        IOLoop(make_current=False).close()  # with the next loop Tornado lets go of closed ones and their connections
        gc.collect()
        time.sleep(0.02)


class _Inventory:
    """What this process holds now."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.processes = {process for process in descendants(os.getpid()) if not _is_resource_tracker(process)}
        self.segments = shared_memory()
        self.files = _open_files()

    def beyond(self, before: _Inventory, may_stay: frozenset[str]) -> list[str]:
        """What is here and was not before, for a person."""
        threads = {t for t in self.threads - before.threads if not t.name.startswith(THREADS_FOR_GOOD)}
        return [
            *(f"thread {thread.name}" for thread in threads),
            *(f"process {process}" for process in self.processes - before.processes),
            *(
                f"shared memory {name}"
                for name in orphaned_segments(before.segments)
                if not name.startswith(SEMAPHORES)
            ),
            *(f"file {what} ({n} times more)" for what, n in self._more_files(before) if what not in may_stay),
        ]

    def _more_files(self, before: _Inventory) -> Iterator[tuple[str, int]]:
        for what, n in self.files.items():
            if n > before.files.get(what, 0):
                yield what, n - before.files.get(what, 0)


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own: one per process, started when it is first needed, ends with us."""
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _open_files() -> dict[str, int]:
    """What our file descriptors refer to, and how many do; sockets and pipes without their inode."""
    found: dict[str, int] = {}
    for entry in OPEN_FILES.iterdir():
        try:
            what = str(entry.readlink())
        except OSError:  # the one that listed the folder
            continue
        kind = what.partition(":[")[0]
        found[kind] = found.get(kind, 0) + 1
    return found
