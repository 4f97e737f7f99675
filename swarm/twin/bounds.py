"""What no scheduler can beat, and what one could reach that knows everything: lower bound and HEFT.  PURE"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from swarm.errors import TwinError
from swarm.twin.models import ClusterModel, Cost, Key, Network, WorkerModel

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Slot:
    """A task in an offline schedule."""

    key: Key
    worker: str
    lane: int
    start_s: float
    stop_s: float


# -- bounds ------------------------------------------------------------------------------------------------------


def best_speed(worker: WorkerModel) -> float:
    """The highest factor that the worker ever has."""
    return max(factor for _, factor in worker.speed.changes())


def lower_bound_s(total_s: float, critical_path_s: float, workers: Sequence[WorkerModel]) -> float:
    """max(work / Σ speed, critical path / fastest): what nobody can beat.

    Where speeds change, the first term is the time by which the work done at the sum of the speeds reaches the
    total, and the fastest is the highest speed that any worker ever has.

    >>> from swarm.twin.models import uniform
    >>> lower_bound_s(100.0, 7.0, uniform(10).workers)
    10.0
    """
    if not workers:
        raise TwinError("a lower bound needs a cluster with workers")
    return max(_drained_s(total_s, workers), critical_path_s / max(map(best_speed, workers)))


def _drained_s(total_s: float, workers: Sequence[WorkerModel]) -> float:
    """When all threads together have done so much work, if none ever waits."""
    changes: list[tuple[float, float]] = []
    """(time, by how much the sum of the speeds grows)."""
    for worker in workers:
        before = 0.0
        for at_s, factor in worker.speed.changes():
            changes.append((at_s, worker.threads * (factor - before)))
            before = factor
    changes.sort()
    at_s = speed = 0.0
    for change_s, more in changes:
        done_s = (change_s - at_s) * speed
        if speed and done_s >= total_s:
            break
        total_s, at_s, speed = total_s - done_s, change_s, speed + more
    return at_s + total_s / speed


# -- HEFT --------------------------------------------------------------------------------------------------------


class Platform(Protocol):
    """What HEFT has to know: how long tasks and transfers take. Arrays have one entry per lane."""

    lanes: int

    def mean_s(self, key: Key) -> float:
        """Of the task's durations over all lanes."""
        ...

    def least_s(self, key: Key) -> Array:
        """The shortest time that the task can take on each lane."""
        ...

    def stop_s(self, key: Key, lanes: Sequence[int] | slice, start_s: Array) -> Array:
        """When the task stops on these lanes if it starts on each at that time."""
        ...

    def mean_transfer_s(self, need: Key, key: Key) -> float:
        """Of the result of `need` to where `key` runs, if that is elsewhere."""
        ...

    def transfer_s(self, need: Key, lane: int, key: Key) -> Array:
        """From this lane to each lane."""
        ...


def upward_ranks(order: Sequence[Key], dependents: Mapping[Key, Sequence[Key]], platform: Platform) -> dict[Key, float]:
    """Upward rank of each task: the longest way from its start to the end, by mean costs (Topcuoglu et al., eq. 10).

    `order` has each key after all that it depends on.
    """
    ranks: dict[Key, float] = {}
    for key in reversed(order):
        after_s = max((platform.mean_transfer_s(key, k) + ranks[k] for k in dependents[key]), default=0.0)
        ranks[key] = platform.mean_s(key) + after_s
    return ranks


def heft(
    order: Sequence[Key],
    dependencies: Mapping[Key, frozenset[Key]],
    dependents: Mapping[Key, Sequence[Key]],
    costs: Mapping[Key, Cost],
    cluster: ClusterModel,
) -> list[Slot]:
    """An offline schedule with perfect knowledge of all costs and speeds.

    Scheduler, messages and memory cost nothing, and nothing fails; transfers do not queue. So it is an oracle, not a
    bound: a lucky schedule may beat it. Tasks × threads is what it takes: half a million in about a second.
    """
    platform = _ClusterPlatform(costs, cluster)
    return [
        Slot(key, worker.name, lane, start_s, stop_s)
        for key, number, start_s, stop_s in list_schedule(order, dependencies, dependents, platform)
        for worker, lane in (platform.places[number],)
    ]


def list_schedule(
    order: Sequence[Key],
    dependencies: Mapping[Key, frozenset[Key]],
    dependents: Mapping[Key, Sequence[Key]],
    platform: Platform,
) -> list[tuple[Key, int, float, float]]:
    """Heterogeneous Earliest Finish Time with insertion: (key, lane, start, stop), by falling upward rank.

    Each task goes where it stops first, also into a gap that was left (Topcuoglu, Hariri, Wu, "Performance-effective
    and low-complexity task scheduling for heterogeneous computing", IEEE TPDS 13(3), 2002).
    """
    ranks = upward_ranks(order, dependents, platform)
    position = {key: i for i, key in enumerate(order)}
    free_s = np.zeros(platform.lanes)
    gaps = _Gaps(platform.lanes)
    placed: dict[Key, tuple[Key, int, float, float]] = {}
    for key in sorted(order, key=lambda k: (-ranks[k], position[k])):
        ready_s = np.zeros(platform.lanes)
        for need in dependencies[key]:
            _, lane, _, done_s = placed[need]
            np.maximum(ready_s, done_s + platform.transfer_s(need, lane, key), out=ready_s)
        starts = np.maximum(ready_s, free_s)
        stops = platform.stop_s(key, slice(None), starts)
        best = int(stops.argmin())
        start_s, stop_s = float(starts[best]), float(stops[best])
        least_s = platform.least_s(key)
        soonest = ready_s + least_s
        for lane in np.flatnonzero((gaps.longest_s >= least_s) & (soonest < stop_s)).tolist():
            if soonest[lane] < stop_s:
                fits = gaps.first(lane, float(ready_s[lane]), stop_s, key, platform)
                if fits is not None:
                    best, (start_s, stop_s) = lane, fits
        if start_s >= free_s[best]:
            gaps.add(best, float(free_s[best]), start_s)
            free_s[best] = stop_s
        else:
            gaps.fill(best, start_s, stop_s)
        placed[key] = (key, best, start_s, stop_s)
    return list(placed.values())


