"""Experiments on real tasks: a setting before and after, in turn, kept only if it wins by more than the noise.  PURE

Tasks come in quads of four blocks, ABBA or BAAB by the toss of a coin. Each quad gives one number: by how much tasks of
a size took less time in its B blocks. If the setting makes no difference, each of these numbers might as well have the
other sign, whatever the noise, drift or load were; so the signed-rank test (Wilcoxon 1945) on them is exact, because
of the coin. It is looked at a few times; the allowed chance of error is split between the looks (Bonferroni).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import random

Ending = Literal["kept", "undone"]
Size = tuple[int, int]


@dataclass(frozen=True)
class Rules:
    """When an experiment ends, and how."""

    block_tasks: int = 3
    """Tasks of a block, beyond those that the change met half-way."""
    looks: tuple[int, ...] = (8, 10, 12, 16, 20, 26, 32, 40)
    """Numbers of quads at which it may be won."""
    confidence: float = 0.95
    """A setting that makes no difference is kept in at most `1 - confidence` of all experiments."""
    minimal_gain: float = 0.03
    """Share of a task's time that must be saved."""
    futile_confidence: float = 0.9
    """Given up when the gain is below the minimal one with this confidence."""
    regret_tasks: float = 8.0
    """Given up when it has cost so many times the duration of a task, and more than the noise does,"""
    regret_s: float = 0.1
    """and so many seconds: a short task that the system held up once says nothing about the setting."""
    patience_s: float = 900.0
    """Given up when it has not ended after so long: too few tasks."""
    rest_s: float = 6 * 3600.0
    """Before the same is tried again, after it did not win."""
    drift_ratio: float = 2.0
    """Change of the duration of the function's tasks that makes it worth to try again before that."""

    @property
    def most_tasks(self) -> int:
        """Tasks that an experiment counts at most."""
        return 4 * self.block_tasks * self.looks[-1]


@dataclass(frozen=True)
class Verdict:
    """How an experiment ended."""

    ending: Ending
    reason: str
    gain: float
    """Share of a task's time that the setting saves (Hodges and Lehmann 1963); negative: it costs."""
    confidence: float
    """That it saves any: 1 less the chance of a difference like this if there were none."""
    before_s: float
    """Median duration of the tasks measured with the old setting, and with the new one."""
    after_s: float
    tasks: int
    """Measured, with either."""


