"""One pass of Lloyd's algorithm and k-means++ against the obvious NumPy code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from workloads.kernels import lloyd

Array = np.ndarray[Any, Any]
DTYPES = ["float64", "float32"]
IMPLEMENTATIONS = [
    pytest.param(lloyd.assign_numba, id="numba"),
    pytest.param(lambda *arrays: lloyd.assign_xp(np, *arrays), id="xp"),
]
SEEDING = [
    pytest.param(lloyd.seed_centroids_numba, id="numba"),
    pytest.param(lambda *arrays: lloyd.seed_centroids_xp(np, *arrays), id="xp"),
]


def squared_distances(points: Array, centroids: Array) -> Array:
    distances: Array = np.square(points[:, None, :].astype(float) - centroids[None].astype(float)).sum(axis=2)
    return distances


# around the length of a block, fewer points than centroids, one and many dimensions, one centroid
@pytest.mark.parametrize(
    ("n", "d", "k"), [(255, 3, 5), (256, 3, 5), (257, 3, 5), (1000, 1, 3), (2, 3, 7), (70, 17, 9), (1, 1, 1), (0, 3, 2)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("assign", IMPLEMENTATIONS)
def test_a_pass_is_what_numpy_says(assign: Callable[..., Any], dtype: str, n: int, d: int, k: int) -> None:
    rng = np.random.default_rng(n + d + k)
    points, centroids = rng.random((n, d)).astype(dtype), rng.random((k, d)).astype(dtype)
    distances = squared_distances(points, centroids)
    expected = distances.argmin(axis=1)

    labels, sums, counts, inertia = assign(points, centroids)

    assert (labels.dtype, sums.dtype, counts.dtype) == (np.int32, np.dtype(dtype), np.int64)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(counts, np.bincount(expected, minlength=k))
    np.testing.assert_allclose(sums, [points[expected == j].sum(axis=0) for j in range(k)], rtol=1e-5)
    assert inertia == pytest.approx(distances.min(axis=1, initial=np.inf).sum(), rel=1e-5)


@pytest.mark.parametrize("assign", IMPLEMENTATIONS)
def test_of_equally_near_centroids_the_first_counts(assign: Callable[..., Any]) -> None:
    labels, _, counts, inertia = assign(np.array([[0.0], [1.0]]), np.array([[5.0], [1.0], [-1.0], [1.0]]))
    assert labels.tolist() == [1, 1]
    assert counts.tolist() == [0, 2, 0, 0]
    assert inertia == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_pixels_are_exact_however_they_are_cut(dtype: str) -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(256, size=(5000, 3)).astype(dtype)
    centroids = (rng.random((6, 3)) * 255).astype(dtype)
    whole = lloyd.assign(points, centroids)[1]
    pieces = [lloyd.assign(piece, centroids)[1] for piece in np.array_split(points, 7)]
    np.testing.assert_array_equal(whole, np.sum(pieces, axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed_centroids", SEEDING)
def test_seeds_are_the_best_of_the_drawn_candidates(seed_centroids: Callable[..., Any], dtype: str) -> None:
    rng = np.random.default_rng(11)
    points = rng.integers(256, size=(501, 3)).astype(dtype)  # whole numbers: all sums below are exact
    draws = rng.random((8, 4)).astype(dtype)

    chosen = [points[int(draws[0, 0] * len(points))]]
    for j in range(1, len(draws)):
        nearest = squared_distances(points, np.array(chosen)).min(axis=1)
        cumulated = nearest.cumsum()
        drawn = [points[np.searchsorted(cumulated, float(u) * cumulated[-1], side="right")] for u in draws[j]]
        totals = [squared_distances(points, np.array([*chosen, p])).min(axis=1).sum() for p in drawn]
        chosen.append(drawn[int(np.argmin(totals))])

    found = seed_centroids(points, draws)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, chosen)


@pytest.mark.parametrize("seed_centroids", SEEDING)
def test_seeds_find_all_distinct_points_and_then_repeat(seed_centroids: Callable[..., Any]) -> None:
    points = np.repeat(np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), [50, 1, 1], axis=0)
    found = seed_centroids(points, np.random.default_rng(0).random((5, 3)))
    assert set(map(tuple, found)) == set(map(tuple, points))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: lloyd.assign(np.zeros((4, 3)), np.zeros((2, 4))),
            ValueError,
            "assign: centroids has the shape (2, 4), but (k, d) needs d = 3",
        ),
        (
            lambda: lloyd.assign(np.zeros((4, 3)), np.zeros((0, 3))),
            ValueError,
            "assign: centroids must have at least one row",
        ),
        (
            lambda: lloyd.assign(np.zeros((4, 3), np.uint8), np.zeros((2, 3))),
            TypeError,
            "assign: points must be float64 or float32, not uint8",
        ),
        (
            lambda: lloyd.seed_centroids(np.zeros((0, 3)), np.zeros((2, 1))),
            ValueError,
            "seed_centroids: (0, 3) points and (2, 1) draws: n, k and trials start at 1",
        ),
        (
            lambda: lloyd.seed_centroids(np.zeros((4, 3)), np.ones((2, 1))),
            ValueError,
            "seed_centroids: draws must be in [0, 1), these are from 1.0 to 1.0",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line(call: Callable[[], object], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == said
