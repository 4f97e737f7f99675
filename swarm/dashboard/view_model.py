"""What the dashboard shows: a fold of the events of `swarm.protocol` into rows.  PURE

`ViewModel.apply` is called for every event, live or from a journal; the read methods return small frozen rows.
The same events in the same order give the same rows. Memory is bounded by the number of live workers plus the
lengths given at the start. Events about workers or runs that are not known (any more) change nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from swarm.protocol import (
    AdviceDropped,
    AdviceTaken,
    AdviceTopic,
    AgentChanged,
    AgentRefused,
    AgentStarted,
    AlertCleared,
    AlertRaised,
    ChangeAudited,
    ClusterSampled,
    Event,
    PartDisabled,
    Resource,
    RunEnded,
    RunProgressed,
    RunStatus,
    RunSubmitted,
    Telemetry,
    TelemetryArrived,
    WorkerCleared,
    WorkerDied,
    WorkerJoined,
    WorkerLeft,
    WorkerSuspected,
)

Health = Literal["healthy", "alert", "no agent", "stale", "suspected"]
Severity = Literal["serious", "warning"]

SEVERITY: dict[Resource, Severity] = {
    "memory": "serious",
    "disk": "serious",
    "thermal": "warning",
    "cpu": "warning",
    "speed": "warning",
    "errors": "warning",
    "accelerator": "serious",
}
"""Full memory ends the worker (`distributed.worker.memory.terminate`); heat and a busy CPU only slow it down."""

_STALE_AFTER_INTERVALS = 5.0
_SERIES_STEP_S = 1.0
"""Finer than a pixel of the chart would be wasted, and the control cycle may be much shorter than this."""
_INTERVAL_MAX_S = 10.0
"""About the heartbeat interval of 2,000 workers (n/200 + 1 s, `distributed.scheduler.heartbeat_interval`); a longer
gap is an outage, not a habit."""
_LIVE_RUNS_MAX = 1000
_AGENTS_MAX = 4096
_ADVICE_MAX = 4096
_SAMPLED = (
    "tasks_finished",
    "tasks_erred",
    "tasks_processing",
    "tasks_queued",
    "tasks_waiting",
    "scheduler_cpu_percent",
    "loop_lag_s",
)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    name: str
    address: str
    host: str
    health: Health
    note: str
    """Why the health is not "healthy", as a sentence; empty when it is."""
    threads: int
    cpu_percent: float | None
    """Of one core, as in `Telemetry`: may exceed 100."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    """None when the worker has no limit."""
    memory_percent: float | None
    telemetry_age_s: float | None
    """None before the first telemetry."""
    alerts: tuple[Resource, ...] = ()
    """What is over its limit; CPU and temperature are those of the host, for which one worker speaks."""


@dataclass(frozen=True, slots=True)
class AlertRow:
    alert: str
    worker: str
    worker_name: str
    resource: Resource
    severity: Severity
    sentence: str
    value: float
    threshold: float
    unit: str
    rule: str
    is_active: bool
    since_s: float
    lasted_s: float


@dataclass(frozen=True, slots=True)
class RunRow:
    run: str
    name: str
    client: str
    status: RunStatus
    reason: str
    tasks: int
    finished: int
    erred: int
    processing: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class DisabledRow:
    part: str
    reason: str
    failures: int
    at_s: float


@dataclass(frozen=True, slots=True)
class DeathRow:
    """A worker that was lost."""

    worker: str
    name: str
    cause: str
    running: tuple[str, ...]
    """Tasks that ran there."""
    memory_bytes: int | None
    last_lines: tuple[str, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent that somebody created."""

    agent: str
    kind: str
    place: str
    """Name of the worker, else the address."""
    state: str
    reason: str
    restarts: int
    since_s: float


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What an agent changed in the system, or a message that was refused."""

    agent: str
    what: str
    details: str
    at_s: float


@dataclass(frozen=True, slots=True)
class AdviceRow:
    """What the scheduler goes by, because an agent said so."""

    topic: AdviceTopic
    subject: str
    """Name of the worker, function, or kind of work."""
    value: float | str
    reason: str
    since_s: float


@dataclass(frozen=True, slots=True)
class RatePoint:
    at_s: float
    tasks_per_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The header line. Fields that only a `ClusterSampled` can tell are None before the first one."""

    now_s: float
    workers: int
    threads: int
    workers_without_agents: int
    memory_bytes: int
    memory_limit_bytes: int
    alerts: int
    tasks_per_s: float | None
    tasks_finished: int | None
    tasks_erred: int | None
    tasks_processing: int | None
    tasks_queued: int | None
    tasks_waiting: int | None
    scheduler_cpu_percent: float | None
    loop_lag_s: float | None


