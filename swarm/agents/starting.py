"""When the agents of a worker start: once it has joined, so that its first task does not wait for them.

What they need takes as long to import as half of Dask. It is imported beside the event loop, and this module, which is
imported before the worker has joined, imports nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from distributed.core import Status
from distributed.utils import offload

if TYPE_CHECKING:
    from distributed import Worker

OVER = (Status.closing, Status.closed, Status.failed)
HOST = "swarm.agents.host"

_BY_THEMSELVES: WeakKeyDictionary[Worker, asyncio.Event] = WeakKeyDictionary()
"""Workers whose preload starts the agents; the event: it has, or it has said why not."""


def start_later(worker: Worker) -> None:
    """Start the agents of a worker that is starting, as soon as the scheduler knows it."""
    _BY_THEMSELVES[worker] = asyncio.Event()
    worker._ongoing_background_tasks.call_soon(_once_joined, worker)


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
