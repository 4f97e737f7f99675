"""How fast two processes talk through their stations, on event loops: round trips and streams, on each transport.

    python -m tests.benchmarks.channels.stations --json stations.json

A round trip is `Station.send` → the other process's `on_frame` → its `Station.send` → our `on_frame`, with nothing else
under way, as when one agent asks another. A stream is frames as fast as the other takes them, of which
`SENDERS` are under way. Transports take turns, round after round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.station import Options, Station
from tests.support.far_station import TOKEN, Far

SIZES = (256, 65_536)
SENDERS = 64
TRANSPORTS = tuple((ring, encrypt) for encrypt in (False, True) for ring in (False, True))
CHANNEL_SIZE = 1 << 20


class Near:
    """Our end, beside a far one that sends all back."""

    def __init__(self, station: Station, far: Far) -> None:
        self._station, self._far = station, far
        self._answer: asyncio.Future[None] | None = None
        self._left = 0

    def take(self, peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        self._left -= 1
        if self._left == 0 and self._answer is not None:
            self._answer.set_result(None)
        return True

    async def trip(self, frame: bytes) -> None:
        """There and back."""
        self._left, self._answer = 1, asyncio.get_running_loop().create_future()
        await self._station.send(self._far.path, self._far.id, frame, Priority.NORMAL, 10.0)
        await self._answer

    async def stream(self, frame: bytes, count: int) -> float:
        """Frames per second, there and back at the same time."""
        self._left, self._answer = count, asyncio.get_running_loop().create_future()
        left = iter(range(count))

        async def send() -> None:
            for _ in left:
                await self._station.send(self._far.path, self._far.id, frame, Priority.NORMAL, 30.0)

        began_s = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(SENDERS)))
        await self._answer
        return count / (time.perf_counter() - began_s)

    async def move(self) -> None:
        """Into shared memory, both ways."""
        assert await self._station.hasten(self._far.path, self._far.id), self._station.status()["links"]
        await self.trip(b"hasten")


@contextlib.asynccontextmanager
async def pair(folder: Path, *, ring: bool, encrypt: bool) -> AsyncIterator[Near]:
    """Two processes that talk in this way."""
    ends: list[Near] = []
    options = Options(channel_size=CHANNEL_SIZE, encrypt=encrypt, hasten_after=None)

    def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        return ends[0].take(peer, frame, priority)

    station = Station(folder, TOKEN, take, options=options)
    async with station:
        far = await asyncio.to_thread(Far, "echo", folder, encrypt=encrypt)
        try:
            ends.append(Near(station, far))
            if ring:
                await ends[0].move()
            yield ends[0]
        finally:
            far.end()


async def measure(rounds: int, trips: int) -> list[dict[str, Any]]:
    """A row per transport and size."""
    trips_s: dict[tuple[str, int], list[list[float]]] = {}
    streams: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as stack:
            pairs = {
                name_of(ring, encrypt): await stack.enter_async_context(
                    pair(Path(folder) / name_of(ring, encrypt).replace(", ", "-"), ring=ring, encrypt=encrypt)
                )
                for ring, encrypt in TRANSPORTS
            }
            gc.disable()
            for _ in range(rounds):
                for name, near in pairs.items():
                    for size in SIZES:
                        frame = bytes(size)
                        for _ in range(50):
                            await near.trip(frame)
                        took_s = []
                        for _ in range(trips):
                            began_s = time.perf_counter()
                            await near.trip(frame)
                            took_s.append(time.perf_counter() - began_s)
                        trips_s.setdefault((name, size), []).append(took_s)
                        streams.setdefault((name, size), []).append(await near.stream(frame, trips))
                        gc.collect()
            gc.enable()
    return [
        {
            "transport": name,
            "bytes": size,
            "p50_us": 1e6 * statistics.median(quantile(one, 0.50) for one in took),
            "p99_us": 1e6 * statistics.median(quantile(one, 0.99) for one in took),
            "rounds_p50_us": [1e6 * quantile(one, 0.50) for one in took],
            "frames_per_s": statistics.median(streams[name, size]),
        }
        for (name, size), took in trips_s.items()
    ]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


def name_of(ring: bool, encrypt: bool) -> str:
    return f"{'ring' if ring else 'socket'}, {'sealed' if encrypt else 'plain'}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trips", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = asyncio.run(measure(given.rounds, given.trips))
    table = Table(
        "transport", "bytes", "round trip p50 µs", "p99 µs", "p50 by round", "frames/s both ways", box=MARKDOWN
    )
    for row in rows:
        by_round = f"{min(row['rounds_p50_us']):.0f} to {max(row['rounds_p50_us']):.0f}"
        figures = (f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", by_round, f"{row['frames_per_s']:,.0f}")
        table.add_row(row["transport"], f"{row['bytes']:,}", *figures)
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
