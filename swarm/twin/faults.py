"""What goes wrong in a simulation, as data: a list of faults with their times, or a seeded process of them. PURE

Times are seconds since the work was submitted; `for_s=None` means for ever.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from swarm.errors import TwinError, nearest
from swarm.twin.models import WorkerModel
from swarm.twin.plain import model, plain

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something happens at a time."""

    at_s: float
    KINDS: ClassVar[dict[str, type[Fault]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Fault.KINDS[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not field.name.endswith("_s") or value is None:
                continue
            if not isinstance(value, int | float) or not (value >= 0 and math.isfinite(value)):
                raise TwinError(f"{type(self).__name__}.{field.name} is {value!r}, must be a finite number, 0 or more")

    @property
    def ends_at_s(self) -> float | None:
        """When its effect is over by itself; None: never, or at once."""
        for_s = getattr(self, "for_s", None)
        return None if for_s is None else self.at_s + for_s


@dataclass(frozen=True, kw_only=True)
class Crash(Fault):
    """The worker process is gone at once (SIGKILL): its connections are reset, a nanny starts a new one."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Hang(Fault):
    """The worker process stands still (SIGSTOP): neither code nor event loop runs, its connections stay open."""

    worker: str
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class HoldGil(Fault):
    """A task holds the GIL: the event loop and all other tasks of the process stand still, that one goes on."""

    worker: str
    for_s: float


@dataclass(frozen=True, kw_only=True)
class BlockLoop(Fault):
    """The worker's event loop is blocked; its tasks go on, but nothing comes in or goes out."""

    worker: str
    for_s: float


@dataclass(frozen=True, kw_only=True)
class SlowDown(Fault):
    """The worker computes at `factor` of its speed, from now on also what it has begun."""

    worker: str
    factor: float
    for_s: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < math.inf:
            raise TwinError(f"SlowDown.factor is {self.factor!r}, must be a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class Partition(Fault):
    """These workers reach each other, and nobody else; what is sent meanwhile arrives when it is over, or never."""

    workers: tuple[str, ...]
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoseHeartbeats(Fault):
    """The worker's heartbeats do not arrive; all else does."""

    worker: str
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class SchedulerLag(Fault):
    """The scheduler's event loop stands still."""

    for_s: float


@dataclass(frozen=True, kw_only=True)
class Preempt(Fault):
    """The machine is taken away after a notice (a spot instance, a walltime)."""

    worker: str
    notice_s: float
    retire: bool = False
    """Whether somebody passes the notice on and has the worker retired (`Client.retire_workers`)."""


@dataclass(frozen=True, kw_only=True)
class Join(Fault):
    """A new worker joins."""

    model: WorkerModel


@dataclass(frozen=True, kw_only=True)
class Leave(Fault):
    """The worker is retired (`Client.retire_workers`): its results are copied first, then it closes."""

    worker: str


def to_json(fault: Fault) -> dict[str, Any]:
    """Of plain types, with the name of its class."""
    return {"fault": type(fault).__name__} | {
        field.name: plain(getattr(fault, field.name)) for field in dataclasses.fields(fault)
    }


def from_json(values: Mapping[str, Any]) -> Fault:
    """Read what `to_json` wrote, or what a person did. Raises `TwinError` for anything else."""
    if not isinstance(values, Mapping):
        raise TwinError(f"fault is {values!r}, must be a mapping with the key 'fault'")
    name = values.get("fault")
    kind = Fault.KINDS.get(str(name))
    if kind is None:
        hint = nearest(str(name), Fault.KINDS)
        raise TwinError(
            f"fault {name!r} is not known, must be one of {', '.join(sorted(Fault.KINDS))}"
            + (f"; did you mean {hint}?" if hint else "")
        )
    rest = {key: value for key, value in values.items() if key != "fault"}
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(rest.keys() - known):
        raise TwinError(f"{name} has no {unknown[0]!r}, only {', '.join(sorted(known))}")
    if "workers" in rest:
        if not isinstance(rest["workers"], list | tuple):
            raise TwinError(f"{name}.workers is {rest['workers']!r}, must be a list of names")
        rest["workers"] = tuple(rest["workers"])
    if "model" in rest:
        rest["model"] = model(rest["model"], f"{name}.model", "WorkerModel")
    try:
        return kind(**rest)
    except TypeError as error:
        raise TwinError(f"{name}: {error}") from None


def at_random(
    kind: type[Fault],
    *,
    mean_between_s: float,
    until_s: float,
    rng: Random,
    workers: Sequence[str] = (),
    **details: Any,
) -> list[Fault]:
    """A Poisson process: `at_random(Crash, workers=names, …)`, `at_random(Join, model=WorkerModel("spot"), …)`.

    A fault that happens to one worker, or to several, happens to one of `workers`, drawn at random. Workers that join
    are named after the model and numbered: `spot-1`, `spot-2`.
    """
    if not mean_between_s > 0:
        raise TwinError(f"mean_between_s is {mean_between_s!r}, must be above 0")
    fields = {field.name for field in dataclasses.fields(kind)}
    if not workers and fields & {"worker", "workers"}:
        raise TwinError(f"there are no workers for {kind.__name__} to happen to")
    make: Any = kind
    drawn: list[Fault] = []
    at_s = rng.expovariate(1.0 / mean_between_s)
    while at_s < until_s:
        own: dict[str, Any] = {"at_s": at_s}
        if "worker" in fields:
            own["worker"] = rng.choice(list(workers))
        elif "workers" in fields:
            own["workers"] = (rng.choice(list(workers)),)
        elif "model" in details:
            own["model"] = dataclasses.replace(details["model"], name=f"{details['model'].name}-{len(drawn) + 1}")
        drawn.append(make(**{**details, **own}))
        at_s += rng.expovariate(1.0 / mean_between_s)
    return drawn


def check(faults: Iterable[Fault], workers: Iterable[str]) -> None:
    """Raise `TwinError` when a fault names a worker that is never there, or one joins under a name that is taken."""
    faults = list(faults)
    known = set(workers)
    for fault in faults:
        if isinstance(fault, Join):
            if fault.model.name in known:
                raise TwinError(f"Join at {fault.at_s} s: worker name {fault.model.name!r} is taken, must be a new one")
            known.add(fault.model.name)
    for fault in faults:
        for name in (getattr(fault, "worker", None), *getattr(fault, "workers", ())):
            if name is not None and name not in known:
                hint = nearest(name, known)
                raise TwinError(
                    f"{type(fault).__name__} at {fault.at_s} s names worker {name!r}, which does not exist"
                    + (f"; did you mean {hint!r}?" if hint else "")
                )
