"""Records are read back as they were written, however the stream is cut; anything else is refused in one line."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm.channels.wire import HEADER, MAX_BODY, Header, Kind, Records, read_header, read_record
from swarm.errors import ChannelError

kinds = st.sampled_from(list(Kind))
records = st.tuples(
    kinds, st.integers(0, 3), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=300)
)


def packed(record: tuple[Kind, int, int, int, bytes]) -> bytes:
    kind, priority, epoch, sequence, body = record
    return HEADER.pack(len(body), kind, priority, epoch, sequence, 12345) + body


@given(st.lists(records, max_size=20), st.lists(st.integers(0, 3000), max_size=20))
def test_a_stream_gives_its_records_wherever_it_is_cut(
    sent: list[tuple[Kind, int, int, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(map(packed, sent))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = Records()
    got = [one for begin, end in itertools.pairwise(edges) for one in list(reader.feed(stream[begin:end]))]
    assert [(Kind(h.kind), h.priority, h.epoch, h.sequence, body) for h, body in got] == sent


@given(st.binary(max_size=2000))
@example(HEADER.pack(MAX_BODY + 1, Kind.FRAME, 0, 0, 0, 0))
@example(HEADER.pack(2**32 - 1, Kind.FRAME, 0, 0, 0, 0))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    try:
        for header, body in Records().feed(noise):
            assert header.size == len(body) <= MAX_BODY
    except ChannelError:
        pass
    try:
        header, body = read_record(noise)
        assert HEADER.pack(*header) + body == noise
    except ChannelError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        Header(0, 0, 0, 0, 0, 0),
        Header(0, 99, 0, 0, 0, 0),
        Header(0, Kind.FRAME, 4, 0, 0, 0),
        Header(MAX_BODY + 1, Kind.FRAME, 0, 0, 0, 0),
    ],
)
def test_a_header_that_nobody_writes_is_refused(header: Header) -> None:
    with pytest.raises(ChannelError, match="no record"):
        read_header(HEADER.pack(*header))


def test_a_large_record_in_small_parts_takes_no_more_time_than_its_size() -> None:
    body = bytes(4 << 20)
    stream = HEADER.pack(len(body), Kind.FRAME, 0, 0, 1, 0) + body
    reader = Records()
    got = [one for at in range(0, len(stream), 4096) for one in reader.feed(stream[at : at + 4096])]
    assert len(got) == 1
    assert got[0][1] == body
