"""Settings: which exist, what they may be, and which place wins.  PURE

`Settings` is what the rest of swarm reads. `resolve` builds it from layers, weakest first; `swarm.config_sources`
finds the layers. A layer may write a key with `-` or `_` and may nest groups or join them with a dot.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from swarm.errors import SettingsConflictError, SettingsError, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Value = bool | int | float | str | None

# The units of dask.utils.parse_bytes and parse_timedelta, as far as settings need them.
_BYTES: dict[str, int | Fraction] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SECONDS: dict[str, int | Fraction] = {"": 1, "ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600}


def _quantity(text: str, units: Mapping[str, int | Fraction]) -> Fraction:
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", text, re.ASCII | re.IGNORECASE)
    if found is None or found[2].lower() not in units:
        raise ValueError(text)
    return Fraction(found[1]) * units[found[2].lower()]


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    size = _quantity(value, _BYTES)
    if size.denominator != 1:
        raise ValueError(value)
    return int(size)


def _seconds(value: object) -> object:
    return float(_quantity(value, _SECONDS)) if isinstance(value, str) else value


def _path(value: str | None) -> str | None:
    if value is not None and not (value.strip() and value.isprintable() and len(value) <= 4096):  # PATH_MAX of Linux
        raise ValueError(value)
    return value


# The string in each type is the unit, for error messages.
Switch = bool
Count = Annotated[int, Field(ge=1, le=4096)]
ByteCount = Annotated[int, BeforeValidator(_bytes), Field(ge=4096, le=2**30), 'bytes, or text such as "1MiB"']
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.05, le=3600), 'seconds, or text such as "500ms"']
Phi = Annotated[float, Field(ge=1, le=100)]
Retries = Annotated[int, Field(ge=0, le=100)]
Timeout = Annotated[
    float | None,
    Field(ge=0.05, le=2_592_000),  # before the validator: pydantic does not pass over None otherwise
    BeforeValidator(_seconds),
    'seconds, or text such as "30s"',
]
Pause = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600), 'seconds, or text such as "500ms"']
Percent = Annotated[float, Field(ge=1, le=100), "per cent"]
Celsius = Annotated[float, Field(ge=20, le=150), "degrees Celsius"]
Folder = Annotated[str | None, AfterValidator(_path), "the path of a folder"]
Quota = Annotated[int, BeforeValidator(_bytes), Field(ge=10**6, le=10**15), 'bytes, or text such as "20GB"']
NoticeSource = Annotated[
    str | None, AfterValidator(_path), "a URL, a function as module:function, or the path of a file"
]

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PerformanceThresholds(BaseModel):
    """Limits above which a worker raises an alert."""

    model_config = _STRICT

    cpu_critical: Percent = 90.0
    """Busy share of all CPUs of the host."""
    memory_critical: Percent = 95.0
    """Memory of a worker process in per cent of Dask's limit for it."""
    thermal_critical: Celsius = 85.0
    """Temperature of the hottest sensor of the host."""