class _Gaps:
    """Idle times of lanes before their last task, in order."""

    def __init__(self, lanes: int) -> None:
        self.longest_s = np.zeros(lanes)
        self._of: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]

    def add(self, lane: int, begin_s: float, end_s: float) -> None:
        if end_s > begin_s:
            bisect.insort(self._of[lane], (begin_s, end_s))
            self.longest_s[lane] = max(self.longest_s[lane], end_s - begin_s)

    def fill(self, lane: int, start_s: float, stop_s: float) -> None:
        """Somebody takes a part of a gap."""
        found = bisect.bisect_right(self._of[lane], (start_s, math.inf)) - 1
        begin_s, end_s = self._of[lane].pop(found)
        self.add(lane, begin_s, start_s)
        self.add(lane, stop_s, end_s)
        self.longest_s[lane] = max((end - begin for begin, end in self._of[lane]), default=0.0)

    def first(
        self, lane: int, ready_s: float, before_s: float, key: Key, platform: Platform
    ) -> tuple[float, float] | None:
        """Start and stop in the first gap that has room, if the task stops before that time."""
        gaps = self._of[lane]
        for begin_s, end_s in gaps[max(0, bisect.bisect_right(gaps, (ready_s, math.inf)) - 1) :]:
            start_s = max(begin_s, ready_s)
            if start_s >= before_s:
                return None
            if start_s < end_s:
                stop_s = float(platform.stop_s(key, [lane], np.array([start_s]))[0])
                if stop_s <= end_s:
                    return (start_s, stop_s) if stop_s < before_s else None
        return None


class _ClusterPlatform:
    """A model of a cluster; the work of a task is done at the speed of its lane, whatever that is at the time."""

    def __init__(self, costs: Mapping[Key, Cost], cluster: ClusterModel) -> None:
        self.places = [(worker, lane) for worker in cluster.workers for lane in range(worker.threads)]
        self.lanes = len(self.places)
        if not self.lanes:
            raise TwinError("a schedule needs a cluster with workers")
        self._costs = costs
        self._network: Network = cluster.network
        paces = {worker.name: _Pace(worker) for worker in cluster.workers}
        self._paces = [paces[worker.name] for worker, _ in self.places]
        self._first = np.array([pace.factors[0] for pace in self._paces])
        self._best = np.array([max(pace.factors) for pace in self._paces])
        self._mean_s_per_s = float((1.0 / self._first).mean())
        self._changing = [i for i, pace in enumerate(self._paces) if len(pace.factors) > 1]
        self._hosts = [worker.host or worker.name for worker, _ in self.places]
        self._lanes_of: dict[str, list[int]] = {}
        for i, (worker, _) in enumerate(self.places):
            self._lanes_of.setdefault(worker.name, []).append(i)
        self._links: dict[str, tuple[Array, Array]] = {}

    def mean_s(self, key: Key) -> float:
        return self._costs[key].work_s * self._mean_s_per_s

    def least_s(self, key: Key) -> Array:
        return self._costs[key].work_s / self._best

    def stop_s(self, key: Key, lanes: Sequence[int] | slice, start_s: Array) -> Array:
        work_s = self._costs[key].work_s
        stops: Array = start_s + work_s / self._first[lanes]
        if self._changing:
            asked = range(self.lanes)[lanes] if isinstance(lanes, slice) else lanes
            at = {lane: i for i, lane in enumerate(asked)}
            for lane in at.keys() & set(self._changing):
                stops[at[lane]] = self._paces[lane].stop_s(float(start_s[at[lane]]), work_s)
        return stops

    def mean_transfer_s(self, need: Key, key: Key) -> float:
        link = self._network.default
        return link.latency_s + self._costs[need].output_bytes / link.bytes_per_s

    def transfer_s(self, need: Key, lane: int, key: Key) -> Array:
        host = self._hosts[lane]
        if host not in self._links:
            links = [self._network.link(host, other) for other in self._hosts]
            self._links[host] = (np.array([li.latency_s for li in links]), np.array([li.bytes_per_s for li in links]))
        latency_s, bytes_per_s = self._links[host]
        took_s: Array = latency_s + self._costs[need].output_bytes / bytes_per_s
        took_s[self._lanes_of[self.places[lane][0].name]] = 0.0
        return took_s


class _Pace:
    """How the work of a thread proceeds as the speed of its worker changes."""

    def __init__(self, worker: WorkerModel) -> None:
        changes = list(worker.speed.changes())
        self.times = [at_s for at_s, _ in changes]
        self.factors = [factor for _, factor in changes]

    def stop_s(self, start_s: float, work_s: float) -> float:
        """When so much work is done that begins then."""
        at_s = start_s
        for i in range(bisect.bisect_right(self.times, start_s) - 1, len(self.times) - 1):
            done_s = (self.times[i + 1] - at_s) * self.factors[i]
            if done_s >= work_s:
                return at_s + work_s / self.factors[i]
            work_s, at_s = work_s - done_s, self.times[i + 1]
        return at_s + work_s / self.factors[-1]
