"""The models that compete for each function. All see and say logarithms.  PURE

A model is given a vector of terms: logarithms of numbers and sizes of arguments, then those of input bytes, input count
and concurrency. The value that it learns is the logarithm of seconds or bytes. In log space a power law is a line and
noise is additive; on raw values online learning is useless.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv  # type: ignore[import-untyped] # river brings it

Vector = Sequence[float]

CONTEXT = 3
"""Terms at the end of a vector that are not arguments: input bytes, input count, concurrency."""
DOUBTED = 4
"""Tasks that all past experience counts for when it has become doubtful."""


class Model(Protocol):
    """One way to predict. `learn` is called with a vector that `predict` has just seen."""

    name: str
    handicap: float
    """What is added to its error, and to 1 to multiply it, before it is compared with others'."""

    def predict(self, x: Vector) -> float: ...

    def learn(self, x: Vector, y: float) -> None: ...

    def doubt(self) -> None:
        """The world has changed: keep what is known as a guess that a few tasks can overrule."""
        ...

    def to_state(self) -> Any: ...

    def restore(self, state: Any) -> None:
        """Take over what `to_state` gave, as a guess that a few tasks can overrule.

        Raises
        ------
        ValueError, TypeError, LookupError
            It is not that.
        """
        ...


class Average:
    """The mean of the logarithms, exponentially weighted once 50 tasks are in it."""

    __slots__ = ("_count", "_mean")
    name = "average"
    handicap = 0.0
    _MEMORY = 50

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0

    def predict(self, x: Vector) -> float:
        return self._mean

    def learn(self, x: Vector, y: float) -> None:
        count = self._count
        if count < self._MEMORY:
            self._count = count = count + 1
        self._mean += (y - self._mean) / count

    def doubt(self) -> None:
        self._count = min(self._count, DOUBTED)

    def to_state(self) -> Any:
        return [self._count, self._mean]

    def restore(self, state: Any) -> None:
        count, mean = state
        self._count, self._mean = min(natural(count), DOUBTED), finite(mean)


class Recent(Average):
    """The mean of the last three or so, much as Dask's own: right where tasks resemble those just before them.

    It says the same of all tasks to come, the next and the last. So where tasks are sorted by what they take, it is
    wrong of those for which a plan is made, and yet its error is the least of all: that of the next.
    """

    __slots__ = ()
    name = "recent"
    handicap = 0.1
    _MEMORY = 3


class Table:
    """One mean for all tasks with nearly the same arguments (28 % apart or less), the overall mean for new ones.

    Knows what no formula knows: that `solve(3)` is slow and `solve(4)` is not.
    """

    __slots__ = ("_average", "_cell", "_cells", "_x")
    name = "table"
    handicap = 0.0
    _CELLS = 256
    _MEMORY = 32

    def __init__(self) -> None:
        self._average = Average()
        self._cells: dict[tuple[int, ...], list[float]] = {}
        self._x: Vector | None = None
        self._cell: tuple[int, ...] = ()

    def predict(self, x: Vector) -> float:
        self._x = x
        self._cell = cell = tuple([int(4.0 * term) for term in x[:-CONTEXT]])
        known = self._cells.get(cell)
        return self._average._mean if known is None else known[1]

    def learn(self, x: Vector, y: float) -> None:
        if x is not self._x:
            self.predict(x)
        self._average.learn(x, y)
        known = self._cells.get(self._cell)
        if known is None:
            if len(self._cells) >= self._CELLS:
                del self._cells[next(iter(self._cells))]
            self._cells[self._cell] = [1, y]
            return
        if known[0] < self._MEMORY:
            known[0] += 1
        known[1] += (y - known[1]) / known[0]

    def doubt(self) -> None:
        self._average.doubt()
        for known in self._cells.values():
            known[0] = min(known[0], DOUBTED)

    def to_state(self) -> Any:
        return [self._average.to_state(), [[list(cell), *known] for cell, known in self._cells.items()]]

    def restore(self, state: Any) -> None:
        average, cells = state
        self._average.restore(average)
        self._cells = {
            tuple(int(step) for step in cell): [min(max(natural(count), 1), DOUBTED), finite(mean)]
            for cell, count, mean in cells[: self._CELLS]
        }


