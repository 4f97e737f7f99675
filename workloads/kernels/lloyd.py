"""Kernels of k-means: one pass of Lloyd's algorithm, and greedy k-means++ seeding.

Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982); Arthur and Vassilvitskii, "k-means++:
the advantages of careful seeding", SODA 2007, in the greedy form that scikit-learn uses too.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from workloads.kernels.compiling import kernel
from workloads.kernels.dispatch import Arguments, Array, Kernel, check_arrays
from workloads.kernels.elastic import in_pieces

Pass: TypeAlias = tuple[Array, Array, Array, float]

BLOCK = 256
"""Points per block: their distances stay in the first-level cache while all centroids pass over them."""
PIECE = 6_000_000
"""Differences of coordinates in a piece of a pass: some 2 ms of work, beside some 0.1 ms to start a thread."""


def assign(points: Array, centroids: Array) -> Pass:
    """One pass over the points: which centroid is nearest, and what the next centroids are made of.

    Parameters
    ----------
    points, centroids
        (n, d) and (k, d), k at least 1, both float64 or both float32.

    Returns
    -------
    tuple
        Labels, (n,) int32, of equally near centroids the first; sum of the points of each centroid, (k, d) in the
        dtype of the points, added up in float64; their number, (k,) int64; the inertia, which is the sum of the
        squared distances to the nearest centroid.

    Raises
    ------
    TypeError
        Not two arrays of float64 or two of float32.
    ValueError
        Shapes that don't agree, or no centroid.
    """
    lengths = check_arrays("assign", points=(points, "n d"), centroids=(centroids, "k d"))
    if not lengths["k"]:
        raise ValueError("assign: centroids must have at least one row")
    result: Pass = ASSIGN(points, centroids)
    return result


def seed_centroids(points: Array, draws: Array) -> Array:
    """Choose k starting centroids among the points by greedy k-means++.

    Parameters
    ----------
    points
        (n, d), n at least 1, float64 or float32.
    draws
        (k, trials) in the dtype of the points, uniform in [0, 1): all the randomness there is. Each new centroid is
        the best of `trials` candidates, which are drawn with the squared distance to the nearest centroid as weight.

    Returns
    -------
    ndarray
        (k, d) in the dtype of the points. Rows repeat when there are fewer different points than k.

    Raises
    ------
    TypeError
        Not two arrays of float64 or two of float32.
    ValueError
        No points, no draws, or draws outside [0, 1).
    """
    lengths = check_arrays("seed_centroids", points=(points, "n d"), draws=(draws, "k trials"))
    if not all(lengths[letter] for letter in ("n", "k", "trials")):
        raise ValueError(f"seed_centroids: {points.shape} points and {draws.shape} draws: n, k and trials start at 1")
    if draws.min() < 0 or draws.max() >= 1:
        raise ValueError(f"seed_centroids: draws must be in [0, 1), these are from {draws.min()} to {draws.max()}")
    result: Array = SEED_CENTROIDS(points, draws)
    return result


def assign_elastic(points: Array, centroids: Array) -> Pass:
    """`assign` compiled, on the cores that the ledger grants; arrays contiguous.

    The sums of the pieces are added up in order: with coordinates that are no whole numbers they may differ from those
    in one go by rounding, but not with the number of cores.
    """
    length = max(1, PIECE // (centroids.size * BLOCK)) * BLOCK if centroids.size else BLOCK
    starts = range(0, max(1, len(points)), length)
    if len(starts) == 1:
        whole: Pass = assign_numba(points, centroids)
        return whole
    passes = in_pieces(lambda number: assign_numba(points[starts[number] :][:length], centroids), len(starts))
    labels, sums, counts, inertia = zip(*passes, strict=True)
    return (
        np.concatenate(labels),
        np.sum(sums, axis=0, dtype=np.float64).astype(points.dtype),
        np.sum(counts, axis=0),
        math.fsum(inertia),
    )


@kernel
def assign_numba(points: Array, centroids: Array) -> Pass:
    """`assign` compiled for one core."""
    n, d = points.shape
    k = centroids.shape[0]
    labels = np.empty(n, np.int32)
    sums = np.zeros((k, d), np.float64)
    counts = np.zeros(k, np.int64)
    inertia = 0.0
    columns = np.empty((d, BLOCK), points.dtype)
    distance = np.empty(BLOCK, points.dtype)
    nearest = np.empty(BLOCK, points.dtype)
    owner = np.empty(BLOCK, np.int32)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        for c in range(d):
            for i in range(m):
                columns[c, i] = points[start + i, c]
        nearest[:m] = np.inf
        # Innermost over the points of the block, not over the centroids: that is what the compiler vectorises.
        for j in range(k):
            distance[:m] = 0
            for c in range(d):
                centre = centroids[j, c]
                for i in range(m):
                    offset = columns[c, i] - centre
                    distance[i] += offset * offset
            for i in range(m):
                closer = distance[i] < nearest[i]
                owner[i] = j if closer else owner[i]
                nearest[i] = distance[i] if closer else nearest[i]
        for i in range(m):
            j = owner[i]
            labels[start + i] = j
            counts[j] += 1
            inertia += nearest[i]
            for c in range(d):
                sums[j, c] += columns[c, i]
    return labels, sums.astype(points.dtype), counts, inertia


def assign_xp(xp: ModuleType, points: Any, centroids: Any) -> Pass:
    """`assign` on whole arrays of `xp`: one centroid after the other, so that memory stays O(n)."""
    n, d = points.shape
    k = centroids.shape[0]
    nearest = xp.full(n, np.inf, dtype=points.dtype)
    labels = xp.zeros(n, dtype=np.int32)
    for j in range(k):
        distance = sum((points[:, c] - centroids[j, c]) ** 2 for c in range(d))
        closer = distance < nearest
        labels = xp.where(closer, np.int32(j), labels)
        nearest = xp.where(closer, distance, nearest)
    counts = xp.bincount(labels, minlength=k).astype(np.int64)
    sums = xp.stack([xp.bincount(labels, weights=points[:, c], minlength=k) for c in range(d)], axis=1)
    return labels, sums.astype(points.dtype), counts, float(nearest.sum(dtype=np.float64))


@kernel
def seed_centroids_numba(points: Array, draws: Array) -> Array:
    """`seed_centroids` compiled for one core."""
    n, d = points.shape
    k, trials = draws.shape
    columns = np.ascontiguousarray(points.T)
    centroids = np.empty((k, d), points.dtype)
    nearest = np.full(n, np.inf, points.dtype)
    cumulated = np.empty(n, np.float64)
    best = np.empty(n, points.dtype)
    trial = np.empty(n, points.dtype)
    for j in range(k):
        best_total = np.inf
        for t in range(trials if j else 1):
            if j:
                chosen = min(np.searchsorted(cumulated, draws[j, t] * cumulated[-1], side="right"), n - 1)
            else:
                chosen = int(draws[0, 0] * n)
            trial[:] = 0
            for c in range(d):
                centre = columns[c, chosen]
                for i in range(n):
                    offset = columns[c, i] - centre
                    trial[i] += offset * offset
            total = 0.0
            for i in range(n):
                trial[i] = min(trial[i], nearest[i])
                total += trial[i]
            if total < best_total:
                best_total = total
                for c in range(d):
                    centroids[j, c] = points[chosen, c]
                best, trial = trial, best
        nearest, best = best, nearest
        total = 0.0
        for i in range(n):
            total += nearest[i]
            cumulated[i] = total
    return centroids


def seed_centroids_xp(xp: ModuleType, points: Any, draws: Any) -> Any:
    """`seed_centroids` on whole arrays of `xp`."""
    n, d = points.shape
    uniform = draws.tolist()  # the choices are made on the host, from single numbers
    centroids = xp.empty((len(uniform), d), dtype=points.dtype)
    nearest = xp.full(n, np.inf, dtype=points.dtype)
    cumulated = xp.zeros(n, dtype=np.float64)
    for j, row in enumerate(uniform):
        best_total, best = np.inf, nearest
        for u in row if j else row[:1]:
            found = int(xp.searchsorted(cumulated, u * cumulated[-1:], side="right")[0]) if j else int(u * n)
            chosen = points[min(found, n - 1)]
            trial = xp.minimum(sum((points[:, c] - chosen[c]) ** 2 for c in range(d)), nearest)
            total = float(trial.sum(dtype=np.float64))
            if total < best_total:
                best_total, best = total, trial
                centroids[j] = chosen
        nearest = best
        cumulated = xp.cumsum(nearest, dtype=np.float64)
    return centroids


def _assign_example(dtype: npt.DTypeLike) -> Arguments:
    # Whole numbers up to 255, like pixels: their sums are exact, so that all implementations agree to the last bit.
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(1001, 3)).astype(dtype), rng.integers(256, size=(7, 3)).astype(dtype)


def _seed_example(dtype: npt.DTypeLike) -> Arguments:
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(1001, 3)).astype(dtype), rng.random((7, 3)).astype(dtype)


ASSIGN = Kernel("assign", assign_elastic, assign_xp, _assign_example)
SEED_CENTROIDS = Kernel("seed_centroids", seed_centroids_numba, seed_centroids_xp, _seed_example)
KERNELS = (ASSIGN, SEED_CENTROIDS)
