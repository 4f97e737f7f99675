"""What an agent writes of itself: seen from elsewhere, added up, and harmless when it is nonsense."""

from __future__ import annotations

import mmap
import os
import random
import statistics
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.agents.life.vitals import SIZE_BYTES, Doing, Record, Vitals, shared_memory


@pytest.fixture
def fd() -> Iterator[int]:
    fd = shared_memory()
    yield fd
    os.close(fd)


def test_the_other_side_sees_what_is_written(fd: int) -> None:
    agent, host = Vitals(fd), Vitals(fd)
    with agent.turn(Doing.CYCLE):
        assert host.doing is Doing.CYCLE
        assert host.since_s > 0
        assert host.good_at_s == 0
    assert host.doing is Doing.NOTHING
    assert host.good_at_s >= host.since_s
    agent.begin_message()
    assert (host.messages_begun, host.messages_done) == (1, 0)
    agent.count_message(failed=True)
    assert (host.messages_begun, host.messages_done) == (1, 1)
    agent.close()
    host.close()


def test_a_turn_that_raises_stays_to_be_seen(fd: int) -> None:
    vitals = Vitals(fd)
    with pytest.raises(OSError, match="x"), vitals.turn(Doing.CYCLE):
        raise OSError("x")
    assert vitals.doing is Doing.CYCLE
    assert vitals.good_at_s == 0
    vitals.close()


def test_what_was_seen_last_outlives_the_memory(fd: int) -> None:
    vitals = Vitals(fd)
    vitals.count_cycle(0.001)
    vitals.close()
    vitals.close()
    assert Record().plus(vitals).cycles == 1


def test_its_memory_can_not_be_cut_short_under_who_reads_it(fd: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


@given(st.binary(min_size=SIZE_BYTES, max_size=SIZE_BYTES))
def test_whatever_its_process_scribbles_is_read_without_harm(noise: bytes) -> None:
    fd = shared_memory()
    vitals = Vitals(fd)
    with mmap.mmap(fd, SIZE_BYTES) as memory:
        memory[:] = noise
    assert vitals.doing in Doing
    record = Record().plus(vitals)
    record.cycle_ms(0.5)
    assert all(0 <= n < 2**48 for n in (record.cycles, record.handled, record.failed, record.cpu_s, record.busy_s))
    vitals.close()
    os.close(fd)


def test_quantiles_of_all_lives_together() -> None:
    rng = random.Random(5)
    durations = [rng.lognormvariate(-7, 1) for _ in range(2000)]
    record = Record()
    for start in (0, 1000):
        vitals = Vitals()
        for duration_s in durations[start : start + 1000]:
            vitals.count_cycle(duration_s)
        record = record.plus(vitals)
    cuts = statistics.quantiles(durations, n=100)
    for quantile, exact_s in ((0.5, cuts[49]), (0.99, cuts[98])):
        shown = record.cycle_ms(quantile)
        assert shown is not None
        assert exact_s * 1000 * 0.99 <= shown <= exact_s * 1000 * 1.25
    assert Record().cycle_ms(0.5) is None