_NOTHING: NDArray[np.float64] = np.zeros(0)


class Linear:
    """Bayesian linear regression on the terms and their squares; a fixed cost beside a power law is nearly that.

    Every task is kept until half as many wait as are known, or 128; then they join the sufficient statistics, and the
    weights are solved for (Bishop, "Pattern recognition and machine learning", 2006, 3.3). So most tasks cost next to
    nothing, and a young function learns from every other. Recursive least squares is the same at three times the price.

    All is relative to the first task, so a term that never varied has weight 0 and is not looked at. Beyond what was
    seen of it, a term counts as at that end: a running number that goes on elsewhere would else say anything. Only the
    term that explains most is followed further, along the line of its own.
    """

    __slots__ = (
        "_count",
        "_first",
        "_least",
        "_level",
        "_moment",
        "_most",
        "_precision",
        "_ridge",
        "_rows",
        "_slopes",
        "_telling",
        "_told_at",
        "_values",
        "_weights",
    )
    name = "linear"
    handicap = 0.0
    _FIRST_FIT, _MOST_WAITING = 3, 128
    _LEVEL, _SLOPE, _SQUARE = 0.01, 0.1, 10.0
    """Precision of the priors around "as the first task, whatever the terms", as parts of a task's: exponents are
    within ±3, bends slight."""
    _STEEPEST = 3.0
    """Exponent of the term that is followed beyond what was seen."""
    _RIDGE = 0.03
    """Share of its own variance by which a weight is drawn to 0, but those of the term that explains most."""
    _TOLD_AGAIN = 1.4
    """Times as many tasks until that is asked again which term it is."""

    def __init__(self) -> None:
        self._count = 0
        self._first = self._precision = self._moment = self._weights = self._least = self._most = self._ridge = _NOTHING
        self._rows, self._values = array("d"), array("d")
        self._level = 0.0
        self._slopes: list[tuple[int, float, float, float, float, float, float, float]] = []
        """Of the terms that count: place, first value, slope, bend, what was seen of it (least, most), and the slopes
        below and above that."""
        self._telling = (0, 0.0, 0.0)
        """The term that explains most, and the slopes below and above what was seen of it."""
        self._told_at = 0

    def predict(self, x: Vector) -> float:
        level = self._level
        for i, first, slope, bend, least, most, below, above in self._slopes:
            term = x[i]
            if term > most:
                level += (term - most) * above
                term = most
            elif term < least:
                level += (term - least) * below
                term = least
            way = term - first
            level += way * (slope + bend * way)
        return level

    def learn(self, x: Vector, y: float) -> None:
        self._rows.extend(x)
        values = self._values
        values.append(y)
        waiting = len(values)
        if self._count:
            if waiting * 2 > self._count or waiting >= self._MOST_WAITING:
                self._fit()
        elif waiting == self._FIRST_FIT:
            self._fit()
        else:
            self._level += (y - self._level) / waiting

    def _fit(self) -> None:
        values = np.frombuffer(self._values)
        rows = np.frombuffer(self._rows).reshape(len(values), -1)
        if not self._count:
            self._start(rows[0].copy(), values[0])
        n = len(self._first)
        design = np.ones((len(rows), 2 * n + 1))
        ways = np.subtract(rows, self._first, out=design[:, 1 : n + 1])
        np.multiply(ways, ways, out=design[:, n + 1 :])
        self._least = np.minimum(self._least, rows.min(axis=0))
        self._most = np.maximum(self._most, rows.max(axis=0))
        self._precision += design.T @ design
        self._moment += values @ design
        self._count += len(rows)
        self._rows, self._values = array("d"), array("d")
        self._solve()
        self._publish()

    def _start(self, first: NDArray[np.float64], level: float) -> None:
        n = len(first)
        self._first = self._least = self._most = first
        priors = np.repeat([self._LEVEL, self._SLOPE, self._SQUARE], [1, n, n])
        self._precision = np.diag(priors)
        self._moment = np.zeros(2 * n + 1)
        self._moment[0] = self._LEVEL * level
        self._weights = np.zeros(2 * n + 1)

    def _solve(self) -> None:
        """The weights, with the term that explains most preferred.

        Terms that go together with it would else share in what is its doing: a running number, where tasks are sorted.
        """
        if self._count >= self._told_at * self._TOLD_AGAIN:
            self._see_what_tells()
        precision = self._precision.copy()
        precision.flat[:: len(precision) + 1] += self._ridge * (self._count / self._told_at)
        _, weights, failed = dposv(precision, self._moment)  # a quarter of the time of numpy.linalg.solve
        if not failed:
            self._weights[:] = weights

    def _see_what_tells(self) -> None:
        """Find the term that explains most, and how values go with it alone at both ends of what was seen of it."""
        n = len(self._first)
        precision, moment = self._precision, self._moment
        count, sums = precision[0, 0], precision[0]
        spread = np.maximum(precision.diagonal() - sums * sums / count, 1e-12)
        told = (moment - sums * (moment[0] / count)) ** 2 / spread
        told[spread <= self._SLOPE] = 0.0  # nothing but the prior
        telling = int(told[1 : n + 1].argmax())
        alone = [0, telling + 1, n + telling + 1]
        self._told_at = self._count
        self._ridge = self._RIDGE * spread
        self._ridge[alone] = 0.0
        _, weights, failed = dposv(precision[np.ix_(alone, alone)], moment[alone])
        below = above = 0.0
        if not failed:
            _, slope, bend = weights.tolist()
            ends = (self._least[telling] - self._first[telling], self._most[telling] - self._first[telling])
            below, above = (min(max(slope + 2.0 * bend * float(end), -self._STEEPEST), self._STEEPEST) for end in ends)
        self._telling = (telling, below, above)

    def _publish(self) -> None:
        level, *rest = self._weights.tolist()
        n = len(self._first)
        self._level = level
        telling, below, above = self._telling
        columns = zip(self._first.tolist(), rest[:n], rest[n:], self._least.tolist(), self._most.tolist(), strict=True)
        self._slopes = [
            (i, *column, *((below, above) if i == telling else (0.0, 0.0)))
            for i, column in enumerate(columns)
            if column[1] or column[2]
        ]

    def doubt(self) -> None:
        if self._count > DOUBTED:
            self._rows, self._values = array("d"), array("d")
            keep = DOUBTED / self._count
            self._precision *= keep
            self._moment *= keep
            self._count = DOUBTED
            self._told_at = 0

    def to_state(self) -> Any:
        if self._values:
            self._fit()
        arrays = (self._first, self._weights, np.diag(self._precision), self._least, self._most)
        return [self._count, *(each.tolist() for each in arrays), list(self._telling)]

    def restore(self, state: Any) -> None:
        """How the weights depend on one another is not in the state: it is a guess to begin with."""
        count, first, weights, precision, least, most, (telling, below, above) = state
        known = natural(count)
        self._first = np.array([finite(term) for term in first])
        self._weights = np.array([finite(weight) for weight in weights])
        diagonal = np.array([finite(entry) for entry in precision])
        self._least = np.array([finite(term) for term in least])
        self._most = np.array([finite(term) for term in most])
        self._telling = (natural(telling), finite(below), finite(above))
        size = 2 * len(self._first) + 1 if known else 0
        if (
            self._weights.shape != (size,)
            or diagonal.shape != (size,)
            or not self._first.shape == self._least.shape == self._most.shape
            or (diagonal <= 0.0).any()
        ):
            raise ValueError("the parts of a linear model do not fit each other")
        self._count = known
        self._rows, self._values = array("d"), array("d")
        self._precision, self._moment = np.diag(diagonal), diagonal * self._weights
        self._told_at = 0
        if known:
            self._publish()
        self.doubt()


def finite(value: Any) -> float:
    """The number, or ValueError."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def natural(value: Any) -> int:
    """The whole number from 0, or ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return value
