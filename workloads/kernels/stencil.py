"""Heat flow through a slab of a cubic grid: several explicit steps of the 7-point stencil."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays

STABLE_FOURIER = 1 / 6
"""Largest stable D Δt / h² in three dimensions (Courant, Friedrichs and Lewy 1928; LeVeque 2007, section 9.4)."""

Exposed = tuple[bool, bool]
"""The low and the high end of the first axis: True where the outermost layers are a halo that goes stale."""


def heat_steps(u: Array, fourier: float, steps: int, exposed: Exposed) -> Array:
    """Advance the temperatures `u` (x, y, z) by `steps` steps of FTCS; float64 or float32 in, the same out.

    One step adds `fourier` = D Δt / h² times the sum of the differences to the six neighbours. The faces of the grid
    hold their temperature, but not an exposed end of the x axis: there each step uses up one layer, and afterwards
    the outermost `steps` layers mean nothing. The caller brings as many as a halo and cuts them off.

    Raises
    ------
    TypeError
        `u` is not an array of float64 or float32.
    ValueError
        Not three axes; an axis with fewer than three points, or x too short for its halos; `fourier` not in
        (0, 1/6]; `steps` below 1.
    """
    check_arrays("heat_steps", u=(u, "x y z"))
    if not 0 < fourier <= STABLE_FOURIER:
        raise ValueError(f"heat_steps: fourier is {fourier}, must be in (0, 1/6] to be stable")
    if steps < 1:
        raise ValueError(f"heat_steps: steps is {steps}, must be at least 1")
    # what is left after the last step is at least one layer
    for axis, needed in zip("xyz", (sum(steps if end else 1 for end in exposed) + 1, 3, 3), strict=True):
        length = u.shape["xyz".index(axis)]
        if length < needed:
            raise ValueError(f"heat_steps: {axis} has {length} points, {steps} steps here need at least {needed}")
    low, high = exposed
    result: Array = HEAT_STEPS(u, float(fourier), int(steps), (bool(low), bool(high)))
    return result


def heat_steps_numba(u: Array, fourier: float, steps: int, exposed: Exposed) -> Array:
    """`heat_steps` compiled for one core; `u` contiguous."""
    now, after = u.copy(), u.copy()
    for step in range(steps):
        _one_step(now, after, u.dtype.type(fourier), *_layers(len(u), step, exposed))
        now, after = after, now
    return now


def heat_steps_xp(xp: ModuleType, u: Any, fourier: float, steps: int, exposed: Exposed) -> Any:
    """`heat_steps` on whole arrays of `xp`."""
    now, after = xp.array(u), xp.array(u)
    factor, six = u.dtype.type(fourier), u.dtype.type(6)
    inner = slice(1, -1)
    for step in range(steps):
        first, end = _layers(len(u), step, exposed)
        x = slice(first, end)
        around = now[first - 1 : end - 1, inner, inner] + now[first + 1 : end + 1, inner, inner]
        around += now[x, :-2, inner] + now[x, 2:, inner]
        around += now[x, inner, :-2] + now[x, inner, 2:]
        after[x, inner, inner] = now[x, inner, inner] + factor * (around - six * now[x, inner, inner])
        now, after = after, now
    return now


def _layers(length: int, step: int, exposed: Exposed) -> tuple[int, int]:
    low, high = (1 + step if end else 1 for end in exposed)
    return low, length - high


@numba.njit(cache=True, nogil=True)
def _one_step(now, after, fourier, first, end):  # type: ignore[no-untyped-def]  # compiled; two arrays, float, ints
    six = now.dtype.type(6)
    _, ny, nz = now.shape
    for i in range(first, end):
        for j in range(1, ny - 1):
            # rows as slices that start at 0: only so does the compiler see that no index wraps round, and vectorises
            row, out = now[i, j, 1 : nz - 1], after[i, j, 1 : nz - 1]
            below, above = now[i, j, : nz - 2], now[i, j, 2:]
            west, east = now[i - 1, j, 1 : nz - 1], now[i + 1, j, 1 : nz - 1]
            south, north = now[i, j - 1, 1 : nz - 1], now[i, j + 1, 1 : nz - 1]
            for k in range(nz - 2):
                around = (west[k] + east[k]) + (south[k] + north[k]) + (below[k] + above[k])
                out[k] = row[k] + fourier * (around - six * row[k])


def _example(dtype: npt.DTypeLike) -> Arguments:
    u = np.random.default_rng(7).random((9, 8, 7)).astype(dtype)
    return u, 0.125, 2, (True, False)


HEAT_STEPS = Kernel("heat_steps", heat_steps_numba, heat_steps_xp, _example)
KERNELS = (HEAT_STEPS,)
