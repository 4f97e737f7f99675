"""What both ends of a link share: how it is set, and what a station lends its links.

A link goes one way, from one station to another, and has four lanes, one per priority. If both stations talk there are
two links, each opened by the one that sends: so it does not matter who begins, or that both do at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.statistics import Statistics

OnFrame: TypeAlias = Callable[[PeerInfo, bytes, Priority], bool | Awaitable[bool]]

HANDSHAKE_S = 5.0
"""Loopback takes 0.3 ms; a worker whose event loop is held by a task may take seconds."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a station's channels are.

    Attributes
    ----------
    channel_size
        Bytes that may be under way per priority and direction; of rings, their size.
    encrypt
        Seal all records. Both ends must say the same.
    hasten_after
        Messages within a second after which a link moves to shared memory; None for never. What a move costs is the
        import of numba, the first time in a process.
    """

    channel_size: int = 1 << 20
    encrypt: bool = False
    hasten_after: int | None = 32


@dataclass(slots=True)
class Shared:
    """What a station lends its links."""

    id: str
    token: bytes
    options: Options
    on_frame: OnFrame
    loop: asyncio.AbstractEventLoop
    statistics: Statistics = field(default_factory=Statistics)
    tasks: set[asyncio.Task[object]] = field(default_factory=set)

    def spawn(self, work: Awaitable[object], name: str) -> asyncio.Task[object]:
        """A task that ends with the station at the latest."""
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        task.set_name(name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
