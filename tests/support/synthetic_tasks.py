"""Tasks whose true costs are known: streams of features and observations for cost models."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from scheduler_plugins.learn.protocol import Observation, TaskFeatures, magnitude

NOISE = 0.2
"""Standard deviation of the logarithm of a duration."""


class Task(NamedTuple):
    features: TaskFeatures
    observation: Observation
    true_s: float
    """The duration without its noise: what an oracle predicts."""


def finished(true_s: float, features: TaskFeatures, rng: random.Random, noise: float = NOISE, **seen: float) -> Task:
    return Task(features, Observation(true_s * math.exp(rng.gauss(0.0, noise)), **seen), true_s)


def by_argument(tasks: int = 2000, seed: int = 0) -> Iterator[Task]:
    """Five functions, each a power of its first argument; the second argument means nothing."""
    rng = random.Random(seed)
    powers = [(rng.uniform(1e-4, 1e-2), rng.uniform(0.5, 3.0)) for _ in range(5)]
    for i in range(tasks):
        factor, power = powers[which := rng.randrange(5)]
        n = rng.randint(1, 200)
        features = TaskFeatures(f"lib.power{which}", ("0", "seed"), (magnitude(n), magnitude(i)))
        yield finished(factor * n**power, features, rng)


def by_input_bytes(tasks: int = 2000, seed: int = 0) -> Iterator[Task]:
    """Three functions, each a fixed cost and a cost per byte of input."""
    rng = random.Random(seed)
    for _ in range(tasks):
        which = rng.randrange(3)
        size = 10 ** rng.uniform(3, 8)
        features = TaskFeatures(f"lib.read{which}", input_bytes=size, input_count=2)
        yield finished(
            0.01 + size * (1e-9, 1e-8, 5e-8)[which], features, rng, output_bytes=size / 2, peak_bytes=3 * size
        )


def constant(tasks: int = 2000, seed: int = 0, noise: float = 0.5) -> Iterator[Task]:
    """Ten functions of nothing but noise."""
    rng = random.Random(seed)
    levels = [10 ** rng.uniform(-3, 1) for _ in range(10)]
    for _ in range(tasks):
        which = rng.randrange(10)
        yield finished(levels[which], TaskFeatures(f"lib.same{which}"), rng, noise)


def on_unequal_workers(tasks: int = 2000, seed: int = 0) -> Iterator[Task]:
    """Two functions on sixteen workers, of which four take four times as long and one takes ten times as long."""
    rng = random.Random(seed)
    factors = [1.0] * 11 + [4.0] * 4 + [10.0]
    for _ in range(tasks):
        worker, which = rng.randrange(16), rng.randrange(2)
        yield finished((0.5, 2.0)[which] * factors[worker], TaskFeatures(f"lib.on{which}", worker=f"w{worker}"), rng)


def drifting(tasks: int = 2000, seed: int = 0) -> Iterator[Task]:
    """Two functions that are rewritten twice: five times slower, then as quick as ever, and another argument counts."""
    rng = random.Random(seed)
    for i in range(tasks):
        which, era = rng.randrange(2), 3 * i // tasks
        numbers = (rng.uniform(1, 50), rng.uniform(1, 50))
        true_s = 0.01 * numbers[era == 2] * (1.0, 5.0, 1.0)[era]
        yield finished(true_s, TaskFeatures(f"lib.changing{which}", ("0", "1"), tuple(map(magnitude, numbers))), rng)


def by_cases(tasks: int = 2000, seed: int = 0) -> Iterator[Task]:
    """A function that takes long for one kind of arguments, and no formula says which."""
    rng = random.Random(seed)
    levels = [10 ** rng.uniform(-2, 1) for _ in range(12)]
    for _ in range(tasks):
        case = rng.randrange(12)
        yield finished(levels[case], TaskFeatures("lib.cases", ("kind",), (magnitude(2**case),)), rng)


def by_regions(tasks: int = 4000, seed: int = 0) -> Iterator[Task]:
    """A step in the plane of two continuous arguments: work for a tree."""
    rng = random.Random(seed)
    for _ in range(tasks):
        a, b = 10 ** rng.uniform(-1, 3), 10 ** rng.uniform(-1, 3)
        true_s = 5.0 if a > 10 and b < 10 else 0.05 if b < 10 else 0.5
        yield finished(true_s, TaskFeatures("lib.regions", ("a", "b"), (magnitude(a), magnitude(b))), rng)


SETS = {
    "by argument": by_argument,
    "by input bytes": by_input_bytes,
    "constant": constant,
    "unequal workers": on_unequal_workers,
    "drift": drifting,
    "by cases": by_cases,
    "by regions": by_regions,
}
