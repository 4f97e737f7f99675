"""One workflow on one kind of cluster: the work, the workers, and what became of it."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from dask._task_spec import Task, TaskRef
from dask.utils import key_split

from swarm.errors import TwinError
from swarm.twin.bounds import lower_bound_s
from swarm.twin.models import ClusterModel, Cost, Fixed, Key, uniform
from swarm.twin.work import Work
from tests.benchmarks.mind.passes import passes
from tests.benchmarks.mind.workflow_shapes import sources

TASKS_PER_WORKER = 4
"""At least; so many instances are put side by side."""
LONGEST_S = 60.0
"""Of the lower bound; workflows that take longer are sped up, and their results made smaller in proportion."""


def equal(workers: int, seed: int) -> ClusterModel:
    return uniform(workers)


def one_slow(workers: int, seed: int) -> ClusterModel:
    """One has a tenth of the speed of the others."""
    slow = random.Random(f"{seed} slow").randrange(workers)
    return uniform(workers, speed=lambda i: Fixed(0.1 if i == slow else 1.0))


def mixed(workers: int, seed: int) -> ClusterModel:
    """From a quarter of the speed to all of it, evenly in log."""
    rng = random.Random(f"{seed} speeds")
    speeds = [0.25 ** rng.random() for _ in range(workers)]
    return uniform(workers, speed=lambda i: Fixed(speeds[i]))


CLUSTERS: dict[str, Callable[[int, int], ClusterModel]] = {"equal": equal, "one slow": one_slow, "mixed": mixed}


def setting(folder: str | None, workflow: str, workers: int, speeds: str, seed: int) -> tuple[Work, ClusterModel]:
    """The same for the same arguments. With seed 0 the first instance is as it is; in all others each task costs what
    some task of its type did."""
    cluster = CLUSTERS[speeds](workers, seed)
    instance = _sources(folder)[workflow](seed)
    work = side_by_side(instance, math.ceil(TASKS_PER_WORKER * workers / len(instance)), seed)
    bound_s = lower_bound_s(work.total_s, work.critical_path_s, cluster.workers)
    return (work if bound_s <= LONGEST_S else _faster(work, LONGEST_S / bound_s)), cluster


def of_workflow(folder: str | None, workflow: str, workers: int, speeds: str, seed: int, count: int) -> dict[str, Any]:
    """Passes over a workflow."""
    work, cluster = setting(folder, workflow, workers, speeds, seed)
    about = {"workflow": workflow, "workers": workers, "speeds": speeds, "seed": seed, "tasks": len(work)}
    return {**about, **vars(passes(work, cluster, (), seed, count))}


@cache
def _sources(folder: str | None) -> dict[str, Callable[[int], Work]]:
    return sources(None if folder is None else Path(folder))


def side_by_side(work: Work, copies: int, seed: int) -> Work:
    """So many instances in one graph, with a function for each type of task."""
    rng = random.Random(f"{seed} {work.name}")
    of_type: dict[str, list[Cost]] = defaultdict(list)
    for key in work.order:
        of_type[key_split(key)].append(work.costs[key])
    functions = {kind: _function(kind) for kind in of_type}
    number = {key: i for i, key in enumerate(work.order)}
    graph: dict[Key, Task] = {}
    costs: dict[Key, Cost] = {}
    dependencies: dict[Key, frozenset[Key]] = {}
    for copy in range(copies):
        names = {key: f"{key_split(key)}-{copy:03}.{i:04}" for key, i in number.items()}
        for key in work.order:
            kind, name = key_split(key), names[key]
            needs = [names[need] for need in sorted(work.dependencies[key], key=number.__getitem__)]
            graph[name] = Task(name, functions[kind], *map(TaskRef, needs))
            costs[name] = rng.choice(of_type[kind]) if copy or seed else work.costs[key]
            dependencies[name] = frozenset(needs)
    needed = frozenset[Key]().union(*dependencies.values())
    wanted = tuple(name for name in graph if name not in needed)
    return Work(f"{copies} × {work.name}", graph, wanted, costs, dependencies)


def _function(kind: str) -> Callable[..., None]:
    def program(*_: object) -> None:
        raise TwinError("a simulated task has no function that could run")

    program.__name__ = program.__qualname__ = kind
    return program


def _faster(work: Work, share: float) -> Work:
    costs = {
        key: Cost(cost.work_s * share, int(cost.output_bytes * share), cost.peak_bytes)
        for key, cost in work.costs.items()
    }
    return Work(work.name, work.graph, work.wanted, costs, work.dependencies)
