"""Networks that can be cut: a way to the scheduler through the test's own event loop, and the sockets of a process.

A cut is a real one: the kernel is told to drop each packet that comes (by a socket filter, as tcpdump has, that lets
nothing pass), so nothing is acknowledged, and who has sent it sends it again until the cut is over.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
"""asm-generic/socket.h"""
_NOTHING_PASSES = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
"""One instruction of BPF: return 0 bytes of the packet."""
_PROGRAM = struct.pack("HL", 1, ctypes.addressof(_NOTHING_PASSES))


SWEEP_S = 0.05
"""Connections that are made during a cut are cut as well, so soon."""


def filter_sockets(is_meant: Callable[[socket.socket], bool], option: int, program: bytes) -> None:
    """Of this process, those of TCP."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # closed meanwhile
            if str(link.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(link.name))) as each:
                    if each.family == socket.AF_INET and each.type == socket.SOCK_STREAM and is_meant(each):
                        each.setsockopt(socket.SOL_SOCKET, option, program)


async def cut_here(seconds: float, is_meant: Callable[[socket.socket], bool] = lambda _: True) -> None:
    """Nothing comes in through the sockets of this process that are meant, for a while."""
    until_s = time.monotonic() + seconds
    try:
        while time.monotonic() < until_s:
            filter_sockets(is_meant, SO_ATTACH_FILTER, _PROGRAM)
            await asyncio.sleep(SWEEP_S)
    finally:
        filter_sockets(is_meant, SO_DETACH_FILTER, struct.pack("i", 0))


class Partition:
    """Passes on between whoever connects to `address` and a server."""

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("tcp://").rsplit(":", 1)
        self._near: list[socket.socket] = []
        self._relays: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self._near += self._server.sockets
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._near.append(writer.get_extra_info("socket"))
        far_reader, far_writer = await asyncio.open_connection(self._target[0], int(self._target[1]))
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            relay = asyncio.create_task(self._relay(source, sink))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._passes.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass  # the other side has gone: so does this
        finally:
            sink.close()

    def stand_still(self) -> None:
        """Take what comes, and pass nothing on: so looks a process that is stopped or busy."""
        self._passes.clear()

    def cut(self) -> None:
        """Drop everything."""
        self._passes.clear()
        self._filter(SO_ATTACH_FILTER, _PROGRAM)

    def heal(self) -> None:
        """Let everything pass again, also what waited."""
        self._filter(SO_DETACH_FILTER, struct.pack("i", 0))
        self._passes.set()

    def _filter(self, option: int, program: bytes) -> None:
        for near in self._near:
            with suppress(OSError):  # closed, or there is no filter
                near.setsockopt(socket.SOL_SOCKET, option, program)

    async def _close(self) -> None:
        self.heal()
        self._server.close()
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # in which the transports close


@asynccontextmanager
async def partition(target: str) -> AsyncIterator[Partition]:
    """A way to the server at `target` (tcp://host:port) that can be cut."""
    between = Partition(target)
    await between._start()
    try:
        yield between
    finally:
        await between._close()
