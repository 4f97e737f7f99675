"""Simulations under swarm, drawn at random, whose books are audited while they run; nothing of swarm may fail."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from scheduler_plugins.on_dask.guard import Guard
from scheduler_plugins.on_dask.mind import Mind
from scheduler_plugins.on_dask.placing import OVER
from swarm import twin
from swarm.twin import faults as kinds
from swarm.twin.faults import Fault, at_random
from swarm.twin.models import MIB, ClusterModel, Cost, Fixed, Memory, WorkerModel
from swarm.twin.policies import POLICIES, Policy
from swarm.twin.saved import Case
from tests.support.placement_audit import audit

AUDIT_S = 0.25


class Auditor(SchedulerPlugin):
    """Compares what placement knows with what Dask knows, between events."""

    name = "auditor"

    def __init__(self) -> None:
        self.audits = 0
        self.broken: list[str] = []

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        PeriodicCallback(self.look, 1000 * AUDIT_S).start()

    def look(self) -> None:
        try:
            self.compare()
            self.audits += 1
        except AssertionError as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            self.broken.append(f"{at.name}: {at.line} {error}")

    @property
    def mind(self) -> Mind:
        mind: Mind = self.scheduler.plugins["swarm"].mind
        return mind

    def compare(self) -> None:
        mind, scheduler = self.mind, self.scheduler
        assert mind.is_on, "swarm is off"
        placing = mind.placing
        audit(placing.placement)
        rests = {task for task in scheduler.queued if mind.limits.rests(task)}
        lost = set(scheduler.queued) - set(placing.placement._entries) - rests
        assert not lost, f"queued by Dask and not in the pool: {lost}"
        extra = set(placing.placement._entries) - set(scheduler.queued)
        assert not extra, f"in the pool and not queued by Dask: {extra}"
        assert set(placing.placement.views) == set(scheduler.workers.values())
        processing = {task: ws for ws in scheduler.workers.values() for task in ws.processing}
        seceded = {task for ws in scheduler.workers.values() for task in ws.long_running}
        on = {task: view.worker for task, view in placing.placement._on.items()}
        assert on == {task: ws for task, ws in processing.items() if task not in seceded}
        ranked = placing.ranks.tasks()
        over = [task for task in ranked if task.state in OVER]
        assert not over, f"ranked and over: {over[:3]}"
        assert placing.ranks.remaining_s == pytest.approx(sum(map(placing.ranks.seconds, ranked)), abs=1e-3)
        known = set(scheduler.tasks.values())
        assert known.issuperset(ranked), "ranked and forgotten"
        for name, kept in vars(placing.recalls).items():
            if name not in ("_asked", "_moves", "_kept"):
                continue
            assert known.issuperset(kept), f"{name} and forgotten"


@contextmanager
def audited() -> Iterator[tuple[Policy, Auditor, list[str]]]:
    """Policy "swarm" with an auditor, and what of swarm failed."""
    auditor, failed = Auditor(), []
    own = Guard.failed

    def note(self: Guard, part: str, error: Exception) -> None:
        failed.append(f"{part}: {error!r}")
        own(self, part, error)

    policy = replace(POLICIES["swarm"], plugins=lambda seed: (auditor,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "failed", note)
        yield policy, auditor, failed


def drawn(seed: int) -> Case:
    """Up to some hundred tasks of many shapes on uneven workers, with all that can be asked of Dask, and faults."""
    rng = random.Random(f"swarm {seed}")
    cluster = _cluster(rng)
    names = [worker.name for worker in cluster.workers]
    return Case(
        _work(rng, names), cluster, "swarm", _faults(rng, names), seed, gather=rng.random() < 0.3, validate=True
    )


# -- graphs -----------------------------------------------------------------------------------------------------------


def _cost(rng: random.Random, scale: float) -> Cost:
    work_s = scale * rng.choice([0.0, 0.1, 1.0, 1.0, rng.lognormvariate(0.0, 1.0), 20.0 if rng.random() < 0.1 else 1.0])
    return Cost(work_s, rng.choice([28, 10**4, 10**6, 3 * 10**7]), rng.choice([0, 0, 0, 100 * MIB]))


def _shape(rng: random.Random) -> list[tuple[str, list[str]]]:
    """(key, what it needs) of one graph."""
    kind, width = rng.choice(["layered", "tree", "chains", "fan", "any"]), rng.choice([3, 10, 40])
    made: list[tuple[str, list[str]]] = []
    if kind == "layered":
        before: list[str] = []
        for layer in range(rng.randint(2, 5)):
            now = [f"layer{layer}-{i}" for i in range(width)]
            made += [(key, rng.sample(before, min(len(before), rng.randint(1, 3)))) for key in now]
            before = now
    elif kind == "tree":
        level = [f"leaf-{i}" for i in range(width)]
        made += [(key, []) for key in level]
        depth = 0
        while len(level) > 1:
            depth += 1
            above = [f"node{depth}-{i}" for i in range((len(level) + 2) // 3)]
            made += [(key, level[3 * i : 3 * i + 3]) for i, key in enumerate(above)]
            level = above
    elif kind == "chains":
        for chain in range(min(width, 8)):
            length = rng.randint(1, 10)
            made += [(f"link{chain}-{i}", [f"link{chain}-{i - 1}"] if i else []) for i in range(length)]
        made += [(f"alone-{i}", []) for i in range(width)]
    elif kind == "fan":
        made += [("root-0", []), *((f"out-{i}", ["root-0"]) for i in range(width))]
        made.append(("in-0", [f"out-{i}" for i in range(width)]))
    else:
        keys: list[str] = []
        for i in range(2 * width):
            made.append((f"any-{i}", rng.sample(keys, min(len(keys), rng.choice([0, 0, 1, 2])))))
            keys.append(f"any-{i}")
    return made


def _work(rng: random.Random, workers: list[str]) -> twin.Work:
    scale = rng.choice([0.001, 0.05, 0.3, 2.0])
    tasks: list[tuple[str, list[str], Cost]] = []
    for graph in range(rng.choice([1, 1, 2])):
        tasks += [
            (f"g{graph}{key}", [f"g{graph}{need}" for need in needs], _cost(rng, scale)) for key, needs in _shape(rng)
        ]
    annotations: dict[str, dict[str, Any]] = {}
    for kind, draw in {
        "priority": lambda: rng.choice([-10, 1, 10]),
        "workers": lambda: rng.sample(workers, rng.randint(1, len(workers))),
        "allow_other_workers": lambda: True,
        "resources": lambda: {"R": rng.choice([1, 0.5])},
        "retries": lambda: 2,
        "swarm_once": lambda: True,
    }.items():
        if rng.random() < 0.25:
            share = rng.choice([0.1, 0.5])
            annotations[kind] = {key: draw() for key, _, _ in tasks if rng.random() < share}
    if "workers" in annotations:
        annotations["allow_other_workers"] = dict.fromkeys(annotations["workers"], True)
    else:
        annotations.pop("allow_other_workers", None)
    return twin.made_up(tasks, annotations={kind: of for kind, of in annotations.items() if of})


# -- clusters and faults ----------------------------------------------------------------------------------------------


def _cluster(rng: random.Random) -> ClusterModel:
    memory = Memory(rng.choice([0, 0, 0, 2048 * MIB]))
    nanny = rng.random() < 0.7
    speeds = rng.choice([[1.0], [1.0, 0.25], [1.0, 0.8, 0.1, 2.0]])
    models = []
    for i in range(rng.randint(2, 9)):
        speed = rng.choice(speeds)
        models.append(
            WorkerModel(
                f"w{i}",
                threads=rng.choice([1, 1, 2, 4]),
                speed=Fixed(speed),
                host=f"h{i // 2}",
                memory=memory,
                nanny=nanny,
                resources={"R": 1.0},
            )
        )
    return ClusterModel(models)


def _faults(rng: random.Random, names: list[str]) -> list[Fault]:
    made: list[Fault] = []
    for _ in range(rng.choice([0, 0, 1, 3])):
        kind, details = rng.choice(
            [
                (kinds.Crash, {}),
                (kinds.Hang, {"for_s": rng.choice([0.5, 5.0])}),
                (kinds.HoldGil, {"for_s": rng.choice([0.5, 5.0])}),
                (kinds.BlockLoop, {"for_s": rng.choice([0.5, 3.0])}),
                (kinds.SlowDown, {"factor": 0.1, "for_s": 5.0}),
                (kinds.Partition, {"for_s": rng.choice([0.5, 5.0])}),
                (kinds.LoseHeartbeats, {"for_s": 5.0}),
                (kinds.SchedulerLag, {"for_s": 1.0}),
                (kinds.Leave, {}),
                (kinds.Join, {"model": WorkerModel(f"new{len(made)}", threads=2, resources={"R": 1.0})}),
            ]
        )
        until_s = rng.choice([1.0, 8.0])
        # The last worker stays, so that there always is one.
        for fault in at_random(kind, mean_between_s=until_s, until_s=until_s, rng=rng, workers=names[:-1], **details):
            if isinstance(fault, kinds.Leave) and any(
                isinstance(each, kinds.Leave) and each.worker == fault.worker for each in made
            ):
                continue
            made.append(fault)
    joined = [fault for fault in made if isinstance(fault, kinds.Join)]
    for number, fault in enumerate(joined):
        made.remove(fault)
        made.append(kinds.Join(at_s=fault.at_s, model=WorkerModel(f"new{number}", threads=2, resources={"R": 1.0})))
    return made
