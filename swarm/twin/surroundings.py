"""What a simulation sets up around itself and puts back: configuration, randomness, logs, the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import distributed.active_memory_manager as amm
import distributed.worker_state_machine as wsm
from distributed import versions

from swarm.twin.clock import VirtualLoop

CONFIG = {
    # Histories that nobody reads here.
    "distributed.admin.low-level-log-length": 0,
    "distributed.admin.log-length": 0,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.diagnostics.computations.nframes": 0,
    # Readings of this process: they say nothing about a simulated one.
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.tick.cycle": "1h",
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.preload": [],
    "distributed.scheduler.validate": False,
    # The journal of real runs is not for simulated ones.
    "swarm.state-directory": None,
}


class _TaskState(wsm.TaskState):
    """Hashes as its key does. A slot holds the bound `__hash__`, so that Python finds it without a call in Python."""

    __slots__ = ("__hash__",)

    def __post_init__(self) -> None:
        self.__hash__ = self.key.__hash__  # type: ignore[method-assign]
        super().__post_init__()


@contextmanager
def same_for_every_run(seed: int) -> Iterator[None]:
    """Take away what differs between two runs of one process: hashes by address, random numbers, versions to compare.

    `wsm.TaskState` and AMM policies hash by identity, so that the order of a set depends on the allocator. All
    simulated workers have the versions of this process, and comparing them takes O(n²) for n workers.
    """
    state = random.getstate()
    random.seed(seed)
    task_state = wsm.TaskState
    policy_hash = amm.ActiveMemoryManagerPolicy.__hash__
    error_message = versions.error_message
    wsm.TaskState = _TaskState  # type: ignore[misc]
    amm.ActiveMemoryManagerPolicy.__hash__ = lambda self: hash(type(self).__name__)  # type: ignore[method-assign]
    versions.error_message = _no_differences
    try:
        yield
    finally:
        random.setstate(state)
        wsm.TaskState = task_state  # type: ignore[misc]
        amm.ActiveMemoryManagerPolicy.__hash__ = policy_hash  # type: ignore[method-assign]
        versions.error_message = error_message


def _no_differences(*_: object, **__: object) -> dict[str, str]:
    return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Dask and swarm report on simulated workers as if they were real ones; only errors are of interest."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    swarm_log = logging.getLogger("swarm")
    was_disabled, swarm_log.disabled = swarm_log.disabled, True
    try:
        yield
    finally:
        swarm_log.disabled = was_disabled
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of live objects make each full collection slow, and a simulation leaves few cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def drop_tasks(loop: VirtualLoop) -> None:
    """End what still waits, without the orderly shutdown of a cluster."""
    for _ in range(20):
        left: Iterable[asyncio.Task[Any]] = [task for task in asyncio.all_tasks(loop) if not task.done()]
        if not left:
            return
        for task in left:
            task.cancel()
        with suppress(Exception):
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    print(f"{len(list(left))} coroutines of the simulation did not end", file=sys.stderr)  # noqa: T201
