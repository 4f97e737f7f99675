"""What heartbeats go through: a cluster's hours of jitter, loss, lag, pauses and real hangs, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Seconds."""


@dataclass(frozen=True)
class Rate:
    """Things that happen by chance, and how long each lasts: a Poisson process, log-normal lengths."""

    per_hour: float
    median_s: float
    sigma: float

    def draw(self, hours: float, rng: np.random.Generator) -> Times:
        """Begin and end of each, in order of time; an array of shape (n, 2)."""
        count = rng.poisson(self.per_hour * hours)
        begins = np.sort(rng.uniform(0.0, 3600.0 * hours, count))
        return np.column_stack([begins, begins + rng.lognormal(math.log(self.median_s), self.sigma, count)])


@dataclass(frozen=True)
class Weather:
    """Rates are our own guesses at a busy cluster on shared machines, rather too rough than too fair."""

    collections: Rate = Rate(30.0, 0.15, 0.8)
    """Of a worker: garbage collections, page faults, its host is busy."""
    gil: Rate = Rate(4.0, 2.0, 1.0)
    """Of a worker: a task holds the interpreter; one in ninety is longer than 20 s."""
    swap: Rate = Rate(0.2, 15.0, 0.5)
    """Of a worker: its host swaps."""
    lag: Rate = Rate(30.0, 0.3, 1.0)
    """Of the scheduler."""
    racks: int = 10
    """Groups of workers that share a switch."""
    outage: Rate = Rate(0.1, 3.0, 1.0)
    """Of one switch: what is sent arrives when it is over."""
    turn_s: float = 0.02
    """Mean time until a worker's event loop comes to it."""
    tail: tuple[float, float, float] = (0.01, 1.5, 0.1)
    """Share of heartbeats that are late by more, exponent and scale (seconds) of the Pareto distribution that says how
    much: its variance is infinite."""
    retransmitted: float = 1e-3
    """Share of packets that are lost: TCP sends them again after 0.2 s, and twice as long each time (RFC 6298)."""
    lost: float = 1e-4
    """Share of heartbeats that never arrive."""


@dataclass
class Life:
    """What became of the heartbeats of one worker."""

    arrivals: Times
    """When the scheduler has read each; the first one is the registration."""
    pauses: Times
    """Begin and end of each time in which the process stood still, but was well; shape (n, 2)."""
    hangs: Times
    """Begin and end: it hangs for good, and is replaced at the end, unless somebody did that before; shape (n, 2)."""


@dataclass
class Hours:
    """A cluster's time."""

    workers: int
    hours: float
    interval_s: float
    lags: Times
    """Of the scheduler; shape (n, 2)."""
    outages: list[Times]
    """Of each rack's switch; worker n is in rack n modulo their number."""
    lives: list[Life] = field(default_factory=list)

    @property
    def worker_hours(self) -> float:
        """In which a worker did not hang."""
        hung_s = sum(float((life.hangs[:, 1] - life.hangs[:, 0]).sum()) for life in self.lives)
        return self.workers * self.hours - hung_s / 3600.0

    def outages_of(self, worker: int) -> Times:
        return self.outages[worker % len(self.outages)]


def hours_of(
    workers: int, hours: float, interval_s: float, hangs_per_hour: float, seed: int, weather: Weather | None = None
) -> Hours:
    """Draw them.

    Parameters
    ----------
    interval_s
        Between two heartbeats of one worker, as the scheduler asks for.
    hangs_per_hour
        Of one worker; each lasts 700 s, longer than anybody here takes to see it.
    """
    weather = weather or Weather()
    rng = np.random.default_rng(seed)
    outages = [merged(weather.outage.draw(hours, rng)) for _ in range(weather.racks)]
    made = Hours(workers, hours, interval_s, merged(weather.lag.draw(hours, rng)), outages)
    for number in range(workers):
        hangs = _hangs(hangs_per_hour, hours, rng)
        paused = [kind.draw(hours, rng) for kind in (weather.collections, weather.gil, weather.swap)]
        pauses = merged(np.concatenate(paused))
        beats = _beats(hours, interval_s, pauses, hangs, weather, rng)
        for windows in (made.outages_of(number), made.lags):
            beats = postponed(beats, windows)
        made.lives.append(Life(np.sort(np.concatenate([[0.0], beats, hangs[:, 1]])), pauses, hangs))
    return made


