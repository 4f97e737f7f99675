"""Strategies that evolve: what does well on recorded work has offspring, and the best survive.  PURE

A (μ+λ) evolution strategy with one self-adapting step size per member (Beyer, Schwefel: "Evolution strategies: a
comprehensive introduction", Natural Computing 1(1), 2002). Numbers are varied by ratios, within `BOUNDS`. What a
strategy is worth is told by paired ratios: each of its makespans over that of the default on the same work with the
same seed (common random numbers), so that luck which both had cancels out. The default is member zero of each
generation and never dies: nothing that survives beside it can be a step back that nobody noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log, sqrt
from statistics import median
from typing import NamedTuple, Protocol

from scheduler_plugins.decide.strategy import BOUNDS, DEFAULT, Bounds, Strategy

FIRST_STEP = 0.2
"""Standard deviation of the log of a number, over the log of the ratio of its bounds."""
LEAST_STEP, MOST_STEP = 0.02, 1.0
LEARNING_RATE = 1.0 / sqrt(len(BOUNDS))
"""Of the step: τ ∝ 1/√n (Beyer, Schwefel, section 4.3)."""
IMMIGRANTS = 0.25
"""Share of the offspring that descends from the default alone, so that a population can't lose its way for good."""

LEAST_GAIN = 0.01
"""Share of the makespan that must be gained for a strategy to be worth its keep."""
MOST_LOSS = 0.01
"""Share of the makespan that may be lost on work that a strategy was not made for."""
CERTAINTY = 1.645
"""Standard errors within which a difference counts as noise: 5 % on one side of a normal distribution."""
OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
OF_MEDIAN = 1.2533
"""Standard error of the median over that of the mean, of normal draws: √(π/2)."""


class Draws(Protocol):
    """What is needed of `random.Random`."""

    def random(self) -> float: ...

    def gauss(self, mu: float, sigma: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A strategy, and how far from it its offspring is looked for."""

    strategy: Strategy = DEFAULT
    step: float = FIRST_STEP


ZERO = Member()
"""The default."""


class Worth(NamedTuple):
    """Makespans over those of the default on the same work and seed. Infinite where one did not end."""

    ratio: float
    """The median."""
    worst: float
    error: float
    """Standard error of the log of the median, from the median absolute deviation: one lucky run says little."""
    runs: int

    @property
    def at_most(self) -> float:
        """What the ratio surely is at most, but for noise: selection goes by this."""
        return self.ratio * exp(CERTAINTY * self.error) if isfinite(self.ratio) else inf

    @property
    def is_better(self) -> bool:
        """Whether it beats the default by more than the noise, and by enough to be worth it."""
        return self.ratio <= 1.0 - LEAST_GAIN and self.at_most < 1.0

    @property
    def is_harmless(self) -> bool:
        return self.ratio <= 1.0 + MOST_LOSS


def worth(times_s: Sequence[float], default_s: Sequence[float]) -> Worth:
    """What makespans are worth, beside those of the default on the same work with the same seeds.

    Raises
    ------
    ValueError
        There are none, not as many of both, or one of the default's makes no sense.

    >>> worth([9.0, 18.0, 9.5], [10.0, 20.0, 10.0])[:2]
    (0.9, 0.95)
    """
    if not times_s or len(times_s) != len(default_s):
        raise ValueError(f"{len(times_s)} makespans and {len(default_s)} of the default are no pairs")
    if not all(0.0 < each < inf for each in default_s):
        raise ValueError("a makespan of the default is not a number above 0")
    ratios = [mine / theirs for mine, theirs in zip(times_s, default_s, strict=True)]
    if not all(isfinite(each) and each > 0.0 for each in ratios):
        return Worth(inf, inf, inf, len(ratios))
    logs = [log(each) for each in ratios]
    middle = median(logs)
    deviation = OF_NORMAL * median(abs(each - middle) for each in logs)
    return Worth(median(ratios), max(ratios), OF_MEDIAN * deviation / sqrt(len(logs)), len(logs))


# -- offspring -------------------------------------------------------------------------------------------------------


def mutated(member: Member, rng: Draws) -> Member:
    """A member with other numbers: first the step changes, then the numbers by it, so that a good step is inherited.

    About half of the numbers change: a change that matters is not to drown in those that do not.
    """
    step = member.step * exp(LEARNING_RATE * rng.gauss(0.0, 1.0))
    step = min(max(step, LEAST_STEP), MOST_STEP)
    told = member.strategy.as_dict()
    sure = min(int(rng.random() * len(BOUNDS)), len(BOUNDS) - 1)
    for number, (name, bounds) in enumerate(BOUNDS.items()):
        if number == sure or rng.random() < 0.5:
            told[name] = _varied(told[name], step * rng.gauss(0.0, 1.0), bounds)
    return Member(Strategy.from_dict(told), step)


def crossed(one: Member, other: Member, rng: Draws) -> Member:
    """Each number of one or the other; the step is between theirs (Beyer, Schwefel, section 4.1)."""
    mine, theirs = one.strategy.as_dict(), other.strategy.as_dict()
    told = {name: mine[name] if rng.random() < 0.5 else theirs[name] for name in mine}
    return Member(Strategy.from_dict(told), sqrt(one.step * other.step))


def offspring(parents: Sequence[Member], count: int, rng: Draws) -> list[Member]:
    """So many children of these parents, all different from them and from each other."""
    parents = [ZERO, *(each for each in parents if each.strategy != DEFAULT)]
    known = {each.strategy for each in parents}
    children: list[Member] = []
    while len(children) < count:
        one, other = _drawn(parents, rng), _drawn(parents, rng)
        child = mutated(ZERO if rng.random() < IMMIGRANTS else crossed(one, other, rng), rng)
        if child.strategy not in known:
            known.add(child.strategy)
            children.append(child)
    return children


def survivors(members: Iterable[Member], worths: Mapping[Strategy, Worth], most: int) -> list[Member]:
    """The default, and the best of the others that may be better than it; those nobody has tried do not count."""
    others = {each.strategy: each for each in members if each.strategy != DEFAULT and each.strategy in worths}
    ranked = sorted(others, key=lambda strategy: (worths[strategy].at_most, worths[strategy].ratio))
    return [ZERO, *(others[strategy] for strategy in ranked if worths[strategy].ratio < 1.0)][: max(most, 1)]


def _drawn(members: Sequence[Member], rng: Draws) -> Member:
    return members[min(int(rng.random() * len(members)), len(members) - 1)]


def _varied(value: float, steps: float, bounds: Bounds) -> float:
    """Moved along the log of the range, and reflected where it ends: to cut it off would gather all at the ends."""
    span = log(bounds.most / bounds.least)
    at = (log(value / bounds.least) / span + steps) % 2.0
    value = bounds.least * exp(span * (2.0 - at if at > 1.0 else at))
    return min(max(float(f"{value:.3g}"), bounds.least), bounds.most)


def difference(strategy: Strategy) -> dict[str, float]:
    """The numbers in which it differs from the default."""
    usual = DEFAULT.as_dict()
    return {name: value for name, value in strategy.as_dict().items() if value != usual[name]}
