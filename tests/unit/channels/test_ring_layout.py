"""What lies where in a ring: sizes, header, histogram, claims."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.channels import layout
from swarm.errors import ChannelError

SIZES = st.integers(layout.SMALLEST_BYTES, 1 << 26).map(layout.capacity_for)


@pytest.mark.parametrize(("asked", "given_"), [(1, 65536), (65536, 65536), (65537, 131072), (1 << 32, 1 << 32)])
def test_a_ring_holds_at_least_what_was_asked_for(asked: int, given_: int) -> None:
    assert layout.capacity_for(asked) == given_


@pytest.mark.parametrize("asked", [0, -1, (1 << 32) + 1])
def test_a_size_that_no_ring_has_is_refused(asked: int) -> None:
    with pytest.raises(ChannelError, match=r"allowed are 1 to 4294967296"):
        layout.capacity_for(asked)


@given(SIZES)
def test_a_header_tells_its_capacity(capacity: int) -> None:
    assert layout.check_header(layout.first_header(capacity), layout.HEADER_BYTES + capacity) == capacity


@pytest.mark.parametrize(
    ("header", "size", "why"),
    [
        (b"", 0, "has 0 bytes"),
        (bytes(64), 131072, "does not begin as one"),
        (struct.pack("<QQQ", layout.MAGIC, 99, 65536), 131072, "layout 99"),
        (struct.pack("<QQQ", layout.MAGIC, 1, 65537), 131073, "65537 bytes, which no ring does"),
        (struct.pack("<QQQ", layout.MAGIC, 1, 32768), 98304, "32768 bytes, which no ring does"),
        (struct.pack("<QQQ", layout.MAGIC, 1, 65536), 65536, "65536 bytes, where it tells of 131072"),
    ],
)
def test_what_is_no_ring_is_refused_and_told_why(header: bytes, size: int, why: str) -> None:
    with pytest.raises(ChannelError, match=why):
        layout.check_header(header, size)


@given(st.binary(max_size=64), st.integers(0, 1 << 33))
def test_nonsense_is_never_taken_for_a_ring(header: bytes, size: int) -> None:
    with pytest.raises(ChannelError):
        layout.check_header(header, size)


@given(st.integers(0, 1 << 60))
def test_a_bucket_is_no_wider_than_an_eighth_of_what_it_counts(ns: int) -> None:
    bucket = layout.bucket_of(ns)
    assert 0 <= bucket < layout.BUCKETS
    if bucket < layout.BUCKETS - 1:
        low, high = layout.lower_bound_ns(bucket), layout.lower_bound_ns(bucket + 1)
        assert low <= ns < high
        assert high - low <= max(1, low / layout.STEPS)


@given(st.lists(st.integers(0, 10**9), min_size=1), st.sampled_from([0.5, 0.99]))
def test_quantiles_are_true_to_an_eighth(latencies_ns: list[int], share: float) -> None:
    counts = [0] * layout.BUCKETS
    for ns in latencies_ns:
        counts[layout.bucket_of(ns)] += 1
    told = layout.quantile_ns(counts, share)
    exact = next(ns for i, ns in enumerate(sorted(latencies_ns), 1) if i >= share * len(latencies_ns))
    assert told is not None
    assert abs(told - exact) <= max(1, exact / layout.STEPS)


def test_without_messages_there_is_no_latency() -> None:
    assert layout.quantile_ns([0] * layout.BUCKETS, 0.5) is None


@given(st.integers(1, (1 << 22) - 1), st.integers(0, (1 << 41) - 1))
def test_a_claim_names_a_process_in_one_positive_word(pid: int, started_ticks: int) -> None:
    word = layout.claim(pid, started_ticks)
    assert 0 < word < 1 << 63
    assert layout.claimed_by(word) == (pid, started_ticks)
