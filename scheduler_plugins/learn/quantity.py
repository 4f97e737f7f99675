"""One quantity of one function: the models that compete for it, what they got wrong, and when to start over."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import ceil, copysign, inf, sqrt
from typing import TYPE_CHECKING, Any

from scheduler_plugins.learn.models import DOUBTED, Model, Vector, finite, natural

if TYPE_CHECKING:
    from river.drift import ADWIN

MATURE = 32
"""Tasks after which the models that do not lead are taught only now and then."""
EXPLORE_RATIO = 0.125
"""Share of the tasks of a mature function that teach and judge all models."""
PRIOR_ERROR = 1.0
"""Of a prediction that rests on nothing but a prior: a factor of e."""

FARTHEST = 3.0
"""Most that a prediction is beyond what was seen, in log: a factor of 20."""
_RING = 128  # the smallest with a residual of its own above p99
_FORGET = (16, 48)
"""Tasks after which the older half of the residuals goes: what a model got wrong before it was taught."""
_SCALE = 1.4826  # of a normal distribution: standard deviation over median absolute deviation
_LEVELS = ((0.9, 1.2816), (0.99, 2.3263))


class Residuals:
    """The last 128 residuals, and the quantiles of the next one.

    Conformal: the next residual is as likely to be in any place among those before, so its p90 is the one at place
    ceil(0.9 (n + 1)) (Vovk, Gammerman, Shafer: "Algorithmic learning in a random world", 2005). Where too few are
    there for that, a normal distribution with the spread that was seen so far.
    """

    __slots__ = ("_at", "_ring", "_seen", "error", "noise", "p50", "p90", "p99")

    def __init__(self) -> None:
        self._ring = array("d")
        self._at = self._seen = 0
        self.p50, self.p90, self.p99 = 0.0, _LEVELS[0][1] * PRIOR_ERROR, _LEVELS[1][1] * PRIOR_ERROR
        self.error = PRIOR_ERROR
        """Half the interquartile range: the median of |residual - p50|, if they spread as far up as down."""
        self.noise = PRIOR_ERROR
        """A standard deviation that outliers do not move, or what the tail makes of it: a function that now and then
        takes very long says little about a worker when it does."""

    def add(self, residual: float) -> None:
        ring = self._ring
        self._seen = seen = self._seen + 1
        if len(ring) < _RING:
            ring.append(residual)
            if seen in _FORGET:
                del ring[: len(ring) // 2]
        else:
            ring[self._at] = residual
            self._at = (self._at + 1) % _RING
        if seen <= 8 or not seen % (4 if seen < 32 else 16 if seen < _RING else 32):
            self._refresh()

    def _refresh(self) -> None:
        order = sorted(self._ring)
        n = len(order)
        if n > 4:
            self.p50 = p50 = order[n // 2]
            self.error = (order[3 * n // 4] - order[n // 4]) / 2.0
        else:
            self.p50 = p50 = 0.0
            self.error = max(-order[0], order[-1])
        # The prior counts for a task: a spread of nothing after one or two is no knowledge.
        scale = (_SCALE * self.error * n + PRIOR_ERROR) / (n + 1.0)
        p90, p99 = (
            order[place - 1] if (place := ceil(level * (n + 1))) <= n else max(order[-1], p50 + z * scale)
            for level, z in _LEVELS
        )
        self.p90, self.p99 = p90, p99
        self.noise = max(scale, (p99 - p50) / _LEVELS[1][1])

    def to_state(self) -> Any:
        return [round(residual, 4) for residual in (*self._ring[self._at :], *self._ring[: self._at])]

    def restore(self, state: Any) -> None:
        self._ring, self._at = array("d", map(finite, state[-_RING:])), 0
        self._seen = len(self._ring)
        if self._ring:
            self._refresh()


class Quantity:
    """Predicts the logarithm of one quantity of one function, by the model that has lately erred least.

    Which one that is, is an epsilon-greedy bandit's choice (Sutton, Barto: "Reinforcement learning", 2018, 2.2): every
    task teaches the leader, while all models are taught and judged by the first tasks and by an eighth of those after.

    Parameters
    ----------
    detector
        Makes what notices drift; None: there is nothing yet that does.
    """

    __slots__ = (
        "_ceiling",
        "_detector",
        "_drift",
        "_errors",
        "_floor",
        "_judged",
        "_leader",
        "_models",
        "age",
        "residuals",
        "samples",
    )

    def __init__(self, models: Sequence[Model], detector: Callable[[], ADWIN | None] = lambda: None) -> None:
        self._detector = detector
        self._models = tuple(models)
        self._errors = [PRIOR_ERROR] * len(models)
        self._judged = 0
        self._leader = 0
        self._drift: ADWIN | None = None
        self._floor, self._ceiling = -inf, inf
        """Of what is predicted, once a value was learned in this run."""
        self.residuals = Residuals()
        self.samples = 0
        """Tasks since the last drift, those of former runs too."""
        self.age = 0
        """Those of this run."""

    @property
    def source(self) -> str:
        """The name of the model that leads."""
        return self._models[self._leader].name

    @property
    def errors(self) -> dict[str, float]:
        """Model → its exponentially weighted mean absolute error."""
        return {model.name: error for model, error in zip(self._models, self._errors, strict=True)}

    def predict(self, x: Vector) -> float:
        value = self._models[self._leader].predict(x)
        # A line through a few points says anything about what lies far from them.
        if value > self._ceiling:
            return self._ceiling
        if value < self._floor:
            return self._floor
        return value

    def learn(self, x: Vector, y: float, expected: float, every: bool) -> bool:
        """Learn a value, and teach every model or the one that leads, which has `expected`; whether there was a drift.

        The value may lack what is its worker's doing, the expectation is for an average one.
        """
        self.samples += 1
        self.age += 1
        if self.age == 1 or not self._floor <= y - FARTHEST <= y + FARTHEST <= self._ceiling:
            self._widen(y)
        if self.samples == 1:
            for model in self._models:
                model.learn(x, y)
            return False
        if every:
            self._teach(x, y)
        else:
            self._models[self._leader].learn(x, y)
        residual = y - expected
        self.residuals.add(residual)
        if self.age < MATURE:
            return False
        drift = self._drift
        if drift is None:
            drift = self._drift = self._detector()
            if drift is None:
                return False
        drift.update(residual if -3.0 < residual < 3.0 else copysign(3.0, residual))
        if drift.drift_detected:
            self._start_over()
            return True
        return False

    def _widen(self, y: float) -> None:
        is_first = self.age == 1
        self._floor = y - FARTHEST if is_first else min(self._floor, y - FARTHEST)
        self._ceiling = y + FARTHEST if is_first else max(self._ceiling, y + FARTHEST)

    def _teach(self, x: Vector, y: float) -> None:
        """Judge and teach all models, and see which leads now."""
        errors, leader = self._errors, self._leader
        if self._judged < 20:
            self._judged += 1
        rate = 1.0 / self._judged
        stay = 1.0 - 0.5 / sqrt(self._judged)
        least = inf
        for i, model in enumerate(self._models):
            error = errors[i]
            errors[i] = error = error + rate * (abs(y - model.predict(x)) - error)
            handicap = model.handicap
            error += handicap * (1.0 + error)
            if i == leader:
                error *= stay  # who leads stays, unless another is better by more than chance
            if error < least:
                least, self._leader = error, i
            model.learn(x, y)

    def _start_over(self) -> None:
        for model in self._models:
            model.doubt()
        self.residuals = Residuals()
        self._drift = None
        self._judged = DOUBTED
        self.samples = self.age = DOUBTED

    def to_state(self) -> Any:
        return {
            "samples": self.samples,
            "models": {model.name: model.to_state() for model in self._models},
            "errors": self.errors,
            "residuals": self.residuals.to_state(),
        }

    def restore(self, state: Any) -> None:
        """Take over what `to_state` gave; a model that it lacks starts anew. Errors as of `Model.restore`."""
        for i, model in enumerate(self._models):
            if model.name in state["models"]:
                model.restore(state["models"][model.name])
                self._errors[i] = finite(state["errors"][model.name])
        self._leader = min(range(len(self._models)), key=self._errors.__getitem__)
        self.residuals.restore(state["residuals"])
        self.samples = natural(state["samples"])
        self._judged = min(self.samples, DOUBTED)