@dataclass(slots=True)
class _Worker:
    joined: WorkerJoined
    has_agents: bool
    refusal: str = ""
    alerts: dict[Resource, AlertRaised] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    heard_at_s: float = 0.0
    interval_s: float = 1.0
    suspected_s: float | None = None
    """Since when nothing was heard of it, while it is suspected."""


@dataclass(slots=True)
class _Run:
    submitted: RunSubmitted
    progress: RunProgressed | None = None
    ended: RunEnded | None = None


class ViewModel:
    """Folds events into rows.

    `history` is the number of points kept of the tasks-per-second series (one a second), `kept` the number of ended
    runs, of cleared alerts and of switched-off parts. `version` grows with every event.
    """

    def __init__(self, history: int = 300, kept: int = 50) -> None:
        self.version = 0
        self.lost = 0
        """Workers, of which `deaths` tells the last."""
        self._workers: dict[str, _Worker] = {}
        self._cleared: deque[AlertRow] = deque(maxlen=kept)
        self._runs: dict[str, _Run] = {}
        self._ended: deque[_Run] = deque(maxlen=kept)
        self._disabled: dict[str, DisabledRow] = {}
        self._kept = kept
        self._deaths: deque[DeathRow] = deque(maxlen=kept)
        self._agents: dict[str, AgentChanged] = {}
        self._changes: deque[ChangeAudited] = deque(maxlen=kept)
        self._advice: dict[tuple[AdviceTopic, str], AdviceTaken] = {}
        self._advised: dict[AdviceTopic, int] = {}
        """How often advice was taken."""
        self._rates: deque[RatePoint] = deque(maxlen=history)
        self._sample: ClusterSampled | None = None
        self._rate_from: ClusterSampled | None = None

    # -- writing -----------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915 — one flat table of cases reads best
        """Take one event into account; O(1). Kinds of no interest to the page change nothing."""
        self.version += 1
        match event:
            case TelemetryArrived():
                self._on_telemetry(event)
            case ClusterSampled():
                self._on_sample(event)
            case RunProgressed():
                if run := self._runs.get(event.run):
                    run.progress = event
            case WorkerJoined():
                self._workers[event.worker] = _Worker(event, event.has_agents, heard_at_s=event.at_s)
            case WorkerLeft():
                self._on_left(event)
            case WorkerSuspected():
                if worker := self._workers.get(event.worker):
                    worker.suspected_s = event.at_s - event.silence_s
            case WorkerCleared():
                if worker := self._workers.get(event.worker):
                    worker.suspected_s = None
            case WorkerDied():
                self.lost += 1
                self._deaths.append(
                    DeathRow(
                        event.worker,
                        event.name or event.worker,
                        event.cause,
                        event.running,
                        event.memory_bytes,
                        event.last_lines,
                        event.at_s,
                    )
                )
            case AgentChanged(state="stopped"):
                self._agents.pop(event.agent, None)
            case AgentChanged():
                before = self._agents.pop(event.agent, event)  # so that the last change is the last one in the dict
                self._agents[event.agent] = replace(
                    event, kind=event.kind or before.kind, place=event.place or before.place
                )
                if len(self._agents) > _AGENTS_MAX:
                    del self._agents[next(iter(self._agents))]
            case ChangeAudited():
                self._changes.append(event)
            case AdviceTaken():
                self._advice[event.topic, event.subject] = event
                self._advised[event.topic] = self._advised.get(event.topic, 0) + 1
                if len(self._advice) > _ADVICE_MAX:
                    del self._advice[next(iter(self._advice))]
            case AdviceDropped():
                self._advice.pop((event.topic, event.subject), None)
            case AgentStarted():
                if worker := self._workers.get(event.worker):
                    worker.has_agents, worker.refusal, worker.heard_at_s = True, "", event.at_s
            case AgentRefused():
                if worker := self._workers.get(event.worker):
                    worker.has_agents, worker.refusal = False, event.reason
            case AlertRaised():
                if worker := self._workers.get(event.worker):
                    worker.alerts[event.resource] = event
            case AlertCleared():
                worker = self._workers.get(event.worker)
                if worker and (raised := worker.alerts.pop(event.resource, None)):
                    self._cleared.append(_cleared(raised, worker, event.lasted_s, event.reason))
            case RunSubmitted():
                self._runs[event.run] = _Run(event)
                if len(self._runs) > _LIVE_RUNS_MAX:
                    del self._runs[next(iter(self._runs))]
            case RunEnded():
                if run := self._runs.pop(event.run, None):
                    run.ended = event
                    self._ended.append(run)
            case PartDisabled():
                self._disabled.pop(event.part, None)
                self._disabled[event.part] = DisabledRow(event.part, event.reason, event.failures, event.at_s)
                if len(self._disabled) > self._kept:
                    del self._disabled[next(iter(self._disabled))]

    def _on_telemetry(self, event: TelemetryArrived) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        gap_s = event.at_s - worker.heard_at_s if worker.telemetry else 0.0
        worker.interval_s = min(max(event.telemetry.interval_s or 1.0, gap_s), _INTERVAL_MAX_S)
        worker.telemetry, worker.heard_at_s = event.telemetry, event.at_s
        worker.has_agents, worker.refusal = True, ""

    def _on_left(self, event: WorkerLeft) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        self._advice.pop(("threads", event.worker), None)
        reason = f"The worker left: {event.reason}" if event.reason else "The worker left."
        for raised in worker.alerts.values():
            self._cleared.append(_cleared(raised, worker, event.at_s - raised.at_s, reason))

    def _on_sample(self, event: ClusterSampled) -> None:
        self._sample, last = event, self._rate_from
        if last is None or event.tasks_finished < last.tasks_finished or event.at_s < last.at_s:
            # The first one, or the counter began anew: there is nothing to take a difference from.
            self._rate_from = event
        elif event.at_s - last.at_s >= _SERIES_STEP_S:
            rate = (event.tasks_finished - last.tasks_finished) / (event.at_s - last.at_s)
            self._rates.append(RatePoint(event.at_s, rate))
            self._rate_from = event

    # -- reading -----------------------------------------------------------------------------------------------

    def workers(self, now_s: float) -> list[WorkerRow]:
        """One row per worker, in the order of joining."""
        return [_worker_row(worker, now_s) for worker in self._workers.values()]

    def alerts(self, now_s: float) -> list[AlertRow]:
        """Active alerts, the newest first, then the cleared ones, the last cleared first."""
        active = [
            _alert_row(raised, worker, is_active=True, lasted_s=now_s - raised.at_s)
            for worker in self._workers.values()
            for raised in worker.alerts.values()
        ]
        active.sort(key=lambda row: row.since_s, reverse=True)
        return active + list(reversed(self._cleared))

    def runs(self, now_s: float) -> list[RunRow]:
        """Runs under way, the newest first, then the ended ones, the last ended first."""
        return [_run_row(run, now_s) for runs in (self._runs.values(), self._ended) for run in reversed(runs)]

    def rates(self, after_s: float = -math.inf) -> list[RatePoint]:
        """Tasks that reached memory per second, oldest first; only points later than `after_s`."""
        newer = 0
        for point in reversed(self._rates):
            if point.at_s <= after_s:
                break
            newer += 1
        return list(islice(self._rates, len(self._rates) - newer, None))

    def deaths(self) -> list[DeathRow]:
        """Workers that were lost, the last one first."""
        return list(reversed(self._deaths))

    def agents(self) -> list[AgentRow]:
        """Agents that users created and nobody destroyed, in the order of their last change."""
        return [
            AgentRow(e.agent, e.kind, self._name_of(e.place), e.state, e.reason, e.restarts, e.at_s)
            for e in self._agents.values()
        ]

    def changes(self) -> list[ChangeRow]:
        """What agents changed, the last one first."""
        return [
            ChangeRow(e.agent, e.what.replace("_", " "), _in_words(e.details), e.at_s) for e in reversed(self._changes)
        ]

    def advice(self) -> list[AdviceRow]:
        """What is in force, the oldest first."""
        return [AdviceRow(e.topic, self._name_of(e.subject), e.value, e.reason, e.at_s) for e in self._advice.values()]

    def _name_of(self, place: str) -> str:
        worker = self._workers.get(place)
        return worker.joined.name if worker else place

    def disabled(self) -> list[DisabledRow]:
        """Parts of swarm that were switched off, the last one first."""
        return list(reversed(self._disabled.values()))

    def totals(self, now_s: float) -> Totals:
        workers, sample = self._workers.values(), self._sample
        readings = [worker.telemetry for worker in workers if worker.telemetry]
        return Totals(
            now_s=now_s,
            workers=len(workers),
            threads=sum(worker.joined.threads for worker in workers),
            workers_without_agents=sum(not worker.has_agents for worker in workers),
            memory_bytes=sum(reading.worker_memory_bytes or 0 for reading in readings),
            memory_limit_bytes=sum(worker.joined.memory_limit_bytes for worker in workers),
            alerts=sum(len(worker.alerts) for worker in workers),
            tasks_per_s=self._rate_now(now_s),
            **{name: getattr(sample, name, None) for name in _SAMPLED},
        )

    def _rate_now(self, now_s: float) -> float | None:
        last = self._rates[-1] if self._rates else None
        is_fresh = last is not None and now_s - last.at_s <= _STALE_AFTER_INTERVALS * _SERIES_STEP_S
        return last.tasks_per_s if last and is_fresh else None

    def state(self, now_s: float) -> dict[str, Any]:
        """Everything but the series, as JSON types: what `/swarm/state.json` answers and the page draws."""
        return {
            "totals": _as_dict(self.totals(now_s)),
            "workers": [_as_dict(row) for row in self.workers(now_s)],
            "alerts": [_as_dict(row) for row in self.alerts(now_s)],
            "runs": [_as_dict(row) for row in self.runs(now_s)],
            "deaths": [_as_dict(row) for row in self.deaths()],
            "agents": [_as_dict(row) for row in self.agents()],
            "changes": [_as_dict(row) for row in self.changes()],
            "advice": [_as_dict(row) for row in self.advice()],
            "advice_taken": dict(self._advised),
            "disabled": [_as_dict(row) for row in self.disabled()],
        }