@dataclass
class Experiment:
    """One change, under trial on the tasks of one function.

    Examples
    --------
    >>> import random
    >>> trial = Experiment("gc", "load", "as it is", "calm", random.Random(7))
    >>> while trial.verdict is None:
    ...     trial.saw((0, 0), 0.8 if trial.is_after else 1.0)
    >>> trial.verdict.ending, round(trial.verdict.gain, 2)
    ('kept', 0.2)
    """

    knob: str
    function: str
    before: Any
    after: Any
    rng: random.Random
    rules: Rules = field(default_factory=Rules)
    began_s: float = 0.0
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        self._quads: list[float] = []
        self._empty_quads = 0
        self._times: tuple[list[float], list[float]] = ([], [])
        self._known: dict[Size, list[float]] = {}
        self._ratios = (_Sums(), _Sums())
        """Durations as multiples of what was usual by then, with the old setting and with the new one."""
        self._cost_s = 0.0
        """What tasks with the new setting have taken beyond what was usual for their sizes."""
        self._usual_left = self.rules.block_tasks
        """Tasks with the old setting before the first quad, so that a harmful one is known by its first task."""
        self._new_quad()

    def _new_quad(self) -> None:
        first = self.rng.random() < 0.5
        self._arms = [first, not first, not first, first]
        self._block = self._count = 0
        self._in_quad: dict[Size, tuple[list[float], list[float]]] = {}

    @property
    def is_after(self) -> bool:
        """Whether tasks that begin now shall run with the new setting."""
        return self.verdict is None and not self._usual_left and self._arms[self._block]

    @property
    def value(self) -> Any:
        return self.after if self.is_after else self.before

    def saw(self, size: Size, seconds: float) -> None:
        """A task of the function ended, that ran with the present setting from begin to end."""
        if self.verdict is not None:
            return
        is_after, seconds = self.is_after, max(seconds, 1e-9)
        if self._usual_left:
            self._usual_left -= 1
            self._known.setdefault(size, []).append(seconds)
            return
        usual_s = self._usual_s(size)
        self._ratios[is_after].add(seconds / usual_s)
        self._times[is_after].append(seconds)
        self._in_quad.setdefault(size, ([], []))[is_after].append(math.log(seconds))
        if not is_after:
            self._known.setdefault(size, []).append(seconds)
        else:
            self._cost_s += seconds - usual_s
            if self._costs_too_much():
                self._end("undone", "it has cost too much")
                return
        self._count += 1
        if self._count >= self.rules.block_tasks:
            self._next_block()

    def _usual_s(self, size: Size) -> float:
        """With the old setting; of all sizes, where none of this was seen yet."""
        if size in self._known:
            return median(self._known[size][-64:])
        return median([seconds for times in self._known.values() for seconds in times[-64:]])

    def _costs_too_much(self, running_s: float = 0.0, longest_s: float = 1.0) -> bool:
        """Whether the new setting has cost more than it may.

        `running_s` is what a task has taken that has not ended, nor is it known how large it is: at most `longest_s`
        would be usual.
        """
        before, after = self._ratios
        usual = before.total / before.count if before.count else 1.0
        variance = max(0.0, before.squares / before.count - usual**2) if before.count else 0.0
        cost = after.total - after.count * usual + max(0.0, running_s / longest_s - usual)
        cost_s = self._cost_s + max(0.0, running_s - longest_s)
        may_cost = max(self.rules.regret_tasks, 3.0 * math.sqrt(2 * after.count * variance))
        return cost > may_cost and cost_s > self.rules.regret_s

    def running(self, seconds: float) -> None:
        """A task of the function has been running for so long with the new setting: it may never end."""
        if self.is_after and self._costs_too_much(seconds, max(map(max, self._known.values()))):
            self._end("undone", "a task runs for too long with it")

    def passed(self, now_s: float) -> None:
        """Time goes by."""
        if self.verdict is None and now_s - self.began_s > self.rules.patience_s:
            self._end("undone", "too few tasks")

    def _next_block(self) -> None:
        self._block, self._count = self._block + 1, 0
        if self._block < len(self._arms):
            return
        if (difference := _difference(self._in_quad)) is None:
            self._empty_quads += 1
        else:
            self._quads.append(difference)
            self._look()
        if self.verdict is None:
            if self._empty_quads > len(self._quads) + 4:
                self._end("undone", "no two tasks are of the same size")
            self._new_quad()

    def _look(self) -> None:
        rules, quads = self.rules, self._quads
        gain = _gain(quads)
        least = math.log1p(-rules.minimal_gain)
        if gain < -rules.minimal_gain and chance_at_most([-d for d in quads]) <= 0.05:
            self._end("undone", "it costs time")
        elif len(quads) in rules.looks:
            if gain >= rules.minimal_gain and chance_at_most(quads) <= (1 - rules.confidence) / len(rules.looks):
                self._end("kept", "it saves time")
            elif chance_at_most([least - d for d in quads]) <= 1 - rules.futile_confidence:
                self._end("undone", f"it saves less than {rules.minimal_gain:.0%}")
            elif len(quads) >= rules.looks[-1]:
                self._end("undone", "what it saves is lost in the noise")

    def _end(self, ending: Ending, reason: str) -> None:
        before, after = self._times
        self.verdict = Verdict(
            ending,
            reason,
            _gain(self._quads) if self._quads else 0.0,
            1.0 - chance_at_most(self._quads) if self._quads else 0.0,
            median(before) if before else 0.0,
            median(after) if after else 0.0,
            len(before) + len(after),
        )


class _Sums:
    __slots__ = ("count", "squares", "total")

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value


