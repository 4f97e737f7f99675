"""What will soon fail, from where it is going: memory or a disk that fills, a host that gets hot, a slow worker.  PURE

A trend is a line through the last 40 s, by Theil and Sen: the median of the slopes between pairs of samples, which a
third of wild samples does not move (Sen, Journal of the American Statistical Association 63, 1968). It counts when
nearly all of those slopes point the same way; then the time left is the room left over the slope. A worker is slow
against two yardsticks, its own past and its peers now, so that a heavier phase of the work, which slows all, and a
worker that always was slow, are no news.

Half-space trees (`river.anomaly.HalfSpaceTrees`) on level and slope do worse: of made-up series that end at the limit
they find 85 %, with false alarms in 42 % of the others; this finds all, with 13 %. A plain threshold of 80 % finds all
too, with 7 %, but it can't say how long it will be, and is later: 18 s before the end in the middle, this 21 s
(`tests/unit/scaling/test_forecasts.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from statistics import median
from typing import TYPE_CHECKING

from swarm.protocol import ClearAlert, RaiseAlert, Telemetry

if TYPE_CHECKING:
    from swarm.protocol import Resource

WINDOW_S = 40.0
SAMPLES = 20
"""Of which a trend is made; what comes more often is thinned out to as many per window."""
LEAST = 8
"""Samples, and `LEAST_S` seconds between the first and the last, before there is a trend."""
LEAST_S = 10.0
AGREE_RATIO = 0.85
"""Of all pairs of samples, how many must point the same way. Of a random walk some 60 to 75 % do."""
SOON_S = 60.0
"""Time left from which on it is worth an alert; and cleared at `SAFE_RATIO` times that."""
SAFE_RATIO = 2.0
SPILL_RATIO = 0.7
"""Of a worker's memory. Below that Dask has means of its own, and nearly everything that grows stops growing; memory
that grows on beyond is not Dask's to spill (`distributed.worker.memory.spill`)."""
IN_A_ROW = 3
"""Forecasts that say the same before one counts."""
SLOW_RATIO = 2.0
"""Against its own past and against its peers."""
NEAR_CELSIUS = 10.0
"""Below the limit. What is heated settles where it loses as much as it gets, and mostly far from there."""
PAST_WEIGHT = 0.02
"""Of one sample in what is usual for a worker: half of it is forgotten after some 35."""


@dataclass(frozen=True, slots=True)
class Trend:
    """Where a reading is going."""

    slope_per_s: float
    agree_ratio: float
    """Of the pairs of samples, how many have a slope of this sign."""


def trend(samples: list[tuple[float, float]]) -> Trend | None:
    """The line through (seconds, reading); None for too few.

    >>> trend([(float(s), 5.0 * s) for s in range(0, 30, 3)])
    Trend(slope_per_s=5.0, agree_ratio=1.0)
    """
    if len(samples) < LEAST or samples[-1][0] - samples[0][0] < LEAST_S:
        return None
    slopes = [(b - a) / (tb - ta) for (ta, a), (tb, b) in combinations(samples, 2) if tb > ta]
    if not slopes:
        return None
    middle = median(slopes)
    return Trend(middle, sum(slope * middle > 0.0 for slope in slopes) / len(slopes))


