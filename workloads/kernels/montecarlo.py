"""Paths of a share price under geometric Brownian motion, from random numbers that depend on nothing but their place.

The numbers come from Philox4x32-10, a counter through a keyed mixing function (Salmon, Moraes, Dror and Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3"). The number for (seed, contract, path, date) is the same whichever
worker asks, in whatever order and in pieces of whatever length; numba, NumPy and CuPy mix the same bits.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from workloads.kernels.compiling import kernel
from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays
from workloads.kernels.elastic import in_pieces

WORDS = 4
"""Random words of 32 bits, and so normal numbers, that one turn of Philox gives."""

PIECE = 2**17
"""Dates of paths in a piece: some 4 ms of work, beside some 0.1 ms to start a thread."""

# Multipliers and key increments of Philox4x32, from table 2 and section 3.3 of the paper.
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10
_UNIT = 2.0**-32


def price_paths(terms: Array, seed: int, contract: int, first: int, count: int, dates: int) -> Array:
    """Simulate `count` paths, the first of number `first`, and sum each up in three prices.

    Parameters
    ----------
    terms : float64 or float32 array (4,)
        Price today, interest rate per year, volatility per square root of a year, time to maturity in years.
    seed, contract : int
        The key of the random numbers, each from 0 to 2**32 - 1.
    first, count : int
        Which paths: `first` to `first + count - 1`.
    dates : int
        Equally spaced dates at which a path is observed; the last is the maturity.

    Returns
    -------
    array (3, count) of the dtype of `terms`
        Price at maturity, arithmetic mean and geometric mean over the dates.

    Raises
    ------
    TypeError
        `terms` is not an array of float64 or float32.
    ValueError
        Another shape, a price, volatility or maturity that is not positive, or a number out of its range.
    """
    check_arrays("price_paths", terms=(terms, "terms"))
    if len(terms) != 4 or not np.all(np.isfinite(terms)) or min(terms[0], terms[2], terms[3]) <= 0:
        said = terms.tolist()
        raise ValueError(f"price_paths: terms are {said}, must be price > 0, rate, volatility > 0, maturity > 0")
    for name, value, low, high in (
        ("seed", seed, 0, 2**32),
        ("contract", contract, 0, 2**32),
        ("first", first, 0, 2**62),
        ("count", count, 1, 2**31),
        ("dates", dates, 1, 2**31),
    ):
        if not low <= value < high:
            raise ValueError(f"price_paths: {name} is {value}, must be from {low} to {high - 1}")
    result: Array = PRICE_PATHS(terms, *map(int, (seed, contract, first, count, dates)))
    return result


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Mix a counter of four words with a key of two; words are the low 32 bits of uint64, arrays or single ones.

    >>> [f"{word:08x}" for word in philox(*[np.uint64(0)] * 6)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    for _ in range(_ROUNDS):
        product_0, product_1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c2 = (product_1 >> _HALF) ^ c1 ^ k0, (product_0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


_philox = numba.njit(inline="always")(philox)


def normals_xp(xp: ModuleType, words: tuple[Any, Any, Any, Any], dtype: npt.DTypeLike) -> list[Any]:
    """Make four arrays of standard normal numbers of four arrays of words (Box and Muller 1958)."""
    one: Any = np.dtype(dtype).type
    uniform = [(word.astype(dtype) + one(0.5)) * one(_UNIT) for word in words]  # never 0, whose log is not finite
    found = []
    for radius, turn in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
        length, angle = xp.sqrt(one(-2) * xp.log(radius)), one(2 * math.pi) * turn
        found += [length * xp.cos(angle), length * xp.sin(angle)]
    return found


@numba.njit(inline="always")
def _two_normals(word_0, word_1, one):  # type: ignore[no-untyped-def]  # compiled; one is the type float64 or float32
    length = math.sqrt(one(-2) * math.log((one(word_0) + one(0.5)) * one(_UNIT)))
    angle = one(2 * math.pi) * ((one(word_1) + one(0.5)) * one(_UNIT))
    return length * math.cos(angle), length * math.sin(angle)


def price_paths_elastic(terms: Array, seed: int, contract: int, first: int, count: int, dates: int) -> Array:
    """`price_paths` compiled, on the cores that the ledger grants; `terms` contiguous."""
    length = max(1, PIECE // dates)
    starts = range(0, count, length)

    def piece(number: int) -> Array:
        start = starts[number]
        found: Array = price_paths_numba(terms, seed, contract, first + start, min(length, count - start), dates)
        return found

    return piece(0) if len(starts) == 1 else np.concatenate(in_pieces(piece, len(starts)), axis=1)


@kernel
def price_paths_numba(terms, seed, contract, first, count, dates):  # type: ignore[no-untyped-def]  # compiled
    """`price_paths` for one core; `terms` contiguous."""
    one = terms.dtype.type
    spot, rate, volatility, maturity = terms
    interval = maturity / one(dates)
    drift = (rate - one(0.5) * volatility * volatility) * interval
    spread = volatility * math.sqrt(interval)
    result = np.empty((3, count), terms.dtype)
    for index in range(count):
        path = np.uint64(first + index)
        growth, total, growths = one(0), one(0), one(0)
        for date in range(0, dates, WORDS):
            turn = np.uint64(date // WORDS)
            words = _philox(path & _LOW, path >> _HALF, turn, np.uint64(0), np.uint64(seed), np.uint64(contract))
            z0, z1 = _two_normals(words[0], words[1], one)
            z2, z3 = _two_normals(words[2], words[3], one)
            left = dates - date
            for z in (z0, z1, z2, z3):
                if left > 0:
                    growth += drift + spread * z
                    total += math.exp(growth)
                    growths += growth
                    left -= 1
        result[0, index] = spot * math.exp(growth)
        result[1, index] = spot * (total / one(dates))
        result[2, index] = spot * math.exp(growths / one(dates))
    return result


def price_paths_xp(xp: ModuleType, terms: Any, seed: int, contract: int, first: int, count: int, dates: int) -> Any:
    """`price_paths` on whole arrays of `xp`, one date after the other."""
    dtype, one = terms.dtype, terms.dtype.type
    spot, rate, volatility, maturity = map(one, terms.tolist())
    interval = maturity / one(dates)
    drift = (rate - one(0.5) * volatility * volatility) * interval
    spread = volatility * np.sqrt(interval)
    path = xp.arange(first, first + count, dtype=np.uint64)
    growth, total, growths = (xp.zeros(count, dtype) for _ in range(3))
    for date in range(0, dates, WORDS):
        words = philox(path & _LOW, path >> _HALF, *map(np.uint64, (date // WORDS, 0, seed, contract)))
        for z in normals_xp(xp, words, dtype)[: dates - date]:
            growth += drift + spread * z
            total += xp.exp(growth)
            growths += growth
    return spot * xp.stack([xp.exp(growth), total / one(dates), xp.exp(growths / one(dates))])


def _example(dtype: npt.DTypeLike) -> Arguments:
    return np.array([100.0, 0.03, 0.2, 1.0], dtype), 7, 3, 2**32 - 5, 11, 6


PRICE_PATHS = Kernel("price_paths", price_paths_elastic, price_paths_xp, _example)
KERNELS = (PRICE_PATHS,)
