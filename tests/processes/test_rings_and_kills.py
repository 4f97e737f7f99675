"""A process at one end of a ring is killed at any instruction; the other end gets what was sent, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from swarm.channels import shm
from swarm.channels.layout import AT_HEAD, AT_READER, AT_TAIL, AT_WRITER, largest_message
from swarm.channels.ring import Ring, RingReader, RingWriter, Sent
from swarm.errors import ChannelError, PeerLostError
from tests.support.processes import wait_until
from tests.support.ring_nursery import message, nursery

KILLS = 500


def drain(reader: RingReader, timeout_s: float = 0.0) -> list[bytes]:
    """What is there, or comes within the time."""
    deadline_s = time.monotonic() + timeout_s
    got = reader.receive_many()
    while time.monotonic() < deadline_s:
        got += reader.receive_many(timeout_s=max(0.0, min(0.001, deadline_s - time.monotonic())))
    return got + reader.receive_many()


def test_writers_that_are_killed_leave_a_prefix_of_what_they_sent() -> None:
    """One ring for all of them: each goes on where the one before was killed."""
    rng = random.Random(500)
    sent_in_all = 0
    with nursery(1 << 17) as children:
        reader = children.ring.reader()
        children.fork("write 0")  # loads what is loaded late
        wait_until(lambda: children.noted()[1] > 0, "the first writer writes")
        children.kill()
        drain(reader)
        for generation in range(1, KILLS + 1):
            children.fork(f"write {generation}")
            got: list[bytes] = []
            if generation % 5:  # else it finds the ring full, and is killed while it waits for room
                wait_until_sent(reader, got)
                got += drain(reader, rng.uniform(0.0, 0.003))
            else:
                wait_until(lambda g=generation: children.noted()[0] == g, "the writer is there")
                time.sleep(rng.uniform(0.0, 0.01))
            children.kill()
            got += drain(reader)
            noted = children.noted()[1] if children.noted()[0] == generation else 0
            assert got == [message(generation, number) for number in range(len(got))]
            assert noted <= len(got) <= noted + 1, "all that was acknowledged, and at most the one under way"
            sent_in_all += len(got)
        told = children.ring.statistics()
    assert told["damaged"] == 0
    assert told["fill_bytes"] == 0
    assert sent_in_all > 5 * KILLS


def wait_until_sent(reader: RingReader, got: list[bytes]) -> None:
    """Wait for the first message of a new writer: the one before is known to be dead."""
    deadline_s = time.monotonic() + 20.0
    while not got:
        assert time.monotonic() < deadline_s, "no message"
        try:
            got += reader.receive_many(timeout_s=0.1)
        except PeerLostError:
            continue


def test_readers_that_are_killed_lose_nothing_that_is_still_there() -> None:
    """The next reader goes on where the last one stopped; the writer never notices."""
    rng = random.Random(100)
    with nursery(1 << 17) as children:
        writer = children.ring.writer()
        number = 0
        for _ in range(60):
            children.fork("read")
            end_s = time.monotonic() + rng.uniform(0.003, 0.012)
            while time.monotonic() < end_s:
                number += writer.try_send(message(0, number)) is not Sent.NO
            children.kill()
        reader = children.ring.reader()
        rest = drain(reader)
        assert rest == [message(0, i) for i in range(number - len(rest), number)]
        told = children.ring.statistics()
        assert told["damaged"] == 0
        assert told["sent"] == number
        assert number - 60 <= (told["messages"] or 0) <= number + 60  # who was killed had counted it, or not


def test_a_writer_that_waits_for_a_dead_reader_is_told_within_a_second() -> None:
    rng = random.Random(8)
    with nursery(1) as children:
        writer = children.ring.writer()
        for _ in range(10):
            before = children.ring.statistics()["messages"]
            children.fork("read")
            wait_until(lambda n=before: children.ring.statistics()["messages"] != n or sends(writer), "it reads")
            timer = threading.Timer(rng.uniform(0.0, 0.1), os.kill, (children.last, signal.SIGKILL))
            timer.start()
            with pytest.raises(PeerLostError, match=r"process \d+, the reader of this ring, has ended"):
                while True:
                    sent_s = time.monotonic()
                    writer.send(bytes(20_000), 30.0)
            assert time.monotonic() - sent_s < 1.0 + 0.1
            timer.join()
            children.bury()


def sends(writer: RingWriter) -> bool:
    """Send one if there is room; False, to go on waiting."""
    writer.try_send(b"the reader is there")
    return False


def test_a_reader_that_waits_for_a_dead_writer_is_told_after_the_last_message() -> None:
    with nursery(1 << 20) as children:
        reader = children.ring.reader()
        children.fork("write 7")
        wait_until(lambda: children.noted()[1] >= 10, "the writer writes")
        children.kill()
        killed_s = time.monotonic()
        got = []
        with pytest.raises(PeerLostError, match=r"process \d+, the writer of this ring, has ended"):
            while (one := reader.receive(30.0)) is not None:
                got.append(one)
        assert time.monotonic() - killed_s < 1.0
        assert len(got) >= children.noted()[1]
        assert got == [message(7, i) for i in range(len(got))]


def test_a_process_that_scribbles_while_we_read_harms_nobody() -> None:
    """In another process, so really at the same time: what was checked must be what is used."""
    with nursery(1) as children:
        children.fork("scribble 1")
        end_s = time.monotonic() + 2.0
        seen = broken = number = era = 0
        while time.monotonic() < end_s:
            try:
                with closing(children.ring.writer()) as writer, closing(children.ring.reader()) as reader:
                    expected = number
                    for _ in range(20):
                        writer.try_send(message(1, number))
                        number += 1
                        for got in reader.receive_many():
                            _, told = struct.unpack_from("<II", got)
                            assert got == message(1, told)
                            assert expected <= told < number
                            expected = told + 1
                            seen += 1
            except ChannelError:
                broken += 1
            era += 1
            mend(children.ring, era)
        children.kill()
    assert seen > 100
    assert broken > 10


def mend(ring: Ring, era: int) -> None:
    """Nobody claims it, and it is empty, at a position at which no old record was."""
    for place in (AT_WRITER, AT_READER):
        os.pwrite(ring.fd, bytes(8), place)
    for place in (AT_HEAD, AT_TAIL):
        os.pwrite(ring.fd, struct.pack("<Q", era << 20), place)


def test_a_forked_child_may_not_use_the_rings_of_its_parent() -> None:
    script = """
