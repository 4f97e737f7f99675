"""The paths of share prices: the random numbers, both variants against a reference, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from workloads.kernels.montecarlo import normals_xp, philox, price_paths, price_paths_xp

LOW = np.uint64(0xFFFFFFFF)
TOLERANCE = {"float64": 1e-13, "float32": 3e-6}
Array = np.ndarray[Any, Any]


def words(seed: int, contract: int, count: int) -> tuple[Array, ...]:
    path = np.arange(count, dtype=np.uint64)
    return philox(path, path >> np.uint64(32), *map(np.uint64, (0, 0, seed, contract)))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the authors' Random123 library, file kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    found = philox(*(np.uint64(int(word, 16)) for word in f"{counter} {key}".split()))
    assert " ".join(f"{word:08x}" for word in found) == expected


def test_words_are_uniform_and_independent_of_each_other() -> None:
    drawn = np.array(words(seed=5, contract=2, count=2**16))
    cells = np.bincount((drawn >> np.uint64(24)).ravel().astype(int), minlength=256)
    expected = drawn.size / 256
    chi_squared = float((np.square(cells - expected) / expected).sum())
    assert abs(chi_squared - 255) < 4 * math.sqrt(2 * 255)
    streams = np.concatenate([drawn, words(seed=5, contract=3, count=2**16), words(seed=6, contract=2, count=2**16)])
    correlation = np.corrcoef(streams.astype(float)) - np.eye(len(streams))
    assert np.abs(correlation).max() < 4.5 / math.sqrt(2**16)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_normals_are_normal(dtype: str) -> None:
    n = 4 * 2**16
    z = np.concatenate(normals_xp(np, words(1, 1, n // 4), dtype))  # type: ignore[arg-type]  # four words
    assert z.dtype == dtype
    z = np.sort(z.astype(float))
    assert np.isfinite(z).all()
    moments = [float(np.mean(z**power)) for power in (1, 2, 3, 4)]
    deviations = [math.sqrt(variance / n) for variance in (1, 2, 15, 96)]
    assert all(abs(m - e) < 4 * d for m, e, d in zip(moments, (0, 1, 0, 3), deviations, strict=True))
    cdf = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in z])
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # Kolmogorov and Smirnov, p = 0.001


def test_the_largest_and_smallest_words_give_finite_numbers() -> None:
    for dtype in ("float64", "float32"):
        for word in (np.uint64(0), LOW):
            assert all(np.isfinite(z).all() for z in normals_xp(np, (np.array([word]),) * 4, dtype))


@pytest.mark.parametrize("dates", [1, 4, 7])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_variants_agree_with_the_reference(dtype: str, dates: int) -> None:
    terms = np.array([90.0, 0.02, 0.3, 1.5], dtype)
    first, count, seed, contract = 2**32 - 3, 9, 11, 4  # across the carry of the path's number
    path = np.arange(first, first + count, dtype=np.uint64)
    turns = [philox(path & LOW, path >> np.uint64(32), *map(np.uint64, (t, 0, seed, contract))) for t in range(2)]
    z = np.array([n for turn in turns for n in normals_xp(np, turn, "float64")])[:dates]
    prices = 90 * np.exp(np.cumsum((0.02 - 0.045) * 1.5 / dates + 0.3 * math.sqrt(1.5 / dates) * z, axis=0))
    expected = np.array([prices[-1], prices.mean(axis=0), np.exp(np.log(prices).mean(axis=0))])
    arguments = (terms, seed, contract, first, count, dates)
    for found in (price_paths(*arguments), price_paths_xp(np, *arguments)):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype])


def test_a_path_is_the_same_in_pieces_of_any_length() -> None:
    terms = np.array([100.0, 0.02, 0.3, 1.0])
    whole = price_paths(terms, 1, 2, 0, 100, 5)
    pieces = [price_paths(terms, 1, 2, first, count, 5) for first, count in ((0, 33), (33, 1), (34, 66))]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    wide = np.array([[100.0, 9], [0.02, 9], [0.3, 9], [1.0, 9]])
    np.testing.assert_array_equal(price_paths(wide[:, 0], 1, 2, 0, 100, 5), whole)
    assert not np.isin(price_paths(terms, 1, 3, 0, 100, 5), whole).any()
    assert not np.isin(price_paths(terms, 2, 2, 0, 100, 5), whole).any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"terms": [100.0, 0.0, 0.2, 1.0]}, "terms must be a NumPy array (terms,), not list"),
        ({"terms": np.array([100, 0, 1, 1])}, "terms must be float64 or float32, not int64"),
        ({"terms": np.ones(3)}, "terms are [1.0, 1.0, 1.0], must be price > 0, rate, volatility > 0, maturity > 0"),
        ({"terms": np.array([100.0, 0.0, -0.2, 1.0])}, "terms are [100.0, 0.0, -0.2, 1.0], must be"),
        ({"seed": -1}, "seed is -1, must be from 0 to 4294967295"),
        ({"contract": 2**32}, "contract is 4294967296, must be from 0 to 4294967295"),
        ({"count": 0}, "count is 0, must be from 1 to"),
        ({"dates": 0}, "dates is 0, must be from 1 to"),
    ],
)
def test_what_it_refuses(changed: dict[str, Any], said: str) -> None:
    terms = np.array([100.0, 0.0, 0.2, 1.0])
    right: dict[str, Any] = {"terms": terms, "seed": 0, "contract": 0, "first": 0, "count": 1, "dates": 1}
    with pytest.raises((TypeError, ValueError)) as caught:
        price_paths(**right | changed)
    assert str(caught.value).startswith(f"price_paths: {said}")
