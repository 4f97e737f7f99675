"""Messages: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.channels.messages import MAX_BYTES, MAX_DEPTH, Message, Priority, check_name, decode, encode
from swarm.errors import AgentDefinitionError, MessageError, MessageTooLargeError

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,20}", fullmatch=True)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
payloads = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4)
)
counts = st.integers(0, 2**63 - 1)
messages = st.builds(
    Message, names, names, names, payloads, st.sampled_from(Priority), counts, st.none() | counts, st.booleans()
)


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_are_a_message(frame: bytes) -> None:
    try:
        message = decode(frame)
    except MessageError:
        return
    assert decode(encode(message)) == message


@given(messages, st.data())
def test_a_damaged_message_is_refused_or_is_another_message(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(1, len(frame))) :]
    try:
        decode(bytes(frame))
    except MessageError:
        return


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, 2, "version 2, this is version 1"),
        (0, True, "version True"),
        (1, -1, "wrong number"),
        (2, "", "sender of a message is ''"),
        (2, 7, "sender of a message is 7"),
        (3, "a b", "recipient of a message is 'a b'"),
        (4, "x" * 65, "kind of a message is"),
        (5, 4, "priority 4, must be 0 to 3"),
        (5, 1.0, "priority 1.0"),
        (6, "1", "wrong number"),
        (7, 1, "wrong number"),
    ],
)
def test_a_wrong_field_is_named(at: int, value: object, said: str) -> None:
    fields = [1, 5, "ann", "bob", "hello", 2, None, False, None]
    fields[at] = value
    with pytest.raises(MessageError, match=said):
        decode(msgpack.packb(fields))


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(
        MessageError, match=r"hello from ann to bob can't be sent \(.*object.*\); it may hold None, bool"
    ):
        encode(Message("ann", "bob", "hello", object()))
    with pytest.raises(MessageError, match="can't be sent"):
        encode(Message("ann", "bob", "hello", 2**64))


def test_a_huge_message_is_refused_at_both_ends() -> None:
    with pytest.raises(MessageTooLargeError, match="send the key of a Dask future"):
        encode(Message("ann", "bob", "hello", bytes(MAX_BYTES)))
    with pytest.raises(MessageTooLargeError):
        decode(bytes(MAX_BYTES + 1))


def test_a_deeply_nested_payload_is_refused() -> None:
    payload: object = 1
    for _ in range(MAX_DEPTH + 1):
        payload = [payload]
    with pytest.raises(MessageError, match="nested deeper than 32"):
        decode(encode(Message("ann", "bob", "hello", payload)))


def test_not_a_number_travels() -> None:
    assert math.isnan(decode(encode(Message("ann", "bob", "hello", math.nan))).payload)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "ü", "a\n", "x" * 65, None, 3])
def test_names_that_are_not_allowed(name: object) -> None:
    with pytest.raises(AgentDefinitionError, match="must be 1 to 64 letters"):
        check_name(name)
