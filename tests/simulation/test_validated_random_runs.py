"""Random graphs, clusters and faults, with Dask's own validation after every transition of the scheduler and workers.

The rules of every run are checked at the end of each. A defect found here goes to `tests/replays/`.
"""

from __future__ import annotations

import pytest

from swarm import twin
from swarm.errors import DeadlockError
from swarm.twin.faults import Crash, Fault, Hang, Leave, LoseHeartbeats, Partition, Preempt
from swarm.twin.saved import Case
from tests.support.random_simulations import drawn

ENDS_WORKERS = (Crash, Hang, Leave, LoseHeartbeats, Partition, Preempt)
MAY_BE_LOGGED = ("Couldn't gather keys", "did not shut down within", "marked as failed because", "CancelledError()")
"""By stock Dask: when a worker with results is gone or can't be reached, and when the simulation ends in between."""


def run(case: Case, heard: list[str]) -> None:
    arguments, options = case.arguments()
    try:
        outcome = twin.simulate(*arguments, **options)
    except DeadlockError as error:
        if "there are no workers" not in str(error) or not _all_may_be_gone(case):
            raise
    else:
        assert outcome.status in ("finished", "failed")
        for reason in outcome.failed.values():
            assert reason.startswith("KilledWorker"), reason
        assert outcome.makespan_s < 3000.0
    assert not [told for told in heard if not any(known in told for known in MAY_BE_LOGGED)]


def _all_may_be_gone(case: Case) -> bool:
    """Whether the faults, or memory, could have ended every worker."""
    hit: set[str] = set()
    for fault in case.faults:
        if isinstance(fault, ENDS_WORKERS):
            hit |= set(_names(fault))
    return hit >= {worker.name for worker in case.cluster.workers} or bool(case.cluster.workers[0].memory.limit_bytes)


def _names(fault: Fault) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(fault, "workers", None) or (getattr(fault, "worker", ""),)
    return names


@pytest.mark.parametrize("seed", range(40))
def test_stock_dask(seed: int, heard: list[str]) -> None:
    run(drawn(seed), heard)


@pytest.mark.parametrize("seed", range(100, 120))
def test_with_swarm(seed: int, heard: list[str]) -> None:
    run(drawn(seed, "swarm"), heard)
