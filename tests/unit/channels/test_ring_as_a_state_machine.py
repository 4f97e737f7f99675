"""Whatever is done to a ring in whatever order, it does what a queue of bounded size does."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarm.channels.layout import RECORD_HEADER_BYTES, SMALLEST_BYTES
from swarm.channels.ring import Ring, Sent
from swarm.errors import ChannelFullError, MessageTooLargeError

LENGTHS = st.one_of(st.integers(0, 200), st.integers(0, SMALLEST_BYTES - RECORD_HEADER_BYTES))


def record_bytes(length: int) -> int:
    return -(-(32 + length) // 64) * 64


class RingMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.ring = Ring.create(1)
        self.writer, self.reader = self.ring.writer(), self.ring.reader()
        self.queue: deque[bytes] = deque()
        self.counts = {"messages": 0, "bytes": 0, "sent": 0, "sent_bytes": 0, "drops": 0, "damaged": 0}
        self.resting = False
        self.number = 0

    def message(self, length: int) -> bytes:
        self.number += 1
        return (b"%d;" % self.number * (length // 2 + 1))[:length]

    def fits(self, length: int) -> bool:
        return self.fill_bytes() + record_bytes(length) <= SMALLEST_BYTES

    def fill_bytes(self) -> int:
        return sum(record_bytes(len(message)) for message in self.queue)

    def was_sent(self, message: bytes) -> Sent:
        self.queue.append(message)
        self.counts["sent"] += 1
        self.counts["sent_bytes"] += len(message)
        self.resting, rested = False, self.resting
        return Sent.RING if rested else Sent.YES

    def was_received(self, message: bytes) -> None:
        assert message == self.queue.popleft()
        self.counts["messages"] += 1
        self.counts["bytes"] += len(message)

    @rule(length=LENGTHS)
    def try_send(self, length: int) -> None:
        message, fits = self.message(length), self.fits(length)
        told = self.writer.try_send(message)
        assert told is (self.was_sent(message) if fits else Sent.NO)
        self.counts["drops"] += not fits

    @rule(length=LENGTHS)
    def send(self, length: int) -> None:
        message = self.message(length)
        if self.fits(length):
            assert self.writer.send(message, 1.0) is self.was_sent(message)
        else:
            with pytest.raises(ChannelFullError):
                self.writer.send(message)
            self.counts["drops"] += 1

    @rule(length=st.integers(SMALLEST_BYTES - RECORD_HEADER_BYTES + 1, 2 * SMALLEST_BYTES))
    def send_too_much(self, length: int) -> None:
        with pytest.raises(MessageTooLargeError):
            self.writer.send(bytes(length))

    @rule(lengths=st.lists(LENGTHS, max_size=20))
    def send_many(self, lengths: list[int]) -> None:
        messages = [self.message(length) for length in lengths]
        sent = self.writer.send_many(messages)
        ring_bell = False
        for message in messages[:sent]:
            assert self.fits(len(message))
            ring_bell |= self.was_sent(message) is Sent.RING
        assert self.writer.bell_due() is ring_bell
        if sent < len(messages):
            assert not self.fits(len(messages[sent]))
            self.counts["drops"] += 1

    @rule()
    def try_receive(self) -> None:
        if (message := self.reader.try_receive()) is None:
            assert not self.queue
        else:
            self.was_received(message)

    @precondition(lambda self: self.queue)
    @rule()
    def receive(self) -> None:
        message = self.reader.receive(1.0)
        assert message is not None
        self.was_received(message)

    @rule(most=st.integers(1, 30))
    def receive_many(self, most: int) -> None:
        expected = min(most, len(self.queue))
        got = self.reader.receive_many(most=most)
        assert len(got) == expected
        for message in got:
            self.was_received(message)

    @rule()
    def rest(self) -> None:
        assert self.reader.rest() is not bool(self.queue)
        self.resting = not self.queue

    @rule()
    def another_writer(self) -> None:
        self.writer.close()
        self.writer = self.ring.writer()

    @rule()
    def another_reader(self) -> None:
        self.reader.close()
        self.reader = self.ring.reader()
        self.resting = False

    @invariant()
    def statistics_are_right(self) -> None:
        if hasattr(self, "ring"):
            told = self.ring.statistics()
            assert {name: told[name] for name in self.counts} == self.counts
            assert told["fill_bytes"] == self.fill_bytes()

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close()


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=60)
