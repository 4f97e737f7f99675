"""Whatever a stranger, or a friend gone mad, says to a station: it is turned away, and others are not harmed."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from pathlib import Path

import pytest

from swarm.channels import handshake
from swarm.channels.folder import address
from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.station import Station
from swarm.channels.wire import HEADER, STATE, Kind
from tests.support.far_station import TOKEN, options
from tests.support.waiting import eventually

FRIEND = "feedfeedfeedfeed"


def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
    return True


async def connect(station: Station) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    with address(station.path) as where:
        sock.connect(where)
    return sock


async def until_closed(sock: socket.socket) -> None:
    async with asyncio.timeout(10.0):
        try:
            while await asyncio.get_running_loop().sock_recv(sock, 4096):
                pass
        except ConnectionError:
            pass


async def test_noise_instead_of_a_greeting_is_turned_away(tmp_path: Path) -> None:
    noise = random.Random(1)
    async with Station(tmp_path / "s", TOKEN, take) as near, Station(tmp_path / "s", TOKEN, take) as far:
        for n in range(40):
            with await connect(far) as sock:
                begin = b"swrm\x01\x00\x00\x00" if n % 2 else b""
                await asyncio.get_running_loop().sock_sendall(
                    sock, begin + noise.randbytes(noise.choice((1, 30, 88, 5000)))
                )
                sock.shutdown(socket.SHUT_WR)
                await until_closed(sock)
        await eventually(lambda: far.refused == 40, "all were turned away and counted")
        await near.send(far.path, far.id, b"others are not harmed", Priority.NORMAL, 5.0)


async def test_a_caller_who_says_nothing_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.channels.station.HANDSHAKE_S", 0.05)
    async with Station(tmp_path / "s", TOKEN, take) as far:
        with await connect(far) as sock:
            await until_closed(sock)
        assert far.refused == 1


async def test_more_strangers_than_a_station_minds_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.channels.station.MAX_STRANGERS", 3)
    monkeypatch.setattr("swarm.channels.station.HANDSHAKE_S", 0.3)
    async with Station(tmp_path / "s", TOKEN, take) as near, Station(tmp_path / "s", TOKEN, take) as far:
        silent = [await connect(far) for _ in range(10)]
        await eventually(lambda: len(far._strangers) == 3, "three are listened to")
        await near.send(far.path, far.id, b"in its turn", Priority.NORMAL, 5.0)
        for sock in silent:
            sock.close()


@pytest.mark.parametrize("encrypt", [False, True])
async def test_noise_after_the_greeting_closes_the_link_and_nothing_else(encrypt: bool, tmp_path: Path) -> None:
    """Records with any content, of every kind, with and without file descriptors, from one who knows the token."""
    noise = random.Random(2)
    loop = asyncio.get_running_loop()
    async with (
        Station(tmp_path / "s", TOKEN, take, options=options(encrypt=encrypt)) as near,
        Station(tmp_path / "s", TOKEN, take, options=options(encrypt=encrypt)) as far,
    ):
        for n in range(80):
            sock = await connect(far)
            with sock:
                await handshake.call(sock, TOKEN, FRIEND, far.id, noise.randbytes(8), encrypt=encrypt)
                body = noise.randbytes(noise.choice((0, 4, 44, 65, 1000)))
                size = noise.choice((len(body), 2**31, 0))
                header = HEADER.pack(size, n % 10, noise.choice((0, 3, 9)), 0, noise.choice((0, 1, 5, 2**63)), 0)
                fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(noise.choice((0, 1, 5, 8)))]
                try:
                    socket.send_fds(sock, [header + body], fds) if fds else await loop.sock_sendall(sock, header + body)
                finally:
                    for fd in fds:
                        os.close(fd)
                sock.shutdown(socket.SHUT_WR)
                await until_closed(sock)
        await near.send(far.path, far.id, b"others are not harmed", Priority.NORMAL, 5.0)


async def test_a_host_that_confirms_what_was_never_sent_is_left(tmp_path: Path) -> None:
    """The sender's end: confirmations of nonsense break the link, and do not pass for an acknowledgement."""
    folder = tmp_path / "s"
    loop = asyncio.get_running_loop()
    async with Station(folder, TOKEN, take) as near:
        path = folder / f"{FRIEND}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.setblocking(False)
            listening.bind(str(path))
            listening.listen()
            sending = asyncio.create_task(near.send(path, FRIEND, b"hello", Priority.NORMAL, 1.0))
            for _ in range(3):
                sock, _ = await loop.sock_accept(listening)
                with sock:
                    await handshake.host(sock, TOKEN, FRIEND, encrypt=False)
                    welcome = b"\1" + STATE.pack(*[0] * 8)
                    await loop.sock_sendall(sock, HEADER.pack(len(welcome), Kind.WELCOME, 0, 0, 0, 0) + welcome)
                    state = STATE.pack(7, 7, 7, 7, 7, 7, 7, 7)
                    await loop.sock_sendall(sock, HEADER.pack(len(state), Kind.ACK, 0, 0, 0, 0) + state)
                    await until_closed(sock)
            sending.cancel()
            assert not sending.done()
        path.unlink()
