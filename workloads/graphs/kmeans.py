"""k-means: reduce a photograph to its main colours, with Lloyd's algorithm as an unrolled task graph.

Every restart is a chain of iterations. An iteration assigns each chunk of pixels to the nearest centroid and adds up
what the next centroids are made of, then combines the chunks in fixed order. A graph can't stop early: what comes
after convergence passes the state on at no cost. Sums of 8-bit pixels are exact in float64, so the centroids do not
depend on the number of chunks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from workloads.images import read_rgb
from workloads.kernels import lloyd
from workloads.workload import Verification, Workload

if TYPE_CHECKING:
    from typing import Self

    from workloads.workload import Graph

Pixels: TypeAlias = npt.NDArray[np.uint8]
Partial: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], float]

SEEDING_PIXELS = 65_536
"""Seeds are drawn from this many pixels, evenly spread over the image: k-means++ takes clusters times trials passes."""
REFERENCE_PIXELS = 400_000
"""Images up to this size are compared with scikit-learn in full: a few seconds on two cores."""
ALLOWED_RATIO = 1.01
"""Of our inertia to that of scikit-learn. Runs of scikit-learn from different seeds differ by about as much."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a restart stands after some iterations."""

    centroids: npt.NDArray[np.float64]
    """(clusters, 3), in the units of the pixels."""
    inertia: float = math.inf
    """Of the centroids before the latest move; the move can only lower it."""
    iterations: int = 0
    converged: bool = False


@dataclass(frozen=True, slots=True)
class Quantised:
    """A photograph in few colours."""

    centroids: npt.NDArray[np.float64]
    """(clusters, 3): the colours, red, green and blue from 0 to 255."""
    labels: npt.NDArray[np.uint8]
    """(height, width): which colour each pixel has."""
    inertia: float
    """Sum over all pixels of the squared distance to their colour."""
    iterations: int
    """That the best restart took."""
    converged: bool
    restart: int
    """The number of the best restart, from 0."""

    def image(self) -> Pixels:
        """Return the picture, (height, width, 3) uint8."""
        colours: Pixels = self.centroids.round().astype(np.uint8)
        return colours[self.labels]


class KMeans(Workload):
    """Colour quantisation of a photograph by k-means, checked against scikit-learn."""

    name: ClassVar[str] = "kmeans"

    image: str = Field("china", description="path of an image, or one of the samples china and flower")
    clusters: int = Field(64, ge=2, le=256, description="number of colours")
    iterations: int = Field(60, ge=1, le=300, description="most iterations of a restart")
    tolerance: float = Field(
        1e-4, ge=0, le=1, description="stop when the centroids move less, relative to the variance of the pixels"
    )
    restarts: int = Field(3, ge=1, le=64, description="independent runs from different seeds, the best one counts")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the random choice of starting centroids")
    chunk_pixels: int = Field(150_000, ge=1_000, le=10_000_000, description="most pixels that one task works on")
    megapixels: float = Field(3.0, ge=0.001, le=200, description="larger images are scaled down to this many million")

    @model_validator(mode="after")
    def _image_is_readable(self) -> Self:
        pixels = self.pixels().shape[0] * self.pixels().shape[1]
        if pixels < self.clusters:
            raise ValueError(f"image {self.image!r} has {pixels} pixels, fewer than the {self.clusters} clusters")
        return self

    def pixels(self) -> Pixels:
        """Read the image, (height, width, 3); raises `UnreadableInputError`."""
        return read_rgb(self.image, round(self.megapixels * 1e6))

    def graph(self) -> Graph:
        """Pixels travel once, in the graph: workers need no file."""
        image = self.pixels()
        pixels = image.reshape(-1, 3)
        token = self.token(str(image.shape).encode(), image.tobytes())
        # scikit-learn's meaning of tol: the squared movement of all centroids, relative to the mean variance.
        threshold = self.tolerance * float(pixels.var(axis=0).mean())

        chunks = np.array_split(pixels, math.ceil(len(pixels) / self.chunk_pixels))
        graph: dict[str, Any] = {f"kmeans-pixels-{token}-{c}": chunk for c, chunk in enumerate(chunks)}
        data = list(graph)
        sample = f"kmeans-sample-{token}"
        graph[sample] = np.ascontiguousarray(pixels[:: math.ceil(len(pixels) / SEEDING_PIXELS)])

        finals = []
        for r in range(self.restarts):
            state = f"kmeans-seed-{token}-{r}"
            graph[state] = (seed_state, sample, self.clusters, [self.seed, r])
            for i in range(self.iterations):
                partials = [f"kmeans-assign-{token}-{r}-{i}-{c}" for c in range(len(chunks))]
                graph |= {key: (assign_chunk, chunk, state) for key, chunk in zip(partials, data, strict=True)}
                moved = f"kmeans-move-{token}-{r}-{i}"
                graph[moved] = (move_centroids, state, partials, threshold)
                state = moved
            finals.append(state)

        best = f"kmeans-best-{token}"
        graph[best] = (best_restart, finals)
        labels = [f"kmeans-label-{token}-{c}" for c in range(len(chunks))]
        graph |= {key: (label_chunk, chunk, best) for key, chunk in zip(labels, data, strict=True)}
        graph[f"kmeans-quantised-{token}"] = (quantised, best, labels, list(image.shape[:2]))
        return graph

    def verify(self, result: Quantised) -> Verification:
        """Recompute the inertia from labels and colours, then compare it with scikit-learn's own k-means."""
        image = self.pixels()
        if flaw := _flaw(result, image.shape[:2], self.clusters):
            return Verification(False, flaw)
        pixels, labels = image.reshape(-1, 3), result.labels.reshape(-1)
        inertia = _inertia(pixels, labels, result.centroids)
        measures: dict[str, float | int | str] = {"inertia": result.inertia, "iterations": result.iterations}
        if not math.isclose(inertia, result.inertia, rel_tol=1e-9, abs_tol=1e-6):
            said = f"inertia is given as {result.inertia:.6g}, labels and colours make {inertia:.6g}"
            return Verification(False, said, measures)
        if inertia <= 1e-6:
            return Verification(True, f"exact: the image has no more than {self.clusters} colours", measures)

        step = math.ceil(len(pixels) / REFERENCE_PIXELS)
        pixels, labels = pixels[::step], labels[::step]
        ours = _inertia(pixels, labels, result.centroids)
        reference = _inertia_of_sklearn(pixels, self.clusters, self.seed)
        measures |= {"reference_inertia": reference, "compared_pixels": len(pixels)}
        excess_percent = measures["excess_percent"] = 100 * (ours / reference - 1)
        return Verification(
            ours <= ALLOWED_RATIO * reference,
            f"inertia {ours:.5g} is {abs(excess_percent):.2f} % {'above' if excess_percent > 0 else 'below'}"
            f" scikit-learn's {reference:.5g}; up to {100 * (ALLOWED_RATIO - 1):.0f} % above is allowed"
            + (f" (on every {step}th pixel)" if step > 1 else "")
            + ("" if result.converged else f"; not converged after {result.iterations} iterations"),
            measures,
        )

    def summary(self, result: Quantised) -> str:
        height, width = result.labels.shape
        ended = "converged" if result.converged else "stopped"
        return (
            f"{width} x {height} pixels in {len(result.centroids)} colours, inertia {result.inertia:.5g}, "
            f"{ended} after {result.iterations} iterations (restart {result.restart + 1} of {self.restarts})"
        )