def _difference(quad: Mapping[Size, tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Log of the ratio of times after and before, of tasks of the same size; None where no size has both."""
    total = weights = 0.0
    for before, after in quad.values():
        if before and after:
            weight = len(before) * len(after) / (len(before) + len(after))
            total += weight * (median(after) - median(before))
            weights += weight
    return total / weights if weights else None


def _gain(differences: Sequence[float]) -> float:
    means = [(a + b) / 2 for i, a in enumerate(differences) for b in differences[i:]]
    return -math.expm1(median(means))


def chance_at_most(differences: Sequence[float]) -> float:
    """Chance of differences as negative as these, if each could as well have the other sign (signed-rank test).

    >>> chance_at_most([-0.1, -0.2, -0.3])
    0.125
    """
    ranked = sorted((d for d in differences if d), key=abs)
    rank_sum, at = 0, 0
    while at < len(ranked):  # equal ones get the highest of their ranks: no other order of them gives a larger sum
        end = at
        while end + 1 < len(ranked) and abs(ranked[end + 1]) == abs(ranked[at]):
            end += 1
        rank_sum += (end + 1) * sum(d > 0 for d in ranked[at : end + 1])
        at = end + 1
    table = _cumulative(len(ranked))
    return table[min(rank_sum, len(table) - 1)]


@functools.lru_cache(maxsize=64)
def _cumulative(n: int) -> tuple[float, ...]:
    """Chance that the ranks 1 … n with a positive sign sum up to at most s, for each s."""
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    found, total = [], 0
    for count in ways:
        total += count
        found.append(total / 2**n)
    return tuple(found)


@dataclass(frozen=True)
class Trial:
    """What was found out about one change."""

    before: Any
    after: Any
    verdict: Verdict
    at_s: float
    """POSIX time."""


class Book:
    """What was tried on which CPU model, for which function, and what came of it."""

    MOST = 500

    def __init__(self, cpu: str, rules: Rules) -> None:
        self.cpu = cpu
        self.rules = rules
        self._trials: dict[tuple[str, str, str], dict[str, Trial]] = {}

    def note(self, experiment: Experiment, now_s: float) -> None:
        assert experiment.verdict is not None
        trial = Trial(experiment.before, experiment.after, experiment.verdict, now_s)
        self._add(self.cpu, experiment.function, experiment.knob, trial)

    def _add(self, cpu: str, function: str, knob: str, trial: Trial) -> None:
        entry = cpu, function, knob
        trials = self._trials.pop(entry, {})
        trials.pop(repr((trial.before, trial.after)), None)
        self._trials[entry] = {**trials, repr((trial.before, trial.after)): trial}
        while sum(map(len, self._trials.values())) > self.MOST:
            oldest = next(iter(self._trials))
            del self._trials[oldest]

    def trials(self, function: str, knob: str) -> list[Trial]:
        """Those on this CPU, the newest last."""
        return list(self._trials.get((self.cpu, function, knob), {}).values())

    def best(self, function: str, knob: str, default: Any) -> Any:
        """The value that won last, or else the one that there was before."""
        won = [trial for trial in self.trials(function, knob) if trial.verdict.ending == "kept"]
        return won[-1].after if won else default

    def may_try(self, function: str, knob: str, before: Any, after: Any, typical_s: float, now_s: float) -> bool:
        """Whether it is new, or lost so long ago, or with tasks so different, that it is worth another try."""
        for trial in self.trials(function, knob):
            if {repr(trial.before), repr(trial.after)} == {repr(before), repr(after)}:
                usual_s = trial.verdict.before_s if trial.before == before else trial.verdict.after_s
                ratio = typical_s / usual_s if usual_s else 1.0
                drifted = not 1 / self.rules.drift_ratio <= ratio <= self.rules.drift_ratio
                if now_s - trial.at_s < self.rules.rest_s and not drifted:
                    return False
        return True

    def forget(self, function: str, knob: str) -> None:
        self._trials.pop((self.cpu, function, knob), None)

    def rows(self) -> list[dict[str, Any]]:
        """All of it, as data."""
        return [
            {"cpu": cpu, "function": function, "knob": knob, **_row(trial)}
            for (cpu, function, knob), trials in self._trials.items()
            for trial in trials.values()
        ]

    def take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `rows` gave; raises `KeyError` or `TypeError` if it isn't that."""
        for row in rows:
            fields = {name: row[name] for name in _VERDICT}
            trial = Trial(row["before"], row["after"], Verdict(**fields), float(row["at_s"]))
            self._add(str(row["cpu"]), str(row["function"]), str(row["knob"]), trial)


_VERDICT = tuple(Verdict.__dataclass_fields__)


def _row(trial: Trial) -> dict[str, Any]:
    verdict = {name: getattr(trial.verdict, name) for name in _VERDICT}
    return {"before": trial.before, "after": trial.after, "at_s": trial.at_s, **verdict}


def next_values(values: Sequence[Any], best: Any, may: Callable[[Any], bool]) -> Any:
    """Return the neighbour of the best value that may be tried, the higher one first; None if none may."""
    if best not in values:
        return None
    at = values.index(best)
    near = [values[i] for i in (at + 1, at - 1) if 0 <= i < len(values)]
    return next((value for value in near if may(value)), None)
