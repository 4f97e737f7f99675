"""Both ends of a ring in one process: order, wraps, full and empty, waiting, claims, strange descriptors."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.channels import layout, shm
from swarm.channels.layout import RECORD_HEADER_BYTES, SMALLEST_BYTES
from swarm.channels.ring import Ring, RingReader, RingWriter, Sent, warm_up
from swarm.errors import ChannelError, ChannelFullError, MessageTooLargeError
from tests.support.leaks import leaving_nothing_behind
from tests.support.processes import wait_until


@pytest.fixture
def ring() -> Iterator[Ring]:
    with leaving_nothing_behind(), Ring.create(1) as made:
        yield made


@pytest.fixture
def ends(ring: Ring) -> tuple[RingWriter, RingReader]:
    return ring.writer(), ring.reader()


def fill(writer: RingWriter, payload: bytes = bytes(1000)) -> int:
    """Send until the ring is full; returns how many."""
    count = 0
    while writer.try_send(payload) is not Sent.NO:
        count += 1
    return count


# Messages.


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 255, 256, 4096, 65535 - RECORD_HEADER_BYTES])
def test_what_is_sent_arrives(ends: tuple[RingWriter, RingReader], length: int) -> None:
    writer, reader = ends
    message = random.Random(length).randbytes(length)
    assert writer.send(message) is Sent.YES
    assert reader.receive(1.0) == message
    assert reader.try_receive() is None


@pytest.mark.parametrize("kind", [bytearray, memoryview, type("Special", (bytes,), {})])
def test_whatever_holds_bytes_can_be_sent(ends: tuple[RingWriter, RingReader], kind: type) -> None:
    writer, reader = ends
    writer.send(kind(b"bytes of another kind"))
    assert reader.receive(1.0) == b"bytes of another kind"


@pytest.mark.parametrize("data", [5, "text", None, [b"list"]])
def test_what_holds_no_bytes_is_refused(ends: tuple[RingWriter, RingReader], data: object) -> None:
    writer, reader = ends
    with pytest.raises(TypeError):
        writer.send(data)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        writer.send_many([b"good", data])  # type: ignore[list-item]
    assert reader.receive_many() == [b"good"]


def test_records_wrap_at_every_place(ends: tuple[RingWriter, RingReader]) -> None:
    """Records of one, two and more lines, so that each line of the ring is the first of one and all are run over."""
    writer, reader = ends
    rng = random.Random(6)
    begins = set()
    while len(begins) < SMALLEST_BYTES // layout.ALIGNMENT:
        begins.add(writer._hold._words[2] % SMALLEST_BYTES)
        message = rng.randbytes(rng.choice((0, 20, 100, 1000, 20_000)))
        assert writer.try_send(message) is Sent.YES
        assert reader.try_receive() == message


def test_a_message_that_will_never_fit_is_refused(ring: Ring, ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    with pytest.raises(MessageTooLargeError, match=r"65505 bytes: this ring takes at most 65504"):
        writer.send(bytes(65505), timeout_s=10.0)
    with pytest.raises(MessageTooLargeError):
        writer.send_many([bytes(65505)])
    with pytest.raises(MessageTooLargeError):
        writer.rest(65505)
    assert writer.send(bytes(ring.largest_message_bytes)) is Sent.YES
    assert len(reader.receive(1.0) or b"") == 65504


def test_many_at_once(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    messages = [str(i).encode() for i in range(2000)]
    sent = writer.send_many(messages)
    assert sent == 1024  # of 64 bytes each
    assert reader.receive_many(most=10) == messages[:10]
    assert reader.receive_many() == messages[10:1024]
    assert reader.receive_many() == []


def test_many_more_than_fit_go_through_while_somebody_reads(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    messages = [str(i).encode() for i in range(20_000)]
    sent = []
    thread = threading.Thread(target=lambda: sent.append(writer.send_many(messages, timeout_s=30.0)))
    thread.start()
    got: list[bytes] = []
    while len(got) < len(messages) and (more := reader.receive_many(timeout_s=10.0)):
        got += more
    thread.join()
    assert got == messages
    assert sent == [20_000]


# Full, empty, and for how long.


def test_a_full_ring_refuses_and_counts(ring: Ring, ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    count = fill(writer)
    assert count == SMALLEST_BYTES // 1088
    with pytest.raises(ChannelFullError, match=r"no room for 1000 bytes within 0 s"):
        writer.send(bytes(1000))
    assert ring.statistics()["drops"] == 2
    assert reader.try_receive() is not None
    assert writer.send(bytes(1000)) is Sent.YES


@pytest.mark.parametrize("timeout_s", [0.001, 0.05, 0.3])
def test_waits_end_when_they_should(ends: tuple[RingWriter, RingReader], timeout_s: float) -> None:
    writer, reader = ends
    began_s = time.monotonic()
    assert reader.receive(timeout_s) is None
    assert time.monotonic() - began_s >= timeout_s
    fill(writer)
    began_s = time.monotonic()
    with pytest.raises(ChannelFullError):
        writer.send(bytes(1000), timeout_s)
    assert time.monotonic() - began_s >= timeout_s


@pytest.mark.parametrize("spin_us", [0.0, 50.0])
def test_who_waits_is_woken_and_others_run_meanwhile(ring: Ring, spin_us: float) -> None:
    writer, reader = ring.writer(spin_us=spin_us), ring.reader(spin_us=spin_us)
    got: list[bytes | None] = []
    thread = threading.Thread(target=lambda: got.append(reader.receive(20.0)))
    thread.start()
    wait_until(lambda: reader._hold._words[5] == 1, "the reader waits")  # which we see: so it holds no GIL
    writer.send(b"wake up")
    thread.join(10.0)
    assert got == [b"wake up"]


def test_a_writer_waits_for_room(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    count = fill(writer)
    sent: list[Sent] = []
    thread = threading.Thread(target=lambda: sent.append(writer.send(b"at last" * 100, 20.0)))
    thread.start()
    wait_until(lambda: writer._hold._words[5] == 1, "the writer waits")
    for _ in range(count):
        assert reader.receive(1.0) == bytes(1000)
    assert reader.receive(10.0) == b"at last" * 100
    thread.join(10.0)
    assert sent == [Sent.YES]


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_the_other_end_wakes_who_sleeps_long_before_its_nap_ends(ring: Ring, side: str) -> None:
    """Naps end by themselves after 0.2 s, so without a wake-up all would go on, but slowly."""
    writer, reader = ring.writer(spin_us=0.0), ring.reader(spin_us=0.0)
    place = layout.AT_WRITER_STATE if side == "writer" else layout.AT_READER_STATE
    woken_s: list[float] = []

    def sleep() -> None:
        assert writer.send(bytes(60_000), 20.0) if side == "writer" else reader.receive(20.0)
        woken_s.append(time.monotonic())

    took_s = []
    for _ in range(15):
        if side == "writer":
            writer.send(bytes(60_000))
        thread = threading.Thread(target=sleep)
        thread.start()
        wait_until(lambda: os.pread(ring.fd, 1, place)[0] == layout.ON_FUTEX, "it sleeps")
        began_s = time.monotonic()
        assert reader.receive(1.0) if side == "writer" else writer.send(b"wake up")
        thread.join(10.0)
        took_s.append(woken_s[-1] - began_s)
        reader.receive_many()
    assert sorted(took_s)[len(took_s) // 2] < 0.1


def test_control_c_is_heard_in_a_blocked_receive(ends: tuple[RingWriter, RingReader]) -> None:
    _, reader = ends
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        reader.receive(30.0)
    assert time.monotonic() - began_s < 10.0
    timer.join()


def test_closing_sends_away_who_waits(ring: Ring, ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    fill(writer)
    told: list[str] = []

    def wait(for_: object) -> None:
        try:
            reader.receive_many() if for_ is None else writer.send(bytes(1000), 30.0)
            reader.receive(30.0)
        except ChannelError as error:
            told.append(str(error))

    threads = [threading.Thread(target=wait, args=(for_,)) for for_ in (1, 2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: writer._hold._words[5] == 2, "both wait")
    ring.close()
    for thread in threads:
        thread.join(10.0)
    assert told == ["the ring is closed"] * 2


def test_threads_may_share_an_end(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    each, got = 2000, []

    def send(who: int) -> None:
        for i in range(each):
            writer.send(b"%d %d" % (who, i) * 5, 30.0)

    def receive() -> None:
        while (message := reader.receive(30.0)) != b"end":
            assert message is not None
            got.append(message)

    senders = [threading.Thread(target=send, args=(who,)) for who in range(3)]
    receivers = [threading.Thread(target=receive) for _ in range(2)]
    for thread in (*senders, *receivers):
        thread.start()
    for thread in senders:
        thread.join()
    for _ in receivers:
        writer.send(b"end", 30.0)
    for thread in receivers:
        thread.join()
    assert sorted(got) == sorted(b"%d %d" % (who, i) * 5 for who in range(3) for i in range(each))


# Bells.


def test_the_bell_of_a_reader(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    assert reader.rest()
    assert writer.try_send(b"first") is Sent.RING
    assert writer.try_send(b"second") is Sent.YES, "rung already"
    assert not reader.rest(), "there is something to read"
    assert writer.try_send(b"third") is Sent.YES
    assert reader.receive_many() == [b"first", b"second", b"third"]
    assert reader.rest()
    assert writer.send_many([b"fourth", b"fifth"]) == 2
    assert writer.bell_due()
    assert not writer.bell_due()


def test_the_bell_of_a_writer(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    assert not writer.rest(1000), "there is room"
    fill(writer)
    assert not reader.bell_due()
    assert writer.rest(1000)
    assert reader.try_receive() is not None
    assert reader.bell_due()
    assert not reader.bell_due()
    assert writer.try_send(bytes(1000)) is Sent.YES


# Claims and strange descriptors.


def test_an_end_belongs_to_one(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader()
    with Ring.attach(os.dup(ring.fd)) as other:
        with pytest.raises(ChannelError, match=r"has a writer already, this process"):
            other.writer()
        with pytest.raises(ChannelError, match=r"has a reader already, this process"):
            other.reader()
        writer.send(b"one")
        writer.close()
        reader.close()
        other.writer().send(b"two")
        assert other.reader().receive_many() == [b"one", b"two"]
    with pytest.raises(ChannelError, match="the ring is closed"):
        writer.send(b"three")


def test_an_end_of_the_dead_is_free_but_one_in_another_container_is_not(ring: Ring) -> None:
    dead = layout.claim(2**22 - 1, 1)  # no PID is so large
    for namespace, is_free in ((0, True), (shm.own_pid_namespace(), True), (7, False)):
        os.pwrite(ring.fd, struct.pack("<QQ", dead, namespace), layout.AT_WRITER)
        if is_free:
            ring.writer().close()
        else:
            with pytest.raises(ChannelError, match="has a writer already, process 4194303"):
                ring.writer()


def test_a_closed_ring_says_so(ring: Ring) -> None:
    writer, reader = ring.writer(), ring.reader()
    ring.close()
    ring.close()
    for act in (
        *(lambda: writer.send(b""), lambda: writer.try_send(b""), lambda: writer.send_many([b""])),
        *(lambda: writer.rest(1), reader.rest, lambda: reader.receive(1.0), reader.try_receive),
        *(reader.receive_many, ring.writer, ring.reader, ring.statistics),
    ):
        with pytest.raises(ChannelError, match="the ring is closed"):
            act()


def test_a_ring_that_nobody_needs_any_more_goes_away() -> None:
    with leaving_nothing_behind():
        writer = Ring.create(1).writer()
        writer.send(b"the writer keeps its ring")
        assert len(shm.held_by(os.getpid())) == 1
        del writer
    assert shm.held_by(os.getpid()) == []


def test_rings_of_a_process_are_listed(ring: Ring) -> None:
    (segment,) = shm.held_by(os.getpid())
    assert (segment.fd, segment.size_bytes) == (ring.fd, layout.HEADER_BYTES + ring.capacity)
    assert shm.held_by(2**22 - 1) == []


def _memory(seals: int, header: bytes, size: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, header, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


HEADER, SIZE = layout.first_header(65536), layout.HEADER_BYTES + 65536


@pytest.mark.parametrize(
    ("seals", "header", "size", "why"),
    [
        (0, HEADER, SIZE, "is not sealed"),
        (fcntl.F_SEAL_SHRINK, HEADER, SIZE, "is not sealed"),
        (shm.SEALS, HEADER, SIZE - 1, "where it tells of"),
        (shm.SEALS, HEADER, 24, "where it tells of"),
        (shm.SEALS, b"", 0, "has 0 bytes"),
        (shm.SEALS, b"not a ring at all, but long enough", SIZE, "does not begin as one"),
        (shm.SEALS, HEADER[:8] + bytes([9]) + HEADER[9:], SIZE, "layout 9"),
    ],
)
def test_memory_that_is_no_ring_is_refused(seals: int, header: bytes, size: int, why: str) -> None:
    fd = _memory(seals, header, size)
    with leaving_nothing_behind(), pytest.raises(ChannelError, match=why):
        Ring.attach(fd)
    os.close(fd)  # it is still ours


def test_other_descriptors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(HEADER + bytes(SIZE))
    fd = os.open(tmp_path / "file", os.O_RDWR)
    for descriptor, why in ((fd, "can be sealed|is not sealed"), (987, "is not open"), (-1, "is not open")):
        with pytest.raises(ChannelError, match=why):
            Ring.attach(descriptor)
    os.close(fd)


def test_a_ring_can_not_be_taken_away(ring: Ring) -> None:
    for size in (0, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(ring.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize("spin_us", [-1.0, float("nan"), float("inf")])
def test_spinning_for_a_strange_time_is_refused(ring: Ring, spin_us: float) -> None:
    with pytest.raises(ChannelError, match="spin_us"):
        ring.writer(spin_us=spin_us)


# Statistics.


def test_statistics_count_what_went_through(ring: Ring, ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    assert ring.statistics()["latency_p50_ns"] is None
    for _ in range(10):
        writer.send(bytes(100))
        assert reader.receive(1.0) == bytes(100)
    writer.send(bytes(33))
    told = ring.statistics()
    assert told["messages"] == 10
    assert told["bytes"] == 1000
    assert (told["sent"], told["sent_bytes"]) == (11, 1033)
    assert (told["drops"], told["damaged"]) == (0, 0)
    assert told["fill_bytes"] == 128
    p50_ns, p99_ns = told["latency_p50_ns"], told["latency_p99_ns"]
    assert p50_ns is not None
    assert p99_ns is not None
    assert 0 < p50_ns <= p99_ns < 10**9


def test_latency_counts_from_send_to_receive(ring: Ring, ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    writer.send(b"slow")
    time.sleep(0.05)
    reader.receive(1.0)
    p50_ns = ring.statistics()["latency_p50_ns"]
    assert p50_ns is not None
    assert p50_ns >= 0.05e9 * 7 / 8


def test_warming_up_leaves_nothing() -> None:
    with leaving_nothing_behind():
        assert warm_up() > 0.0