def _worker_row(worker: _Worker, now_s: float) -> WorkerRow:
    joined, reading = worker.joined, worker.telemetry
    age_s = max(0.0, now_s - worker.heard_at_s)
    health: Health = "healthy"
    note = ""
    if worker.suspected_s is not None:
        health, note = "suspected", f"Silent for {max(now_s - worker.suspected_s, 0.0):.0f} s: it is given nothing new."
    elif worker.alerts:
        health, note = "alert", next(iter(worker.alerts.values())).reason
    elif not worker.has_agents:
        health, note = "no agent", worker.refusal or "It was started without the agents, so there are no readings."
    elif age_s > _STALE_AFTER_INTERVALS * worker.interval_s:
        health, note = "stale", f"No telemetry for {age_s:.0f} s."
    memory_bytes = reading.worker_memory_bytes if reading else None
    limit_bytes = joined.memory_limit_bytes or None
    return WorkerRow(
        name=joined.name,
        address=joined.worker,
        host=joined.host,
        health=health,
        note=note,
        threads=joined.threads,
        cpu_percent=reading.worker_cpu_percent if reading else None,
        memory_bytes=memory_bytes,
        memory_limit_bytes=limit_bytes,
        memory_percent=100.0 * memory_bytes / limit_bytes if memory_bytes is not None and limit_bytes else None,
        telemetry_age_s=age_s if reading else None,
        alerts=tuple(worker.alerts),
    )


