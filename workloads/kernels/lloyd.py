"""The two halves of a k-means step: find the nearest centroid of each point, sum the points of each centroid."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays

TILE = 256
"""Points that are compared with one centroid at a time: two rows of them fit in the first-level cache."""


def assign(points: Array, centroids: Array) -> tuple[Array, Array]:
    """Label each of the `points` (n, d) with the nearest of the `centroids` (k, d).

    Returns the labels (n,) as int32 and the squared distances (n,) in the dtype of the points. Of equally near
    centroids the first counts.

    Raises
    ------
    TypeError
        Not two arrays of float64 or two of float32.
    ValueError
        Shapes that don't agree; no centroid; no coordinate.
    """
    lengths = check_arrays("assign", points=(points, "n d"), centroids=(centroids, "k d"))
    if not (lengths["k"] and lengths["d"]):
        raise ValueError(f"assign: centroids has the shape {centroids.shape}, must have at least one row and column")
    labels, distances = ASSIGN(points, centroids)
    return labels, distances


def assign_numba(points: Array, centroids: Array) -> tuple[Array, Array]:
    """`assign` compiled for one core; both arrays contiguous."""
    labels = np.zeros(len(points), np.int32)
    distances = np.full(len(points), np.inf, points.dtype)
    _assign(points, centroids, labels, distances)
    return labels, distances


def assign_xp(xp: ModuleType, points: Any, centroids: Any) -> tuple[Any, Any]:
    """`assign` on whole arrays of `xp`: one centroid after the other, so that memory stays O(n)."""
    labels = xp.zeros(len(points), np.int32)
    distances = xp.full(len(points), np.inf, points.dtype)
    for c in range(len(centroids)):
        squared = xp.zeros(len(points), points.dtype)
        for j in range(points.shape[1]):
            difference = points[:, j] - centroids[c, j]
            squared += difference * difference
        labels = xp.where(squared < distances, np.int32(c), labels)
        distances = xp.minimum(squared, distances)
    return labels, distances


def accumulate(points: Array, labels: npt.NDArray[np.int32], clusters: int) -> tuple[Array, Array]:
    """Add up the `points` (n, d) of each label.

    Returns the sums (clusters, d) in the dtype of the points, added in float64, and the counts (clusters,) as int64.

    Raises
    ------
    TypeError
        `points` is not an array of float64 or float32, or `labels` not one of int32.
    ValueError
        Shapes that don't agree; a label outside of 0 to `clusters` - 1.
    """
    lengths = check_arrays("accumulate", points=(points, "n d"))
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32:
        raise TypeError(f"accumulate: labels must be int32, not {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != (lengths["n"],):
        raise ValueError(f"accumulate: labels has the shape {labels.shape}, must be ({lengths['n']},) as the points")
    if labels.size and not 0 <= labels.min() <= labels.max() < clusters:  # compiled code would write astray
        raise ValueError(f"accumulate: labels are {labels.min()} to {labels.max()}, must be 0 to {clusters - 1}")
    sums, counts = ACCUMULATE(points, labels, int(clusters))
    return sums, counts


def accumulate_numba(points: Array, labels: Array, clusters: int) -> tuple[Array, Array]:
    """`accumulate` compiled for one core; both arrays contiguous."""
    sums = np.zeros((clusters, points.shape[1]))
    counts = np.zeros(clusters, np.int64)
    _accumulate(points, labels, sums, counts)
    return sums.astype(points.dtype), counts


def accumulate_xp(xp: ModuleType, points: Any, labels: Any, clusters: int) -> tuple[Any, Any]:
    """`accumulate` on whole arrays of `xp`."""
    columns = (xp.bincount(labels, weights=points[:, j], minlength=clusters) for j in range(points.shape[1]))
    sums = xp.stack(list(columns), axis=1).astype(points.dtype)
    return sums, xp.bincount(labels, minlength=clusters).astype(np.int64)


@numba.njit(cache=True, nogil=True)
def _assign(points, centroids, labels, distances):  # type: ignore[no-untyped-def]  # compiled; arrays
    n, d = points.shape
    tile = np.empty((d, TILE), points.dtype)
    squares = np.empty(TILE, points.dtype)
    for start in range(0, n, TILE):
        size = min(TILE, n - start)
        for i in range(size):
            for j in range(d):
                tile[j, i] = points[start + i, j]
        # all inner loops run over points of the tile, side by side in memory: five times faster than over centroids
        label, nearest, squared = labels[start : start + size], distances[start : start + size], squares[:size]
        for c in range(centroids.shape[0]):
            squared[:] = 0
            for j in range(d):
                row, centre = tile[j, :size], centroids[c, j]
                for i in range(size):
                    difference = row[i] - centre
                    squared[i] += difference * difference
            for i in range(size):
                closer = squared[i] < nearest[i]
                nearest[i] = squared[i] if closer else nearest[i]
                label[i] = c if closer else label[i]


@numba.njit(cache=True, nogil=True)
def _accumulate(points, labels, sums, counts):  # type: ignore[no-untyped-def]  # compiled; arrays
    n, d = points.shape
    for i in range(n):
        counts[labels[i]] += 1
        for j in range(d):
            sums[labels[i], j] += points[i, j]


def _example_assign(dtype: npt.DTypeLike) -> Arguments:
    rng = np.random.default_rng(7)
    return rng.random((TILE + 45, 3)).astype(dtype), rng.random((5, 3)).astype(dtype)


def _example_accumulate(dtype: npt.DTypeLike) -> Arguments:
    rng = np.random.default_rng(7)
    return rng.random((101, 3)).astype(dtype), rng.integers(0, 5, 101, dtype=np.int32), 6


ASSIGN = Kernel("assign", assign_numba, assign_xp, _example_assign)
ACCUMULATE = Kernel("accumulate", accumulate_numba, accumulate_xp, _example_accumulate)
KERNELS = (ASSIGN, ACCUMULATE)
