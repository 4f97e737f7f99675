"""What somebody who has no task at hand may ask of the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, isfinite, log1p
from typing import Any, NamedTuple

from scheduler_plugins.learn.costs import Costs, Function, Key
from scheduler_plugins.learn.protocol import magnitude

CONTEXT = 3
"""Terms that every vector ends with: bytes and number of the inputs, and tasks on the host."""


class Answer(NamedTuple):
    """What a call would take."""

    function: str
    p50_s: float
    p90_s: float
    p99_s: float
    error: float
    """Median of |log(actual / predicted)| over the last tasks: 0.1 is 10 %."""
    samples: int
    factor: float
    """Of the worker, which is in the seconds already."""
    source: str
    assumed: tuple[str, ...]
    """Arguments that were not given, and taken from the last task, or for 0."""


def estimate(
    costs: Costs, name: str, input_bytes: float = 0.0, worker: str = "", arguments: Mapping[str, float] | None = None
) -> Answer | None:
    """Of a function, by its qualified name, the last part of it, or the prefix of its keys; None: it is not known.

    Parameters
    ----------
    arguments
        Numbers by the names that the model knows ("0" is the first positional one).
    """
    key = _key(costs, name)
    function = None if key is None else costs.function(key)
    if key is None or function is None:
        return None
    given = arguments or {}
    names = key[1]
    last = _last(function, len(names))
    terms = [magnitude(given[each]) if each in given else last[place] for place, each in enumerate(names)]
    x = (*terms, log1p(max(input_bytes, 0.0)), *last[len(names) + 1 :])
    p50_s, p90_s, p99_s, samples, error, _, _ = costs.say(function, x)
    level = costs.speeds.log_factor(worker) if worker else 0.0
    if worker and (local := function.local.get(worker)) is not None:
        level += local.value
    factor = exp(level) if isfinite(level) else 1.0
    return Answer(
        key[0],
        p50_s * factor,
        p90_s * factor,
        p99_s * factor,
        error,
        samples,
        factor,
        function.duration.source,
        tuple(each for each in names if each not in given),
    )


def _key(costs: Costs, name: str) -> Key | None:
    """Of the variants of a function the one with most tasks."""
    found = [key for key in costs.keys() if _is_called(key[0], name)]  # noqa: SIM118 - it is no mapping
    return max(found, key=lambda key: _samples(costs, key), default=None)


def _is_called(known: str, name: str) -> bool:
    """The model tells functions apart by the prefix of their keys too: "package.function prefix"."""
    qualified, _, prefix = known.partition("#")[0].partition(" ")
    return name in (known, qualified, qualified.rpartition(".")[2], prefix)


def _samples(costs: Costs, key: Key) -> int:
    function = costs.function(key)
    return 0 if function is None else function.duration.samples


def _last(function: Function, names: int) -> tuple[float, ...]:
    """The vector that was asked for last, or that of a task alone without arguments."""
    said: Any = next(reversed(function.said), None)
    return tuple(said) if said is not None else (*(0.0,) * names, 0.0, 0.0, log1p(1.0))
