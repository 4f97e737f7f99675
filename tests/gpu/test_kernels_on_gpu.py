"""Every kernel on a real GPU gives what numba gives on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from workloads import kernels
from workloads.kernels import dispatch
from workloads.kernels.dispatch import Kernel

pytestmark = pytest.mark.skipif(dispatch.why_no_cupy() is not None, reason=str(dispatch.why_no_cupy()))

TOLERANCE = {"float64": 1e-11, "float32": 1e-4}


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SWARM_KERNELS", "cupy")
    dispatch.backend.cache_clear()
    yield
    dispatch.backend.cache_clear()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernel", kernels.ALL, ids=lambda kernel: kernel.name)
def test_a_kernel_agrees_with_numba(kernel: Kernel, dtype: str) -> None:
    expected = kernel.numba(*kernel.example(dtype))
    found = kernel(*kernel.example(dtype))
    pairs: Any = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for one, other in pairs:
        assert type(one) is type(other)  # NumPy arrays come back, whatever ran
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_allclose(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_arrays_go_to_the_gpu_and_come_back() -> None:
    import cupy

    there = dispatch.to_device(np.arange(3.0))
    assert isinstance(there, cupy.ndarray)
    assert dispatch.to_host(there).tolist() == [0, 1, 2]