import os
from swarm.channels.ring import Ring
from swarm.errors import ChannelError
ring = Ring.create(1)
writer, reader = ring.writer(), ring.reader()
if os.fork() == 0:
    for act in (lambda: writer.send(b""), reader.try_receive, lambda: reader.receive(1), reader.rest):
        try:
            act()
        except ChannelError as error:
            assert "belongs to the process that forked" in str(error), error
        else:
            os._exit(3)
    own = Ring.attach(os.dup(ring.fd))
    try:
        own.writer()
    except ChannelError as error:
        assert "has a writer already, process" in str(error), error
    else:
        os._exit(4)
    del writer, reader
    ring.close()
    with Ring.create(1) as mine:
        mine.writer().send(b"a ring of its own")
        assert mine.reader().receive(1.0)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
writer.send(b"the parent goes on")
print(reader.receive(1.0).decode())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60.0, check=False)
    assert (done.stdout, done.stderr) == ("the parent goes on\n", "")


def test_rings_of_another_process_are_listed_and_go_with_it() -> None:
    with nursery(1 << 20) as children:
        pid = children.fork("read")
        inode = os.fstat(children.ring.fd).st_ino
        wait_until(lambda: shm.held_by(pid), "the child holds the ring")
        assert inode in {segment.inode for segment in shm.held_by(pid)}
        assert largest_message(children.ring.capacity) == children.ring.largest_message_bytes
        children.kill()
        assert shm.held_by(pid) == []
