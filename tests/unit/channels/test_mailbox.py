"""The mailbox: urgent first, in order, bounded, and nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.channels.mailbox import OVERHEAD_BYTES, PATIENCE, Mailbox, Turns
from swarm.channels.messages import Priority

priorities = st.sampled_from(Priority)


@given(st.lists(priorities | st.none()))
def test_nothing_is_lost_and_each_priority_stays_in_order(steps: list[Priority | None]) -> None:
    box, put, taken = Mailbox(10**6), list[tuple[Priority, bytes]](), list[bytes]()
    for i, priority in enumerate(steps):
        if priority is None:
            frame = box.take()
            assert (frame is None) == (len(put) == len(taken))
            taken += [] if frame is None else [frame]
        else:
            assert box.put(b"%d" % i, priority)
            put.append((priority, b"%d" % i))
    while (frame := box.take()) is not None:
        taken.append(frame)
    assert sorted(taken) == sorted(frame for _, frame in put)
    for priority in Priority:
        mine = [frame for p, frame in put if p == priority]
        assert [frame for frame in taken if frame in mine] == mine
    assert len(box) == 0
    assert box.fill_ratio == 0.0


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=300))
def test_nobody_waits_longer_than_its_patience(steps: list[list[bool]]) -> None:
    """At most `PATIENCE` turns of others, and one for each other that has lost its patience too."""
    turns, waited = Turns(), [0] * 4
    for waiting in steps:
        chosen = turns.next_of(waiting)
        assert (chosen is None) == (not any(waiting))
        for priority, something in enumerate(waiting):
            waited[priority] = waited[priority] + 1 if something and priority != chosen else 0
        assert max(waited) <= PATIENCE + 3


def test_a_stream_of_urgent_messages_lets_the_others_through() -> None:
    box = Mailbox(10**6)
    box.put(b"patient", Priority.LOW)
    order = []
    for _ in range(PATIENCE + 2):
        box.put(b"urgent", Priority.URGENT)
        order.append(box.take())
    assert order.index(b"patient") == PATIENCE


def test_a_full_priority_refuses_and_the_others_take() -> None:
    box = Mailbox(2 * (OVERHEAD_BYTES + 10))
    assert box.put(bytes(10), Priority.LOW)
    assert box.put(bytes(10), Priority.LOW)
    assert not box.put(b"", Priority.LOW)
    assert box.fill_ratio == 1.0
    assert box.put(b"", Priority.URGENT)


def test_an_empty_mailbox_takes_a_message_of_any_size() -> None:
    assert Mailbox(100).put(bytes(1000), Priority.NORMAL)
