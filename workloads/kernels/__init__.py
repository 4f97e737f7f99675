"""Numerical kernels: GIL released, compiled once and cached on disk; long ones use the cores that nobody else uses."""

from __future__ import annotations

import os
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


def warm_up() -> str:
    """Compile all kernels for float64 and float32, or load them from numba's cache; returns what kernels run on here.

    Several processes of a host that warm up at the same time begin with different kernels, and so share the work.
    """
    from workloads.kernels import ALL
    from workloads.kernels.dispatch import backend

    chosen = backend()
    if chosen == "numba":
        turns = [(kernel, dtype) for kernel in ALL for dtype in ("float64", "float32")]
        first = os.getpid() % len(turns)
        for kernel, dtype in (*turns[first:], *turns[:first]):
            kernel.numba(*kernel.example(dtype))
    return chosen
