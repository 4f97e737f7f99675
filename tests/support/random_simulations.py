"""Simulations drawn at random: a graph, a cluster and faults from a seed, for tests that look for defects."""

from __future__ import annotations

import random
from collections.abc import Callable

from swarm import twin
from swarm.twin.faults import (
    BlockLoop,
    Crash,
    Fault,
    Hang,
    HoldGil,
    Join,
    Leave,
    LoseHeartbeats,
    Partition,
    Preempt,
    SchedulerLag,
    SlowDown,
)
from swarm.twin.models import MIB, ClusterModel, Cost, Memory, WorkerModel
from swarm.twin.saved import Case


def drawn(seed: int, policy: str = "stock") -> Case:
    """Small and nasty: up to 40 tasks, 6 workers and 4 faults, each at a time at which something else happens."""
    rng = random.Random(seed)
    cluster = _cluster(rng)
    names = [worker.name for worker in cluster.workers]
    faults = [_fault(rng, names, number) for number in range(rng.randint(0, 4))]
    return Case(_work(rng), cluster, policy, faults, seed, gather=rng.random() < 0.5, validate=True)


def _work(rng: random.Random) -> twin.Work:
    tasks = []
    reach = rng.choice([3, 8, 40])
    for i in range(rng.randint(3, 40)):
        before = range(max(0, i - reach), i)
        needs = rng.sample(before, min(len(before), rng.choice([0, 0, 1, 1, 2, 3])))
        work_s = rng.choice([0.0, 0.01, 0.1, 0.5, 2.0, 5.0])
        size, peak = rng.choice([28, 1000, 10**6, 5 * 10**7]), rng.choice([0, 0, 0, 200 * MIB])
        tasks.append((f"t{i}", [f"t{j}" for j in sorted(needs)], Cost(work_s, size, peak)))
    return twin.made_up(tasks)


def _cluster(rng: random.Random) -> ClusterModel:
    return twin.uniform(
        rng.randint(2, 6),
        rng.choice([1, 1, 2, 4]),
        memory=Memory(rng.choice([0, 0, 1024 * MIB])),
        nanny=rng.random() < 0.5,
        workers_per_host=rng.choice([1, 1, 2]),
    )


def _fault(rng: random.Random, names: list[str], number: int) -> Fault:
    at_s = rng.choice([0.0, rng.uniform(0.0, 3.0), rng.uniform(0.0, 12.0)])
    worker, for_s = rng.choice(names), rng.choice([0.05, 1.0, 5.0, 20.0, 40.0, 400.0])
    or_ever = rng.choice([for_s, for_s, None])
    some = tuple(rng.sample(names, rng.randint(1, len(names) - 1)))
    kinds: list[Callable[[], Fault]] = [
        lambda: Crash(worker=worker, at_s=at_s),
        lambda: Hang(worker=worker, at_s=at_s, for_s=or_ever),
        lambda: HoldGil(worker=worker, at_s=at_s, for_s=for_s),
        lambda: BlockLoop(worker=worker, at_s=at_s, for_s=for_s),
        lambda: SlowDown(worker=worker, at_s=at_s, factor=rng.choice([0.1, 0.5, 2.0]), for_s=or_ever),
        lambda: Partition(workers=some, at_s=at_s, for_s=or_ever),
        lambda: LoseHeartbeats(worker=worker, at_s=at_s, for_s=or_ever),
        lambda: SchedulerLag(at_s=at_s, for_s=min(for_s, 40.0)),
        lambda: Preempt(worker=worker, at_s=at_s, notice_s=min(for_s, 20.0), retire=rng.random() < 0.5),
        lambda: Join(model=WorkerModel(f"new{number}", threads=rng.choice([1, 2])), at_s=at_s),
        lambda: Leave(worker=worker, at_s=at_s),
    ]
    return rng.choice(kinds)()