class Settings(BaseModel):
    """All settings of swarm, checked and frozen."""

    model_config = _STRICT

    max_agents: Count = 32
    """Agents that one cluster may run."""
    channel_size: ByteCount = 1048576
    """Size of one channel between two agents."""
    shared_memory: Switch = True
    """Move channels of one host that are busy into shared memory; takes numba, 60 to 120 MB in each process."""
    channel_encryption: Switch = False
    """Seal what agents of one host write to each other; between hosts, Dask's TLS does."""
    monitoring_interval: Seconds = 1.0
    """Time between two samples of telemetry."""
    optimization_interval: Seconds = 5.0
    """Time between two passes of the optimizer."""
    fault_tolerance: Switch = True
    """Watch for workers that hang or die, and recover."""
    load_balancing: Switch = True
    """Place tasks by what was learned; off: by Dask's rules."""
    auto_scaling: Switch = True
    """Ask the cluster for workers, and give them back."""
    state_directory: Folder = None
    """Where the scheduler keeps a journal of its runs; none: nowhere."""
    result_store: Folder = None
    """Where results of durable runs are stored, a path or a URL that fsspec knows; none: in state_directory."""
    result_quota: Quota = 20_000_000_000
    """How much results of durable runs may take; beyond, the runs that changed longest ago are removed."""
    tune_when_idle: Switch = False
    """Try strategies of placement on recorded runs while the cluster is idle, in a process of low priority."""
    task_timeout: Timeout = None
    """How long a task may run before it is taken from its worker and run elsewhere; none: as long as it likes."""
    task_retries: Retries = 3
    """Times that a task is run again after it has run longer than its timeout."""
    task_backoff: Pause = 1.0
    """Time before a task runs again after it was too long; doubles with each time."""
    suspicion_phi: Phi = 8.0
    """How improbable a worker's silence must be for it to be suspected: -log10 of the chance that it is only late."""
    silence_patience: Seconds = 20.0
    """Silence after which a worker is removed that no witness on its host can reach, or only the witness."""
    notice_period: Pause = 20.0
    """How long a worker may take to move its results away when it is told to stop by SIGTERM; 0: it stops at once."""
    notice_source: NoticeSource = None
    """Where a worker looks every two seconds whether its machine will soon be gone; none: nowhere."""
    performance_thresholds: PerformanceThresholds = PerformanceThresholds()

    def flat(self) -> dict[str, Value]:
        """Every key, groups joined with a dot."""
        return dict(flatten(self.model_dump()))


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


_FIELDS = dict(_leaves(Settings))
_GROUPS = {key.rpartition(".")[0] for key in _FIELDS} - {""}


def flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key and value, groups joined with a dot, `-` written as `_`.

    Only known groups are entered, so that a value which is wrongly a mapping stays visible.

    >>> dict(flatten({"max-agents": 8, "performance-thresholds": {"cpu-critical": 80}}))
    {'max_agents': 8, 'performance_thresholds.cpu_critical': 80}
    """
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if name in _GROUPS and (value is None or isinstance(value, Mapping)):
            yield from flatten(value or {}, f"{name}.")
        else:
            yield name, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return nested


DEFAULTS: Mapping[str, Value] = Settings().flat()

OF_ONE_PROCESS = frozenset({"state_directory", "result_store", "result_quota"})
"""Settings on which the processes of a cluster need not agree: a path means something on one host only."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One place that gives settings: `name` as a person would find it, `values` as they were written there."""

    name: str
    values: Any


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where each comes from. Keys of the two dicts join groups with a dot."""

    settings: Settings
    origin: dict[str, str]
    """Every key → the name of the layer that won, or "built-in default"."""
    explicit: dict[str, Value]
    """The keys that some layer sets, with the value that won; msgpack can carry it."""


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge layers, weakest first; in each key the strongest layer that has it wins.

    Raises
    ------
    SettingsError
        A layer holds a wrong key or value, even one that a stronger layer overrides. One line, all such places
        up to the third.
    """
    explicit: dict[str, Value] = {}
    origin = dict.fromkeys(_FIELDS, "built-in default")
    problems: list[str] = []
    for layer in layers:
        for key, value in _pairs(layer, problems):
            try:
                explicit[key] = check(key, value)
                origin[key] = layer.name
            except SettingsError as wrong:
                name = key[:60] or '""'
                problems.append(f"{name} = {_show(value)} ({layer.name}): {wrong}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise SettingsError(one_line("; ".join(problems[:3]) + more))
    return Resolved(Settings.model_validate(_nest(explicit)), origin, explicit)


def _pairs(layer: Layer, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Keys and values of one layer; notes when it is no mapping, or gives one key twice (`a-b` and `a_b`)."""
    if not isinstance(layer.values, Mapping):
        if layer.values is not None:
            problems.append(f"{layer.name}: must be a mapping of settings, is {_show(layer.values)}")
        return
    seen: dict[str, Any] = {}
    for key, value in flatten(layer.values):
        if key in seen and seen[key] != value:
            both = f"{_show(seen[key])} and as {_show(value)}"
            problems.append(f"{key[:60]} ({layer.name}): is given twice, as {both}; keep one")
        seen[key] = value
    yield from seen.items()


def check(key: str, value: object) -> Value:
    """One value, as `Settings` keeps it.

    >>> check("task_timeout", "30s")
    30.0

    Raises
    ------
    SettingsError
        There is no such setting, or it can't be that; names what is allowed, not the key.
    """
    if key not in _FIELDS:
        raise SettingsError(_unknown(key) if key not in _GROUPS else f"must be a mapping with {_names(key)}")
    try:
        checked: Value = Settings.model_validate(_nest({key: value})).flat()[key]
    except ValidationError:
        raise SettingsError(f"must be {allowed(key)}") from None
    return checked


def _unknown(key: str) -> str:
    group, _, name = key.rpartition(".")
    known = {k.rpartition(".")[2]: k for k in [*_FIELDS, *_GROUPS]}
    near = nearest(name[:60], known)
    hint = f"; did you mean {known[near]}?" if near else ""
    return f"no such setting{hint} (allowed: {_names(group if group in _GROUPS else '')})"


def _names(group: str) -> str:
    inside = (k.removeprefix(f"{group}.") for k in _FIELDS if not group or k.startswith(f"{group}."))
    return ", ".join(dict.fromkeys(k.partition(".")[0] for k in inside))


def allowed(key: str) -> str:
    """What the setting `key` may be, in words.

    >>> allowed("max_agents")
    'a whole number from 1 to 4096'
    """
    field = _FIELDS[key]
    if field.annotation is bool:
        return "true or false"
    if field.annotation == (str | None):
        what = next(m for m in field.metadata if isinstance(m, str))
        return f"{what}, or null for none"
    low = next(m.ge for m in field.metadata if isinstance(m, Ge))
    high = next(m.le for m in field.metadata if isinstance(m, Le))
    unit = next((f" ({m})" for m in field.metadata if isinstance(m, str)), "")
    none = ", or null for none" if field.annotation == (float | None) else ""
    return f"a {'whole ' if field.annotation is int else ''}number from {low} to {high}{unit}{none}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that is set here and has another value on the scheduler, or None if the scheduler does not know it."""

    key: str
    mine: Value
    theirs: Value


def conflicts(mine: Mapping[str, Value], theirs: Settings) -> list[Difference]:
    """Where explicit settings of a worker or client differ from those of the scheduler.

    Keys that are not in `mine` follow the scheduler, so they never differ; nor do those `OF_ONE_PROCESS`.
    """
    flat = theirs.flat()
    shared = {key: value for key, value in mine.items() if key not in OF_ONE_PROCESS}
    return [Difference(key, value, flat.get(key)) for key, value in shared.items() if flat.get(key) != value]


def conflict_error(
    differences: Sequence[Difference],
    *,
    scheduler: str,
    where: str = "here",
    origin: Mapping[str, str] | None = None,
) -> SettingsConflictError:
    """The error for `conflicts`.

    Parameters
    ----------
    differences
        What `conflicts` found; at least one.
    scheduler
        Address of the scheduler.
    where
        Who has the other values: "here", or "on worker tcp://…" when the scheduler speaks.
    origin
        `Resolved.origin` of that process, if known.
    """
    parts = []
    for d in differences:
        source = f" ({origin[d.key]})" if origin and d.key in origin else ""
        theirs = "not known" if d.theirs is None else _show(d.theirs)
        parts.append(f"{d.key} is {_show(d.mine)}{source} {where} and {theirs} on the scheduler {scheduler}")
    same = "start both with the same swarm_config"
    out = f"leave the key out {where} (unset keys follow the scheduler)"
    return SettingsConflictError(one_line(f"settings differ: {', '.join(parts)}; {same}, or {out}"))


def one_line(text: str) -> str:
    """`text` with every character that could break the line written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _show(value: object) -> str:
    """A value as JSON writes it where it can, cut to a length that fits in a line."""
    plain = value is None or isinstance(value, str | bool)
    text = json.dumps(value, ensure_ascii=False) if plain else reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
