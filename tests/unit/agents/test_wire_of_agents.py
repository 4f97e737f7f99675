"""Between an agent's process and its host: any cut of the stream is read alike, any nonsense breaks it cleanly."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from swarm.agents.life.wire import Op, Wire


class Transport:
    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class Ear:
    """One end, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[Op, list[Any]]] = []
        self.lost: list[str] = []
        self.transport = Transport()
        self.wire = Wire(lambda op, arguments: self.heard.append((op, arguments)), self.lost.append)
        self.wire.connection_made(cast("asyncio.BaseTransport", self.transport))


LINES = st.lists(st.tuples(st.sampled_from(Op), st.lists(st.one_of(st.integers(0, 2**63), st.binary(), st.text()))))


@given(LINES, st.data())
def test_lines_arrive_however_the_stream_is_cut(lines: list[tuple[Op, list[Any]]], data: st.DataObject) -> None:
    ear = Ear()
    stream = b"".join(msgpack.packb([int(op), *arguments]) for op, arguments in lines)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        ear.wire.data_received(stream[:size])
        stream = stream[size:]
    assert ear.heard == lines
    assert not ear.transport.is_aborted


@given(st.binary(min_size=1, max_size=200))
def test_nonsense_breaks_it_or_is_nothing(noise: bytes) -> None:
    ear = Ear()
    ear.wire.data_received(noise)
    ear.wire.connection_lost(None)
    assert len(ear.lost) == 1
    assert bool(ear.lost[0]) == ear.transport.is_aborted


def test_what_the_listener_refuses_breaks_it() -> None:
    def refuse(op: Op, arguments: list[Any]) -> None:
        raise ValueError("not that")

    ear = Ear()
    ear.wire = Wire(refuse, ear.lost.append)
    ear.wire.connection_made(cast("asyncio.BaseTransport", ear.transport))
    ear.wire.data_received(msgpack.packb([int(Op.WANTS)]))
    ear.wire.connection_lost(None)
    assert ear.lost == ["ValueError: not that"]


def test_a_promise_of_millions_is_not_believed() -> None:
    ear = Ear()
    ear.wire = Wire(lambda op, arguments: None, ear.lost.append, most_items=1000)
    ear.wire.connection_made(cast("asyncio.BaseTransport", ear.transport))
    ear.wire.data_received(b"\xdd" + (60_000_000).to_bytes(4, "big"))
    assert ear.transport.is_aborted
