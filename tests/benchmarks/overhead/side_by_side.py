"""Plain Dask and Dask with swarm side by side: two clusters of real processes that differ in their preloads alone."""

from __future__ import annotations

import itertools
import math
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Literal, Self

import psutil
from distributed import Client, wait
from rich.table import Table

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec

Mode = Literal["stock", "swarm"]
PRELOADS: dict[Mode, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "stock": ((), ()),
    "swarm": (("scheduler_plugins",), ("swarm.agents",)),
}
"""Of the scheduler and of the workers; all that differs."""
LOOK_AGAIN_S = 0.1
"""Each look costs the scheduler half a millisecond, in both modes: 0.5 % of a core."""
FORGET_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What tasks cost: CPU (user and system) seconds of the processes, and wall seconds."""

    scheduler_cpu_s: float
    workers_cpu_s: float
    wall_s: float

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*map(operator.sub, astuple(self), astuple(other)))


class MeasuredCluster:
    """`dask scheduler` and `dask worker` processes that tell what a submission cost them. A context manager."""

    def __init__(self, mode: Mode, *, workers: int, dashboard: bool, hash_seed: int) -> None:
        self.mode = mode
        scheduler_preload, worker_preload = PRELOADS[mode]
        spec = ClusterSpec(
            workers=workers,
            threads_per_worker=1,
            nanny=False,
            dashboard_port=0 if dashboard else None,
            env={"PYTHONHASHSEED": str(hash_seed)},
            scheduler_preload=scheduler_preload,
            worker_preload=worker_preload,
        )
        self._cluster = LocalProcesses(spec)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self._cluster)
            self._client = undo.enter_context(Client(self._cluster.address, set_as_default=False))
            pids = dict(self._cluster.processes)
            self._scheduler = psutil.Process(pids.pop("scheduler"))
            self._workers = [psutil.Process(pid) for pid in pids.values()]
            self._exit = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def submit(self, tasks: int) -> Usage:
        """Run tasks that do nothing, until the scheduler has forgotten them; checks the results."""
        before = self._used()
        futures = self._client.map(operator.pos, range(tasks), pure=False)
        with self._client.as_current():
            wait(futures)
        computed = self._used() - before
        assert self._client.gather(futures) == list(range(tasks))
        before = self._used()
        del futures
        deadline_s = time.monotonic() + FORGET_TIMEOUT_S
        while self._client.run_on_scheduler(_known_tasks):
            assert time.monotonic() < deadline_s, f"the scheduler still knows tasks after {FORGET_TIMEOUT_S:g} s"
            time.sleep(LOOK_AGAIN_S)
        return computed + (self._used() - before)

    def check_mode(self) -> None:
        """See that swarm is where it should be and all of it is on: a part that is off costs nothing."""
        has_swarm = self.mode == "swarm"
        assert (self._client.get_metadata("swarm", default=None) is not None) is has_swarm
        assert set(self._client.run(_has_agents).values()) == {has_swarm}
        if has_swarm:
            status = self._client.sync(self._client.scheduler.swarm_status)
            assert status["off"] == status["failures"] == {}

    def _used(self) -> Usage:
        scheduler_s = _cpu_s(self._scheduler)
        return Usage(scheduler_s, sum(map(_cpu_s, self._workers)), time.perf_counter())


@contextmanager
def both(*, workers: int, dashboard: bool, hash_seed: int) -> Iterator[tuple[MeasuredCluster, MeasuredCluster]]:
    """Fresh processes of both modes, stock first. They live at the same time, one works while the other idles.

    So neighbours in time can be compared, and what else the machine does hits both. The same hash seed, because the
    order of Dask's sets is part of what a run costs.
    """
    with ExitStack() as stack:
        modes: tuple[Mode, Mode] = ("stock", "swarm")
        made = [MeasuredCluster(mode, workers=workers, dashboard=dashboard, hash_seed=hash_seed) for mode in modes]
        stock, swarm = map(stack.enter_context, made)
        stock.check_mode()
        swarm.check_mode()
        yield stock, swarm
        swarm.check_mode()


@dataclass(frozen=True, slots=True)
class Turn:
    """The same submission to both clusters of a pair, one right after the other."""

    pair: int
    tasks: int
    stock: Usage
    swarm: Usage


def measure(pair: int, *, turns: int, tasks: int, workers: int, dashboard: bool) -> list[Turn]:
    """Start both modes and let them work in turns, `tasks` each time; a warm-up goes before and does not count.

    The order is stock, swarm, swarm, stock and so on, and in every other pair the other way round: a drift of the
    machine cancels out.
    """
    measured = []
    with both(workers=workers, dashboard=dashboard, hash_seed=pair) as clusters:
        for cluster in clusters:
            cluster.submit(tasks)
        for turn in range(turns):
            order = clusters if (turn + pair) % 2 == 0 else reversed(clusters)
            used = {cluster.mode: cluster.submit(tasks) for cluster in order}
            measured.append(Turn(pair, tasks, used["stock"], used["swarm"]))
    return measured


FIGURES: dict[str, Callable[[Usage], float]] = {
    "scheduler CPU": lambda usage: usage.scheduler_cpu_s,
    "workers CPU": lambda usage: usage.workers_cpu_s,
    "wall": lambda usage: usage.wall_s,
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of repeated measurements, and its interval of 95 % confidence (by order statistics)."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f}  ({self.low:.{digits}f} … {self.high:.{digits}f})"


def estimate(values: Sequence[float]) -> Estimate:
    """Without any assumption about how the noise is distributed.

    >>> estimate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 100.0])
    Estimate(median=5.5, low=2.0, high=9.0)
    """
    ordered = sorted(values)
    # How many of n fair coins show heads: the rank of the true median.
    n = len(ordered)
    rank, below = 0, 0.5**n
    while below <= 0.025 and rank < n // 2:
        rank += 1
        below += math.comb(n, rank) * 0.5**n
    least = max(0, rank - 1)
    return Estimate(statistics.median(ordered), ordered[least], ordered[n - 1 - least])


def ratios(turns: Sequence[Turn]) -> dict[str, Estimate]:
    """Figure → swarm / stock over all turns."""
    return {name: estimate([of(turn.swarm) / of(turn.stock) for turn in turns]) for name, of in FIGURES.items()}


def report(turns: Sequence[Turn], title: str) -> Table:
    """The figures for a person, per task."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("per task")
    for column in ("stock, µs", "swarm, µs", "swarm / stock", "pairs, least … most"):
        table.add_column(column, justify="right")
    found = ratios(turns)
    by_pair = [ratios(list(group)) for _, group in itertools.groupby(turns, key=lambda turn: turn.pair)]
    for name, of in FIGURES.items():
        stock = estimate([1e6 * of(turn.stock) / turn.tasks for turn in turns])
        swarm = estimate([1e6 * of(turn.swarm) / turn.tasks for turn in turns])
        medians = [pair[name].median for pair in by_pair]
        pairs = f"{min(medians):.3f} … {max(medians):.3f}"
        table.add_row(name, stock.text(0), swarm.text(0), found[name].text(3), pairs)
    return table


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _known_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _has_agents(dask_worker: Any) -> bool:
    return "swarm" in dask_worker.extensions
