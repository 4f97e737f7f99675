"""The cost model: what every function costs, on every worker, learned from every task that finishes.

Importing it takes a second (river): do it when the scheduler starts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import exp, isfinite, log, log1p
from random import Random
from typing import Any

from scheduler_plugins.learn.models import Average, Linear, Model, Recent, Table
from scheduler_plugins.learn.protocol import Observation, Prediction, SizePrediction, State, TaskFeatures
from scheduler_plugins.learn.quantity import EXPLORE_RATIO, MATURE, PRIOR_ERROR, Quantity
from scheduler_plugins.learn.speed import LEAST_NOISE, LOCAL_SPREAD, Pull, Speeds
from scheduler_plugins.learn.tree import Nursery, Tree

VERSION = 1
"""Of the snapshots."""
ZOO = ("average", "recent", "table", "linear", "tree")
SIZE_ZOO = ("average", "table", "linear")

SHORTEST_S, LONGEST_S = 1e-6, 1e9
"""Thirty years; durations beyond are a clock's doing, not a task's."""
LARGEST_BYTES = 1e18
_LOCAL_WORKERS = 64
_EAGER = 2
"""Tasks of a function that teach everything."""
_LOCAL_PRECISION = 1.0 / LOCAL_SPREAD**2
Key = tuple[str, tuple[str, ...]]


class _Function:
    """All that is known of a function called with one set of readable arguments."""

    __slots__ = ("duration", "local", "output", "peak")

    def __init__(self, duration: Quantity) -> None:
        self.duration = duration
        self.output: Quantity | None = None
        self.peak: Quantity | None = None
        self.local: dict[str, Pull] = {}


class Costs:
    """Implements `CostModel`. Not for several threads, but for `learn_pending`, which may run on one of its own.

    Parameters
    ----------
    rng
        Which tasks teach the models that do not lead. The same seed and the same tasks give the same predictions.
    functions
        Most functions that are remembered; those not seen for longest are forgotten.
    zoo
        Names of the models that compete for a duration.
    """

    def __init__(self, rng: Random, *, functions: int = 10_000, zoo: Sequence[str] = ZOO) -> None:
        self.speeds = Speeds()
        self.ignored = 0
        """Observations that were not finite, or negative."""
        self.drifts = 0
        """Times a function started over."""
        self._nursery = Nursery()
        self._make: dict[str, Callable[[], Model]] = {
            "average": Average,
            "recent": Recent,
            "table": Table,
            "linear": Linear,
            "tree": lambda: Tree(self._nursery),
        }
        self._zoo = tuple(zoo)
        self._functions: OrderedDict[Key, _Function] = OrderedDict()
        self._most = functions
        self._draw = rng.random

    def __len__(self) -> int:
        return len(self._functions)

    # -- what a task took ------------------------------------------------------------------------------------------

    def observe(self, features: TaskFeatures, observation: Observation) -> None:
        duration_s = observation.duration_s
        if not 0.0 <= duration_s <= LONGEST_S:  # nor is NaN
            self.ignored += 1
            return
        key = features[:2]
        function = self._functions.get(key)
        if function is None:
            function = self._new(key)
        else:
            self._functions.move_to_end(key)
        x = vector(features)
        y = log(max(duration_s, SHORTEST_S))
        duration = function.duration
        age, draw = duration.age, self._draw()
        every = age < MATURE or draw < EXPLORE_RATIO
        expected = duration.predict(x)
        if (worker := features.worker) and duration.samples:
            y -= self._learn_speed(function, worker, y - expected, every)
        if duration.learn(x, y, expected, every):
            self.drifts += 1
        # No task teaches everything, lest fits fall together: sizes take turns, among themselves and with durations.
        turn = age % 2 if age < MATURE else int(draw / EXPLORE_RATIO) - 1
        if turn == 0 or age < _EAGER:
            self._learn_output(function, x, observation.output_bytes)
        if turn == 1 or age < _EAGER:
            self._learn_peak(function, x, observation.peak_bytes)

    def _learn_speed(self, function: _Function, worker: str, residual: float, every: bool) -> float:
        """Learn how the worker differs from the average one; by how much, in log."""
        duration = function.duration
        noise = duration.residuals.scale
        local = function.local.get(worker)
        own = 0.0 if local is None else local.value
        factor = self.speeds.observe(worker, residual - own, noise)
        if every and duration.age >= MATURE:
            if local is None:
                if len(function.local) >= _LOCAL_WORKERS:
                    del function.local[next(iter(function.local))]
                local = function.local[worker] = Pull()
            local.add(residual - factor, max(noise, LEAST_NOISE), _LOCAL_PRECISION)
            own = local.value
        return factor + own

    def _learn_output(self, function: _Function, x: list[float], size: float | None) -> None:
        if size is not None and self._is_size(size):
            if function.output is None:
                function.output = self._quantity(SIZE_ZOO)
            _learn_size(function.output, x, size)

    def _learn_peak(self, function: _Function, x: list[float], size: float | None) -> None:
        if size is not None and self._is_size(size):
            if function.peak is None:
                function.peak = self._quantity(SIZE_ZOO)
            _learn_size(function.peak, x, size)

    def _is_size(self, size: float) -> bool:
        if 0.0 <= size <= LARGEST_BYTES:
            return True
        self.ignored += 1
        return False

    def _new(self, key: Key) -> _Function:
        function = self._functions[key] = _Function(self._quantity(self._zoo))
        if len(self._functions) > self._most:
            self._functions.popitem(last=False)
        return function

    def _quantity(self, zoo: Sequence[str]) -> Quantity:
        return Quantity([self._make[name]() for name in zoo])

    def learn_pending(self, budget_s: float, clock: Callable[[], float]) -> int:
        """Grow trees from the tasks that wait for it, away from the event loop; the number of tasks learned."""
        return self._nursery.learn_pending(budget_s, clock)

    # -- what a task will take -------------------------------------------------------------------------------------

    def predict(self, features: TaskFeatures, prior_s: float | None = None) -> Prediction | None:
        function = self._functions.get(features[:2])
        if function is None:
            return None if prior_s is None else _guess(prior_s)
        duration = function.duration
        level = duration.predict(vector(features))
        if worker := features.worker:
            level += self.speeds.log_factor(worker)
            if (local := function.local.get(worker)) is not None:
                level += local.value
        spread = duration.residuals
        middle = level + spread.p50
        return Prediction(
            _exp(middle), _exp(level + spread.p90), _exp(level + spread.p99), duration.samples, spread.error,
            duration.source,
        )  # fmt: skip

    def log_factor(self, features: TaskFeatures, worker: str) -> float:
        """Of the duration on this worker, over that on an average one; a placement asks for every worker."""
        factor = self.speeds.log_factor(worker)
        function = self._functions.get(features[:2])
        if function is not None and (local := function.local.get(worker)) is not None:
            factor += local.value
        return factor

    def predict_output(self, features: TaskFeatures) -> SizePrediction | None:
        function = self._functions.get(features[:2])
        return None if function is None or function.output is None else _size(function.output, features)

    def predict_peak(self, features: TaskFeatures) -> SizePrediction | None:
        function = self._functions.get(features[:2])
        return None if function is None or function.peak is None else _size(function.peak, features)

    # -- from run to run -------------------------------------------------------------------------------------------

    def to_state(self) -> State:
        """All that is known, as plain JSON types; functions used last come last."""
        return {
            "version": VERSION,
            "functions": [
                {
                    "function": name,
                    "names": list(names),
                    "duration": function.duration.to_state(),
                    "output": None if function.output is None else function.output.to_state(),
                    "peak": None if function.peak is None else function.peak.to_state(),
                }
                for (name, names), function in self._functions.items()
            ],
            "workers": self.speeds.to_state(),
        }

    def merge(self, state: Any) -> int:
        """Take over from a snapshot what is not known better already; the number of functions taken over.

        What is taken over counts for a few tasks only, so that a run on other data or machines soon corrects it.

        Raises
        ------
        ValueError
            It is not a snapshot of this version; nothing was taken over.
        """
        if not isinstance(state, dict) or state.get("version") != VERSION:
            found = state.get("version") if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"a snapshot of learned costs has version {VERSION}, this one has {found!r}")
        try:
            read = [self._read(entry) for entry in state["functions"][-self._most :]]
            speeds = Speeds()
            speeds.restore(state["workers"])
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise ValueError(f"a snapshot of learned costs is damaged: {error}") from error
        taken = 0
        for key, function in reversed(read):
            known = self._functions.get(key)
            better = len(self) < self._most if known is None else known.duration.samples < function.duration.samples
            if better:
                self._functions[key] = function
                self._functions.move_to_end(key, last=known is not None)
                taken += 1
        self.speeds.restore(state["workers"])
        return taken

    def _read(self, entry: Any) -> tuple[Key, _Function]:
        function = _Function(self._restored(self._zoo, entry["duration"]))
        if entry["output"] is not None:
            function.output = self._restored(SIZE_ZOO, entry["output"])
        if entry["peak"] is not None:
            function.peak = self._restored(SIZE_ZOO, entry["peak"])
        return (str(entry["function"]), tuple(map(str, entry["names"]))), function

    def _restored(self, zoo: Sequence[str], state: Any) -> Quantity:
        quantity = self._quantity(zoo)
        quantity.restore(state)
        return quantity


def vector(features: TaskFeatures) -> list[float]:
    """What models are given: the terms of the arguments, then those of the context."""
    _, _, terms, input_bytes, input_count, _, concurrency = features
    return [*terms, log1p(input_bytes), log1p(input_count), log1p(concurrency)]


def _exp(level: float) -> float:
    return exp(min(max(level, -50.0), 50.0))


def _guess(prior_s: float) -> Prediction | None:
    if not isfinite(prior_s) or prior_s <= 0.0:
        return None
    return Prediction(prior_s, prior_s * exp(1.2816), prior_s * exp(2.3263), 0, PRIOR_ERROR, "prior")


def _learn_size(quantity: Quantity, x: list[float], size: float) -> None:
    quantity.learn(x, log1p(size), quantity.predict(x), every=True)


def _size(quantity: Quantity, features: TaskFeatures) -> SizePrediction:
    level = quantity.predict(vector(features))
    spread = quantity.residuals
    p50, p90, p99 = (max(_exp(level + part) - 1.0, 0.0) for part in (spread.p50, spread.p90, spread.p99))
    return SizePrediction(p50, p90, p99, quantity.samples, spread.error, quantity.source)
