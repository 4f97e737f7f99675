"""Ways to get frames from one end to another, all with the same few verbs, for `tests/contracts/channels`.

A transport is a class with the methods of `Ends`; add it to `ALL` and the whole suite runs over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from distributed.core import ConnectionPool, Server

from swarm.channels.across_hosts import FULL, TAKEN, Arrivals, DaskCarrier
from swarm.channels.communicator import Whereabouts
from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.security import new_token
from swarm.channels.station import Options, Station
from tests.support.waiting import eventually


class Ends(Protocol):
    """Two ends in this process: what is sent at one is received at the other."""

    received: list[tuple[Priority, bytes]]
    """In the order of arrival."""
    has_room: Callable[[bytes, Priority], bool]
    """Whether the recipient takes a frame now; may be set by a test at any time."""

    async def send(self, frame: bytes, priority: Priority = Priority.NORMAL, timeout_s: float = 10.0) -> None:
        """As `Station.send`."""
        ...

    async def break_channel(self) -> None:
        """Cut what connects them, while both live."""
        ...

    async def close_receiver(self) -> None:
        """In order; the sender gets `PeerLostError` from then on."""
        ...


class StationEnds:
    """Two stations."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.received: list[tuple[Priority, bytes]] = []
        self.has_room: Callable[[bytes, Priority], bool] = lambda frame, priority: True
        token = new_token()
        self.near = Station(folder, token, self._unexpected, options=options)
        self.far = Station(folder, token, self._take, options=options)

    def _take(self, peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        if not self.has_room(frame, priority):
            return False
        self.received.append((priority, frame))
        return True

    def _unexpected(self, peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        raise AssertionError(f"the sender got {frame!r}")

    async def send(self, frame: bytes, priority: Priority = Priority.NORMAL, timeout_s: float = 10.0) -> None:
        await self.near.send(self.far.path, self.far.id, frame, priority, timeout_s)

    async def break_channel(self) -> None:
        for incoming in self.far._incoming.values():
            if incoming._connection is not None:
                incoming._connection._end("a test cut it")

    async def close_receiver(self) -> None:
        await self.far.close()

    def transport(self) -> object:
        """That the sender uses."""
        return self.near.status()["links"][0]["transport"]


@contextlib.asynccontextmanager
async def stations(
    folder: Path, *, ring: bool, encrypt: bool, channel_size: int = 1 << 18
) -> AsyncIterator[StationEnds]:
    """Two stations; with `ring`, their channel is in shared memory already, else it stays on the socket."""
    ends = StationEnds(folder, Options(channel_size=channel_size, encrypt=encrypt, hasten_after=None))
    async with ends.near, ends.far:
        if ring:
            assert await ends.near.hasten(ends.far.path, ends.far.id), ends.near.status()["links"]
        yield ends
        assert all(link["ring_breaks"] == 0 for link in ends.near.status()["links"] if link["direction"] == "sent")
    await eventually(lambda: len(asyncio.all_tasks()) == 1, "no task is left")


class DaskEnds:
    """A Dask server, and the pool of connections of another."""

    def __init__(self) -> None:
        self.received: list[tuple[Priority, bytes]] = []
        self.has_room: Callable[[bytes, Priority], bool] = lambda frame, priority: True
        arrivals = Arrivals(self._take)

        async def message(station: str, to: str, number: int, lanes: list[list[Any]], frames: list[bytes]) -> list[Any]:
            return await arrivals.came(station, number, lanes, frames)

        self.far = Server({"swarm_message": message}, needs_workdir=False)
        self.pool = ConnectionPool()
        self.carrier = DaskCarrier("near", self.pool)

    async def _take(self, station: str, frame: object) -> str:
        assert isinstance(frame, bytes)
        priority, content = Priority(frame[0]), frame[1:]
        if not self.has_room(content, priority):
            return FULL
        self.received.append((priority, content))
        return TAKEN

    async def send(self, frame: bytes, priority: Priority = Priority.NORMAL, timeout_s: float = 10.0) -> None:
        to = Whereabouts("far", "kind", "far", self.far.address, "", "")
        await self.carrier.send(to, bytes([priority]) + frame, priority, timeout_s)

    async def break_channel(self) -> None:
        comms = self.pool.occupied[self.far.address] | self.pool.available[self.far.address]
        for comm in comms:
            comm.abort()

    async def close_receiver(self) -> None:
        await self.far.close()


@contextlib.asynccontextmanager
async def dask_servers(folder: Path, *, channel_size: int = 0) -> AsyncIterator[DaskEnds]:
    """Over TCP; how much is under way is up to Dask."""
    ends = DaskEnds()
    await asyncio.gather(ends.pool, ends.far)
    await ends.far.listen("tcp://127.0.0.1:0")
    try:
        yield ends
    finally:
        await ends.carrier.close()
        await asyncio.gather(ends.pool.close(), ends.far.close())


STATIONS = [
    pytest.param({"ring": False, "encrypt": False}, id="socket"),
    pytest.param({"ring": True, "encrypt": False}, id="ring"),
    pytest.param({"ring": False, "encrypt": True}, id="sealed-socket"),
    pytest.param({"ring": True, "encrypt": True}, id="sealed-ring"),
]
ALL = [
    *(pytest.param(functools.partial(stations, **how.values[0]), id=how.id) for how in STATIONS),
    pytest.param(dask_servers, id="dask"),
]
