"""Heat flow through one block of a cubic grid: several explicit steps of the 7-point stencil."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm.tunables import Tunable
from workloads.kernels.compiling import kernel
from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays

Exposed = tuple[bool, bool, bool, bool, bool, bool]
"""Sides of a block, (low, high) of each axis in turn: True where the outermost layer is a halo that goes stale."""

STABLE_FOURIER = 1 / 6
"""Largest stable D dt / h**2 in three dimensions (Courant, Friedrichs and Lewy 1928; LeVeque 2007, section 9.4)."""

SWEEP = Tunable("heat_steps.sweep", (1, 2, 4, 8, 16), 1)
"""Steps that one pass through the block takes, one a layer behind the other: while a layer is in the cache, it is used
for all (time skewing; McCalpin and Wonnacott 1999). What is best depends on the block and on the caches."""


def heat_steps(u: Array, fourier: float, steps: int, exposed: Exposed) -> Array:
    """Advance the temperatures `u` (x, y, z) by `steps` steps of FTCS; float64 or float32 in, the same out.

    One step adds `fourier` = D dt / h**2 times the sum of the differences to the six neighbours. The outermost layer
    of a side that is not exposed holds its temperature. On an exposed side each step uses up one layer: afterwards
    the `steps` layers there mean nothing and the caller cuts them off, so it must have brought as many as a halo.

    Raises
    ------
    TypeError
        `u` is not an array of float64 or float32.
    ValueError
        Not three axes; an axis with fewer than three points or too few for its halos; `fourier` not in
        (0, 1/6]; `steps` below 1.
    """
    check_arrays("heat_steps", u=(u, "x y z"))
    if not 0 < fourier <= STABLE_FOURIER:
        raise ValueError(f"heat_steps: fourier is {fourier}, must be in (0, 1/6] to be stable")
    if steps < 1:
        raise ValueError(f"heat_steps: steps is {steps}, must be at least 1")
    for axis, length in enumerate(u.shape):
        # what stays valid is at least one point, and a held layer stays too
        needed = sum(steps if side else 1 for side in exposed[2 * axis : 2 * axis + 2]) + 1
        if length < needed:
            raise ValueError(f"heat_steps: axis {axis} has {length} points, {steps} steps need at least {needed} here")
    result: Array = HEAT_STEPS(u, float(fourier), int(steps), tuple(map(bool, exposed)))
    return result


def heat_steps_numba(u: Array, fourier: float, steps: int, exposed: Exposed) -> Array:
    """`heat_steps` compiled for one core; `u` contiguous."""
    now, after = u.copy(), u.copy()
    factor = u.dtype.type(fourier)
    sweep = int(SWEEP.get())
    for first in range(0, steps, sweep):
        count = min(sweep, steps - first)
        _sweep(now, after, factor, np.array([_bounds(u.shape, first + step, exposed) for step in range(count)]))
        if count % 2:
            now, after = after, now
    return now


def heat_steps_xp(xp: ModuleType, u: Any, fourier: float, steps: int, exposed: Exposed) -> Any:
    """`heat_steps` on whole arrays of `xp`."""
    now, after = xp.array(u), xp.array(u)
    factor = u.dtype.type(fourier)
    for step in range(steps):
        x0, x1, y0, y1, z0, z1 = _bounds(u.shape, step, exposed)
        x, y, z = slice(x0, x1), slice(y0, y1), slice(z0, z1)
        six = now[x0 - 1 : x1 - 1, y, z] + now[x0 + 1 : x1 + 1, y, z]
        six += now[x, y0 - 1 : y1 - 1, z] + now[x, y0 + 1 : y1 + 1, z]
        six += now[x, y, z0 - 1 : z1 - 1] + now[x, y, z0 + 1 : z1 + 1]
        after[x, y, z] = now[x, y, z] + factor * (six - u.dtype.type(6) * now[x, y, z])
        now, after = after, now
    return now


def _bounds(shape: tuple[int, ...], step: int, exposed: Exposed) -> tuple[int, int, int, int, int, int]:
    lost = [1 + step if side else 1 for side in exposed]
    nx, ny, nz = shape
    return lost[0], nx - lost[1], lost[2], ny - lost[3], lost[4], nz - lost[5]


@kernel
def _sweep(even, odd, fourier, bounds):  # type: ignore[no-untyped-def]  # compiled; float and int array (steps, 6)
    six = even.dtype.type(6)
    steps = bounds.shape[0]
    for front in range(bounds[0, 0], bounds[:, 1].max() + steps - 1):
        for step in range(steps):
            # A step is one layer behind the one before it, and so overwrites only what that one has read already.
            i = front - step
            x0, x1, y0, y1, z0, z1 = bounds[step]
            if i < x0 or i >= x1:
                continue
            now, after = (odd, even) if step % 2 else (even, odd)
            for j in range(y0, y1):
                # rows as slices that start at 0: only so does the compiler see that no index wraps, and vectorises
                row, out = now[i, j, z0:z1], after[i, j, z0:z1]
                below, above = now[i, j, z0 - 1 : z1 - 1], now[i, j, z0 + 1 : z1 + 1]
                west, east = now[i - 1, j, z0:z1], now[i + 1, j, z0:z1]
                south, north = now[i, j - 1, z0:z1], now[i, j + 1, z0:z1]
                for k in range(z1 - z0):
                    around = (west[k] + east[k]) + (south[k] + north[k]) + (below[k] + above[k])
                    out[k] = row[k] + fourier * (around - six * row[k])


def _example(dtype: npt.DTypeLike) -> Arguments:
    u = np.random.default_rng(7).random((9, 8, 7)).astype(dtype)
    return u, 0.125, 2, (True, False, False, True, True, True)


HEAT_STEPS = Kernel("heat_steps", heat_steps_numba, heat_steps_xp, _example)
KERNELS = (HEAT_STEPS,)
