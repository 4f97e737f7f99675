"""Real processes that end without a word: who is left knows at once, and has all that was acknowledged."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from swarm.channels.handshake import PeerInfo
from swarm.channels.messages import Priority
from swarm.channels.station import Station
from swarm.errors import ChannelError, ChannelFullError, PeerLostError
from tests.support.far_station import TOKEN, far, options
from tests.support.transports import STATIONS
from tests.support.waiting import eventually


def nothing_expected(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
    raise AssertionError(f"{peer} sent {frame!r}")


@pytest.mark.parametrize("how", STATIONS)
async def test_what_a_killed_sender_had_sent_arrives(how: dict[str, bool], tmp_path: Path) -> None:
    """All that was acknowledged, in order, each once, whatever it was doing when it died."""
    moments = random.Random(str(how))
    for _ in range(4):
        received: list[int] = []

        def take(peer: PeerInfo, frame: bytes, priority: Priority, received: list[int] = received) -> bool:
            if len(received) % 50 == 49 and moments.random() < 0.5:
                return False  # now and then there is no room
            received.append(int.from_bytes(frame[:8], "little"))
            return True

        async with Station(tmp_path / "s", TOKEN, take, options=options(encrypt=how["encrypt"])) as near:
            with far("send", near.path.parent, **how) as sender:
                sender.tell(f"{near.path} {near.id}")
                await eventually(lambda received=received: len(received) > 100, "some came", timeout_s=60.0)
                await asyncio.sleep(moments.random() * 0.05)
                sender.kill()
                acknowledged = int(sender.last_line())
                await eventually(
                    lambda near=near: all(link.is_over for link in near._incoming.values()), "all that came is read"
                )
        assert received == list(range(len(received)))
        assert len(received) > acknowledged


@pytest.mark.parametrize("how", STATIONS)
async def test_the_end_of_a_receiver_is_noticed_at_once(how: dict[str, bool], tmp_path: Path) -> None:
    lost: list[str] = []
    async with Station(
        tmp_path / "s",
        TOKEN,
        nothing_expected,
        on_lost=lambda peer_id, error: lost.append(peer_id),
        options=options(encrypt=how["encrypt"]),
    ) as near:
        with far("sleep", near.path.parent, encrypt=how["encrypt"]) as sleeper:
            if how["ring"]:
                assert await near.hasten(sleeper.path, sleeper.id)
            with pytest.raises(ChannelFullError):
                while True:
                    await near.send(sleeper.path, sleeper.id, bytes(50_000), Priority.NORMAL, 0.2)
            waiting = asyncio.create_task(near.send(sleeper.path, sleeper.id, bytes(50_000), Priority.NORMAL, 30.0))
            await asyncio.sleep(0.02)
            began_s = time.monotonic()
            sleeper.kill()
            with pytest.raises(PeerLostError):
                await waiting
            assert time.monotonic() - began_s < 1.0
            await eventually(lambda: lost == [sleeper.id], "its station says so")
            with pytest.raises(PeerLostError, match="has ended"):
                await near.send(sleeper.path, sleeper.id, b"again", Priority.NORMAL, 30.0)
            assert not sleeper.path.exists(), "the socket that it left is removed"
        assert not near.status()["links"]


@pytest.mark.parametrize("how", STATIONS)
async def test_a_station_that_starts_anew_is_reached_again(how: dict[str, bool], tmp_path: Path) -> None:
    echoes: list[bytes] = []

    def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        echoes.append(frame)
        return True

    async with Station(tmp_path / "s", TOKEN, take, options=options(encrypt=how["encrypt"])) as near:
        for life in (b"first", b"second"):
            with far("echo", near.path.parent, encrypt=how["encrypt"]) as echo:
                if how["ring"]:
                    assert await near.hasten(echo.path, echo.id)
                await near.send(echo.path, echo.id, life, Priority.HIGH, 10.0)
                await eventually(lambda life=life: echoes[-1:] == [life], "it came back")
                echo.kill()


async def test_a_station_that_is_stopped_holds_up_its_senders_no_longer_than_they_want(tmp_path: Path) -> None:
    async with Station(tmp_path / "s", TOKEN, nothing_expected, options=options(encrypt=False)) as near:
        with far("keep", near.path.parent) as sleeper:
            await near.send(sleeper.path, sleeper.id, b"awake", Priority.NORMAL, 10.0)
            os.kill(sleeper.process.pid, signal.SIGSTOP)
            try:
                with pytest.raises(ChannelFullError, match=r"within 0\.2 s"):
                    await near.send(sleeper.path, sleeper.id, b"asleep", Priority.NORMAL, 0.2)
            finally:
                os.kill(sleeper.process.pid, signal.SIGCONT)
            await near.send(sleeper.path, sleeper.id, b"awake again", Priority.NORMAL, 10.0)


async def test_without_numba_a_link_stays_on_the_socket_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swarm.channels import rings

    monkeypatch.setattr(rings, "_why_not", "ImportError: no numba here")
    received: list[bytes] = []

    def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        received.append(frame)
        return True

    async with (
        Station(tmp_path / "s", TOKEN, nothing_expected) as near,
        Station(tmp_path / "s", TOKEN, take) as other,
    ):
        for _ in range(100):
            await near.send(other.path, other.id, b"x", Priority.NORMAL, 5.0)
        assert not await near.hasten(other.path, other.id)
        (link,) = near.status()["links"]
        assert (link["transport"], link["why_no_ring"]) == ("socket", "ImportError: no numba here")
    assert len(received) == 100


async def test_a_busy_link_moves_into_shared_memory_by_itself_and_back_when_that_breaks(tmp_path: Path) -> None:
    received: list[int] = []

    def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        received.append(int.from_bytes(frame, "little"))
        return True

    async with (
        Station(tmp_path / "s", TOKEN, nothing_expected) as near,
        Station(tmp_path / "s", TOKEN, take) as other,
    ):
        sent = 0

        async def until(transport: str) -> None:
            nonlocal sent
            deadline_s = time.monotonic() + 60.0
            while near.status()["links"][0]["transport"] != transport if near.status()["links"] else True:
                assert time.monotonic() < deadline_s
                await near.send(other.path, other.id, sent.to_bytes(8, "little"), Priority.NORMAL, 5.0)
                sent += 1
                await asyncio.sleep(0)

        for _ in range(3):
            await until("ring")
            for _ in range(200):
                await near.send(other.path, other.id, sent.to_bytes(8, "little"), Priority.NORMAL, 5.0)
                sent += 1
            (incoming,) = other._incoming.values()
            incoming.on_rings_broken("a test broke it")
            await until("socket")
        assert "broke 3 times" in near.status()["links"][0]["why_no_ring"]
        await eventually(lambda: len(received) >= sent, "all came")
    assert received == list(range(sent))


async def test_another_token_is_refused_on_both_sides(tmp_path: Path) -> None:
    refused: list[str] = []
    async with (
        Station(tmp_path / "s", bytes(32), nothing_expected) as near,
        Station(tmp_path / "s", TOKEN, nothing_expected, on_refused=refused.append) as other,
    ):
        with pytest.raises(ChannelError, match="has another token: it belongs to another run"):
            await near.send(other.path, other.id, b"let me in", Priority.NORMAL, 5.0)
        await eventually(lambda: other.refused == 1, "it was counted")
    assert len(refused) == 1
    assert near.id in refused[0]


async def test_one_end_that_encrypts_and_one_that_does_not_say_so(tmp_path: Path) -> None:
    async with (
        Station(tmp_path / "s", TOKEN, nothing_expected, options=options(encrypt=True)) as near,
        Station(tmp_path / "s", TOKEN, nothing_expected, options=options(encrypt=False)) as other,
    ):
        with pytest.raises(ChannelError, match="doesn't encrypt its channels, this one does"):
            await near.send(other.path, other.id, b"secret", Priority.NORMAL, 5.0)


async def test_both_may_call_each_other_at_the_same_moment(tmp_path: Path) -> None:
    received: list[str] = []

    def take(peer: PeerInfo, frame: bytes, priority: Priority) -> bool:
        received.append(peer.id)
        return True

    async with Station(tmp_path / "s", TOKEN, take) as one, Station(tmp_path / "s", TOKEN, take) as other:
        sends = [
            sender.send(to.path, to.id, b"hello", Priority.NORMAL, 5.0)
            for _ in range(50)
            for sender, to in ((one, other), (other, one))
        ]
        await asyncio.gather(*sends)
    assert sorted(received) == sorted([one.id, other.id] * 50)
