"""What agent is to be made, and how it is to run; checked when it is written down."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgpack

from swarm.agents.base import MAX_STATE_BYTES, BaseAgent, Isolation, State, check_class, isolation_of
from swarm.channels.messages import check_name
from swarm.errors import AgentDefinitionError

NICEST = 19
"""`setpriority(2)`: from -20, which goes first, to 19, which gives way to all."""
LEAST_MEMORY_BYTES = 64 << 20
"""Python and this package take about 25 MB of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an agent in a process of its own may take; None: as much as there is.

    Attributes
    ----------
    memory_bytes
        Its writable memory (`RLIMIT_DATA`): what is beyond raises MemoryError in the agent.
    cpu_s
        CPU seconds of one life (`RLIMIT_CPU`); then it is killed and started again.
    """

    memory_bytes: int | None = None
    cpu_s: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("memory_bytes", LEAST_MEMORY_BYTES), ("cpu_s", 1)):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and least <= value < 2**63):
                raise AgentDefinitionError(f"{name} of limits is {value!r}, must be a whole number of at least {least}")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One agent to be.

    Attributes
    ----------
    agent_class, agent_id, options
        Made by `agent_class(agent_id, **options)`.
    isolation
        None: what suits the class (`swarm.agents.base.isolation_of`).
    priority
        What its thread or process may claim of the cores, as `nice`: from -20 to 19, 0 is as everybody, 19 gives way
        to all. Below 0 needs the right to it; without, it stays as it is, and the log says so.
    cpu_affinity
        The cores that its thread or process runs on; None: all.
    limits
        For a process of its own.
    interval_s
        Between the begins of two cycles; None: what the class says.
    cycle_timeout_s
        A cycle, or the handling of a message, that takes longer is over: the agent is started again.
    state
        What it gets to `restore` when it starts for the first time.

    Raises
    ------
    AgentDefinitionError
        Something of it is wrong; says what is allowed.
    """

    agent_class: type[BaseAgent]
    agent_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    isolation: Isolation | None = None
    priority: int = 0
    cpu_affinity: frozenset[int] | None = None
    limits: Limits | None = None
    interval_s: float | None = None
    cycle_timeout_s: float = 30.0
    state: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_class(self.agent_class)
        check_name(self.agent_id)
        about = f"agent {self.agent_id}"
        self._set("isolation", isolation_of(self.agent_class, self.isolation))
        self._check_options(about)
        if not (_is_int(self.priority) and -NICEST - 1 <= self.priority <= NICEST):
            raise AgentDefinitionError(f"priority of {about} is {self.priority!r}, must be a whole number -20 to 19")
        if self.cpu_affinity is not None:
            self._check_affinity(about)
        limits: object = self.limits
        if limits is not None and not (isinstance(limits, Limits) and self.isolation == "process"):
            raise AgentDefinitionError(f'limits of {about}: must be Limits(…), and need isolation="process"')
        if self.interval_s is None:
            self._set("interval_s", self.agent_class.interval_s)
        for name, most in (("interval_s", 86400.0), ("cycle_timeout_s", 86400.0)):
            self._set(name, _seconds(getattr(self, name), f"{name} of {about}", most))
        pack_state(self.state, about)

    @property
    def interval(self) -> float:
        """`interval_s`, which is never None once the spec is made."""
        return cast("float", self.interval_s)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_options(self, about: str) -> None:
        options: object = self.options
        if not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
            raise AgentDefinitionError(f"options of {about}: must be a mapping of names to values")
        try:
            inspect.signature(self.agent_class).bind(self.agent_id, **self.options)
        except TypeError as error:
            raise AgentDefinitionError(f"options of {about}: {self.agent_class.__name__}: {error}") from None

    def _check_affinity(self, about: str) -> None:
        if self.isolation == "loop":
            raise AgentDefinitionError(f'cpu_affinity of {about} needs isolation="thread" or "process"')
        try:
            cores = frozenset(self.cpu_affinity or ())
        except TypeError:
            cores = frozenset()
        if not cores or not all(_is_int(core) and 0 <= core < 2**16 for core in cores):
            raise AgentDefinitionError(
                f"cpu_affinity of {about} is {self.cpu_affinity!r}, must be a set of numbers of cores, at least one"
            )
        self._set("cpu_affinity", cores)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(value: Any, what: str, most: float) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0.01 <= value <= most
    ):
        return float(value)
    raise AgentDefinitionError(f"{what} is {value!r}, must be a number from 0.01 to {most:g} (seconds)")


def pack_state(state: object, about: str) -> bytes:
    """An agent's state as it is kept.

    Raises
    ------
    AgentDefinitionError
        It is no dict of data, or too large.
    """
    if not isinstance(state, dict):
        raise AgentDefinitionError(f"state of {about} is a {type(state).__name__}, must be a dict")
    try:
        packed: bytes = msgpack.packb(state)
    except (TypeError, ValueError, OverflowError) as error:
        raise AgentDefinitionError(f"state of {about} can't be kept ({error}); it may hold data only") from None
    if len(packed) > MAX_STATE_BYTES:
        raise AgentDefinitionError(f"state of {about} has {len(packed)} bytes, at most {MAX_STATE_BYTES} are kept")
    return packed


def unpack_state(packed: bytes) -> State:
    """What `pack_state` packed."""
    state: State = msgpack.unpackb(packed, strict_map_key=False)
    return state
