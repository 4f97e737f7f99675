"""The models that compete for each function. All see and say logarithms.  PURE

A model is given a vector of terms: logarithms of numbers and sizes of arguments, then those of input bytes, input count
and concurrency. The value that it learns is the logarithm of seconds or bytes. In log space a power law is a line and
noise is additive; on raw values online learning is useless.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from functools import cache
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
_LEVEL, _SLOPE, _SQUARE = 0.01, 0.1, 10.0
"""Precision of a linear model's priors around "as the first task, whatever the terms", as parts of a task's: exponents
are within ±3, bends slight."""


@cache
def _priors(terms: int) -> NDArray[np.float64]:
    """Of a value, 1, and each term and its square."""
    return np.diag([0.0, _LEVEL, *[_SLOPE] * terms, *[_SQUARE] * terms])


class Linear:
    """Bayesian linear regression on the terms and their squares; a fixed cost beside a power law is nearly that.

    Every task is kept until half as many wait as are known, or 128; then they join the sufficient statistics, and the
    weights are solved for (Bishop, "Pattern recognition and machine learning", 2006, 3.3): with the next task, but for
    the first few, so that none waits for both. So most tasks cost next to nothing, and a young function learns from
    every other. Recursive least squares is the same at three times the price.

    All is relative to the first task, so a term that never varied has weight 0 and is not looked at. Beyond what was
    seen of it, a term counts as at that end: a running number that goes on elsewhere would else say anything. Only the
    term that explains most is followed further, along the line of its own.
    """

    __slots__ = (
        "_count",
        "_first",
        "_gram",
        "_is_due",
        "_least",
        "_level",
        "_most",
        "_rows",
        "_slopes",
        "_telling",
        "_waiting",
        "_weights",
    )
    name = "linear"
    handicap = 0.0
    _FIRST_FIT, _FEW, _MOST_WAITING = 3, 8, 128
    _STEEPEST = 3.0
    """Exponent of the term that is followed beyond what was seen."""
    _RIDGE = 0.03
    """Share of its own variance by which a weight is drawn to 0, but those of the term that explains most."""

    def __init__(self) -> None:
        self._count = self._waiting = 0
        self._is_due = False
        """Whether tasks have joined since the weights were solved for."""
        self._rows = array("d")
        """Of the tasks that wait: value, 1, terms."""
        self._first = self._least = self._most = _NOTHING
        """Rows too; the value and the 1 of the first are left out."""
        self._gram: NDArray[np.float64] = np.zeros((1, 1))
        """Sums of the products of each two of a task's value, 1, ways from the first one's terms, and their squares;
        the priors among them."""
        self._weights = _NOTHING
        self._level = 0.0
        self._slopes: list[tuple[int, float, float, float, float, float, float, float]] = []
        """Of the terms that count: place, first value, slope, bend, what was seen of it (least, most), and the slopes
        below and above that."""
        self._telling = (0, 0.0, 0.0)
        """The term that explains most, and the slopes below and above what was seen of it."""

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
        self._rows.extend((y, 1.0, *x))
        self._waiting = waiting = self._waiting + 1
        count = self._count
        if not count and waiting < self._FIRST_FIT:
            self._level += (y - self._level) / waiting
        elif waiting * 2 > count or waiting >= self._MOST_WAITING:
            self._join()
            if self._count <= self._FEW:
                self._solve()
        elif self._is_due:
            self._solve()

    def _join(self) -> None:
        rows = np.frombuffer(self._rows).reshape(self._waiting, -1)
        if not self._count:
            self._start(rows[0])
        width = len(self._first)
        design = np.empty((len(rows), 2 * width - 2))
        np.subtract(rows, self._first, out=design[:, :width])
        np.square(design[:, 2:width], out=design[:, width:])
        self._gram += design.T @ design
        self._least = np.minimum(self._least, np.minimum.reduce(rows))
        self._most = np.maximum(self._most, np.maximum.reduce(rows))
        self._count += self._waiting
        self._rows, self._waiting = array("d"), 0
        self._is_due = True

    def _start(self, row: NDArray[np.float64]) -> None:
        n = len(row) - 2
        self._least = self._most = row
        self._first = row.copy()
        self._first[:2] = 0.0
        self._gram = _priors(n).copy()
        self._gram[0, 1] = self._gram[1, 0] = _LEVEL * row[0]
        self._weights = np.zeros(2 * n + 1)

    def _solve(self) -> None:
        """The weights, with the term that explains most preferred.

        Terms that go together with it would else share in what is its doing: a running number, where tasks are sorted.
        """
        self._is_due = False
        precision = self._gram[1:, 1:].copy("F")
        precision.flat[:: len(precision) + 1] = self._see_what_tells()
        _, weights, failed = dposv(precision, self._gram[0, 1:], overwrite_a=True)  # numpy takes four times as long
        if not failed:
            self._weights = weights
        self._publish()

    def _see_what_tells(self) -> list[float]:
        """Find the term that explains most, and how values go with it alone at both ends of what was seen of it.

        In plain numbers: with so few of them, numpy takes longer.

        Returns
        -------
        list
            The precisions of the weights, raised by the ridge.
        """
        gram, n = self._gram, len(self._first) - 2
        values, sums = gram[:2].tolist()
        squares = gram.diagonal().tolist()
        count, mean = sums[1], values[1] / sums[1]
        spreads = [square - each * each / count for square, each in zip(squares, sums, strict=True)]
        told = [
            (values[i] - sums[i] * mean) ** 2 / spreads[i] if spreads[i] > _SLOPE else 0.0  # nothing but the prior
            for i in range(2, n + 2)
        ]
        telling = told.index(max(told))
        i, j = telling + 2, telling + 2 + n
        both = float(gram[i, j]) - sums[i] * sums[j] / count
        with_i, with_j = values[i] - sums[i] * mean, values[j] - sums[j] * mean
        below = above = 0.0
        if (apart := spreads[i] * spreads[j] - both * both) > 0.0:
            slope, bend = (with_i * spreads[j] - with_j * both) / apart, (with_j * spreads[i] - with_i * both) / apart
            first, most = float(self._first[i]), self._STEEPEST
            below, above = (
                min(max(slope + 2.0 * bend * (float(end) - first), -most), most)
                for end in (self._least[i], self._most[i])
            )
        self._telling = (telling, below, above)
        spreads[i] = spreads[j] = 0.0
        return [square + self._RIDGE * spread for square, spread in zip(squares[1:], spreads[1:], strict=True)]

    def _publish(self) -> None:
        level, *rest = self._weights.tolist()
        n = len(rest) // 2
        first, least, most = self._first.tolist(), self._least.tolist(), self._most.tolist()
        telling, below, above = self._telling
        self._level = level
        self._slopes = [
            (i, first[i + 2], slope, bend, least[i + 2], most[i + 2], *((below, above) if i == telling else (0.0, 0.0)))
            for i, (slope, bend) in enumerate(zip(rest[:n], rest[n:], strict=True))
            if slope or bend
        ]

    def doubt(self) -> None:
        if self._count > DOUBTED:
            self._rows, self._waiting = array("d"), 0
            self._gram *= DOUBTED / self._count
            self._count = DOUBTED

    def to_state(self) -> Any:
        if self._waiting:
            self._join()
        if self._is_due:
            self._solve()
        arrays = (self._first[2:], self._weights, self._gram.diagonal()[1:], self._least[2:], self._most[2:])
        return [self._count, *(each.tolist() for each in arrays), list(self._telling)]

    def restore(self, state: Any) -> None:
        """How the weights depend on one another is not in the state: it is a guess to begin with."""
        count, first, weights, precision, least, most, (telling, below, above) = state
        known = natural(count)
        self._first, self._least, self._most = (
            np.array([0.0, 0.0, *map(finite, terms)]) for terms in (first, least, most)
        )
        self._weights = np.array([finite(weight) for weight in weights])
        diagonal = np.array([finite(entry) for entry in precision])
        self._telling = (natural(telling), finite(below), finite(above))
        size = 2 * len(first) + 1 if known else 0
        if (
            self._weights.shape != (size,)
            or diagonal.shape != (size,)
            or not self._first.shape == self._least.shape == self._most.shape
            or (diagonal <= 0.0).any()
        ):
            raise ValueError("the parts of a linear model do not fit each other")
        self._count = known
        self._rows, self._waiting, self._is_due = array("d"), 0, False
        self._gram = np.diag([0.0, *diagonal])
        self._gram[0, 1:] = self._gram[1:, 0] = diagonal * self._weights
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
