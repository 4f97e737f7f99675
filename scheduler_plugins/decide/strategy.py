"""The numbers that placement turns on, and within which bounds they may be tried.  PURE"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """Between which a number may be tried; it is varied by ratios."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to place tasks: what is weighed against what.

    The defaults are what did best over many kinds of work in the twin. What does better on the work of one cluster is
    found by `swarm tune`.

    Raises
    ------
    ValueError
        A number is outside its bounds.
    """

    critical: float = 0.5
    """Share of the time that all work still takes, from which on a path decides over the order."""
    longest: float = 0.1
    """As `critical`, for a task that nothing waits for: to run such in another order than Dask's costs no memory."""
    slack: float = 0.5
    """Share of the time in which the faster workers would do all that is left, within which a slow one may take a task
    that they could do sooner: what is left can seldom be done all at once."""
    gravity: float = 2.0
    """What a transfer counts for, over the time that it takes: others wait for the same link."""
    horizon_s: float = 0.03
    """A worker may be given a task so long before a thread is free: what message, loop and batching take, and some."""
    refill: float = 0.5
    """Share of the horizon to which what waits on a worker falls before it is given more: several at once."""
    patience: float = 2.0
    """Times the time in which others were thought to do a task that was left to them, until anybody idle may take it:
    they may be stuck, or it may not fit there."""

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and isfinite(value) and least <= value <= most):
                raise ValueError(f"{name} of a strategy is {value!r}; allowed: {least:g} to {most:g}")

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Strategy:
        """Numbers that are not given are the defaults, and names that nobody knows are left out.

        Raises
        ------
        ValueError
            A number is outside its bounds, or no number.
        """
        return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})


BOUNDS = {
    "critical": Bounds(0.1, 2.0),
    "longest": Bounds(0.01, 2.0),
    "slack": Bounds(0.1, 1.0),
    "gravity": Bounds(0.5, 8.0),
    "horizon_s": Bounds(0.005, 0.3),
    "refill": Bounds(0.1, 0.9),
    "patience": Bounds(1.1, 8.0),
}
DEFAULT = Strategy()
