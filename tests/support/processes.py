"""Real processes in tests: find them, wait for them, and see that nothing is left of them."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

MARK = "SWARM_TEST_MARK"
SHM = Path("/dev/shm")
OPEN_FILES = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = 20.0) -> T:
    """The first true value of the condition; fails the test after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"after {timeout_s:g} s still not so: {what}"
        time.sleep(0.02)
    return value


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie too: it does nothing any more."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """All living processes below `pid`."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if is_alive(process)]
    except psutil.NoSuchProcess:
        return []


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float = 20.0) -> None:
    """Wait until none of them lives."""
    watched = list(processes)
    wait_until(lambda: not any(map(is_alive, watched)), f"{watched} are gone", timeout_s)


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with `SWARM_TEST_MARK=<mark>` in their environment, ourselves excepted: orphans as well."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark and is_alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def orphaned_segments(before: set[str]) -> set[str]:
    """Entries of `/dev/shm` that are new and that no process has mapped."""
    new = shared_memory() - before
    if not new:
        return set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped = maps.read_text()
        except OSError:
            continue
        new = {name for name in new if f"{SHM}/{name}" not in mapped}
    return new


def shared_memory() -> set[str]:
    return {entry.name for entry in SHM.iterdir()} if SHM.exists() else set()


@contextmanager
def leaving_nothing(timeout_s: float = 5.0) -> Iterator[str]:
    """Check that the block leaves no process, thread, open file or shared-memory segment; yields the mark."""
    mark = uuid.uuid4().hex
    threads, files, segments = set(threading.enumerate()), _open_files(), shared_memory()
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        del os.environ[MARK]
        left = marked(mark)
        try:
            wait_gone(left, timeout_s)
        finally:
            _kill(left)
    wait_until(lambda: not marked(mark), "no process is left", timeout_s)
    wait_until(lambda: not orphaned_segments(segments), f"no new segment in {SHM}", timeout_s)
    assert set(threading.enumerate()) <= threads
    assert _open_files() <= files


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill all but Python's resource trackers: they end by themselves, after they have removed the semaphores."""
    for process in processes:
        try:
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()
        except psutil.NoSuchProcess:
            continue


def _open_files() -> set[str]:
    """Our file descriptors with what they refer to."""
    found = set()
    for entry in OPEN_FILES.iterdir():
        try:
            found.add(f"{entry.name} → {entry.readlink()}")
        except OSError:  # the one that listed the folder
            continue
    return found
