"""The cost model: what every function costs, on every worker, learned from every task that finishes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import copysign, exp, isfinite, log, log1p
from random import Random
from typing import TYPE_CHECKING, Any

from scheduler_plugins.learn.models import Average, Linear, Model, Recent, Table, Vector
from scheduler_plugins.learn.protocol import VERSION, Observation, Prediction, SizePrediction, State, TaskFeatures
from scheduler_plugins.learn.quantity import EXPLORE_RATIO, MATURE, PRIOR_ERROR, Quantity
from scheduler_plugins.learn.speed import LEAST_NOISE, LOCAL_SPREAD, Pull, Speeds
from scheduler_plugins.learn.tree import Nursery, Tree

if TYPE_CHECKING:
    from river.drift import ADWIN

ZOO = ("average", "recent", "table", "linear", "tree")
SIZE_ZOO = ("average", "table", "linear")

SHORTEST_S, LONGEST_S = 1e-6, 1e9
"""Thirty years; durations beyond are a clock's doing, not a task's."""
_SHORTEST, _LONGEST = log(SHORTEST_S), log(LONGEST_S)
LARGEST_BYTES = 1e18
_LOCAL_WORKERS = 64
_JITTER_S = 0.005
"""What befalls any task, whatever its worker. So a task of a millisecond says next to nothing of how fast that is."""
_SURPRISE = 1.5
"""Most that one task of a steady function says in log about its worker: a factor of 4.5."""
_NOT_FOR_OUTPUT, _NOT_FOR_PEAK = frozenset({2, 6}), frozenset({2, 3, 7, 8})
"""Ages of a function, in tasks, at which its sizes are not learned."""
_LOCAL_PRECISION = 1.0 / LOCAL_SPREAD**2
_TELLS = 0.03
"""A prediction that has moved by this much, in log, is worth being asked for again."""
_SURPRISES = 0.3
"""How far off, in log, a task must be to be worth a look at what it has changed."""
_OFTEN = 64
"""Tasks after which the predictions of a function are in any case."""
_TRUSTED, _FARTHEST = 8, 4.0
"""Tasks after which one that is off by more than a factor of e^4 counts as off by that: a clock was set."""
Key = tuple[str, tuple[str, ...]]


class Function:
    """All that is known of a function called with one set of readable arguments."""

    __slots__ = ("due", "duration", "local", "moved", "output", "peak", "peak_is_bound", "said", "version")

    def __init__(self, duration: Quantity) -> None:
        self.duration = duration
        self.output: Quantity | None = None
        self.peak: Quantity | None = None
        self.peak_is_bound = False
        """Whether nothing but upper bounds is known of the peak."""
        self.local: dict[str, Pull] = {}
        self.version = 0
        """Grows when its predictions have changed by more than a few per cent; -1: it was forgotten."""
        self.moved = 0.0
        self.due = 0
        self.said: dict[tuple[float, ...], Any] = {}
        """For whoever asks: a place for answers that hold until the version changes, by vector."""

    def has_learned(self, moved: float, is_new: bool) -> None:
        """A task was learned, and the prediction for it moved by so much."""
        samples = self.duration.samples
        self.moved += moved
        if is_new or samples >= self.due or not -_TELLS < self.moved < _TELLS:
            self.version += 1
            self.said.clear()
            self.moved = 0.0
            self.due = samples + min(max(samples >> 3, 1), _OFTEN)


def import_river() -> type[ADWIN]:
    """Import what grows trees and what notices drift; the latter, for `Costs.take`."""
    import river.drift
    import river.tree

    return river.drift.ADWIN


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
    with_river
        Whether to import river now, which takes a second. Else somebody does later (`import_river`, `take`); until
        then no drift is noticed, and no tree grows.
    """

    def __init__(
        self, rng: Random, *, functions: int = 10_000, zoo: Sequence[str] = ZOO, with_river: bool = True
    ) -> None:
        self._adwin: type[ADWIN] | None = import_river() if with_river else None
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
        self._functions: OrderedDict[Key, Function] = OrderedDict()
        self._most = functions
        self._draw = rng.random

    def __len__(self) -> int:
        return len(self._functions)

    # -- what a task took ------------------------------------------------------------------------------------------

    def observe(self, features: TaskFeatures, observation: Observation) -> None:
        self.learn(features[:2], vector(features), features.worker, observation)

    def learn(self, key: Key, x: Vector, worker: str, observation: Observation) -> None:
        """`observe`, for whoever has the vector of the features at hand (`vector`)."""
        duration_s = observation.duration_s
        if not 0.0 <= duration_s <= LONGEST_S:  # nor is NaN
            self.ignored += 1
            return
        function = self._functions.get(key)
        if function is None:
            function = self._new(key)
        else:
            self._functions.move_to_end(key)
        y = log(duration_s) if duration_s > SHORTEST_S else _SHORTEST
        duration = function.duration
        age, draw = duration.age, self._draw()
        every = age < MATURE or draw < EXPLORE_RATIO
        expected = duration.predict(x)
        if age >= _TRUSTED and not -_FARTHEST < y - expected < _FARTHEST:
            there = expected + self._known_factor(function, worker)
            y = min(max(y, there - _FARTHEST), there + _FARTHEST)
        if worker and duration.samples:
            y -= self._learn_speed(function, worker, y - expected, min(y, expected), every)
        has_drifted = duration.learn(x, y, expected, every)
        if has_drifted:
            self.drifts += 1
        # What is fitted when falls on other tasks for each quantity: a young function skips some for its sizes (so that
        # no two of them are fitted at the same age), a mature one teaches them in turns.
        if age not in _NOT_FOR_OUTPUT if age < MATURE else EXPLORE_RATIO <= draw < 2.0 * EXPLORE_RATIO:
            self._learn_output(function, x, observation.output_bytes)
        if age not in _NOT_FOR_PEAK if age < MATURE else 2.0 * EXPLORE_RATIO <= draw < 3.0 * EXPLORE_RATIO:
            self._learn_peak(function, x, observation)
        is_news = every or has_drifted or not -_SURPRISES < y - expected < _SURPRISES
        function.has_learned(duration.predict(x) - expected if is_news else 0.0, has_drifted)

    def _known_factor(self, function: Function, worker: str) -> float:
        """In log."""
        local = function.local.get(worker)
        return self.speeds.log_factor(worker) + (0.0 if local is None else local.value)

    def _learn_speed(self, function: Function, worker: str, residual: float, least: float, every: bool) -> float:
        """Learn how the worker differs from the average one; by how much, in log.

        Parameters
        ----------
        least
            What the task took, or was thought to take, whichever is less, in log. Where short tasks begin to last, it
            is not their workers' doing.
        """
        duration = function.duration
        spread = duration.residuals
        noise = spread.noise + _JITTER_S / exp(max(least, _SHORTEST))
        local = function.local.get(worker)
        own = 0.0 if local is None else local.value
        miss = residual - own - self.speeds.log_factor(worker)
        reach = max(_SURPRISE, 3.0 * noise)
        if not -reach < miss < reach:
            residual += copysign(reach, miss) - miss
        factor = self.speeds.observe(worker, residual - own, noise)
        if every and duration.age >= MATURE:
            if local is None:
                if len(function.local) >= _LOCAL_WORKERS:
                    del function.local[next(iter(function.local))]
                local = function.local[worker] = Pull()
            local.add(residual - factor, max(noise, LEAST_NOISE), _LOCAL_PRECISION)
            own = local.value
        return factor + own

    def _learn_output(self, function: Function, x: Vector, size: float | None) -> None:
        if size is not None and self._is_size(size):
            if function.output is None:
                function.output = self._quantity(SIZE_ZOO)
            _learn_size(function.output, x, size)

    def _learn_peak(self, function: Function, x: Vector, observation: Observation) -> None:
        """A peak that was seen ends what bounds have said; a bound counts until then, and where it is lower."""
        size, known = observation.peak_bytes, function.peak
        is_bound = size is None
        if is_bound:
            size = observation.peak_at_most_bytes
        if size is None or not self._is_size(size):
            return
        if known is None or (function.peak_is_bound and not is_bound):
            function.peak = known = self._quantity(SIZE_ZOO)
            function.peak_is_bound = is_bound
        elif is_bound and not function.peak_is_bound and log1p(size) >= known.predict(x):
            return
        _learn_size(known, x, size)

    def _is_size(self, size: float) -> bool:
        if 0.0 <= size <= LARGEST_BYTES:
            return True
        self.ignored += 1
        return False

    def _new(self, key: Key) -> Function:
        function = self._functions[key] = Function(self._quantity(self._zoo))
        if len(self._functions) > self._most:
            _, gone = self._functions.popitem(last=False)
            gone.version = -1
        return function

    def function(self, key: Key) -> Function | None:
        """What is known of a function called with arguments of these names."""
        return self._functions.get(key)

    def keys(self) -> list[Key]:
        """Of all functions that are known."""
        return list(self._functions)

    def _quantity(self, zoo: Sequence[str]) -> Quantity:
        return Quantity([self._make[name]() for name in zoo], self._detector)

    @property
    def has_river(self) -> bool:
        return self._adwin is not None

    def take(self, adwin: type[ADWIN]) -> None:
        """River has been imported."""
        self._adwin = adwin

    def _detector(self) -> ADWIN | None:
        return None if self._adwin is None else self._adwin(clock=8)

    @property
    def pending(self) -> int:
        """Tasks that wait for `learn_pending`."""
        return len(self._nursery)

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

    def say(self, function: Function, x: Vector) -> tuple[float, float, float, int, float, float | None, float | None]:
        """p50, p90 and p99 of the duration on an average worker (s), samples, error, p50 of output and p90 of peak (B).

        Quantiles are within what durations are; the error is never below 1 / samples: so few can't show it.
        """
        duration, output, peak = function.duration, function.output, function.peak
        level, spread, samples = duration.predict(x), duration.residuals, duration.samples
        p50, p90, p99 = level + spread.p50, level + spread.p90, level + spread.p99
        if not _SHORTEST <= p50 <= p99 <= _LONGEST:
            p50, p90, p99 = (min(max(part, _SHORTEST), _LONGEST) for part in (p50, p90, p99))
        return (
            exp(p50),
            exp(p90),
            exp(p99),
            samples,
            max(spread.error, 1.0 / max(samples, 1)),
            None if output is None else _bytes(output.predict(x) + output.residuals.p50),
            None if peak is None else _bytes(peak.predict(x) + peak.residuals.p90),
        )

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
        return {"version": VERSION, "functions": list(self.function_states()), "workers": self.speeds.to_state()}

    def function_states(self) -> Iterator[State]:
        """Of each function, as in `to_state`; tasks may be learned between two of them."""
        for name, names in list(self._functions):
            if (function := self._functions.get((name, names))) is not None:
                yield {
                    "function": name,
                    "names": list(names),
                    "duration": function.duration.to_state(),
                    "output": None if function.output is None else function.output.to_state(),
                    "peak": None if function.peak is None else function.peak.to_state(),
                    "peak_is_bound": function.peak_is_bound,
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
                if known is not None:
                    known.version = -1
                self._functions[key] = function
                self._functions.move_to_end(key, last=known is not None)
                taken += 1
        self.speeds.restore(state["workers"])
        return taken

    def _read(self, entry: Any) -> tuple[Key, Function]:
        function = Function(self._restored(self._zoo, entry["duration"]))
        if entry["output"] is not None:
            function.output = self._restored(SIZE_ZOO, entry["output"])
        if entry["peak"] is not None:
            function.peak = self._restored(SIZE_ZOO, entry["peak"])
            function.peak_is_bound = entry.get("peak_is_bound") is True
        return (str(entry["function"]), tuple(map(str, entry["names"]))), function

    def _restored(self, zoo: Sequence[str], state: Any) -> Quantity:
        quantity = self._quantity(zoo)
        quantity.restore(state)
        return quantity


def vector(features: TaskFeatures) -> tuple[float, ...]:
    """What models are given: the terms of the arguments, then those of the context."""
    _, _, terms, input_bytes, input_count, _, concurrency = features
    return (*terms, log1p(input_bytes), log1p(input_count), log1p(concurrency))


def _bytes(level: float) -> float:
    return exp(level) - 1.0 if 0.0 < level < 50.0 else 0.0 if level <= 0.0 else LARGEST_BYTES


def _exp(level: float) -> float:
    return exp(level) if -50.0 < level < 50.0 else exp(copysign(50.0, level))


def _guess(prior_s: float) -> Prediction | None:
    if not isfinite(prior_s) or prior_s <= 0.0:
        return None
    return Prediction(prior_s, prior_s * exp(1.2816), prior_s * exp(2.3263), 0, PRIOR_ERROR, "prior")


def _learn_size(quantity: Quantity, x: Vector, size: float) -> None:
    quantity.learn(x, log1p(size), quantity.predict(x), every=True)


def _size(quantity: Quantity, features: TaskFeatures) -> SizePrediction:
    level = quantity.predict(vector(features))
    spread = quantity.residuals
    p50, p90, p99 = (max(_exp(level + part) - 1.0, 0.0) for part in (spread.p50, spread.p90, spread.p99))
    return SizePrediction(p50, p90, p99, quantity.samples, spread.error, quantity.source)
