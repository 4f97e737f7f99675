"""Fingerprints of runs: which recorded run is this one like?  PURE

A fingerprint says what functions a run consists of, how its graph is shaped and what its tasks take, as ratios and
exponents that hardly depend on how large the run is: the same work on more data, or on another day, is near. How near
two runs must be to count as alike is learned from those that are recorded: runs of one name are alike, others are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, log1p
from typing import Any, NamedTuple

MOST_FUNCTIONS = 16
"""That are kept of a run: those with most tasks."""
MOST_RUNS = 200
THRESHOLD = 0.25
"""As long as too few runs are recorded to learn it."""
LEAST_PAIRS = 6
"""Of runs of one name, and of different ones, to learn it from."""
SLICE = 512
"""Tasks between two pauses of `shape_in_slices`."""

_FUNCTIONS, _SHAPE, _DURATIONS, _SIZE = 0.45, 0.35, 0.12, 0.08
"""Weights, which sum to 1. What tasks take differs from host to host, and the size from day to day: they break ties."""


class Shape(NamedTuple):
    """Of a graph."""

    tasks: int
    edges: int
    depth: int
    """Tasks on the longest path."""
    width: int
    """Most tasks that are equally far from the beginning."""
    fan_in: int
    """Most inputs of one task."""
    sources: int
    """Tasks without inputs."""

    def exponents(self) -> tuple[float, ...]:
        """What tells graphs apart whatever their size: each is about 0 to 1."""
        scale = log(self.tasks + 1.0)
        return (
            log(max(self.depth, 1)) / scale,
            log(max(self.width, 1)) / scale,
            log1p(self.fan_in) / scale,
            log1p(self.edges / max(self.tasks, 1)),
            self.sources / max(self.tasks, 1),
        )


class Part(NamedTuple):
    """The tasks of one function in a run."""

    function: str
    tasks: int
    mean_s: float
    """0: not known yet."""
    mean_bytes: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one run. `name` is what people call it, and what `Library` learns from."""

    run: str
    name: str
    parts: tuple[Part, ...]
    shape: Shape
    strategy: str = ""
    elapsed_s: float = 0.0
    work: str = ""
    """What the bandit of strategies calls such work; empty where nobody chose."""

    def to_state(self) -> list[Any]:
        """Of plain types."""
        parts = [list(part) for part in self.parts]
        return [self.run, self.name, parts, list(self.shape), self.strategy, self.elapsed_s, self.work]

    @classmethod
    def from_state(cls, state: Any) -> Fingerprint:
        """Raises ValueError or TypeError when it is not what `to_state` gave."""
        run, name, parts, shape, strategy, elapsed_s, *work = state  # there was no work before 0.2
        read = tuple(Part(str(f), int(tasks), float(s), float(nbytes)) for f, tasks, s, nbytes in parts)
        return cls(str(run), str(name), read, Shape(*map(int, shape)), str(strategy), float(elapsed_s), *map(str, work))


def fingerprint(
    run: str,
    name: str,
    functions: Mapping[str, tuple[int, float, float]],
    shape: Shape,
    strategy: str = "",
    elapsed_s: float = 0.0,
    work: str = "",
) -> Fingerprint:
    """Of a run; `functions`: key prefix → tasks, seconds of all, bytes of all results."""
    parts = [
        Part(function, tasks, total_s / max(tasks, 1), nbytes / max(tasks, 1))
        for function, (tasks, total_s, nbytes) in functions.items()
    ]
    parts.sort(key=lambda part: (-part.tasks, part.function))
    return Fingerprint(run, name, tuple(parts[:MOST_FUNCTIONS]), shape, strategy, elapsed_s, work)


def shape_of(dependencies: Mapping[Hashable, Collection[Hashable]]) -> Shape:
    """Of a graph: task → what it needs. What is needed and not in it is done already.

    >>> shape_of({"a": [], "b": [], "c": ["a", "b"]})
    Shape(tasks=3, edges=2, depth=2, width=2, fan_in=2, sources=2)
    """
    *_, shape = shape_in_slices(dependencies)
    assert shape is not None
    return shape


def shape_in_slices(dependencies: Mapping[Hashable, Collection[Hashable]]) -> Iterator[Shape | None]:
    """As `shape_of`, with a pause after every `SLICE` tasks, so that an event loop can do something else."""
    waits: dict[Hashable, int] = {}
    feeds: dict[Hashable, list[Hashable]] = {}
    edges = fan_in = 0
    for number, (task, needs) in enumerate(dependencies.items(), 1):
        inside = [need for need in needs if need in dependencies]
        waits[task] = len(inside)
        edges, fan_in = edges + len(inside), max(fan_in, len(inside))
        for need in inside:
            feeds.setdefault(need, []).append(task)
        if number % SLICE == 0:
            yield None
    level = {task: 1 for task, count in waits.items() if not count}
    ready, sources, widths, done = deque(level), len(level), dict[int, int](), 0
    while ready:
        task = ready.popleft()
        widths[level[task]] = widths.get(level[task], 0) + 1
        for dependent in feeds.get(task, ()):
            waits[dependent] -= 1
            level[dependent] = max(level.get(dependent, 1), level[task] + 1)
            if not waits[dependent]:
                ready.append(dependent)
        done += 1
        if done % SLICE == 0:
            yield None
    yield Shape(len(waits), edges, max(widths, default=0), max(widths.values(), default=0), fan_in, sources)


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """0: the same work; 1: nothing in common. Symmetric."""
    of_a, of_b = _shares(a), _shares(b)
    common = of_a.keys() & of_b.keys()
    functions = max(1.0 - sum(min(of_a[each], of_b[each]) for each in common), 0.0)
    there = zip(a.shape.exponents(), b.shape.exponents(), strict=True)
    shape = min(sum(abs(mine - theirs) for mine, theirs in there), 1.0)
    size = min(abs(log((a.shape.tasks + 1) / (b.shape.tasks + 1))) / 4.0, 1.0)
    durations = _duration_distance(a, b, common)
    if durations is None:  # one of them has not run yet
        return (_FUNCTIONS * functions + _SHAPE * shape + _SIZE * size) / (1.0 - _DURATIONS)
    return _FUNCTIONS * functions + _SHAPE * shape + _DURATIONS * durations + _SIZE * size