def _hangs(per_hour: float, hours: float, rng: np.random.Generator) -> Times:
    begins = Rate(per_hour, 1.0, 0.0).draw(hours, rng)[:, 0]
    begins = begins[begins < 3600.0 * hours - 700.0]
    apart = np.diff(begins, prepend=-np.inf) > 1000.0
    return np.column_stack([begins[apart], begins[apart] + 700.0])


def _beats(
    hours: float, interval_s: float, pauses: Times, hangs: Times, weather: Weather, rng: np.random.Generator
) -> Times:
    """When each heartbeat of one worker arrives at the scheduler's host."""
    planned = np.arange(rng.uniform(0.0, interval_s), 3600.0 * hours, interval_s)  # as Tornado's PeriodicCallback
    sent = postponed(planned, pauses)
    sent = sent[np.diff(sent, prepend=-np.inf) > 1e-9]  # what falls into one pause is sent once
    sent = sent[~_inside(sent, hangs)]
    late_s = rng.exponential(weather.turn_s, len(sent))
    share, exponent, scale_s = weather.tail
    tail = rng.random(len(sent)) < share
    late_s[tail] += scale_s * (1.0 + rng.pareto(exponent, int(tail.sum())))
    again = rng.geometric(1.0 - weather.retransmitted, len(sent)) - 1
    late_s += 0.2 * (2.0**again - 1.0)
    # One connection carries them: none overtakes another, and who waits for an answer does not send the next.
    arrived = np.maximum.accumulate(sent + late_s)
    return arrived[rng.random(len(arrived)) >= weather.lost]


def merged(windows: Times) -> Times:
    """Windows that touch become one; in order of time."""
    windows = windows[np.argsort(windows[:, 0], kind="stable")]
    ends = np.maximum.accumulate(windows[:, 1]) if len(windows) else windows[:, 1]
    first = np.ones(len(windows), dtype=bool)
    first[1:] = windows[1:, 0] > ends[:-1]
    last = np.append(first[1:], True)[: len(windows)]
    return np.column_stack([windows[first, 0], ends[last]])


def postponed(times: Times, windows: Times) -> Times:
    """What falls into a window happens at its end."""
    if not len(windows):
        return times
    before = np.searchsorted(windows[:, 0], times, side="right") - 1
    ends = np.where(before >= 0, windows[before, 1], -np.inf)
    return np.maximum(times, ends)


def _inside(times: Times, windows: Times) -> NDArray[np.bool_]:
    return postponed(times, windows) > times


def looks_of(hours: Hours, period_s: float) -> Times:
    """When the scheduler looks every `period_s`: after a lag once, and before it reads what came meanwhile.

    asyncio runs the timers that are due before what a socket has waited for is read by a coroutine.
    """
    planned = np.arange(period_s, 3600.0 * hours.hours, period_s)
    return np.unique(postponed(planned, hours.lags)) - 1e-6


def is_within(at_s: float, windows: Times) -> bool:
    before = int(np.searchsorted(windows[:, 0], at_s, side="right")) - 1
    return before >= 0 and at_s <= float(windows[before, 1])


def in_order(hours: Hours) -> Iterator[tuple[float, int]]:
    """(time, worker) of all heartbeats."""
    times = np.concatenate([life.arrivals for life in hours.lives])
    who = np.repeat(np.arange(hours.workers), [len(life.arrivals) for life in hours.lives])
    order = np.argsort(times, kind="stable")
    for part in np.array_split(order, max(1, len(order) // 500_000)):
        yield from zip(times[part].tolist(), who[part].tolist(), strict=True)
