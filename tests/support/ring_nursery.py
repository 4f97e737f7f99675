"""A process that has loaded the kernels of rings and forks children that use a ring, so that one costs milliseconds.

Started with descriptors of a ring and of a page of memory; told what to do on standard input, one line each:
`write SEED`, `read`, `scribble SEED` fork a child and answer its PID; `bury` waits for the last one and answers so.
What a writer has sent it notes in the page, which outlives it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from swarm.channels.layout import HEADER_BYTES
from swarm.channels.ring import Ring

LENGTHS = (0, 1, 50, 200, 256, 1000, 4000, 20_000)


def message(generation: int, number: int) -> bytes:
    """The message of this number: what it holds and how long it is follows from the number alone."""
    rng = random.Random(generation << 32 | number)
    return struct.pack("<II", generation, number) + rng.randbytes(rng.choice(LENGTHS))


PR_SET_PDEATHSIG = 1


class Nursery:
    """The other side: what a test holds."""

    def __init__(self, ring: Ring, process: subprocess.Popen[str], page: mmap.mmap) -> None:
        self.ring, self._process, self._page = ring, process, page
        self.last = 0

    def fork(self, what: str) -> int:
        self.last = int(self._ask(what))
        return self.last

    def kill(self) -> None:
        """Kill the last child, and see it buried."""
        os.kill(self.last, signal.SIGKILL)
        self.bury()

    def bury(self) -> None:
        """Wait for the last child, who was killed."""
        assert self._ask("bury") == "buried"

    def noted(self) -> tuple[int, int]:
        """(generation, number of messages that it had sent) of the last writer."""
        with memoryview(self._page) as page, page.cast("Q") as words:
            return words[0] >> 32, words[0] & 0xFFFFFFFF

    def _ask(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def nursery(size_bytes: int) -> Iterator[Nursery]:
    """A ring, and children at its other end."""
    with Ring.create(size_bytes) as ring, ExitStack() as stack:
        page_fd = os.memfd_create("noted")
        stack.callback(os.close, page_fd)
        os.ftruncate(page_fd, mmap.PAGESIZE)
        page = stack.enter_context(mmap.mmap(page_fd, mmap.PAGESIZE))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(ring.fd), str(page_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(ring.fd, page_fd),
            text=True,
        )
        with process:
            yield Nursery(ring, process, page)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(20.0) == 0


def _write(ring: Ring, page: mmap.mmap, generation: int) -> NoReturn:
    number = 0
    words = memoryview(page).cast("Q")  # one store for both: `struct.pack_into` would clear them first
    words[0] = generation << 32
    writer = ring.writer()
    while True:
        writer.send(message(generation, number), 60.0)
        number += 1
        words[0] = generation << 32 | number


def _read(ring: Ring) -> NoReturn:
    reader = ring.reader()
    while True:
        reader.receive(60.0)


def _scribble(ring: Ring, seed: int) -> NoReturn:
    """Anywhere, but mostly where it hurts, and mostly numbers that are nearly right."""
    rng = random.Random(seed)
    while True:
        place = rng.choice((rng.randrange(0, 1024, 8), HEADER_BYTES + rng.randrange(0, ring.capacity - 8)))
        os.pwrite(ring.fd, rng.choice((rng.randbytes(8), bytes(8), struct.pack("<Q", 64 * rng.randrange(4096)))), place)


def main(ring_fd: int, page_fd: int) -> None:
    page = mmap.mmap(page_fd, mmap.PAGESIZE)
    child = 0
    for line in sys.stdin:
        what, *rest = line.split()
        if what == "bury":
            os.waitpid(child, 0)
            print("buried", flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        ring = Ring.attach(ring_fd)
        if what == "write":
            _write(ring, page, int(rest[0]))
        elif what == "scribble":
            _scribble(ring, int(rest[0]))
        _read(ring)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
