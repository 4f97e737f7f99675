"""What the compiled kernels gain over the same work in NumPy, at sizes that tasks have.

Run with `pytest tests/benchmarks/test_kernels.py --benchmark-only --benchmark-group-by=param:work`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from workloads.kernels import lloyd, montecarlo, stencil

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(256, size=(136_640, 3)).astype(float)  # half of a sample photograph

WORK: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "assign": (lloyd.ASSIGN, (PIXELS, PIXELS[:64].copy())),
    "seed_centroids": (lloyd.SEED_CENTROIDS, (PIXELS[:65_536].copy(), RNG.random((64, 6)))),
    "heat_steps": (stencil.HEAT_STEPS, (RNG.random((72, 72, 72)), 0.125, 4, (True, True))),
    "price_paths": (montecarlo.PRICE_PATHS, (RNG.standard_normal((20_000, 12)), 100.0, 0.001, 0.05)),
}


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
@pytest.mark.parametrize("work", WORK)
def test_kernel(benchmark: BenchmarkFixture, work: str, implementation: str) -> None:
    kernel, arguments = WORK[work]
    compiled: Callable[..., Any] = kernel.numba
    compiled(*arguments)
    run = compiled if implementation == "numba" else lambda *given: kernel.xp(np, *given)
    benchmark.pedantic(run, arguments, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
