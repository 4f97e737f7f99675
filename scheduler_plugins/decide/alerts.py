"""When a worker's telemetry is worth an alert: `performance_thresholds`, with hysteresis.  PURE

An alert is raised when a reading stays at or above its threshold for `samples` samples in a row, and cleared when it
has been `margin` below for as many (a Schmitt trigger, so that a reading that hovers around its threshold raises one
alert, not fifty). Memory belongs to a worker. CPU and temperature belong to the host, which its workers share: one of
them speaks for all, or a host with 64 workers would raise 64 alerts for one hot chip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.protocol import ClearAlert, RaiseAlert, Resource, Telemetry

if TYPE_CHECKING:
    from swarm.config import PerformanceThresholds


@dataclass(frozen=True, slots=True)
class Limit:
    """One threshold: which reading, how high, for how long."""

    resource: Resource
    reading: Callable[[Telemetry], float | None]
    threshold: float
    unit: str
    of_host: bool
    samples: int
    """In a row, before it counts. CPU may be busy for a moment; memory that is nearly gone leaves no time."""
    margin: float
    """How far below the threshold the reading must fall before the alert is cleared, in `unit`."""
    words: str

    @property
    def rule(self) -> str:
        return f"performance_thresholds.{self.resource}_critical"


def limits(thresholds: PerformanceThresholds) -> tuple[Limit, ...]:
    """The three limits that the settings describe."""
    cpu, memory = thresholds.cpu_critical, thresholds.memory_critical
    return (
        Limit("cpu", lambda t: t.host_cpu_percent, cpu, "%", True, 3, _margin(cpu), "CPU of host"),
        Limit("memory", lambda t: t.worker_memory_percent, memory, "%", False, 1, _margin(memory), "memory of"),
        Limit(
            "thermal",
            lambda t: t.host_temperature_celsius,
            thresholds.thermal_critical,
            "°C",
            True,
            2,
            3.0,
            "temperature of host",
        ),
    )


def _margin(threshold_percent: float) -> float:
    """5 %, but with a low threshold less, or no reading could ever clear the alert."""
    return min(5.0, threshold_percent / 2)


@dataclass(slots=True)
class _Trigger:
    """How long one reading has been on the other side of its limit, and the alert that is in force."""

    streak: int = 0
    since_s: float = 0.0
    raised_at_s: float | None = None


@dataclass(slots=True)
class _Worker:
    name: str
    host: str


class AlertPolicy:
    """Turns telemetry into `RaiseAlert` and `ClearAlert`; O(1) per sample, bounded by the number of live workers."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self._limits = limits
        self._workers: dict[str, _Worker] = {}
        self._speakers: dict[str, str] = {}
        """Host → the worker whose readings stand for the host."""
        self._triggers: dict[tuple[Resource, str], _Trigger] = {}

    def worker_joined(self, worker: str, name: str, host: str) -> None:
        """Know a worker; its telemetry counts from now on."""
        self._workers[worker] = _Worker(name, host)

    def worker_left(self, worker: str, at_s: float) -> Iterator[ClearAlert]:
        """Forget a worker, and with it the alerts that only it could clear."""
        gone = self._workers.pop(worker, None)
        if gone is None:
            return
        was_speaker = self._speakers.get(gone.host) == worker
        if was_speaker:
            del self._speakers[gone.host]
        for limit in self._limits:
            if limit.of_host and not was_speaker:
                continue
            trigger = self._triggers.pop((limit.resource, gone.host if limit.of_host else worker), None)
            if trigger and trigger.raised_at_s is not None:
                yield self._clear(limit, worker, None, at_s - trigger.raised_at_s, f"worker {gone.name} left")

    def telemetry_arrived(self, worker: str, telemetry: Telemetry, at_s: float) -> Iterator[RaiseAlert | ClearAlert]:
        """Compare one sample with the limits. Readings that are absent (None) or of unknown workers change nothing."""
        known = self._workers.get(worker)
        if known is None:
            return
        speaks = self._speakers.setdefault(known.host, worker) == worker
        for limit in self._limits:
            value = limit.reading(telemetry)
            if value is None or (limit.of_host and not speaks):
                continue
            place = known.host if limit.of_host else worker
            trigger = self._triggers.setdefault((limit.resource, place), _Trigger())
            is_raised = trigger.raised_at_s is not None
            crossing = value < limit.threshold - limit.margin if is_raised else value >= limit.threshold
            if not crossing:
                trigger.streak = 0
                continue
            if trigger.streak == 0:
                trigger.since_s = at_s
            trigger.streak += 1
            if trigger.streak < limit.samples:
                continue
            trigger.streak = 0
            if trigger.raised_at_s is None:
                trigger.raised_at_s = at_s
                yield self._raise(limit, worker, known, value, at_s - trigger.since_s)
            else:
                lasted_s, trigger.raised_at_s = at_s - trigger.raised_at_s, None
                below = f"fell to {value:.1f} {limit.unit}, more than {limit.margin:g} below the limit"
                what = f"{limit.words} {known.host if limit.of_host else known.name}"
                yield self._clear(limit, worker, value, lasted_s, f"{what} {below} of {limit.threshold:g}")

    def _raise(self, limit: Limit, worker: str, known: _Worker, value: float, for_s: float) -> RaiseAlert:
        place = f"{known.host} (seen by {known.name})" if limit.of_host else f"worker {known.name}"
        held = f" for {limit.samples} samples in a row ({for_s:.1f} s)" if limit.samples > 1 else ""
        return RaiseAlert(
            rule=limit.rule,
            reason=f"{limit.words} {place} is at {value:.1f} {limit.unit}, limit {limit.threshold:g}{held}",
            inputs={
                "value": value,
                "samples": limit.samples,
                "held_s": for_s,
                "host": known.host,
                "name": known.name,
            },
            alert=self._identity(limit, worker),
            worker=worker,
            resource=limit.resource,
            value=value,
            threshold=limit.threshold,
            unit=limit.unit,
        )

    def _clear(self, limit: Limit, worker: str, value: float | None, lasted_s: float, reason: str) -> ClearAlert:
        return ClearAlert(
            rule=limit.rule,
            reason=reason,
            alert=self._identity(limit, worker),
            worker=worker,
            resource=limit.resource,
            value=value,
            lasted_s=lasted_s,
        )

    @staticmethod
    def _identity(limit: Limit, worker: str) -> str:
        return f"{limit.resource} {worker}"
