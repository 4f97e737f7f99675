"""Situations that people meet, small enough to run in about a second: work, cluster and faults by name and seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.errors import TwinError, nearest
from swarm.twin.faults import Crash, Fault, Hang, HoldGil, Preempt
from swarm.twin.models import (
    MIB,
    ClusterModel,
    Constant,
    Cost,
    Fixed,
    Key,
    LogNormal,
    Memory,
    Pareto,
    Speed,
    Sudden,
    uniform,
)
from swarm.twin.work import Work, fan_out, independent, layered, made_up, tree

Setting = tuple[Work, ClusterModel, Sequence[Fault]]
Tasks = list[tuple[Key, Sequence[Key], Cost]]


@dataclass(frozen=True)
class Scenario:
    """A situation, and what is interesting about it."""

    name: str
    about: str
    setting: Callable[[int], Setting]
    """Seed → work, cluster, faults; the same for the same seed."""


SCENARIOS: dict[str, Scenario] = {}
"""By name, in the order in which they are shown."""


def scenario(name: str) -> Scenario:
    """The scenario of this name. Raises `TwinError`, with the nearest name, when there is none."""
    try:
        return SCENARIOS[name]
    except KeyError:
        hint = nearest(name, SCENARIOS)
        raise TwinError(
            f"scenario {name!r} is not known"
            + (f"; did you mean {hint!r}?" if hint else f", must be one of {', '.join(SCENARIOS)}")
        ) from None


def _scenario(about: str) -> Callable[[Callable[[int], Setting]], Callable[[int], Setting]]:
    def add(setting: Callable[[int], Setting]) -> Callable[[int], Setting]:
        name = setting.__name__.strip("_").replace("_", "-")
        SCENARIOS[name] = Scenario(name, about, setting)
        return setting

    return add


def _rng(seed: int, what: str) -> random.Random:
    return random.Random(f"{seed} {what}")


# -- tasks that differ -------------------------------------------------------------------------------------------


@_scenario("independent tasks, log-normal durations, 16 workers")
def uneven(seed: int) -> Setting:
    return independent(800, LogNormal(0.2, 1.0), seed=seed), uniform(16), ()


@_scenario("independent tasks, a few of which take very long (Pareto), 16 workers")
def heavy_tail(seed: int) -> Setting:
    return independent(600, Pareto(0.1, 1.3), seed=seed), uniform(16), ()


@_scenario("independent tasks, the longest submitted last, 8 workers")
def longest_last(seed: int) -> Setting:
    rng, draw = _rng(seed, "longest last"), LogNormal(0.2, 1.0)
    durations = sorted((draw(None, (), rng) for _ in range(300)), reverse=True)  # dask.order begins with the last key
    return made_up([(f"task-{i:03}", (), Cost(s)) for i, s in enumerate(durations)]), uniform(8), ()


@_scenario("2,000 tasks of about 1 ms, 16 workers: only overhead counts")
def tiny(seed: int) -> Setting:
    return independent(2000, LogNormal(0.001, 0.3), seed=seed), uniform(16), ()


@_scenario("one task in fifty takes fifteen times as long, 16 workers")
def stragglers(seed: int) -> Setting:
    rng = _rng(seed, "stragglers")
    durations = [rng.uniform(0.4, 0.6) * (15.0 if rng.random() < 0.02 else 1.0) for _ in range(480)]
    return made_up([(f"task-{i:03}", (), Cost(s)) for i, s in enumerate(durations)]), uniform(16), ()


# -- tasks that depend on each other -----------------------------------------------------------------------------


@_scenario("20 layers of 16 tasks, each with two inputs of 1 MB, 16 workers")
def layers(seed: int) -> Setting:
    return layered(20, 16, LogNormal(0.2, 0.8), seed=seed, output_bytes=10**6), uniform(16), ()


@_scenario("a tree reduction of 256 leaves of 4 MB, 16 workers")
def reduction(seed: int) -> Setting:
    return tree(256, LogNormal(0.2, 0.6), seed=seed, output_bytes=4 * 10**6), uniform(16), ()


@_scenario("Cholesky factorisation of 10 × 10 tiles of 2 MB, 8 workers")
def cholesky(seed: int) -> Setting:
    return _cholesky(10, seed), uniform(8), ()


@_scenario("200 wide tasks, one of which starts a chain of 20, 8 workers: the chain must go first")
def critical(seed: int) -> Setting:
    rng = _rng(seed, "critical")
    tasks: Tasks = [(f"wide-{i}", (), Cost(rng.uniform(0.1, 0.3))) for i in range(200)]
    head = f"wide-{rng.randrange(200)}"
    tasks += [(f"chain-{i}", (f"chain-{i - 1}" if i else head,), Cost(rng.uniform(0.2, 0.3))) for i in range(20)]
    return made_up(tasks), uniform(8), ()


@_scenario("24 maps, 24 partitions of each to 24 reduces (a shuffle of 0.5 MB blocks), 12 workers")
def shuffle(seed: int) -> Setting:
    rng, n = _rng(seed, "shuffle"), 24
    tasks: Tasks = [(f"map-{i}", (), Cost(rng.uniform(0.2, 0.6), n * MIB // 2)) for i in range(n)]
    tasks += [(("part", i, j), (f"map-{i}",), Cost(0.002, MIB // 2)) for i in range(n) for j in range(n)]
    tasks += [(f"reduce-{j}", [("part", i, j) for i in range(n)], Cost(rng.uniform(0.2, 0.6))) for j in range(n)]
    return made_up(tasks), uniform(12), ()


# -- where the data is -------------------------------------------------------------------------------------------


@_scenario("a root of 64 MB, split on its worker into 96 pieces of 8 MB that are then worked on, 12 workers")
def data_gravity(seed: int) -> Setting:
    rng = _rng(seed, "gravity")
    tasks: Tasks = [("root", (), Cost(0.2, 64 * MIB))]
    tasks += [(f"split-{i}", ("root",), Cost(0.002, 8 * MIB)) for i in range(96)]
    tasks += [(f"piece-{i}", (f"split-{i}",), Cost(rng.uniform(0.15, 0.45))) for i in range(96)]
    return made_up(tasks), uniform(12), ()


@_scenario("400 tasks of about 0.1 s that all need one result of 100 MB, 8 workers")
def big_fan_out(seed: int) -> Setting:
    return fan_out(400, LogNormal(0.1, 0.3), root=Cost(0.5, 100 * MIB), seed=seed), uniform(8), ()


# -- workers that differ -----------------------------------------------------------------------------------------


def _half_slow(number: int) -> Speed:
    return Fixed(0.25 if number % 2 else 1.0)


@_scenario("independent tasks, half of 8 workers four times slower")
def half_slow(seed: int) -> Setting:
    return independent(160, LogNormal(0.4, 0.5), seed=seed), uniform(8, speed=_half_slow), ()


@_scenario("10 layers of 8 tasks, half of 8 workers four times slower")
def half_slow_layers(seed: int) -> Setting:
    return layered(10, 8, LogNormal(0.4, 0.4), seed=seed), uniform(8, speed=_half_slow), ()


@_scenario("Cholesky of 10 × 10 tiles, half of 8 workers four times slower")
def half_slow_cholesky(seed: int) -> Setting:
    return _cholesky(10, seed), uniform(8, speed=_half_slow), ()


@_scenario("four tasks for each of 8 workers, one of which is ten times slower")
def one_slow(seed: int) -> Setting:
    slow = _rng(seed, "one slow").randrange(8)
    cluster = uniform(8, speed=lambda i: Fixed(0.1 if i == slow else 1.0))
    return independent(32, Constant(2.0), seed=seed), cluster, ()


@_scenario("layers on 8 workers, one of which falls to a twentieth of its speed after 3 s")
def becomes_slow(seed: int) -> Setting:
    slow = _rng(seed, "becomes slow").randrange(8)
    cluster = uniform(8, speed=lambda i: Sudden(1.0, 0.05, 3.0) if i == slow else Fixed())
    return layered(20, 8, LogNormal(0.4, 0.4), seed=seed), cluster, ()


# -- what goes wrong ---------------------------------------------------------------------------------------------


@_scenario("a worker that holds intermediate results is killed; its nanny starts it again")
def crash(seed: int) -> Setting:
    work = layered(15, 16, LogNormal(0.3, 0.5), seed=seed, output_bytes=10**6)
    return work, uniform(8, nanny=True), [Crash(worker=_victim(seed, 8), at_s=4.0)]


@_scenario("a worker process stands still for ever, its connections stay open")
def hang(seed: int) -> Setting:
    return independent(200, LogNormal(0.3, 0.5), seed=seed), uniform(8), [Hang(worker=_victim(seed, 8), at_s=2.0)]


@_scenario("a task holds the GIL of its worker for 20 s")
def gil(seed: int) -> Setting:
    work = independent(200, LogNormal(0.3, 0.5), seed=seed)
    return work, uniform(8, threads=2), [HoldGil(worker=_victim(seed, 8), at_s=1.0, for_s=20.0)]


@_scenario("a machine is taken away after a notice of 5 s that nobody passes on")
def preemption(seed: int) -> Setting:
    work = layered(20, 16, LogNormal(0.3, 0.5), seed=seed, output_bytes=10**6)
    return work, uniform(8, threads=2), [Preempt(worker=_victim(seed, 8), at_s=2.0, notice_s=5.0)]


@_scenario("tasks that each need 350 MB for a moment, 4 threads and 1 GiB per worker")
def memory(seed: int) -> Setting:
    rng = _rng(seed, "memory")
    tasks: Tasks = [(f"task-{i}", (), Cost(rng.uniform(0.3, 0.7), 10**4, 350 * MIB)) for i in range(48)]
    return made_up(tasks), uniform(4, threads=4, memory=Memory(1024 * MIB), nanny=True), ()


@_scenario("results of 100 MB that pile up until they are reduced, 1 GiB per worker")
def piling_up(seed: int) -> Setting:
    rng = _rng(seed, "piling up")
    tasks: Tasks = [(f"load-{i}", (), Cost(rng.uniform(0.2, 0.4), 100 * 10**6)) for i in range(96)]
    tasks += [(f"sum-{j}", [f"load-{i}" for i in range(j, 96, 24)], Cost(rng.uniform(0.2, 0.4))) for j in range(24)]
    return made_up(tasks), uniform(4, threads=2, memory=Memory(1024 * MIB), nanny=True), ()


def _victim(seed: int, workers: int) -> str:
    return f"w{_rng(seed, 'victim').randrange(workers)}"


def _cholesky(tiles: int, seed: int) -> Work:
    """Right-looking, tiled: potrf, trsm, syrk and gemm at about the ratio of their operations, 1 : 3 : 3 : 6."""
    rng, size = _rng(seed, "cholesky"), 2 * 10**6
    tasks: Tasks = []
    last: dict[tuple[int, int], Key] = {}
    """Tile → the task that wrote it last."""

    def add(what: str, tile: tuple[int, int], needs: Sequence[Key], work_s: float, *at: int) -> None:
        key: Key = (what, *at)
        own = [last[tile]] if tile in last else []
        tasks.append((key, [*own, *needs], Cost(work_s * rng.uniform(0.9, 1.1), size)))
        last[tile] = key

    for k in range(tiles):
        add("potrf", (k, k), (), 0.04, k)
        for i in range(k + 1, tiles):
            add("trsm", (i, k), (last[k, k],), 0.1, i, k)
        for i in range(k + 1, tiles):
            add("syrk", (i, i), (last[i, k],), 0.1, i, k)
            for j in range(k + 1, i):
                add("gemm", (i, j), (last[i, k], last[j, k]), 0.2, i, j, k)
    return made_up(tasks, name=f"Cholesky of {tiles} × {tiles} tiles", wanted=[last[t] for t in sorted(last)])
