"""The one vocabulary of swarm: telemetry, events and actions.  PURE

*Events* are past tense and say what happened; *actions* are imperative and say what is to be done. The
controller (`scheduler_plugins.decide.controller`) turns events into actions; the enactor carries actions out
and every effect, also a refusal, comes back as an event. The log, the dashboard, `explain` and a user's handlers
all read the same events.

On the wire an event or action is a flat dict of msgpack types with `type` and `schema` (see `to_wire`). Receivers
ignore fields that they do not know, so that a newer sender does no harm; a missing field is an error.

All times are POSIX timestamps in seconds (`time.time()`), all sizes bytes, all shares per cent (0 to 100).
"""

from __future__ import annotations

import builtins
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin

from swarm.errors import ProtocolError

SCHEMA_VERSION = 1
"""Grows when a field is removed or changes its meaning. Adding a field with a default does not count."""

TOPIC = "swarm"
"""Dask event topic (`Client.subscribe_topic`) on which the scheduler publishes the events of swarm."""
POST_MORTEM = "swarm-post-mortem"
"""The one on which a nanny tells the scheduler how its worker ended."""
AGENTS = "swarm-agents"
"""The one on which workers and nannies tell what becomes of their agents, and what these change."""

Resource = Literal["cpu", "memory", "thermal", "disk", "speed", "errors", "accelerator"]
AdviceTopic = Literal["threads", "copies", "strategy"]
"""Of a worker, how many tasks at a time; of a function, the share of executions that are held up; of a kind of work,
the strategy to try first."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One sample of a worker process and its host, taken by the resource agent.

    None means that there is no reading: the source is absent (`AgentStarted.absent` says why) or it is the first
    sample and a rate needs two. No number is ever invented.
    """

    taken_at_s: float
    interval_s: float | None = None
    """Time since the sample before, over which rates and CPU shares are taken."""

    host_cpu_percent: float | None = None
    """Busy share of all CPUs of the host, 0 to 100."""
    host_cpu_count: int | None = None
    host_load_1min: float | None = None
    host_memory_total_bytes: int | None = None
    host_memory_available_bytes: int | None = None
    host_disk_read_bytes_per_s: float | None = None
    host_disk_write_bytes_per_s: float | None = None
    host_disk_free_bytes: int | None = None
    """Free bytes on the file system of the worker's local directory."""
    host_network_received_bytes_per_s: float | None = None
    host_network_sent_bytes_per_s: float | None = None
    host_pressure_cpu_percent: float | None = None
    """PSI `some avg10`: share of time in which some task waited for a CPU (kernel Documentation/accounting/psi.rst)."""
    host_pressure_memory_percent: float | None = None
    host_pressure_io_percent: float | None = None
    host_temperature_celsius: float | None = None
    """The hottest sensor that can be read without waking a device (so no drives, radios or DIMMs)."""

    accelerator_ecc_corrected: int | None = None
    """Errors in the memory of the host's GPUs since their driver was loaded, as ECC has corrected them."""
    accelerator_ecc_uncorrected: int | None = None
    """Those that it could not correct."""

    worker_cpu_percent: float | None = None
    """CPU time of the worker process per wall time, in per cent of one core: may exceed 100."""
    worker_memory_bytes: int | None = None
    """Resident set size of the worker process."""
    worker_memory_limit_bytes: int | None = None
    """Dask's memory limit of this worker; None when it has none."""
    worker_threads: int | None = None
    worker_open_files: int | None = None
    worker_read_bytes_per_s: float | None = None
    """Bytes per second that the process caused to be fetched from storage."""
    worker_write_bytes_per_s: float | None = None

    cgroup_cpu_limit_cores: float | None = None
    cgroup_cpu_throttled_percent: float | None = None
    """Share of the enforcement periods of the interval in which the cgroup was throttled by its CPU limit."""
    cgroup_memory_bytes: int | None = None
    cgroup_memory_limit_bytes: int | None = None
    cgroup_oom_kills: int | None = None
    cgroup_pressure_cpu_percent: float | None = None
    cgroup_pressure_memory_percent: float | None = None
    cgroup_pressure_io_percent: float | None = None

    def to_wire(self) -> dict[str, float | int]:
        """The readings that exist, as a flat dict for a heartbeat."""
        pairs = ((name, getattr(self, name)) for name in _TELEMETRY)
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def from_wire(cls, message: object) -> Self:
        """Read what `to_wire` wrote; raises `ProtocolError` when it is something else."""
        if not isinstance(message, Mapping):
            raise ProtocolError(f"telemetry is a {type(message).__name__}, must be a mapping")
        known = {name: message[name] for name in _TELEMETRY if name in message}
        for name, value in known.items():
            if not _fits(_TELEMETRY[name], value):
                raise ProtocolError(f"telemetry: {name} is {_shown(value)}, must be {_name(_TELEMETRY[name])}")
        if "taken_at_s" not in known:
            raise ProtocolError("telemetry: taken_at_s is missing")
        return cls(**known)

    @property
    def worker_memory_percent(self) -> float | None:
        """Resident memory of the process in per cent of Dask's limit."""
        if self.worker_memory_bytes is None or not self.worker_memory_limit_bytes:
            return None
        return 100.0 * self.worker_memory_bytes / self.worker_memory_limit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `at_s`."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to be done, with the rule and the numbers that call for it."""

    rule: str
    reason: str
    inputs: Mapping[str, float | int | str | None] = field(default_factory=dict)


