"""What placement costs the scheduler's event loop for each task, however many wait and however many workers there are.

One step is what happens when a task ends: its worker is freed, the next task of the graph becomes ready, and workers
with room are given what suits them. Of several rounds the fastest counts.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from scheduler_plugins.decide.placement import Placement
from scheduler_plugins.decide.shelves import ANYWHERE, ROOTS, Cost

BUSY_S, IDLE_S = 30e-6, 200e-6
"""While nobody declines; and where many workers are idle, which are asked each time and decline."""
STEPS, ROUNDS = 2000, 3


class Draw(NamedTuple):
    """One task."""

    p50_s: float
    rank_s: float
    home: Any
    level: int = 0


def roots(rng: random.Random, workers: int) -> Draw:
    """Equal, and nothing depends on them."""
    return Draw(1.0, 1.0, ROOTS)


def mixed(rng: random.Random, workers: int) -> Draw:
    """All lengths of paths, and two priorities."""
    p50_s = math.exp(rng.gauss(0.0, 1.0))
    return Draw(p50_s, p50_s * (1 + 1000 * rng.random()), rng.choice([ROOTS, ANYWHERE]), rng.choice([0, -1]))


def at_home(rng: random.Random, workers: int) -> Draw:
    """Each lies with its inputs somewhere."""
    p50_s = math.exp(rng.gauss(0.0, 1.0))
    return Draw(p50_s, p50_s * (1 + 10 * rng.random()), rng.randrange(workers))


def on_one(rng: random.Random, workers: int) -> Draw:
    """All lie with their inputs on a few workers: the others have to be sent some."""
    return Draw(1.0, 1.0 + rng.random(), rng.randrange(max(workers // 50, 1)))


def equal(worker: int) -> float:
    return 1.0


def uneven(worker: int) -> float:
    """One in four is much too slow for what there is to do, so that it is asked and declines."""
    return 20.0 if worker % 4 == 0 else 1.0 + worker % 7 / 5


def per_step_s(draw: Callable[[random.Random, int], Draw], factor: Callable[[int], float], ready: int, n: int) -> float:
    rng = random.Random(f"{draw.__name__} {ready} {n}")
    total_s = 0.0
    placement = Placement(
        factor=lambda task, worker: factor(worker),
        transfer_s=lambda task, worker: 0.05,
        remaining_s=lambda: total_s,
        is_open=lambda worker: True,
    )
    for worker in range(n):
        placement.join(worker, 1)
        placement.set_speed(worker, factor(worker))
    drawn = [draw(rng, n) for _ in range(ready + 2 * n + STEPS)]
    costs = [Cost(each.p50_s, 2 * each.p50_s, is_known=True, output_bytes=1000.0) for each in drawn]
    total_s = sum(each.p50_s for each in drawn[: ready + 2 * n])
    task = 0

    def arrive() -> None:
        nonlocal task
        each = drawn[task]
        placement.ready(task, (each.level, 0, task), costs[task], each.rank_s, each.home, 1000.0)
        task += 1

    running: deque[int] = deque()

    def fill(now_s: float) -> None:
        for choice in placement.choices(now_s):
            for given in (choice.task, *choice.more):
                placement.given(given, choice.worker, now_s, costs.__getitem__)
                running.append(given)

    for _ in range(ready + n):
        arrive()
    fill(0.0)
    while len(placement) < ready:
        arrive()
    gc.collect()
    gc.disable()
    now_s, began_s = 1.0, time.perf_counter()
    for _ in range(STEPS):
        now_s += 1.0 / n
        if running:
            placement.ended(running.popleft(), now_s)
        arrive()
        fill(now_s)
    took_s = time.perf_counter() - began_s
    gc.enable()
    assert len(running) + len(placement) > 0
    return took_s / STEPS


@pytest.mark.parametrize("workers", [8, 100, 1000])
@pytest.mark.parametrize("ready", [10, 1000, 100_000])
@pytest.mark.parametrize("factor", [equal, uneven])
@pytest.mark.parametrize("draw", [roots, mixed, at_home, on_one])
def test_choosing_the_next_task(
    benchmark: BenchmarkFixture, draw: Any, factor: Callable[[int], float], ready: int, workers: int
) -> None:
    def go() -> float:
        return min(per_step_s(draw, factor, ready, workers) for _ in range(ROUNDS))

    per_task_s = benchmark.pedantic(go, rounds=1)
    benchmark.extra_info["per_task_us"] = 1e6 * per_task_s
    assert per_task_s < (BUSY_S if factor is equal else IDLE_S)
