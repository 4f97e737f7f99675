"""Heat diffusion in a cube, in slabs that exchange faces, checked against a mode that decays as known."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from dask.task_spec import Task, TaskRef
from pydantic import Field, model_validator

from workloads.graphs import add
from workloads.kernels.dispatch import Array
from workloads.kernels.stencil import heat_steps
from workloads.workload import Verification, Workload

MODE = (1, 2, 3)
"""Half waves along x, y and z: all different, so that mixed-up axes show."""

FOURIER = 0.125
"""D Δt / h² with D = 1: stable, exact in binary, and not near 1/12, where the errors of time and space cancel."""

ORDER_TOLERANCE = 0.1
ROUNDING = 1e-10
"""Allowed distance from the exact solution of the difference equations: rounding grows with the steps only."""


@dataclass(frozen=True)
class Level:
    """The end of the calculation on one grid."""

    cells: int
    """Per axis; the spacing is 1 / cells."""
    steps: int
    max_error: float
    """Largest distance from the analytic solution over all points of the grid."""
    plane: Array
    """Temperatures in the plane x = (cells // 2) / cells, (cells + 1, cells + 1)."""


@dataclass(frozen=True)
class HeatResult:
    levels: tuple[Level, ...]
    """From coarse to fine."""

    @property
    def orders(self) -> tuple[float, ...]:
        """log2 of the ratio of errors from each level to the next: 2 for a method of second order."""
        pairs = itertools.pairwise(self.levels)
        return tuple(math.log2(a.max_error / b.max_error) if a.max_error * b.max_error else 0.0 for a, b in pairs)


class Heat(Workload):
    """Heat diffusion in a cube: explicit steps on slabs that exchange faces, on two or three grids.

    ∂u/∂t = ∇²u on the unit cube with u = 0 at its surface, by forward steps in time and central differences in
    space (FTCS). Each grid has half the spacing of the one before and a quarter of its time step, so the error falls
    by four. Slabs exchange as many layers as they take steps until the next exchange, and nothing else.
    """

    name: ClassVar[str] = "heat"

    cells: int = Field(48, ge=16, le=128, description="cells per axis of the coarsest grid; each level doubles them")
    levels: int = Field(3, ge=2, le=3, description="number of grids")
    steps: int = Field(24, ge=1, le=10_000, description="time steps on the coarsest grid; each level takes four times")
    slabs: int = Field(4, ge=1, le=64, description="slabs of the finest grid; each coarser one has half as many")
    steps_per_exchange: int = Field(12, ge=1, le=64, description="steps, and layers handed over, between exchanges")

    @model_validator(mode="after")
    def _slabs_hold_their_halos(self) -> Self:
        for level in range(self.levels):
            thinnest = min(end - first for first, end in self._slabs(level))
            halo = min(self.steps_per_exchange, self.steps * 4**level)
            if len(self._slabs(level)) > 1 and thinnest < halo:
                raise ValueError(
                    f"slabs = {self.slabs} and steps_per_exchange = {self.steps_per_exchange} don't fit: "
                    f"on {self.cells * 2**level} cells a slab has {thinnest} layers and must hand over {halo}; "
                    "lower one of the two"
                )
        return self

    def graph(self) -> dict[str, Task]:
        graph: dict[str, Task] = {}
        token = self.token()
        levels = [self._add_level(graph, token, level) for level in range(self.levels)]
        add(graph, f"heat-result-{token}", result, *levels)
        return graph

    def verify(self, result: Any) -> Verification:
        """Compare with the analytic solution, with the order of the method and with von Neumann's factor.

        The plane of each level must agree to rounding with the mode times gⁿ, the exact solution of the difference
        equations (LeVeque 2007, section 9.6); the error against the analytic solution must fall with order 2.
        """
        if not isinstance(result, HeatResult) or len(result.levels) != self.levels:
            return Verification(False, "not the result of this workload")
        measures: dict[str, float | int | str] = {}
        faults = []
        for index, level in enumerate(result.levels):
            cells, steps = self.cells * 2**index, self.steps * 4**index
            if (level.cells, level.steps, level.plane.shape) != (cells, steps, (cells + 1, cells + 1)):
                return Verification(False, f"grid {index} is not of {cells} cells and {steps} steps")
            shape = mode(cells, cells // 2, cells // 2 + 1)[0]
            astray = float(np.max(np.abs(level.plane - amplification(cells) ** steps * shape)))
            in_plane = float(np.max(np.abs(level.plane - decay(cells, steps) * shape)))
            if not astray <= ROUNDING:
                faults.append(f"{cells} cells: off the difference equations by {astray:.1e}")
            if not in_plane <= level.max_error + ROUNDING:
                faults.append(f"{cells} cells: error {in_plane:.1e} in the plane, {level.max_error:.1e} reported")
            measures[f"max_error_{cells}_cells"] = level.max_error
        for coarse, order in zip(result.levels, result.orders, strict=False):
            measures[f"order_{coarse.cells}_to_{2 * coarse.cells}_cells"] = round(order, 4)
            if not abs(order - 2) <= ORDER_TOLERANCE:
                faults.append(f"order {order:.2f} from {coarse.cells} cells on, should be 2 ± {ORDER_TOLERANCE}")
        finest = result.levels[-1]
        told = f"error {finest.max_error:.1e} on {finest.cells}³ cells against the sine mode, " + (
            f"order {result.orders[-1]:.3f}"
        )
        return Verification(not faults, "; ".join(faults) or told, measures)

    def summary(self, result: HeatResult) -> str:
        """Largest temperature that is left, by grid."""
        left = (f"{np.max(np.abs(level.plane)):.6f} ({level.cells}³ cells)" for level in result.levels)
        return f"hottest point {', '.join(left)}"

    def _slabs(self, level: int) -> list[tuple[int, int]]:
        """(first, end) grid layer of each slab."""
        layers, slabs = self.cells * 2**level + 1, max(1, self.slabs >> (self.levels - 1 - level))
        edges = [layers * i // slabs for i in range(slabs + 1)]
        return list(itertools.pairwise(edges))

    def _add_level(self, graph: dict[str, Task], token: str, level: int) -> TaskRef:
        cells, steps, slabs = self.cells * 2**level, self.steps * 4**level, self._slabs(level)
        here = f"{token}-{cells}"
        now = [add(graph, f"heat-start-{here}-{i}", start, cells, *slab) for i, slab in enumerate(slabs)]
        for turn, done in enumerate(range(0, steps, self.steps_per_exchange)):
            halo = min(self.steps_per_exchange, steps - done)
            tops = [add(graph, f"heat-top-{here}-{turn}-{i}", top, u, halo) for i, u in enumerate(now[:-1])]
            bottoms = [add(graph, f"heat-bottom-{here}-{turn}-{i}", bottom, u, halo) for i, u in enumerate(now[1:], 1)]
            now = [
                add(graph, f"heat-advance-{here}-{turn}-{i}", advance, u, below, above, halo)
                for i, (u, below, above) in enumerate(zip(now, [None, *tops], [*bottoms, None], strict=True))
            ]
        measured = [
            add(graph, f"heat-measure-{here}-{i}", measure, u, cells, steps, first)
            for i, (u, (first, _)) in enumerate(zip(now, slabs, strict=True))
        ]
        return add(graph, f"heat-level-{here}", gather_level, cells, steps, *measured)


def mode(cells: int, first: int, end: int) -> Array:
    """The sine mode at t = 0 in grid layers `first` to `end` of x, (end - first, cells + 1, cells + 1)."""
    points = np.arange(cells + 1) / cells
    x, y, z = (np.sin(waves * np.pi * points) for waves in MODE)
    shape: Array = x[first:end, None, None] * y[:, None] * z
    return shape


def decay(cells: int, steps: int) -> float:
    """What is left of the mode after `steps` time steps, by the differential equation: exp(-π² |MODE|² t)."""
    return math.exp(-(math.pi**2) * sum(waves**2 for waves in MODE) * steps * FOURIER / cells**2)


def amplification(cells: int) -> float:
    """What one step leaves of the mode, by the difference equations: von Neumann's g."""
    return 1 - 4 * FOURIER * sum(math.sin(waves * math.pi / (2 * cells)) ** 2 for waves in MODE)


def start(cells: int, first: int, end: int) -> Array:
    """Task: a slab at t = 0."""
    return mode(cells, first, end)


def top(slab: Array, layers: int) -> Array:
    """Task: the last `layers` of a slab, for the slab above."""
    return slab[-layers:].copy()


def bottom(slab: Array, layers: int) -> Array:
    """Task: the first `layers` of a slab, for the slab below."""
    return slab[:layers].copy()


def advance(slab: Array, below: Array | None, above: Array | None, steps: int) -> Array:
    """Task: take a slab `steps` steps on; the halos `below` and `above` have as many layers."""
    grown = np.concatenate([part for part in (below, slab, above) if part is not None])
    after = heat_steps(grown, FOURIER, steps, (below is not None, above is not None))
    first = 0 if below is None else steps
    return after[first : first + len(slab)].copy()


def measure(slab: Array, cells: int, steps: int, first: int) -> tuple[float, Array | None]:
    """Task: the largest error in a slab, and the middle plane if it is in there."""
    exact = decay(cells, steps) * mode(cells, first, first + len(slab))
    middle = cells // 2 - first
    plane = slab[middle].copy() if 0 <= middle < len(slab) else None
    return float(np.max(np.abs(slab - exact))), plane


def gather_level(cells: int, steps: int, *measured: tuple[float, Array | None]) -> Level:
    """Task: one level from its slabs."""
    (plane,) = (plane for _, plane in measured if plane is not None)
    return Level(cells, steps, max(error for error, _ in measured), plane)


def result(*levels: Level) -> HeatResult:
    """Task: all levels."""
    return HeatResult(levels)
