"""What the ledger costs: microseconds for a lease and its return, and for a task that begins and ends.

Run with `pytest tests/benchmarks/test_ledger.py --benchmark-only`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from swarm.ledger import budget
from swarm.ledger.leases import Ledger
from swarm.ledger.lending import CoresInUse, lend
from swarm.ledger.table import Budget

NEIGHBOURS = 8


@pytest.fixture(autouse=True)
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(budget, "of_this_host", lambda: (Budget(8), "ledger"))


@pytest.fixture
def tasks() -> Iterator[CoresInUse]:
    in_use = CoresInUse()
    yield in_use
    in_use.close()


def test_a_task_begins_and_ends(benchmark: BenchmarkFixture, tasks: CoresInUse) -> None:
    def one() -> None:
        tasks.began()
        tasks.ended()

    benchmark(one)


def test_a_lease_and_its_return(benchmark: BenchmarkFixture) -> None:
    with Ledger() as ledger:
        benchmark(lambda: ledger.lease(4).close())


def test_a_lease_among_neighbours(benchmark: BenchmarkFixture) -> None:
    """Each of the neighbours has a lease and a task of its own."""
    neighbours = [Ledger() for _ in range(NEIGHBOURS)]
    for one in neighbours:
        one.began()
        one.lease(2)
    with Ledger() as ledger:
        ledger.began()
        benchmark(lambda: ledger.lease(4).close())
    for one in neighbours:
        one.close()


def test_a_refresh(benchmark: BenchmarkFixture) -> None:
    with Ledger() as ledger, ledger.lease(4) as lease:
        benchmark(lease.refresh)


@pytest.mark.usefixtures("tasks")
def test_a_block(benchmark: BenchmarkFixture) -> None:
    benchmark(_block)


def test_a_block_that_opens_and_closes_the_ledger(benchmark: BenchmarkFixture) -> None:
    """What a kernel pays in a process without agents."""
    benchmark(_block)


def _block() -> None:
    with lend(4):
        pass
