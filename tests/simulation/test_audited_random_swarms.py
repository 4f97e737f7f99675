"""Random work, clusters and faults under swarm: nothing of it fails, and what it counts agrees with Dask's own state.

A defect found here gets a test of its own. To look for more:
`python -m tests.simulation.test_audited_random_swarms 100 200`.
"""

from __future__ import annotations

import sys

import pytest

from swarm import twin
from swarm.errors import SwarmError
from tests.support.random_swarms import audited, drawn

SEEDS = range(16)


def run(seed: int) -> None:
    case = drawn(seed)
    with audited() as (policy, auditor, failed):
        outcome = twin.simulate(
            case.work,
            case.cluster,
            policy=policy,
            faults=case.faults,
            seed=case.seed,
            gather=case.gather,
            validate=True,
        )
    assert not failed
    assert not auditor.broken, auditor.broken[0]
    assert outcome.status in ("finished", "failed")
    for reason in outcome.failed.values():
        assert reason.startswith("KilledWorker"), reason
    if not case.faults and not case.cluster.workers[0].memory.limit_bytes:
        assert outcome.status == "finished"
        assert auditor.audits >= int(outcome.makespan_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_swarm(seed: int) -> None:
    run(seed)


if __name__ == "__main__":
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            run(seed)
        except (AssertionError, SwarmError) as error:
            print(seed, type(error).__name__, str(error)[:600], flush=True)