def _shares(of: Fingerprint) -> dict[str, float]:
    """Function → its share; by the square root of its tasks, so that the few that end a run count too."""
    roots = {part.function: part.tasks**0.5 for part in of.parts}
    total = sum(roots.values()) or 1.0
    return {function: root / total for function, root in roots.items()}


def _duration_distance(a: Fingerprint, b: Fingerprint, common: Collection[str]) -> float | None:
    mine = {part.function: part for part in a.parts if part.mean_s > 0.0}
    theirs = {part.function: part for part in b.parts if part.mean_s > 0.0}
    if not mine or not theirs:
        return None
    both = [each for each in common if each in mine and each in theirs]
    if not both:
        return 1.0
    weight = sum(mine[each].tasks + theirs[each].tasks for each in both)
    apart = sum(
        (mine[each].tasks + theirs[each].tasks)
        * (
            min(abs(log(mine[each].mean_s / theirs[each].mean_s)) / 3.0, 1.0)
            + min(abs(log1p(mine[each].mean_bytes) - log1p(theirs[each].mean_bytes)) / 6.0, 1.0)
        )
        for each in both
    )
    return apart / weight / 2.0


class Like(NamedTuple):
    """The recorded run that is nearest."""

    known: Fingerprint
    distance: float
    is_close: bool
    """Whether it is no farther than runs of one name are from each other."""


class Library:
    """Fingerprints of the last runs.

    >>> library = Library()
    >>> shape = shape_of({"a": [], "b": ["a"]})
    >>> library.add(fingerprint("1", "chain", {"load": (1, 0.5, 8), "sum": (1, 0.1, 8)}, shape))
    >>> library.nearest(fingerprint("2", "?", {"load": (1, 0.0, 8), "sum": (1, 0.0, 8)}, shape)).known.name
    'chain'
    """

    def __init__(self, most: int = MOST_RUNS) -> None:
        self._runs: deque[Fingerprint] = deque(maxlen=most)
        self._threshold: float | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Fingerprint) -> None:
        self._runs.append(run)
        self._threshold = None

    def get(self, run: str) -> Fingerprint | None:
        return next((each for each in reversed(self._runs) if each.run == run), None)

    def nearest(self, of: Fingerprint) -> Like | None:
        """Of all runs but itself; the newest of equals. None where there is no other."""
        others = [each for each in reversed(self._runs) if each.run != of.run]
        if not others:
            return None
        apart, number = min((distance(of, each), number) for number, each in enumerate(others))
        return Like(others[number], apart, apart <= self.threshold)

    def alike(self, of: Fingerprint) -> list[Like]:
        """All other runs that are close, the nearest first."""
        others = ((distance(of, each), each) for each in reversed(self._runs) if each.run != of.run)
        close = [Like(each, apart, True) for apart, each in others if apart <= self.threshold]
        return sorted(close, key=lambda like: like.distance)

    @property
    def threshold(self) -> float:
        """The distance that tells recorded runs of one name best from those of others."""
        if self._threshold is None:
            self._threshold = _between(*_distances(list(self._runs)[-64:]))
        return self._threshold

    def to_state(self) -> list[Any]:
        return [run.to_state() for run in self._runs]

    def restore(self, state: Any) -> None:
        """Take over what `to_state` gave; raises ValueError or TypeError, and takes nothing then, if it is not that."""
        runs = [Fingerprint.from_state(each) for each in state]
        self._runs.clear()
        self._runs.extend(runs)
        self._threshold = None


def _distances(runs: Sequence[Fingerprint]) -> tuple[list[float], list[float]]:
    """From each run to the nearest of its own name, and to the nearest of another, where there are such."""
    same, other = [], []
    for run in runs:
        to = [(distance(run, each), each.name == run.name) for each in runs if each is not run]
        same += [min(near)] if (near := [apart for apart, is_same in to if is_same]) else []
        other += [min(far)] if (far := [apart for apart, is_same in to if not is_same]) else []
    return same, other


def _between(same: Sequence[float], other: Sequence[float]) -> float:
    """Where fewest are on the wrong side, each side weighing the same; in the middle of the gap there."""
    if len(same) < LEAST_PAIRS or len(other) < LEAST_PAIRS:
        return THRESHOLD
    marks = sorted({*same, *other})
    middles = [(low + high) / 2.0 for low, high in pairwise(marks)] or marks

    def wrong(at: float) -> float:
        return sum(each > at for each in same) / len(same) + sum(each <= at for each in other) / len(other)

    least = min(map(wrong, middles))
    best = [middle for middle in middles if wrong(middle) == least]
    return best[len(best) // 2]
