"""The same seed gives the same trace: in one process, in two, with faults, under every policy; another seed another."""

from __future__ import annotations

import random
from typing import Any

import pytest

from swarm import twin
from swarm.twin.faults import Crash, Fault, Hang, Join, Partition, SlowDown
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.models import MIB, LogNormal, Memory, WorkerModel
from swarm.twin.outcome import Outcome

FAULTS: list[Fault] = [
    Crash(worker="w1", at_s=0.5),
    SlowDown(worker="w2", at_s=0.2, factor=0.25, for_s=1.0),
    Hang(worker="w3", at_s=0.7, for_s=2.0),
    Partition(workers=("w4", "w5"), at_s=1.0, for_s=1.5),
    Join(model=WorkerModel("new", threads=2), at_s=1.2),
]
WORK = twin.layered(8, 16, LogNormal(0.1, 1.0), output_bytes=2_000_000)
CLUSTER = twin.uniform(8, nanny=True, memory=Memory(512 * MIB), workers_per_host=2)


def job(hash_seed: int = 0, **options: Any) -> Job:
    return Job((WORK, CLUSTER), options, hash_seed)


@pytest.mark.parametrize("policy", ["stock", "no-stealing", "random", "swarm"])
@pytest.mark.parametrize("faults", [[], FAULTS], ids=["quiet", "faults"])
def test_twice_in_one_process(policy: str, faults: list[Fault]) -> None:
    first, again = (twin.simulate(WORK, CLUSTER, policy=policy, faults=faults, seed=3) for _ in range(2))
    assert first.trace_hash == again.trace_hash
    assert first.makespan_s == again.makespan_s
    assert first.events == again.events


def test_what_ran_before_in_the_process_makes_no_difference() -> None:
    first = twin.simulate(WORK, CLUSTER, faults=FAULTS, seed=3)
    random.seed(99)
    twin.simulate(twin.tree(30), twin.uniform(3), policy="swarm")
    assert twin.simulate(WORK, CLUSTER, faults=FAULTS, seed=3).trace_hash == first.trace_hash


def test_another_seed_is_another_run() -> None:
    hashes = {twin.simulate(WORK, CLUSTER, seed=seed).trace_hash for seed in range(4)}
    assert len(hashes) > 1, "with some hash seeds two of them agree"


def test_the_random_numbers_of_the_caller_are_left_alone() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    twin.simulate(twin.independent(3), twin.uniform(2), seed=7)
    assert random.random() == expected


def test_processes_agree_when_their_hash_seed_is_the_same() -> None:
    options = {"faults": FAULTS, "seed": 3}
    jobs = [job(0, **options), job(0, **options, policy="swarm"), job(7, **options)]
    outcomes = list(simulate_all([*jobs, *jobs[:2]], processes=2))
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    stock, swarm, other_hash_seed, again, swarm_again = (each for each in outcomes if isinstance(each, Outcome))
    assert again.trace_hash == stock.trace_hash
    assert swarm_again.trace_hash == swarm.trace_hash
    assert other_hash_seed.trace_hash != stock.trace_hash  # Dask iterates over sets of strings
    assert {stock.hash_seed, other_hash_seed.hash_seed} == {"0", "7"}
