"""Which implementation of a kernel runs in this process: numba, NumPy or CuPy.

Every kernel has two faces: `name_numba`, compiled for one CPU core, and `name_xp(xp, ...)`, written against the array
API that NumPy and CuPy share. A `Kernel` holds both and calls the one that `backend()` chose. Callers hand in NumPy
arrays and get NumPy arrays back, whatever ran.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from swarm.errors import SettingsError, nearest

Backend = Literal["numba", "numpy", "cupy"]
VARIABLE = "SWARM_KERNELS"

Array = npt.NDArray[Any]
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """One piece of numerical work in its two implementations.

    `example` makes small, valid arguments of a floating dtype: what `workloads.kernels.warm_up` compiles for and
    what the tests compare the implementations with.
    """

    name: str
    numba: Callable[..., Any]
    xp: Callable[..., Any]
    example: Callable[[npt.DTypeLike], Arguments]

    def __call__(self, *arguments: Any) -> Any:
        """Run on the backend of this process; arrays in and out are NumPy's."""
        if backend() == "numba":
            return self.numba(*map(_as_compiled, arguments))
        on_device = [to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result = self.xp(array_module(), *on_device)
        return tuple(map(to_host, result)) if isinstance(result, tuple) else to_host(result)


@functools.cache
def backend() -> Backend:
    """What kernels run on in this process, decided at the first call.

    `SWARM_KERNELS` decides if it is set; otherwise CuPy if it imports and sees a device, else numba.

    Raises
    ------
    SettingsError
        `SWARM_KERNELS` is not the name of a backend, or asks for CuPy where CuPy can't work.
    """
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return "numba" if why_no_cupy() else "cupy"
    for known in get_args(Backend):
        if asked == known:
            if asked == "cupy" and (reason := why_no_cupy()):
                raise SettingsError(f"{VARIABLE}=cupy can't be had: {reason}; unset it, or set numba or numpy")
            return known  # type: ignore[no-any-return]  # get_args is untyped
    hint = f"; did you mean {near}?" if (near := nearest(asked, get_args(Backend))) else ""
    raise SettingsError(f"{VARIABLE}={asked!r} is not allowed: numba, numpy or cupy{hint}")


@functools.cache
def why_no_cupy() -> str | None:
    """The reason why CuPy can't be used in this process, in a few words; None if it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import: {_first_line(error)}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no device: {_first_line(error)}"
    return None if count else "CuPy finds no device"


def array_module() -> ModuleType:
    """Return `cupy` on that backend, else `numpy`."""
    if backend() == "cupy":
        import cupy

        return cupy  # type: ignore[no-any-return]  # CuPy has no types
    return np


def to_device(array: Array) -> Any:
    """Hand an array to `array_module()`: a copy on the GPU for CuPy, the array itself otherwise."""
    return array_module().asarray(array)


def to_host(array: Any) -> Any:
    """Bring an array of CuPy back as NumPy's; anything else is returned as it is."""
    return array.get() if backend() == "cupy" and hasattr(array, "get") else array


def check_arrays(kernel: str, **arrays: tuple[Any, str]) -> dict[str, int]:
    """Refuse arrays that a kernel can't take; return the length of each named dimension.

    Each array comes with its dimensions, as in `points=(points, "n d")`: the same letter means the same length.
    All arrays must be float64, or all float32.

    Raises
    ------
    TypeError
        Not an array, or of another dtype.
    ValueError
        The wrong number of dimensions, or lengths that don't agree.
    """
    lengths: dict[str, int] = {}
    first: tuple[str, np.dtype[Any]] | None = None
    for name, (array, letters) in arrays.items():
        dims = letters.split()
        shape = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{kernel}: {name} must be a NumPy array {shape}, not {type(array).__name__}")
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{kernel}: {name} must be float64 or float32, not {array.dtype}")
        first = first or (name, array.dtype)
        if array.dtype != first[1]:
            raise TypeError(f"{kernel}: {name} is {array.dtype} but {first[0]} is {first[1]}; make them the same")
        if array.ndim != len(dims):
            raise ValueError(f"{kernel}: {name} must have the shape {shape}, not {array.shape}")
        for letter, length in zip(dims, array.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise ValueError(
                    f"{kernel}: {name} has the shape {array.shape}, but {shape} needs {letter} = {lengths[letter]}"
                )
    return lengths


def _as_compiled(argument: Any) -> Any:
    # numba compiles anew for each layout and for read-only arrays; a copy of the odd one out is cheaper than that.
    return np.require(argument, requirements=["C", "W", "A"]) if isinstance(argument, np.ndarray) else argument


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
