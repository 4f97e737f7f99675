"""Heat flow in a cube, by explicit steps on blocks that exchange halos, checked against the analytic solution.

The same problem is solved on three grids in one graph, each with half the spacing of the one before, so that not only
the error but also how it shrinks is measured: with the square of the spacing, or something is wrong.

A task takes several steps at a time. For that each block first gets a halo as deep as there are steps, cut from the
faces of its neighbours: blocks themselves never travel. What is computed twice in the halos is the price of fewer and
longer tasks (Demmel, Hoemmen, Mohiyuddin and Yelick 2008, "Avoiding communication in sparse matrix computations").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from workloads.kernels import stencil
from workloads.workload import Verification, Workload

if TYPE_CHECKING:
    from typing import Self

    from workloads.workload import Graph

Block: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = tuple[int, int, int]

MODES: tuple[tuple[Index, float], ...] = (((1, 1, 1), 1.0), ((1, 2, 3), 0.5))
"""Half waves along (x, y, z) and amplitude in kelvin of the sine modes at the start.

Two, because the errors in space and in time of a single mode cancel at some Fourier number (1/18 for the first), where
its order is 4. Different along the axes, so that axes that are mixed up show.
"""
GRIDS = 3
DECAYED = 0.05
"""Largest diffusivity × time, in m²: the first mode has lost three quarters by then and the second nearly all."""
ORDER_TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class Box:
    """Indices of grid points from `low` up to, and without, `high`. The first point inside the cube is (0, 0, 0)."""

    low: Index
    high: Index

    @property
    def shape(self) -> Index:
        return _index(high - low for low, high in zip(self.low, self.high, strict=True))

    def grown(self, layers: int, points: int) -> Box:
        """More layers on all sides, but no further than the boundary of the cube."""
        low = _index(max(i - layers, -1) for i in self.low)
        return Box(low, _index(min(i + layers, points + 1) for i in self.high))

    def side(self, axis: int, upper: bool, layers: int) -> Box:
        """The outermost layers of one side."""
        low, high = list(self.low), list(self.high)
        if upper:
            low[axis] = high[axis] - layers
        else:
            high[axis] = low[axis] + layers
        return Box(_index(low), _index(high))

    def overlap(self, other: Box) -> Box:
        """Points that both have; a side of length 0 when there are none."""
        low = _index(map(max, self.low, other.low))
        return Box(low, _index(map(max, low, map(min, self.high, other.high))))

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """Where these points are in the array that holds those of `outer`."""
        x, y, z = (slice(low - o, high - o) for low, high, o in zip(self.low, self.high, outer.low, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True)
class Grid:
    """One resolution: `points` inside the cube per side, `steps` until the end."""

    points: int
    steps: int
    chunks: int
    spacing_m: float
    time_step_s: float

    @property
    def end_s(self) -> float:
        return self.steps * self.time_step_s

    def blocks(self) -> dict[Index, Box]:
        """All blocks by their place; lengths along an axis differ by one point at most."""
        spans = list(pairwise(self.points * c // self.chunks for c in range(self.chunks + 1)))
        return {
            (i, j, k): Box(*zip(spans[i], spans[j], spans[k], strict=True))
            for i, j, k in product(range(self.chunks), repeat=3)
        }


@dataclass(frozen=True, slots=True)
class GridError:
    """How far one grid is from the analytic solution at the end."""

    points: int
    steps: int
    spacing_m: float
    end_s: float
    rms_error_kelvin: float
    max_error_kelvin: float
    max_rounding_kelvin: float
    """Largest distance from the exact solution of the difference equations: nothing but rounding, if all is well."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """The errors of all grids, from the coarsest to the finest."""

    grids: tuple[GridError, ...]

    @property
    def orders(self) -> tuple[float, ...]:
        """Observed order of convergence from each grid to the next finer one; not a number without an error."""
        return tuple(_order(coarse, fine) for coarse, fine in pairwise(self.grids))


class Heat(Workload):
    """Heat flow in a cube by explicit finite differences, checked against the analytic solution."""

    name: ClassVar[str] = "heat"

    points: int = Field(159, ge=23, le=1023, description="grid points per side of the finest grid, 4 n - 1")
    chunks: int = Field(2, ge=1, le=16, description="blocks per side of the finest grid")
    steps: int = Field(256, ge=16, le=65_536, description="time steps on the finest grid, a multiple of 16")
    steps_per_task: int = Field(16, ge=1, le=256, description="most steps of one task; the halos are as deep")
    fourier: float = Field(0.125, gt=0, description="diffusivity × time step / spacing², stable up to 1/6")
    diffusivity: float = Field(1.1e-4, gt=0, le=1e3, description="thermal diffusivity in m²/s; copper's is 1.1e-4")
    dtype: Literal["float64", "float32"] = Field("float64", description="of the temperatures")

    @field_validator("points")
    @classmethod
    def _grids_nest(cls, points: int) -> int:
        if (points + 1) % 4:
            below = (points + 1) // 4 * 4 - 1
            raise ValueError(f"three grids nest only in a multiple of 4 less 1: take {below} or {below + 4}")
        return points

    @field_validator("steps")
    @classmethod
    def _grids_end_together(cls, steps: int) -> int:
        if steps % 16:
            below = steps // 16 * 16
            raise ValueError(f"three grids end together only after a multiple of 16: take {below} or {below + 16}")
        return steps

    @field_validator("fourier")
    @classmethod
    def _steps_are_stable(cls, fourier: float) -> float:
        if not fourier <= stencil.STABLE_FOURIER:
            raise ValueError("explicit steps in three dimensions are stable up to 1/6 only: take 0.125, say")
        return fourier

    @model_validator(mode="after")
    def _halos_and_time_fit(self) -> Self:
        for grid in self.grids():
            thinnest = grid.points // grid.chunks
            if grid.chunks > 1 and thinnest < self.steps_per_task:
                raise ValueError(
                    f"steps_per_task = {self.steps_per_task} needs halos deeper than the blocks of {thinnest} points "
                    f"that chunks = {self.chunks} makes: take fewer chunks or steps_per_task = {thinnest}"
                )
        finest = self.grids()[-1]
        if self.diffusivity * finest.end_s > DECAYED:
            longest = int(DECAYED / (self.fourier * finest.spacing_m**2)) // 16 * 16
            raise ValueError(
                f"after steps = {self.steps} too little heat is left to measure: take steps = {longest} or fewer"
            )
        return self

    def grids(self) -> list[Grid]:
        """All grids, the coarsest first; blocks have about the same size on all."""
        found = []
        for halvings in reversed(range(GRIDS)):
            spacing_m = 2**halvings / (self.points + 1)
            found.append(
                Grid(
                    points=((self.points + 1) >> halvings) - 1,
                    steps=self.steps >> 2 * halvings,
                    chunks=max(1, self.chunks >> halvings),
                    spacing_m=spacing_m,
                    time_step_s=self.fourier * spacing_m**2 / self.diffusivity,
                )
            )
        return found

    def graph(self) -> Graph:
        token = self.token()
        graph: dict[str, Any] = {}
        errors = [self._add_grid(graph, f"{token}-{grid.points}", grid) for grid in self.grids()]
        graph[f"heat-convergence-{token}"] = (convergence, self.grids(), errors)
        return graph

    def _add_grid(self, graph: dict[str, Any], token: str, grid: Grid) -> list[str]:
        """Add all tasks of one grid and return the keys of the errors of its blocks."""
        boxes = grid.blocks()
        named = {place: ".".join(map(str, place)) for place in boxes}
        now = {place: f"heat-start-{token}-{named[place]}" for place in boxes}
        graph |= {now[place]: (start_block, box, grid, self.dtype) for place, box in boxes.items()}
        for done in range(0, grid.steps, self.steps_per_task):
            steps = min(self.steps_per_task, grid.steps - done)
            after = {}
            for place, box in boxes.items():
                faces, halo = [], []
                for neighbour, axis, upper in _neighbours(place, grid.chunks):
                    face = f"heat-face-{token}-{done}-{named[neighbour]}-{'xyz'[axis]}{'+' if upper else '-'}"
                    graph[face] = (cut_face, now[neighbour], axis, upper, steps)
                    faces.append(face)
                    halo.append(boxes[neighbour].side(axis, upper, steps))
                after[place] = f"heat-step-{token}-{done}-{named[place]}"
                graph[after[place]] = (step_block, now[place], box, faces, halo, grid.points, steps, self.fourier)
            now = after
        errors = [f"heat-error-{token}-{named[place]}" for place in boxes]
        for key, (place, box) in zip(errors, boxes.items(), strict=True):
            graph[key] = (block_error, now[place], box, grid, self.fourier, self.diffusivity)
        return errors

    def verify(self, result: Any) -> Verification:
        """Compare with theory on each grid, and the order of convergence between the two finest, 2 ± 0.2.

        At all points the distance from the difference equations, whose exact solution is known for sine modes, must
        be rounding: a halo that was wrong once shows here. The error against the heat equation is bounded by time ×
        largest truncation error of a step: stable explicit steps let no error grow (maximum principle; Morton and
        Mayers 2005, section 2.10).
        """
        grids = self.grids()
        if not isinstance(result, Convergence) or [(g.points, g.steps) for g in result.grids] != [
            (g.points, g.steps) for g in grids
        ]:
            return Verification(False, f"the result does not belong to these parameters: {result!r:.100}")
        measures: dict[str, float | int | str] = {"order": result.orders[-1], "order_coarse": result.orders[0]}
        faults = []
        for grid, found in zip(grids, result.grids, strict=True):
            rounding = self._rounding_bound(grid)
            error = self._truncation_bound(grid) + rounding
            if not found.max_error_kelvin <= error:
                faults.append(f"error {found.max_error_kelvin:.2g} K is above {error:.2g} K on {grid.points} points")
            if not found.max_rounding_kelvin <= rounding:
                faults.append(
                    f"{found.max_rounding_kelvin:.2g} K off the difference equations on {grid.points} points, "
                    f"rounding makes {rounding:.2g} K at most"
                )
            measures |= {
                f"rms_error_{grid.points}_points_kelvin": found.rms_error_kelvin,
                f"max_error_{grid.points}_points_kelvin": found.max_error_kelvin,
                f"error_bound_{grid.points}_points_kelvin": error,
                f"max_rounding_{grid.points}_points_kelvin": found.max_rounding_kelvin,
            }
        if not abs(result.orders[-1] - 2) <= ORDER_TOLERANCE:
            faults.append(f"order {result.orders[-1]:.2f}, must be 2 ± {ORDER_TOLERANCE}")
        finest = result.grids[-1]
        told = (
            f"error {finest.max_error_kelvin:.2g} K of {error:.2g} K allowed on {finest.points} points a side, "
            f"rounding {finest.max_rounding_kelvin:.2g} K; order {result.orders[-1]:.2f}, theory says 2"
        )
        return Verification(not faults, "; ".join(faults) or told, measures)

    def summary(self, result: Convergence) -> str:
        finest = result.grids[-1]
        return (
            f"{finest.points} points a side, {finest.steps} steps, {finest.end_s:.3g} s of heat flow: "
            f"error {finest.rms_error_kelvin:.2g} K rms, order {result.orders[-1]:.2f}"
        )

    def _truncation_bound(self, grid: Grid) -> float:
        """Largest possible error in kelvin before rounding, from the derivatives of the solution at the start."""
        per_second = sum(
            amplitude
            * self.diffusivity
            * (math.pi**2 * grid.spacing_m) ** 2
            * (self.fourier / 2 * sum(k**2 for k in waves) ** 2 + sum(k**4 for k in waves) / 12)
            for waves, amplitude in MODES
        )
        return grid.end_s * per_second

    def _rounding_bound(self, grid: Grid) -> float:
        """Largest possible rounding in kelvin.

        A step rounds ten times, most of them scaled down by `fourier`: at most 5 units in the last place.
        """
        hottest = sum(amplitude for _, amplitude in MODES)
        return (5 * grid.steps + 1) * float(np.finfo(self.dtype).eps) * hottest


def start_block(box: Box, grid: Grid, dtype: str) -> Block:
    """Temperatures in kelvin at the start."""
    return modes(box, grid.spacing_m, [1.0 for _ in MODES]).astype(dtype)


def cut_face(block: Block, axis: int, upper: bool, layers: int) -> Block:
    """Copy the outermost layers of one side: a view would travel light but keep the whole block alive."""
    chosen = [slice(None)] * 3
    chosen[axis] = slice(block.shape[axis] - layers, None) if upper else slice(layers)
    return block[tuple(chosen)].copy()


def step_block(
    block: Block, box: Box, faces: Sequence[Block], halo: Sequence[Box], points: int, steps: int, fourier: float
) -> Block:
    """Advance one block by some steps.

    Parameters
    ----------
    block, box
        Temperatures, and which points of the grid these are.
    faces, halo
        The same of the faces of all neighbours, `steps` layers deep; those across edges and corners too.
    points, steps, fourier
        Points per side of the grid; see `stencil.heat_steps`.
    """
    outer = box.grown(steps, points)
    u = np.full(outer.shape, np.nan, block.dtype)  # a gap in the halo must not go unseen
    exposed = []
    for axis in range(3):
        for end, on_boundary in ((0, outer.low[axis] == -1), (-1, outer.high[axis] == points + 1)):
            exposed.append(not on_boundary)
            if on_boundary:
                np.moveaxis(u, axis, 0)[end] = 0
    for values, where in zip((block, *faces), (box, *halo), strict=True):
        shared = where.overlap(outer)
        u[shared.within(outer)] = values[shared.within(where)]
    x0, x1, y0, y1, z0, z1 = exposed
    return stencil.heat_steps(u, fourier, steps, (x0, x1, y0, y1, z0, z1))[box.within(outer)].copy()


def block_error(block: Block, box: Box, grid: Grid, fourier: float, diffusivity: float) -> tuple[float, float, float]:
    """Sum of the squares of the errors of one block at the end, in K², the largest, and the largest rounding, in K."""
    error = np.abs(block - modes(box, grid.spacing_m, decay(diffusivity * grid.end_s)))
    rounding = np.abs(block - modes(box, grid.spacing_m, decay_in_steps(grid, fourier)))
    return float(np.square(error).sum()), float(error.max()), float(rounding.max())


def convergence(grids: Sequence[Grid], errors: Sequence[Sequence[tuple[float, float, float]]]) -> Convergence:
    """Gather the errors of all blocks of all grids."""
    return Convergence(
        tuple(
            GridError(
                points=grid.points,
                steps=grid.steps,
                spacing_m=grid.spacing_m,
                end_s=grid.end_s,
                rms_error_kelvin=math.sqrt(math.fsum(squares for squares, _, _ in of_grid) / grid.points**3),
                max_error_kelvin=float(np.max([error for _, error, _ in of_grid])),  # not a number stays so
                max_rounding_kelvin=float(np.max([rounding for _, _, rounding in of_grid])),
            )
            for grid, of_grid in zip(grids, errors, strict=True)
        )
    )


def modes(box: Box, spacing_m: float, left: Sequence[float]) -> npt.NDArray[np.float64]:
    """Temperatures in kelvin when of each mode the share `left` is left."""
    at = [math.pi * spacing_m * np.arange(low + 1, high + 1) for low, high in zip(box.low, box.high, strict=True)]
    total = np.zeros(box.shape)
    for (waves, amplitude), share in zip(MODES, left, strict=True):
        x, y, z = (np.sin(k * along) for k, along in zip(waves, at, strict=True))
        total += amplitude * share * x[:, None, None] * y[:, None] * z
    return total


def decay(diffused_m2: float) -> list[float]:
    """What the heat equation leaves of each mode after diffusivity × time = `diffused_m2`."""
    return [math.exp(-(math.pi**2) * sum(k**2 for k in waves) * diffused_m2) for waves, _ in MODES]


def decay_in_steps(grid: Grid, fourier: float) -> list[float]:
    """What the difference equations leave, by von Neumann's factor (LeVeque 2007, section 9.6)."""
    return [
        (1 - 4 * fourier * sum(math.sin(k * math.pi * grid.spacing_m / 2) ** 2 for k in waves)) ** grid.steps
        for waves, _ in MODES
    ]


def _neighbours(place: Index, chunks: int) -> Iterator[tuple[Index, int, bool]]:
    """All up to 26 neighbours of a block: place, and the axis and side of the face that has what the block needs.

    Across an edge or a corner that is part of the face that looks our way along the first axis in which they differ.
    """
    for offset in product((-1, 0, 1), repeat=3):
        other = _index(i + o for i, o in zip(place, offset, strict=True))
        if any(offset) and all(0 <= i < chunks for i in other):
            axis = next(a for a, o in enumerate(offset) if o)
            yield other, axis, offset[axis] < 0


def _order(coarse: GridError, fine: GridError) -> float:
    if not (coarse.rms_error_kelvin > 0 and fine.rms_error_kelvin > 0):
        return math.nan
    return math.log(coarse.rms_error_kelvin / fine.rms_error_kelvin) / math.log(coarse.spacing_m / fine.spacing_m)


def _index(of_axes: Any) -> Index:
    x, y, z = of_axes
    return x, y, z
