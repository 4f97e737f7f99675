"""What every kernel keeps: both implementations agree, whatever the dtype and layout of the arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from swarm.errors import SettingsError
from workloads import kernels
from workloads.kernels import dispatch
from workloads.kernels.dispatch import Kernel

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
Array = np.ndarray[Any, Any]


def every_second(array: Array) -> Array:
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_view(array: Array) -> Array:
    return np.flip(np.flip(array).copy())


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = [every_second, np.asfortranarray, reversed_view, read_only]


@pytest.fixture(autouse=True)
def chosen_afresh() -> Iterator[None]:
    dispatch.backend.cache_clear()
    yield
    dispatch.backend.cache_clear()


@pytest.fixture
def on_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_KERNELS", "numba")


def assert_same(found: Any, expected: Any, dtype: str) -> None:
    found, expected = (values if isinstance(values, tuple) else (values,) for values in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_allclose(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernel", kernels.ALL, ids=lambda kernel: kernel.name)
def test_both_implementations_agree(kernel: Kernel, dtype: str) -> None:
    assert_same(kernel.numba(*kernel.example(dtype)), kernel.xp(np, *kernel.example(dtype)), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernel", kernels.ALL, ids=lambda kernel: kernel.name)
def test_floating_results_keep_the_dtype(kernel: Kernel, dtype: str) -> None:
    result = kernel.numba(*kernel.example(dtype))
    arrays = [a for a in (result if isinstance(result, tuple) else (result,)) if isinstance(a, np.ndarray)]
    assert {a.dtype for a in arrays if a.dtype.kind == "f"} == {np.dtype(dtype)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", kernels.ALL, ids=lambda kernel: kernel.name)
@pytest.mark.usefixtures("on_numba")
def test_any_layout_will_do(kernel: Kernel, layout: Callable[[Array], Array]) -> None:
    arguments = kernel.example("float64")
    laid_out = [layout(a) if isinstance(a, np.ndarray) else a for a in arguments]
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in laid_out]
    assert_same(kernel(*laid_out), kernel(*arguments), "float64")
    for now, then in zip(laid_out, before, strict=True):  # arguments are left as they were
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("kernel", kernels.ALL, ids=lambda kernel: kernel.name)
def test_the_environment_chooses_the_implementation(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_KERNELS", "numpy")
    ran: list[Any] = []
    spied = Kernel(kernel.name, lambda *_: pytest.fail("numba ran"), lambda xp, *_: ran.append(xp), kernel.example)
    spied(*kernel.example("float64"))
    assert ran == [np]
    assert_same(kernel(*kernel.example("float64")), kernel.numba(*kernel.example("float64")), "float64")


def test_numba_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "why_no_cupy", lambda: "no device")
    assert dispatch.backend() == "numba"
    assert dispatch.array_module() is np
    array = np.arange(3.0)
    assert dispatch.to_device(array) is array
    assert dispatch.to_host(array) is array


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nunba", "SWARM_KERNELS='nunba' is not allowed: numba, numpy or cupy; did you mean numba?"),
        ("zzz", "SWARM_KERNELS='zzz' is not allowed: numba, numpy or cupy"),
        ("cupy", "SWARM_KERNELS=cupy can't be had: no device here; unset it, or set numba or numpy"),
    ],
)
def test_a_wrong_choice_is_refused(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("SWARM_KERNELS", value)
    monkeypatch.setattr(dispatch, "why_no_cupy", lambda: "no device here")
    with pytest.raises(SettingsError) as caught:
        dispatch.backend()
    assert str(caught.value) == said


def test_choosing_does_not_import_cupy_needlessly() -> None:
    code = "import sys; from workloads.kernels.dispatch import backend; backend(); print('cupy' in sys.modules)"
    environment = os.environ | {"SWARM_KERNELS": "numba"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "False\n"


def test_warming_up_runs_every_kernel_in_both_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []

    def spied(kernel: Kernel) -> Kernel:
        def numba(*arguments: Any) -> None:
            kernel.numba(*arguments)
            ran.append((kernel.name, next(a.dtype.name for a in arguments if isinstance(a, np.ndarray))))

        return Kernel(kernel.name, numba, kernel.xp, kernel.example)

    monkeypatch.setattr(kernels, "ALL", tuple(map(spied, kernels.ALL)))
    kernels.warm_up()
    assert sorted(ran) == sorted((kernel.name, dtype) for kernel in kernels.ALL for dtype in ("float32", "float64"))


def test_the_package_of_kernels_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SOME'"):
        kernels.SOME  # noqa: B018  # the access is the test


@pytest.mark.parametrize(
    ("arrays", "error", "said"),
    [
        ({"u": ([1.0], "n")}, TypeError, "k: u must be a NumPy array (n,), not list"),
        ({"u": (np.zeros(3, int), "n")}, TypeError, "k: u must be float64 or float32, not int64"),
        ({"u": (np.zeros(3), "n d")}, ValueError, "k: u must have the shape (n, d), not (3,)"),
        (
            {"u": (np.zeros((3, 2)), "n d"), "v": (np.zeros((4, 3)), "k d")},
            ValueError,
            "k: v has the shape (4, 3), but (k, d) needs d = 2",
        ),
        (
            {"u": (np.zeros(3), "n"), "v": (np.zeros(3, "f4"), "n")},
            TypeError,
            "k: v is float32 but u is float64; make them the same",
        ),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(arrays: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        dispatch.check_arrays("k", **arrays)
    assert str(caught.value) == said
