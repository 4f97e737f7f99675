"""Compiles each kernel once per host: of several processes one compiles, the others load what it has saved."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

PATIENCE_S = 60.0
"""For another process that compiles; then this one compiles as well: the other may be stopped."""
POLL_S = 0.01

_TURN = threading.RLock()
"""Of the threads of this process, so that none waits for a file that another one holds, inside numba's own lock."""


def kernel(function: Callable[..., Any]) -> Any:
    """`numba.njit` for one core, with the GIL released and the result cached, compiled by one process at a time.

    What is compiled already is called as fast as ever: numba asks for `compile` only when it is not.
    """
    dispatcher: Any = numba.njit(cache=True, nogil=True)(function)
    compile_here = dispatcher.compile

    def compile_once(signature: Any) -> Any:
        with _turn(dispatcher.stats.cache_path, function.__qualname__):
            return compile_here(signature)  # looks into the cache first

    dispatcher.compile = compile_once
    return dispatcher


def compiled_here(dispatcher: Any) -> tuple[int, int]:
    """How many signatures this process has compiled, and how many it has loaded."""
    told = dispatcher.stats
    return sum(told.cache_misses.values()), sum(told.cache_hits.values())


@contextmanager
def _turn(folder: str | None, name: str) -> Iterator[None]:
    """Hold the lock of a kernel, beside its cache; without a cache that can be written there is nothing to wait for."""
    with _TURN:
        handle = _open(folder, name)
        if handle is None:
            yield
            return
        try:
            until_s = time.monotonic() + PATIENCE_S
            while not _locked(handle) and time.monotonic() < until_s:
                time.sleep(POLL_S)
            yield
        finally:
            os.close(handle)  # lets go of the lock, as the kernel does for a process that is killed


def _open(folder: str | None, name: str) -> int | None:
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return os.open(Path(folder, f"{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