def _alert_row(raised: AlertRaised, worker: _Worker, *, is_active: bool, lasted_s: float) -> AlertRow:
    return AlertRow(
        alert=raised.alert,
        worker=raised.worker,
        worker_name=worker.joined.name,
        resource=raised.resource,
        severity=SEVERITY[raised.resource],
        sentence=raised.reason,
        value=raised.value,
        threshold=raised.threshold,
        unit=raised.unit,
        rule=raised.rule,
        is_active=is_active,
        since_s=raised.at_s,
        lasted_s=max(0.0, lasted_s),
    )


def _cleared(raised: AlertRaised, worker: _Worker, lasted_s: float, reason: str) -> AlertRow:
    row = _alert_row(raised, worker, is_active=False, lasted_s=lasted_s)
    return replace(row, sentence=reason or row.sentence)


def _run_row(run: _Run, now_s: float) -> RunRow:
    submitted, progress, ended = run.submitted, run.progress, run.ended
    until_s = ended.at_s if ended else now_s
    status: RunStatus = ended.status if ended else "running" if progress else "pending"
    return RunRow(
        run=submitted.run,
        name=submitted.name,
        client=submitted.client,
        status=status,
        reason=ended.reason if ended else "",
        tasks=progress.tasks if progress else submitted.tasks,
        finished=progress.finished if progress else 0,
        erred=progress.erred if progress else 0,
        processing=progress.processing if progress and not ended else 0,
        elapsed_s=(ended and ended.elapsed_s) or max(0.0, until_s - submitted.at_s),
    )


_UNITS = {"_s": " s", "_percent": " %", "_bytes": " bytes", "_watts": " W", "_celsius": " °C", "_ratio": ""}


def _in_words(details: Mapping[str, float | int | str | None]) -> str:
    """What was changed, for people; a change from one value to another comes last.

    >>> _in_words({"knob": "gc", "before": "as it was", "after": "calm", "left_s": 2.0})
    'knob gc, left 2 s, as it was → calm'
    """
    told = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in details.items()}
    before, after = told.pop("before", None), told.pop("after", None) or told.pop("now", None)
    words = []
    for name, value in told.items():
        suffix = next((suffix for suffix in _UNITS if name.endswith(suffix)), "")
        words.append(f"{name.removesuffix(suffix).replace('_', ' ')} {value}{_UNITS.get(suffix, '')}")
    if before is not None:
        words.append(f"{before} → {after}" if after is not None else f"was {before}")
    elif after is not None:
        words.append(f"→ {after}")
    return ", ".join(words)


def _as_dict(
    row: WorkerRow | AlertRow | RunRow | DeathRow | AgentRow | ChangeRow | AdviceRow | DisabledRow | Totals,
) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, which costs several times as much.
    return {name: getattr(row, name) for name in row.__slots__}