# -- workers and agents ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Event):
    worker: str
    """Dask address of the worker; its identity in all events."""
    name: str
    host: str
    threads: int
    memory_limit_bytes: int
    has_agents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft(Event):
    worker: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSuspected(Event):
    """A worker is silent for longer than its heartbeats ever were: it is given nothing new until it is heard again."""

    worker: str
    silence_s: float
    phi: float
    """Negative decimal logarithm of the chance that its next heartbeat is so late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCleared(Event):
    """A suspected worker was heard again."""

    worker: str
    silence_s: float
    witness: str = ""
    """What its witness had said of it: "busy" while it held the GIL, say; empty where none was heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCondemned(Event):
    """A suspected worker was removed, with a witness's word."""

    worker: str
    verdict: str
    """`scheduler_plugins.decide.faults.Verdict`."""
    silence_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied(Event):
    """What is known of the end of a worker's process that was not meant to end."""

    worker: str
    cause: str
    """One sentence for a person."""
    name: str = ""
    exitcode: int | None = None
    """Of the process; negative: the signal that ended it. None: nobody saw it."""
    running: tuple[str, ...] = ()
    """Tasks that probably ran there."""
    memory_bytes: int | None = None
    """Of the process, when last seen."""
    last_lines: tuple[str, ...] = ()
    """Of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeaving(Event):
    """A worker will soon be gone: it gets nothing new, what runs ends or runs elsewhere, its results are moved."""

    worker: str
    notice_s: float
    """What is left to it."""
    reason: str
    """Who says so: "SIGTERM", or the `notice_source`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStarted(Event):
    """The agents of a worker said hello to the scheduler."""

    worker: str
    agents: tuple[str, ...]
    version: str
    absent: Mapping[str, str] = field(default_factory=dict)
    """Telemetry source → why it has no reading on this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRefused(Event):
    """A worker runs without agents, and why: package missing, version mismatch, settings conflict."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanged(Event):
    """An agent entered another state of its life (`swarm.agents.life.lifecycle`)."""

    agent: str
    kind: str
    place: str
    """Dask address of the worker or nanny, or `scheduler`."""
    state: str
    """created, starting, running, degraded, stopping, stopped or failed; `lost` when its place is gone."""
    reason: str = ""
    """One sentence for a person; empty where the state is what was asked for."""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeAudited(Event):
    """An agent changes something in the system outside itself, or a message was refused."""

    place: str
    what: str
    agent: str = ""
    details: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceHeard(Event):
    """An agent tells the scheduler what it has found out (`scheduler_plugins.decide.advice`)."""

    agent: str
    what: str
    """Kind of the message."""
    details: Mapping[str, float | int | str | None] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    """Those of the host that it is about, if it is about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceTaken(Event):
    """The scheduler goes by what an agent has said, until `AdviceDropped`."""

    topic: AdviceTopic
    subject: str
    """Worker, function, or kind of work."""
    value: float | str
    reason: str
    inputs: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceDropped(Event):
    topic: AdviceTopic
    subject: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryArrived(Event):
    worker: str
    telemetry: Telemetry


# -- the cluster and its runs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSampled(Event):
    """Totals of the scheduler, once per control cycle."""

    workers: int
    threads: int
    tasks_finished: int
    """Tasks that reached memory since the plugin started; grows only."""
    tasks_erred: int
    tasks_processing: int
    tasks_queued: int
    tasks_waiting: int
    scheduler_cpu_percent: float | None = None
    """CPU time of the scheduler process in per cent of one core."""
    loop_lag_s: float | None = None
    """How late the control cycle ran: what the scheduler's event loop is behind."""


