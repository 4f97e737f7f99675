"""A station in a process of its own, for tests that kill it: `python -m tests.support.far_station ROLE FOLDER OPTIONS`.

It prints its id, then as its role says: `echo` sends every frame back; `keep` takes frames and prints how many;
`sleep` takes none; `send` waits for a line with a path and an id, sends numbered frames there, and prints the number of
each that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.station import Options, Station
from tests.support.processes import wait_until

TOKEN = bytes(range(32))


class Far:
    """Such a process, seen from the test."""

    def __init__(self, role: str, folder: Path, *, ring: bool = False, encrypt: bool = False) -> None:
        given = json.dumps({"ring": ring, "encrypt": encrypt})
        command = [sys.executable, "-m", "tests.support.far_station", role, str(folder), given]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.id = self.process.stdout.readline().decode().strip()
        self.path = folder / f"{self.id}.sock"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """Of all that it has printed; after its end."""
        assert self.process.stdout is not None
        lines = self.process.stdout.read().decode().split("\n")[:-1]  # the last may be cut off
        return lines[-1] if lines else ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def far(role: str, folder: Path, *, ring: bool = False, encrypt: bool = False) -> Iterator[Far]:
    """A station in a process of its own, ended at the end."""
    station = Far(role, folder, ring=ring, encrypt=encrypt)
    try:
        wait_until(station.path.exists, "the far station listens")
        yield station
    finally:
        station.end()


def options(*, encrypt: bool) -> Options:
    return Options(channel_size=1 << 18, encrypt=encrypt, hasten_after=None)


async def main(role: str, folder: Path, given: dict[str, bool]) -> None:
    back: asyncio.Queue[tuple[str, bytes, Priority]] = asyncio.Queue()
    kept = 0

    def on_frame(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        nonlocal kept
        if role == "sleep":
            return False
        kept += 1
        if role == "echo":
            back.put_nowait((peer.id, frame, priority))
        return True

    async with Station(folder, TOKEN, on_frame, options=options(encrypt=given["encrypt"])) as station:
        print(station.id, flush=True)
        if role == "echo":
            while True:
                peer, frame, priority = await back.get()
                if frame == b"hasten":
                    await station.hasten(folder / f"{peer}.sock", peer)
                await station.send(folder / f"{peer}.sock", peer, frame, priority, 10.0)
        elif role == "send":
            line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            path, peer = line.split()
            if given["ring"]:
                assert await station.hasten(path, peer)
            sizes = random.Random(os.getpid())
            for number in range(10**9):
                size = sizes.choice((8, 100, 3000, 40_000))
                await station.send(path, peer, number.to_bytes(8, "little") + bytes(size - 8), Priority.NORMAL, 30.0)
                os.write(1, b"%d\n" % number)
        else:
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
