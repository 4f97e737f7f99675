"""When the agents of a worker start: once it has joined, so that its first task does not wait for them.

What they need takes as long to import as half of Dask. Whoever starts a cluster waits until it is ready, so there it is
imported before the worker joins, or it would hold up the first tasks. A worker that takes the place of one that died
joins first: its tasks wait already. This module imports nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import psutil
from distributed.core import Status
from distributed.utils import offload

if TYPE_CHECKING:
    from distributed import Worker

OVER = (Status.closing, Status.closed, Status.failed)
HOST = "swarm.agents.host"
FIRST_S = 10.0
"""A nanny starts its first worker within this time, on a busy host too."""

_BY_THEMSELVES: WeakKeyDictionary[Worker, asyncio.Event] = WeakKeyDictionary()
"""Workers whose preload starts the agents; the event: it has, or it has said why not."""


async def start_later(worker: Worker) -> None:
    """Start the agents of a worker that is starting, as soon as the scheduler knows it."""
    _BY_THEMSELVES[worker] = asyncio.Event()
    if not takes_a_place(worker):
        await offload(importlib.import_module, HOST)
    worker._ongoing_background_tasks.call_soon(_once_joined, worker)


def takes_a_place(worker: Worker) -> bool:
    """Whether its nanny had another worker before."""
    if not worker.nanny:
        return False
    try:
        return psutil.Process().create_time() - psutil.Process(os.getppid()).create_time() > FIRST_S
    except psutil.Error:
        return False


async def starts_by_itself(worker: Worker) -> bool:
    """Whether the worker's preload is about to start the agents; if so, waits until it has, or was refused."""
    event = _BY_THEMSELVES.get(worker)
    if event is None or event.is_set():
        return False
    await event.wait()
    return True


async def _once_joined(worker: Worker) -> None:
    try:
        await worker  # until it has started; `distributed.core.Server.start` lets only one start it
        if worker.status not in OVER:
            await offload(importlib.import_module, HOST)
            from swarm.agents.host import start_as_preload

            await start_as_preload(worker)
    finally:
        _BY_THEMSELVES[worker].set()
