"""How fast each worker is, from what tasks took there beyond what they take anywhere.  PURE

Every worker's factor is drawn to 1, the more the fewer tasks it has run and the more alike the workers are:
empirical Bayes as in Efron, Morris: "Stein's estimation rule and its competitors", JASA 68, 1973. The precision of the
prior is what the spread of all workers says; so one slow task among equal workers means little, and the second one on
the same worker a lot.
"""

from __future__ import annotations

from collections import OrderedDict
from math import sqrt
from typing import Any

from scheduler_plugins.learn.models import finite

PRIOR_SPREAD = 0.3
"""Standard deviation of a worker's log factor, before any is known."""
PRIOR_WORKERS = 2.0
"""Workers that the prior spread counts for."""
_PRIOR_SUM = PRIOR_WORKERS * PRIOR_SPREAD * PRIOR_SPREAD
LEAST_NOISE = 0.2
"""Standard deviation of what befalls one task on one worker; keeps any one task from being believed."""
LOCAL_SPREAD = 0.2
"""Of the factor of one worker for one function beyond its factor for all."""
KEEP = 0.95
"""Of the past, with each task: 20 tasks are remembered."""
_NOTICED = 0.05
"""A log factor below which nobody cares."""
_LARGEST = 5.0
_RESTORED_WEIGHT = 4.0 / LEAST_NOISE**2
"""Most that a factor of a former run counts for: four tasks. The address may be another machine's by now."""
SHRINK = 9.0
"""Squares of the standard deviation of a mean by which a large one is drawn to zero: at three of them it is zero."""
DOUBT = 1.6
"""Standard deviations: 5 % are wrong on either side."""
STREAK = 3
"""Tasks in a row that a worker must be off in the same direction to have changed."""


class Pull:
    """A mean that is drawn to zero."""

    __slots__ = ("off", "off_sum", "sum", "value", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.sum = 0.0
        self.value = 0.0
        self.off = 0
        self.off_sum = 0.0

    def add(self, residual: float, noise: float, precision: float) -> None:
        """Learn a residual with this standard deviation; `precision` is that of the prior around zero."""
        weight = 1.0 / (noise * noise)
        miss = residual - self.value
        if abs(miss) > max(0.7, 3.0 * noise) and miss * self.off >= 0:
            self.off += 1 if miss > 0 else -1
            self.off_sum += residual
            if abs(self.off) >= STREAK:
                # The worker is not what it was: the streak is all that is known of it now.
                self.weight, self.sum = (STREAK - 1) * weight, (self.off_sum - residual) * weight
                self.off, self.off_sum = 0, 0.0
        else:
            self.off, self.off_sum = 0, 0.0
        self.weight = KEEP * self.weight + weight
        self.sum = KEEP * self.sum + weight * residual
        self.value = self.drawn(precision)

    def drawn(self, precision: float) -> float:
        """The mean, drawn to zero: what is small to where the prior has it, what is large by little.

        Most workers are about equal and a few are many times slower, so one normal prior does not do for both. The
        second part is the positive-part rule of James and Stein (1961): it leaves large values nearly as they are.
        """
        mean = self.sum / self.weight
        near = self.sum / (self.weight + precision)
        far = mean - SHRINK / (self.weight * mean) if mean else 0.0
        return far if far * mean > near * mean else near


class Speeds:
    """Log factors of workers: 0 is average, log 2 takes twice as long."""

    def __init__(self, most_workers: int = 10_000) -> None:
        self._workers: OrderedDict[str, Pull] = OrderedDict()
        self._most = most_workers
        self._spread_sum = 0.0
        self._spreads: dict[str, float] = {}
        self._heard: set[str] = set()

    def log_factor(self, worker: str) -> float:
        pull = self._workers.get(worker)
        return 0.0 if pull is None else pull.value

    def doubt(self, worker: str) -> float:
        """How far the log factor may well be off: two workers that differ by less may be equally fast."""
        pull = self._workers.get(worker)
        return 0.0 if pull is None else DOUBT / sqrt(pull.weight + 1.0 / self.variance)

    @property
    def variance(self) -> float:
        """Of the log factors of all workers, as far as it is known."""
        return (_PRIOR_SUM + self._spread_sum) / (PRIOR_WORKERS + len(self._spreads))

    def observe(self, worker: str, residual: float, noise: float) -> float:
        """Learn how much longer in log a task took on this worker than the model said; the new log factor."""
        pull = self._workers.get(worker)
        if pull is None:
            pull = self._workers[worker] = Pull()
            if len(self._workers) > self._most:
                self.forget(next(iter(self._workers)))
        self._heard.add(worker)
        noise = max(noise, LEAST_NOISE)
        pull.add(residual, noise, 1.0 / self.variance)
        if pull.weight * noise * noise > 1.9:
            mean = pull.sum / pull.weight
            spread = max(mean * mean - 1.0 / pull.weight, 0.0)
            self._spread_sum += spread - self._spreads.get(worker, 0.0)
            self._spreads[worker] = spread
        return pull.value

    def fade(self, keep: float) -> None:
        """Keep this part of what is known of workers from which nothing was learned since the last call.

        Whoever is thought slow is given no work, and could never show that it is not: one bad task must not last.
        """
        heard, self._heard = self._heard, set()
        precision = 1.0 / self.variance
        for worker, pull in self._workers.items():
            if pull.weight > 0.0 and not -_NOTICED < pull.value < _NOTICED and worker not in heard:
                pull.weight *= keep
                pull.sum *= keep
                pull.value = pull.drawn(precision)

    def forget(self, worker: str) -> None:
        """The worker has left."""
        self._workers.pop(worker, None)
        self._spread_sum -= self._spreads.pop(worker, 0.0)

    def to_state(self) -> Any:
        return {worker: [pull.weight, pull.sum, pull.value] for worker, pull in self._workers.items()}

    def restore(self, state: Any) -> None:
        """Take over the factors of workers that are not known yet. ValueError, TypeError: not what `to_state` gave."""
        read = {str(worker): [finite(value) for value in entry] for worker, entry in state.items()}
        if any(len(entry) != 3 for entry in read.values()):
            raise ValueError("the factor of a worker is not three numbers")
        precision = 1.0 / self.variance
        for worker, (weight, total, _) in read.items():
            if worker not in self._workers and len(self._workers) < self._most and weight > 0.0:
                pull = self._workers[worker] = Pull()
                pull.weight = min(weight, _RESTORED_WEIGHT)
                pull.sum = pull.weight * min(max(total / weight, -_LARGEST), _LARGEST)
                pull.value = pull.drawn(precision)
