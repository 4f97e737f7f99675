"""The processes of one POSIX session: who is in it, and how to end them all."""

from __future__ import annotations

import os
import time

import psutil


def members(session: int) -> list[psutil.Process]:
    """Living processes of a session. A zombie is not alive: it waits for its parent to take note of its end."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):  # ended meanwhile, or not ours
            continue
    return found


def kill_session(session: int, *, spare: int | None = None, timeout_s: float = 2.0) -> None:
    """SIGKILL all processes of a session, but for the one with pid `spare`.

    Python's resource trackers come last: they unlink the semaphores in `/dev/shm` of the processes that they
    serve, and end by themselves once these are gone (`multiprocessing.resource_tracker`).
    """
    deadline_s = time.monotonic() + timeout_s
    while left := [process for process in members(session) if process.pid != spare]:
        out_of_time = time.monotonic() >= deadline_s
        for process in left:
            try:
                if out_of_time or not _is_resource_tracker(process):
                    process.kill()
            except psutil.NoSuchProcess:
                continue
        if out_of_time:
            return
        time.sleep(0.01)


def _is_resource_tracker(process: psutil.Process) -> bool:
    return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
