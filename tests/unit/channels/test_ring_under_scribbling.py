"""A peer that writes nonsense into the ring can spoil messages; it can't crash us, nor give us a wrong message."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm.channels import layout
from swarm.channels.layout import ALIGNMENT, HEADER_BYTES, SMALLEST_BYTES
from swarm.channels.ring import Ring, RingReader, Sent
from swarm.errors import ChannelError

Step = tuple[str, int, bytes]

WORDS = st.one_of(
    st.integers(0, 1 << 64).map(lambda n: n % (1 << 64)),
    st.integers(0, 2 * SMALLEST_BYTES // ALIGNMENT).map(lambda n: n * ALIGNMENT),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 64]),
).map(lambda n: struct.pack("<Q", n))
PLACES = st.one_of(
    st.sampled_from([layout.AT_HEAD, layout.AT_TAIL, layout.AT_READER_STATE, layout.AT_WRITER_STATE]),
    st.integers(0, 127).map(lambda n: 8 * n),
    st.integers(HEADER_BYTES, HEADER_BYTES + 2048),
    st.integers(HEADER_BYTES, HEADER_BYTES + SMALLEST_BYTES - 64),
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("send"), st.sampled_from([0, 1, 100, 1000, 30_000]), st.just(b"")),
    st.tuples(st.just("send"), st.integers(0, 3000), st.just(b"")),
    st.tuples(st.just("scribble"), PLACES, st.one_of(WORDS, st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("receive"), st.integers(1, 5), st.just(b"")),
    st.tuples(st.just("rest"), st.just(0), st.just(b"")),
)


def body(number: int, length: int) -> bytes:
    return struct.pack("<Q", number) + random.Random(number).randbytes(length)


def assert_in_order(got: Iterable[bytes], sent: list[bytes]) -> None:
    """Each is one of those that were sent, unchanged, later than the one before."""
    rest = iter(sent)
    for message in got:
        assert any(message == candidate for candidate in rest), "a message that was never sent, or out of order"


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=40))
@example([("send", 100, b""), ("scribble", HEADER_BYTES, b"\xff" * 4), ("receive", 2, b"")])  # a length beyond all
@example([("send", 100, b""), ("scribble", layout.AT_HEAD, struct.pack("<Q", 6400)), ("receive", 5, b"")])
def test_no_nonsense_crashes_the_ends_or_makes_a_message(steps: list[Step]) -> None:
    sent, got = [], []
    with Ring.create(1) as ring:
        writer, reader = ring.writer(), ring.reader()
        for number, (act, n, data) in enumerate(steps):
            try:
                if act == "send":
                    message = body(number, n)
                    sent.append(message)
                    writer.send_many([message]) if n % 2 else writer.try_send(message)
                elif act == "scribble":
                    os.pwrite(ring.fd, data, n)
                elif act == "rest":
                    reader.rest()
                else:
                    got += reader.receive_many(most=n)
                    got += [message for _ in range(n) if (message := reader.receive(1e-4)) is not None]
            except ChannelError:
                pass  # broken beyond repair; whoever goes on using it must not be harmed
            ring.statistics()
    assert_in_order(got, sent)


def receive_all(reader: RingReader) -> list[bytes]:
    return reader.receive_many(most=10_000)


def test_a_spoiled_message_costs_only_itself() -> None:
    with Ring.create(1) as ring:
        writer, reader = ring.writer(), ring.reader()
        sent = [body(i, 200) for i in range(50)]
        writer.send_many(sent)
        size = 256  # 32 + 8 + 200, in lines
        for number, offset in ((3, 0), (7, 8), (11, 16), (17, 24), (23, 32), (29, 200), (49, 100)):
            os.pwrite(ring.fd, b"\xa5\x5a\x77", HEADER_BYTES + size * number + offset)
        assert receive_all(reader) == [message for i, message in enumerate(sent) if i not in (3, 7, 11, 17, 23, 29, 49)]
        assert ring.statistics()["damaged"] == 7
        writer.send(b"goes on")
        assert receive_all(reader) == [b"goes on"]


def test_old_records_are_not_taken_for_new_ones() -> None:
    with Ring.create(1) as ring:
        writer, reader = ring.writer(), ring.reader()
        for i in range(600):  # more than once around
            writer.send(body(i, 200))
            assert reader.receive(1.0) == body(i, 200)
        at = 600 * 256
        os.pwrite(ring.fd, struct.pack("<Q", at + 25_600), layout.AT_HEAD)  # a hundred records that are there, but old
        assert receive_all(reader) == []
        assert ring.statistics()["damaged"] == 1


@pytest.mark.parametrize("position", [1 << 40, (1 << 64) - 64, 1 << 63])
@pytest.mark.parametrize("place", [layout.AT_HEAD, layout.AT_TAIL])
def test_positions_that_can_not_be_are_told(place: int, position: int) -> None:
    with Ring.create(1) as ring:
        writer, reader = ring.writer(), ring.reader()
        while writer.try_send(bytes(1000)) is not Sent.NO:
            pass
        os.pwrite(ring.fd, struct.pack("<Q", position), place)
        with pytest.raises(ChannelError, match="beyond repair"):
            reader.receive(1.0) if place == layout.AT_HEAD else writer.send(bytes(1000))
        reader.close()
        with pytest.raises(ChannelError, match="the ring is damaged"):
            ring.reader()
