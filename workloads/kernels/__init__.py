"""Numerical kernels: single-threaded, GIL released, compiled once and cached on disk."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.kernels.dispatch import Kernel

    ALL: tuple[Kernel, ...]

MODULES = ("lloyd", "stencil", "montecarlo")
"""Each has `KERNELS`, a tuple of `workloads.kernels.dispatch.Kernel`."""


def __getattr__(name: str) -> object:
    if name == "ALL":  # importing numba takes half a second: only when asked for
        return tuple(kernel for module in MODULES for kernel in import_module(f"{__name__}.{module}").KERNELS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def warm_up() -> None:
    """Compile all kernels for float64 and float32, or load them from numba's cache."""
    from workloads.kernels import ALL

    for kernel in ALL:
        for dtype in ("float64", "float32"):
            kernel.numba(*kernel.example(dtype))