class Series:
    """The last 40 s of one reading, thinned out."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque()

    def add(self, at_s: float, value: float) -> bool:
        """Take a sample; whether it was one of those that are kept."""
        kept = self._kept
        if kept and at_s - kept[-1][0] < WINDOW_S / SAMPLES * 0.9:
            return False
        kept.append((at_s, value))
        while kept[0][0] < at_s - WINDOW_S:
            kept.popleft()
        return True

    def time_left_s(self, floor: float) -> float | None:
        """Until the reading falls to `floor`, if it goes on so; None: it does not."""
        found = trend(list(self._kept))
        if found is None or found.slope_per_s >= 0.0 or found.agree_ratio < AGREE_RATIO:
            return None
        return max(self._kept[-1][1] - floor, 0.0) / -found.slope_per_s


@dataclass(frozen=True, slots=True)
class Room:
    """A reading of telemetry that must not run out."""

    resource: Resource
    of_host: bool
    room: Callable[[Telemetry], tuple[float, float] | None]
    """What is left, and of it how much may be left for a forecast to count."""
    words: str
    will: str = "will be full"
    unit: str = "bytes"


def _memory(sample: Telemetry) -> tuple[float, float] | None:
    """Of the worker or of its control group, whichever is nearer to its end."""
    uses = (
        (sample.worker_memory_bytes, sample.worker_memory_limit_bytes),
        (sample.cgroup_memory_bytes, sample.cgroup_memory_limit_bytes),
    )
    rooms = [(limit - used, (1.0 - SPILL_RATIO) * limit) for used, limit in uses if used is not None and limit]
    return min(rooms, default=None)


def _disk(sample: Telemetry) -> tuple[float, float] | None:
    return None if sample.host_disk_free_bytes is None else (float(sample.host_disk_free_bytes), inf)


ROOMS = (
    Room("memory", of_host=False, room=_memory, words="memory of worker"),
    Room("disk", of_host=True, room=_disk, words="disk of host"),
)


def _heat(limit_celsius: float) -> Room:
    def room(sample: Telemetry) -> tuple[float, float] | None:
        celsius = sample.host_temperature_celsius
        return None if celsius is None else (limit_celsius - celsius, NEAR_CELSIUS)

    return Room("thermal", of_host=True, room=room, words="host", will="will be too hot", unit="celsius")


@dataclass(slots=True)
class _Watched:
    series: Series = field(default_factory=Series)
    streak: int = 0
    raised_at_s: float | None = None


class Forecast:
    """Turns telemetry into alerts that name the time left; O(samples²) every few seconds, 0.1 ms.

    Parameters
    ----------
    celsius
        At which a host is too hot; None: heat is not looked at.
    """

    def __init__(self, soon_s: float = SOON_S, celsius: float | None = None) -> None:
        self._soon_s = soon_s
        self._rooms = ROOMS if celsius is None else (*ROOMS, _heat(celsius))
        self._names: dict[str, tuple[str, str]] = {}
        self._speakers: dict[str, str] = {}
        self._watched: dict[tuple[str, str], _Watched] = {}

    def worker_joined(self, worker: str, name: str, host: str) -> None:
        self._names[worker] = (name, host)

    def worker_left(self, worker: str, at_s: float) -> Iterator[ClearAlert]:
        name, host = self._names.pop(worker, ("", ""))
        if self._speakers.get(host) == worker:
            del self._speakers[host]
        for room in self._rooms:
            watched = self._watched.pop((room.resource, worker), None)
            if watched is not None and watched.raised_at_s is not None:
                yield self._clear(room, worker, None, at_s - watched.raised_at_s, f"worker {name} left")

    def telemetry_arrived(self, worker: str, sample: Telemetry, at_s: float) -> Iterator[RaiseAlert | ClearAlert]:
        """One sample; readings that are absent, and workers that are not known, change nothing."""
        if worker not in self._names:
            return
        name, host = self._names[worker]
        speaks = self._speakers.setdefault(host, worker) == worker
        for room in self._rooms:
            left = room.room(sample)
            if left is None or (room.of_host and not speaks):
                continue
            watched = self._watched.setdefault((room.resource, worker), _Watched())
            if watched.series.add(at_s, left[0]):
                place = host if room.of_host else name
                yield from self._look(room, worker, place, watched, left, at_s)

    def _look(
        self, room: Room, worker: str, place: str, watched: _Watched, left: tuple[float, float], at_s: float
    ) -> Iterator[RaiseAlert | ClearAlert]:
        room_left, counts = left
        left_s = watched.series.time_left_s(0.0) if room_left <= counts else None
        is_raised = watched.raised_at_s is not None
        is_safe = left_s is None or left_s > SAFE_RATIO * self._soon_s
        is_news = is_safe if is_raised else left_s is not None and left_s <= self._soon_s
        watched.streak = watched.streak + 1 if is_news else 0
        if watched.streak < IN_A_ROW:
            return
        watched.streak = 0
        if watched.raised_at_s is not None:
            lasted_s, watched.raised_at_s = at_s - watched.raised_at_s, None
            yield self._clear(
                room, worker, left_s, lasted_s, f"{room.words} {place}: no sign any more that it {room.will}"
            )
            return
        assert left_s is not None
        watched.raised_at_s = at_s
        yield RaiseAlert(
            rule=f"forecast.{room.resource}",
            reason=f"{room.words} {place} {room.will} in {left_s:.0f} s, if it goes on like this",
            inputs={f"left_{room.unit}": room_left, "left_s": left_s},
            alert=f"forecast-{room.resource} {worker}",
            worker=worker,
            resource=room.resource,
            value=left_s,
            threshold=self._soon_s,
            unit="s",
        )

    @staticmethod
    def _clear(room: Room, worker: str, left_s: float | None, lasted_s: float, reason: str) -> ClearAlert:
        return ClearAlert(
            rule=f"forecast.{room.resource}",
            reason=reason,
            alert=f"forecast-{room.resource} {worker}",
            worker=worker,
            resource=room.resource,
            value=left_s,
            lasted_s=lasted_s,
        )


class Paces:
    """Which workers have slowed down, against their own past and their peers.

    Parameters
    ----------
    slow_ratio
        Against both.

    >>> paces = Paces()
    >>> for _ in range(20):
    ...     calm = paces.look({"a": 1.0, "b": 1.0, "c": 2.5})
    >>> calm, [paces.look({"a": 3.0, "b": 1.0, "c": 2.5}) for _ in range(3)][-1]
    ({}, {'a': 3.0})
    """

    def __init__(self, slow_ratio: float = SLOW_RATIO) -> None:
        self._slow_ratio = slow_ratio
        self._past: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._streak: dict[str, int] = {}

    def look(self, factors: Mapping[str, float]) -> dict[str, float]:
        """Workers that have slowed down → how many times slower they are than they were, beyond what all are.

        Parameters
        ----------
        factors
            Worker → duration of tasks there, over that on an average worker.
        """
        for gone in self._past.keys() - factors.keys():
            for kept in (self._past, self._seen, self._streak):
                kept.pop(gone, None)
        change = {worker: now / self._past[worker] for worker, now in factors.items() if self._past.get(worker)}
        of_all = median(change.values()) if change else 1.0
        slow: dict[str, float] = {}
        for worker, now in factors.items():
            times = change.get(worker, 1.0) / max(of_all, 1e-9)
            is_slow = self._seen.get(worker, 0) >= LEAST and times > self._slow_ratio
            self._streak[worker] = self._streak.get(worker, 0) + 1 if is_slow else 0
            if self._streak[worker] >= IN_A_ROW:
                slow[worker] = times
            if not is_slow:
                past = self._past.get(worker, now)
                self._past[worker] = past + max(PAST_WEIGHT, 1.0 / (self._seen.get(worker, 0) + 1)) * (now - past)
                self._seen[worker] = self._seen.get(worker, 0) + 1
        return slow
