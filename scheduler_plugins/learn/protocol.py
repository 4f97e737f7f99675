"""What is known of a task before it runs, what is seen of it after, and what is predicted in between.  PURE

Named tuples, because one of each is made for every task on the scheduler's event loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

State = Mapping[str, Any]
"""Plain JSON types."""
VERSION = 2
"""Of the snapshots of what was learned, and of the file that keeps one."""


def magnitude(number: float) -> float:
    """The logarithm of a number, with its sign; 0 for 0. Numbers below a thousandth are nearly alike."""
    return math.copysign(math.log1p(1000.0 * abs(number)), number)


class TaskFeatures(NamedTuple):
    """A task, as the scheduler can see it."""

    function: str
    """Qualified name, the same in every process and every run."""
    names: tuple[str, ...] = ()
    """Of the terms: "0" is the first positional argument, "n" a keyword, "0.1" a part of one, "len 0" its size."""
    terms: tuple[float, ...] = ()
    """Logarithms of the numeric arguments (`magnitude`) and of the sizes of others (`log1p` of bytes or elements)."""
    input_bytes: float = 0.0
    """Of the results that it takes."""
    input_count: int = 0
    worker: str = ""
    """Where it runs; empty: on a worker of average speed."""
    concurrency: int = 1
    """Tasks that run on its host, this one included."""


class Observation(NamedTuple):
    """A task that has finished."""

    duration_s: float
    """On the worker's thread, without transfers."""
    output_bytes: float | None = None
    peak_bytes: float | None = None
    """Sampled while it ran; None where nobody looked."""
    queued_s: float = 0.0
    transfer_s: float = 0.0
    at_s: float = 0.0
    peak_at_most_bytes: float | None = None
    """Where other work in the same process could not be told apart."""


class Prediction(NamedTuple):
    """How long a task will run."""

    p50_s: float
    p90_s: float
    p99_s: float
    samples: int
    """Tasks that it rests on; 0: nothing but the prior."""
    error: float
    """Rolling median of |log(actual / predicted)| over the last tasks of the function: 0.1 is 10 %. The prior has 1."""
    source: str
    """The model that said it."""


class SizePrediction(NamedTuple):
    """How large a result or a peak of memory will be."""

    p50_bytes: float
    p90_bytes: float
    p99_bytes: float
    samples: int
    error: float
    source: str


class CostModel(Protocol):
    """Learns from every finished task, predicts the next. Neither ever raises because of what a task did."""

    def observe(self, features: TaskFeatures, observation: Observation) -> None: ...

    def predict(self, features: TaskFeatures, prior_s: float | None = None) -> Prediction | None:
        """None: nothing is known of the function, and there is no prior (Dask's own average)."""
        ...

    def predict_output(self, features: TaskFeatures) -> SizePrediction | None: ...

    def predict_peak(self, features: TaskFeatures) -> SizePrediction | None: ...

    def to_state(self) -> State: ...