RunStatus = Literal["pending", "running", "finished", "error", "cancelled", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSubmitted(Event):
    run: str
    """Identity of the run, unique in the cluster."""
    name: str
    """Name of the workload, or of what was submitted."""
    tasks: int
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgressed(Event):
    """Tasks of a run by state; published when it changed, at most once per control cycle."""

    run: str
    tasks: int
    finished: int
    erred: int
    processing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    run: str
    status: RunStatus
    reason: str = ""
    elapsed_s: float = 0.0


# -- alerts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRaised(Event):
    """A worker crossed a limit of `performance_thresholds`; stays in force until `AlertCleared` with the same id."""

    alert: str
    """Identity: resource and worker, `"memory tcp://10.0.0.5:4000"`."""
    worker: str
    resource: Resource
    value: float
    threshold: float
    unit: str
    rule: str
    reason: str
    """One sentence for a person: what, where, how much, since when."""
    inputs: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCleared(Event):
    alert: str
    worker: str
    resource: Resource
    value: float | None
    reason: str
    lasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRefused(Event):
    """The state had moved on between deciding and enacting, so the action was not carried out."""

    action: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDisabled(Event):
    """A part of swarm failed and was switched off; Dask goes on without it."""

    part: str
    reason: str
    failures: int = 1


# -- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseAlert(Action):
    alert: str
    worker: str
    resource: Resource
    value: float
    threshold: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearAlert(Action):
    alert: str
    worker: str
    resource: Resource
    value: float | None
    lasted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeAdvice(Action):
    topic: AdviceTopic
    subject: str
    value: float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropAdvice(Action):
    topic: AdviceTopic
    subject: str


# -- the wire ------------------------------------------------------------------------------------------------------


def _kinds(base: type[Event | Action]) -> dict[str, type[Event | Action]]:
    return {kind.__name__: kind for kind in base.__subclasses__()}


KINDS: dict[str, type[Event | Action]] = {**_kinds(Event), **_kinds(Action)}


def _schema(kind: type[Event | Action | Telemetry]) -> tuple[tuple[str, Any, bool], ...]:
    """(field, type, is required) of a dataclass."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is missing and f.default_factory is missing) for f in dataclasses.fields(kind)
    )


_SCHEMAS = {name: _schema(kind) for name, kind in KINDS.items()}
_TELEMETRY = {name: (hint if hint is float else get_args(hint)[0]) for name, hint, _ in _schema(Telemetry)}
"""Reading → float or int. On the wire an absent reading is left out, so None does not fit."""


def to_wire(message: Event | Action) -> dict[str, Any]:
    """A flat dict of msgpack types: `{"type": …, "schema": …, <field>: …}`."""
    wire: dict[str, Any] = {"type": type(message).__name__, "schema": SCHEMA_VERSION}
    for name, _, _ in _SCHEMAS[wire["type"]]:
        value = getattr(message, name)
        match value:
            case Telemetry():
                value = value.to_wire()
            case tuple():
                value = list(value)
            case Mapping():
                value = dict(value)
        wire[name] = value
    return wire


def from_wire(message: object) -> Event | Action:
    """Read what `to_wire` wrote. Raises `ProtocolError` for anything else; nothing is evaluated or unpickled."""
    if not isinstance(message, Mapping):
        raise ProtocolError(f"message is a {type(message).__name__}, must be a mapping")
    schema = message.get("schema")
    if schema != SCHEMA_VERSION:
        raise ProtocolError(f"message has schema {_shown(schema)}, this swarm reads {SCHEMA_VERSION}")
    kind = KINDS.get(str(message.get("type")))
    if kind is None:
        raise ProtocolError(f"message type {_shown(message.get('type'))} is not known")
    values: dict[str, Any] = {}
    for name, hint, required in _SCHEMAS[kind.__name__]:
        if name in message:
            values[name] = _read(f"{kind.__name__}.{name}", hint, message[name])
        elif required:
            raise ProtocolError(f"{kind.__name__}.{name} is missing")
    return kind(**values)


def _read(where: str, hint: Any, value: Any) -> Any:
    """Check one value against the annotation of its field."""
    if hint is Telemetry:
        return Telemetry.from_wire(value)
    if not _fits(hint, value):
        raise ProtocolError(f"{where} is {_shown(value)}, must be {_name(hint)}")
    match value:
        case list() | tuple():
            return tuple(value)
        case Mapping():
            return dict(value)
    return value


def _fits(hint: Any, value: Any) -> bool:
    inside = get_args(hint)
    match get_origin(hint):
        case None if isinstance(value, bool):
            fits = hint is bool
        case None if isinstance(value, int):
            fits = hint in (int, float) and abs(value) < 2**64  # beyond that, arithmetic with floats may overflow
        case None:
            fits = isinstance(value, hint) and not (isinstance(value, float) and not math.isfinite(value))
        case types.UnionType:
            fits = any(_fits(one, value) for one in inside)
        case typing.Literal:
            fits = isinstance(value, str) and value in inside
        case builtins.tuple:
            fits = isinstance(value, list | tuple) and all(_fits(inside[0], one) for one in value)
        case _:
            fits = isinstance(value, Mapping) and all(_fits(str, k) and _fits(inside[1], v) for k, v in value.items())
    return fits


def _shown(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())


def _name(hint: Any) -> str:
    if hint in (int, float):
        return "a whole number" if hint is int else "a finite number"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("collections.abc.", "")
