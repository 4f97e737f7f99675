"""The scenarios of the policy bench: each builds, is the same for the same seed, and is no bigger than it should be."""

from __future__ import annotations

import pytest

from swarm.errors import TwinError
from swarm.twin.bounds import lower_bound_s
from swarm.twin.faults import check, to_json
from swarm.twin.scenarios import SCENARIOS, Scenario, scenario

ALL = pytest.mark.parametrize("which", SCENARIOS.values(), ids=lambda which: which.name)


def costs_and_edges(which: Scenario, seed: int) -> tuple[object, ...]:
    work, cluster, faults = which.setting(seed)
    return dict(work.costs), dict(work.dependencies), work.wanted, cluster, [to_json(fault) for fault in faults]


@ALL
def test_the_same_seed_gives_the_same_scenario(which: Scenario) -> None:
    assert costs_and_edges(which, 7) == costs_and_edges(which, 7)


@ALL
def test_another_seed_gives_another_one(which: Scenario) -> None:
    assert len({repr(costs_and_edges(which, seed)) for seed in range(4)}) > 1


@ALL
@pytest.mark.parametrize("seed", range(3))
def test_it_is_small_and_whole(which: Scenario, seed: int) -> None:
    work, cluster, faults = which.setting(seed)
    check(faults, [worker.name for worker in cluster.workers])
    assert len(work) <= 2000
    assert len(work.order) == len(work)
    bound_s = lower_bound_s(work.total_s, work.critical_path_s, cluster.workers)
    assert 0.05 < bound_s < 600
    assert all(fault.at_s < bound_s for fault in faults), "the fault comes when the work may be over"


def test_names_are_told_apart_from_errors() -> None:
    assert scenario("cholesky").name == "cholesky"
    with pytest.raises(TwinError, match="did you mean 'cholesky'"):
        scenario("choleski")


def test_cholesky_has_the_tasks_of_the_algorithm() -> None:
    """n potrf, n(n-1)/2 trsm and syrk, n(n-1)(n-2)/6 gemm, for n = 10."""
    work, _, _ = SCENARIOS["cholesky"].setting(0)
    kinds = [key[0] for key in work.costs]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {"potrf": 10, "trsm": 45, "syrk": 45, "gemm": 120}
    assert work.dependencies["gemm", 3, 2, 0] == {("trsm", 3, 0), ("trsm", 2, 0)}
    assert work.dependencies["gemm", 3, 2, 1] == {("gemm", 3, 2, 0), ("trsm", 3, 1), ("trsm", 2, 1)}
