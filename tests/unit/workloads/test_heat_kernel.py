"""The stencil of heat: against a plain reference, in every layout, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from workloads.kernels.stencil import SWEEP, heat_steps, heat_steps_numba, heat_steps_xp

HELD = (False,) * 6
TOLERANCE = {"float64": 1e-14, "float32": 1e-6}
Array = np.ndarray[Any, Any]


def reference(u: Array, fourier: float, steps: int) -> Array:
    """Point by point, in float64; the outermost layer is held."""
    u = u.astype(float)
    for _ in range(steps):
        v = u.copy()
        for i, j, k in np.ndindex(*(n - 2 for n in u.shape)):
            x, y, z = i + 1, j + 1, k + 1
            six = u[x - 1, y, z] + u[x + 1, y, z] + u[x, y - 1, z] + u[x, y + 1, z] + u[x, y, z - 1] + u[x, y, z + 1]
            v[x, y, z] = u[x, y, z] + fourier * (six - 6 * u[x, y, z])
        u = v
    return u


@pytest.fixture
def u() -> Array:
    return np.random.default_rng(3).random((7, 9, 8))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_variants_agree_with_the_reference(u: Array, dtype: str) -> None:
    u = u.astype(dtype)
    for found in (heat_steps(u, 0.125, 3, HELD), heat_steps_xp(np, u, 0.125, 3, HELD)):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, reference(u, 0.125, 3), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(
    "laid_out",
    [np.asfortranarray, lambda u: u[::-1, :, ::-1], lambda u: u[::2, :, 1::2], lambda u: u.transpose(2, 0, 1)],
)
def test_any_layout_will_do_and_stays_as_it_was(u: Array, laid_out: Callable[[Array], Array]) -> None:
    view = laid_out(u)
    before = view.copy()
    np.testing.assert_allclose(heat_steps(view, 1 / 6, 2, HELD), reference(before, 1 / 6, 2), atol=1e-14)
    np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("side", range(6))
def test_an_exposed_side_uses_up_a_layer_a_step(u: Array, side: int) -> None:
    axis, upper = divmod(side, 2)
    steps = 3
    exposed = tuple(s == side for s in range(6))
    short = np.take(u, range(u.shape[axis] - 1) if upper else range(1, u.shape[axis]), axis)
    found = np.moveaxis(heat_steps(short, 0.125, steps, exposed), axis, 0)  # type: ignore[arg-type]  # six long
    expected = np.moveaxis(reference(u, 0.125, steps), axis, 0)  # with one layer more, so not held where `short` ends
    here, there = (
        (slice(None, -steps), slice(None, -steps - 1)) if upper else (slice(steps, None), slice(steps + 1, None))
    )
    np.testing.assert_allclose(found[here], expected[there], atol=1e-14)


@pytest.mark.parametrize("sweep", SWEEP.values)
@pytest.mark.parametrize("exposed", [HELD, (True,) * 6, (True, False, False, True, False, True)])
def test_however_many_steps_a_sweep_takes_every_bit_is_the_same(sweep: int, exposed: Any) -> None:
    u, steps = np.random.default_rng(5).random((19, 18, 21)), 7
    one_by_one = heat_steps_numba(u, 0.125, steps, exposed)
    valid = tuple(
        slice(steps if exposed[2 * axis] else 0, -steps if exposed[2 * axis + 1] else None) for axis in range(3)
    )
    try:
        SWEEP.set(sweep)
        np.testing.assert_array_equal(heat_steps_numba(u, 0.125, steps, exposed)[valid], one_by_one[valid])
    finally:
        SWEEP.set(SWEEP.default)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.zeros((3, 3)), 0.1, 1, HELD), "u must have the shape (x, y, z), not (3, 3)"),
        ((np.zeros((3, 3, 3), int), 0.1, 1, HELD), "u must be float64 or float32, not int64"),
        ((np.zeros((3, 3, 3)), 0.2, 1, HELD), "fourier is 0.2, must be in (0, 1/6] to be stable"),
        ((np.zeros((3, 3, 3)), float("nan"), 1, HELD), "fourier is nan"),
        ((np.zeros((3, 3, 3)), 0.1, 0, HELD), "steps is 0, must be at least 1"),
        ((np.zeros((3, 2, 3)), 0.1, 1, HELD), "axis 1 has 2 points, 1 steps need at least 3"),
        ((np.zeros((8, 8, 8)), 0.1, 4, (True,) * 6), "axis 0 has 8 points, 4 steps need at least 9"),
    ],
)
def test_what_it_refuses(arguments: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        heat_steps(*arguments)
    assert str(caught.value).startswith(f"heat_steps: {said}")