def seed_state(sample: Pixels, clusters: int, seed: Sequence[int]) -> State:
    """Starting centroids by greedy k-means++; as many candidates for each as scikit-learn tries."""
    trials = 2 + int(math.log(clusters))
    draws = np.random.default_rng(seed).random((clusters, trials))
    return State(lloyd.seed_centroids(sample.astype(np.float64), draws))


def assign_chunk(pixels: Pixels, state: State) -> Partial | None:
    """Sums, counts and inertia of a chunk; None when the centroids have settled already."""
    if state.converged:
        return None
    _, sums, counts, inertia = lloyd.assign(pixels.astype(np.float64), state.centroids)
    return sums, counts, inertia


def move_centroids(state: State, partials: Sequence[Partial | None], threshold: float) -> State:
    """Combine the chunks in order and move each centroid to the mean of its pixels; one without any stays."""
    if state.converged:
        return state
    present = [partial for partial in partials if partial is not None]
    sums = np.sum([sums for sums, _, _ in present], axis=0)
    counts = np.sum([counts for _, counts, _ in present], axis=0)[:, None]
    centroids = np.where(counts, sums / np.maximum(counts, 1), state.centroids)
    return State(
        centroids=centroids,
        inertia=math.fsum(inertia for _, _, inertia in present),
        iterations=state.iterations + 1,
        converged=float(np.square(centroids - state.centroids).sum()) <= threshold,
    )


def best_restart(states: Sequence[State]) -> tuple[int, State]:
    """Return number and state of the restart with the lowest inertia, of equals the first."""
    return min(enumerate(states), key=lambda numbered: numbered[1].inertia)


def label_chunk(pixels: Pixels, best: tuple[int, State]) -> tuple[npt.NDArray[np.uint8], float]:
    """Label each pixel of a chunk with its colour, and return the inertia of the chunk with the final colours."""
    labels, _, _, inertia = lloyd.assign(pixels.astype(np.float64), best[1].centroids)
    return labels.astype(np.uint8), inertia


def quantised(
    best: tuple[int, State], labelled: Sequence[tuple[npt.NDArray[np.uint8], float]], shape: Sequence[int]
) -> Quantised:
    """Put the result together from the best restart and the labels of all chunks."""
    restart, state = best
    return Quantised(
        centroids=state.centroids,
        labels=np.concatenate([labels for labels, _ in labelled]).reshape(shape),
        inertia=math.fsum(inertia for _, inertia in labelled),
        iterations=state.iterations,
        converged=state.converged,
        restart=restart,
    )


def _flaw(result: object, shape: tuple[int, ...], clusters: int) -> str | None:
    """What makes the result no quantised image at all, in one line."""
    if not isinstance(result, Quantised):
        return f"the result is a {type(result).__name__}, not a quantised image"
    if result.labels.shape != shape:
        return f"the labels have the shape {result.labels.shape}, the image {shape}"
    if result.centroids.shape != (clusters, 3):
        return f"the centroids have the shape {result.centroids.shape}, not {(clusters, 3)}"
    if not np.isfinite(result.centroids).all():
        return "a centroid is not a finite number"
    if result.labels.max() >= clusters:
        return f"label {result.labels.max()} stands for no colour: there are {clusters}"
    return None


def _inertia(pixels: Pixels, labels: npt.NDArray[np.uint8], centroids: npt.NDArray[np.float64]) -> float:
    blocks = range(0, len(pixels), 100_000)  # a float64 copy of a large image may not fit
    return math.fsum(
        float(np.square(pixels[b : b + 100_000] - centroids[labels[b : b + 100_000]]).sum()) for b in blocks
    )


def _inertia_of_sklearn(pixels: Pixels, clusters: int, seed: int) -> float:
    from sklearn.cluster import KMeans as Reference
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different colours than clusters: no matter here
        reference = Reference(clusters, n_init=1, random_state=seed).fit(pixels.astype(np.float32))
    return float(reference.inertia_)
