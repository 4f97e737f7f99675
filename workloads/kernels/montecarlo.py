"""Prices along many paths of geometric Brownian motion, and their averages."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays


def price_paths(normals: Array, spot: float, drift: float, spread: float) -> tuple[Array, Array, Array]:
    """Follow one price per row of the standard `normals` (paths, dates), from `spot` through all dates.

    From one date to the next the logarithm of the price grows by `drift` + `spread` × normal; for a rate r and a
    volatility σ per year, dates Δt years apart, these are (r - σ²/2) Δt and σ √Δt (Glasserman 2003, section 3.2).

    Returns the last price, the arithmetic mean and the geometric mean over the dates, each (paths,) in the dtype of
    the normals.

    Raises
    ------
    TypeError
        `normals` is not an array of float64 or float32.
    ValueError
        Not two axes, or no date; `spot` not above 0; `spread` below 0.
    """
    lengths = check_arrays("price_paths", normals=(normals, "paths dates"))
    if not lengths["dates"]:
        raise ValueError(f"price_paths: normals has the shape {normals.shape}, must have at least one date")
    if not spot > 0:
        raise ValueError(f"price_paths: spot is {spot}, must be above 0")
    if not spread >= 0:
        raise ValueError(f"price_paths: spread is {spread}, must not be below 0")
    last, arithmetic, geometric = PRICE_PATHS(normals, float(spot), float(drift), float(spread))
    return last, arithmetic, geometric


def price_paths_numba(normals: Array, spot: float, drift: float, spread: float) -> tuple[Array, Array, Array]:
    """`price_paths` compiled for one core; `normals` contiguous."""
    last, arithmetic, geometric = (np.empty(len(normals), normals.dtype) for _ in range(3))
    number = normals.dtype.type
    _price_paths(normals, number(spot), number(drift), number(spread), last, arithmetic, geometric)
    return last, arithmetic, geometric


def price_paths_xp(xp: ModuleType, normals: Any, spot: float, drift: float, spread: float) -> tuple[Any, Any, Any]:
    """`price_paths` on whole arrays of `xp`."""
    number = normals.dtype.type
    logs = xp.cumsum(number(drift) + number(spread) * normals, axis=1)
    prices = number(spot) * xp.exp(logs)
    return prices[:, -1].copy(), prices.mean(axis=1), number(spot) * xp.exp(logs.mean(axis=1))


@numba.njit(cache=True, nogil=True)
def _price_paths(normals, spot, drift, spread, last, arithmetic, geometric):  # type: ignore[no-untyped-def]  # compiled
    paths, dates = normals.shape
    zero, count = normals.dtype.type(0), normals.dtype.type(dates)
    for i in range(paths):
        log, price, prices, logs = zero, zero, zero, zero
        for j in range(dates):
            log += drift + spread * normals[i, j]
            price = math.exp(log)
            prices += price
            logs += log
        last[i] = spot * price
        arithmetic[i] = spot * (prices / count)
        geometric[i] = spot * math.exp(logs / count)


def _example(dtype: npt.DTypeLike) -> Arguments:
    return np.random.default_rng(7).standard_normal((33, 13)).astype(dtype), 100.0, 0.001, 0.05


PRICE_PATHS = Kernel("price_paths", price_paths_numba, price_paths_xp, _example)
KERNELS = (PRICE_PATHS,)
