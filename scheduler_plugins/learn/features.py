"""What can be read from a task before it runs, without running anything of the user's.  PURE

The scheduler has the task, with its function and its arguments. Arguments are whatever people pass: lists of a million
elements, objects whose `__len__` queries a database, subclasses of int that raise. So only the types that Python, NumPy
and a few libraries bring are looked into, through their own methods and not those of a subclass, and no more than 64
values of any task are.
"""

from __future__ import annotations

import functools
import math
import types
import weakref
import zlib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np

from scheduler_plugins.learn.protocol import TaskFeatures, magnitude

MOST_VALUES = 64
MOST_TERMS = 8
"""Of a task: numbers and sizes of its arguments."""
LONGEST_NAME = 200
_SHORT = 4
"""Lists and tuples up to this long are looked into: a shape, a range, a pair."""
_DEEPEST = 3
_FUSED = 8
"""Functions of a chain of fused tasks that make its name."""
_LARGEST = 1e300
_FAR = 2**53

_LIBRARIES = ("cupy", "pandas", "polars", "pyarrow", "scipy", "torch", "xarray")
"""Their containers tell their size at once; on the scheduler they are rarely more than arguments."""

_APPLY = "dask.utils.apply"
_SUBGRAPH = "dask._task_spec._execute_subgraph"
_GRAPH_NODES = "dask._task_spec"
_inputs: set[type] = set()
"""Dask's classes for "the result of that task", as they come: they are the most frequent arguments."""


def features_of(
    task: object, *, input_bytes: float = 0.0, input_count: int = 0, worker: str = "", concurrency: int = 1
) -> TaskFeatures:
    """The features of a task that has `func`, `args` and `kwargs`, as `dask._task_spec.Task` does. Never raises.

    A task without a function, which is data, is a function of its own: "data".
    """
    reader = _Reader()
    name = reader.task(task)
    return TaskFeatures(
        name[:LONGEST_NAME], tuple(reader.names), tuple(reader.terms), input_bytes, input_count, worker, concurrency
    )


class _Reader:
    """Reads one task, collects its terms."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.terms: list[float] = []
        self._left = MOST_VALUES

    # -- functions -------------------------------------------------------------------------------------------------

    def task(self, task: object, prefix: str = "") -> str:
        """The name of what a task does; its arguments are read on the way."""
        try:
            func, args, kwargs = task.func, task.args, task.kwargs  # type: ignore[attr-defined]
        except AttributeError:
            return "data"
        return self.call(func, args, kwargs, prefix)

    def call(self, func: object, args: object, kwargs: object, prefix: str) -> str:
        for _ in range(_DEEPEST):
            if type(func) is functools.partial:
                self.arguments(func.args, func.keywords, prefix + "partial ")
                func = func.func
            elif (name := _name_of_known(func)) == _APPLY and type(args) is tuple and len(args) >= 2:
                func, kwargs, args = args[0], args[2] if len(args) > 2 else {}, _parts(args[1])
            elif name == _SUBGRAPH and type(args) is tuple and args and type(args[0]) is dict:
                return self.fused(args[0])
            else:
                self.arguments(args, kwargs, prefix)
                return name
        self.arguments(args, kwargs, prefix)
        return _name_of_known(func)

    def fused(self, tasks: dict[object, object]) -> str:
        inner = [self.task(task, f"{i}: ") for i, task in enumerate(islice(tasks.values(), _FUSED))]
        more = "" if len(tasks) <= _FUSED else f", {len(tasks) - _FUSED} more"
        return f"fused({', '.join(inner)}{more})"

    # -- arguments -------------------------------------------------------------------------------------------------

    def arguments(self, args: object, kwargs: object, prefix: str) -> None:
        if isinstance(args, tuple):
            for i, value in enumerate(args[:MOST_VALUES]):
                if type(value) not in _inputs:
                    self.value(value, f"{prefix}{i}", _DEEPEST)
        if type(kwargs) is dict:
            for name, value in islice(kwargs.items(), MOST_VALUES):
                if type(name) is str:
                    self.value(value, prefix + name[:40], _DEEPEST)

    def value(self, value: object, name: str, depth: int) -> None:
        if self._left <= 0 or len(self.terms) >= MOST_TERMS:
            return
        self._left -= 1
        kind = type(value)
        if kind is int or kind is float or issubclass(kind, _NUMBERS):
            if (number := _number(value, kind)) is not None:
                self.add(name, magnitude(number))
        elif type.__getattribute__(kind, "__module__") == _GRAPH_NODES:
            self.node(value, kind, name, depth)
        elif (length := _length(value, kind)) is not None and (
            length > _SHORT or not self.inside(value, kind, name, depth)
        ):
            self.add(f"len {name}", math.log1p(length))

    def inside(self, value: Any, kind: type, name: str, depth: int) -> bool:
        """Read the parts of a short container; whether it is one."""
        if issubclass(kind, list | tuple) and depth > 0:
            for i, part in enumerate(_parts(value)):
                self.value(part, f"{name}.{i}", depth - 1)
            return True
        if kind is dict and depth > 0:
            for key, part in value.items():
                if type(key) is str:
                    self.value(part, f"{name}.{key[:40]}", depth - 1)
            return True
        return False

    def node(self, node: Any, kind: type, name: str, depth: int) -> None:
        """A task or a container inside the arguments. Inputs are not read here: they are counted as inputs."""
        if kind.__name__ in ("TaskRef", "Alias"):
            _inputs.add(kind)
        if depth <= 0:
            return
        if kind.__name__ == "DataNode":
            self.value(node.value, name, depth - 1)
        elif kind.__name__ in ("Task", "List", "Tuple", "Set", "Dict") and type(node.args) is tuple:
            for i, part in enumerate(node.args[:MOST_VALUES]):
                self.value(part, f"{name}.{i}", depth - 1)

    def add(self, name: str, term: float) -> None:
        self.names.append(name)
        self.terms.append(term)


_named: dict[int, tuple[weakref.ref[types.FunctionType], str]] = {}
_MOST_NAMED = 4096


def _name_of_known(func: Any) -> str:
    """`name_of`, which is asked for the same few functions again and again."""
    if type(func) is not types.FunctionType:
        return name_of(func)
    known = _named.get(id(func))
    if known is not None and known[0]() is func:
        return known[1]
    if len(_named) >= _MOST_NAMED:
        _named.clear()
    name = name_of(func)
    _named[id(func)] = (weakref.ref(func), name)
    return name


def name_of(func: Any, depth: int = _DEEPEST) -> str:  # noqa: PLR0911 - one case for each kind of callable
    """The qualified name of a callable, the same in every process.

    A lambda's has a checksum of its code in it, and so has that of a function of `__main__`: people write those anew
    under the same name.
    """
    kind = type(func)
    if depth < 0:
        return "?"
    if kind is types.FunctionType:
        name = f"{_text(func.__module__)}.{_text(func.__qualname__)}"
        changes = func.__name__ == "<lambda>" or func.__module__ == "__main__"
        return f"{name}#{_checksum(func.__code__):08x}" if changes else name
    if kind is types.BuiltinFunctionType:
        # A method of C has an object in __self__, a function its module or nothing.
        owner = func.__self__
        if owner is None or type(owner) is types.ModuleType:
            return f"{_text(func.__module__)}.{func.__name__}"
        return f"{_name_of_class(type(owner))}.{func.__name__}"
    if kind in (types.MethodDescriptorType, types.WrapperDescriptorType):
        return f"{_name_of_class(func.__objclass__)}.{func.__name__}"
    if kind is np.ufunc:
        return f"numpy.{func.__name__}"
    if issubclass(kind, type):
        return _name_of_class(func)
    name = _name_of_class(kind)
    if (inside := _INSIDE.get(name)) is not None:
        wrapped = getattr(func, inside, None)
        return _text(wrapped) if type(wrapped) is str else name_of(wrapped, depth - 1)
    if name == "toolz.functoolz.Compose" and type(func.funcs) is tuple:
        steps = (func.first, *func.funcs[:_FUSED])
        return f"composed({', '.join(name_of(step, depth - 1) for step in steps)})"
    return name


_INSIDE = {
    "builtins.method": "__func__",
    "functools.partial": "func",
    "functools._lru_cache_wrapper": "__wrapped__",
    "numba.core.registry.CPUDispatcher": "py_func",
    "numpy._ArrayFunctionDispatcher": "_implementation",
    "toolz.functoolz.curry": "func",
    "dask.utils.methodcaller": "method",
}
"""Class of a callable → its attribute that says what is called."""


def _name_of_class(kind: type) -> str:
    return f"{_module_of(kind)}.{_text(type.__getattribute__(kind, '__qualname__'))}"


def _module_of(kind: type) -> str:
    # By way of `type` itself: a metaclass may have ideas of its own.
    return _text(type.__getattribute__(kind, "__module__"))


def _text(value: object) -> str:
    return value[:LONGEST_NAME] if type(value) is str else "?"


def _checksum(code: types.CodeType, depth: int = _DEEPEST) -> int:
    constants = [
        _checksum(value, depth - 1) if depth and type(value) is types.CodeType else value
        for value in code.co_consts[:MOST_VALUES]
        if type(value) in (int, float, str, bool, types.CodeType)
    ]
    return zlib.crc32(repr((code.co_names[:MOST_VALUES], constants)).encode(), zlib.crc32(code.co_code))


def _number(value: Any, kind: type) -> float | None:
    if issubclass(kind, float):
        number = float.__float__(value)
    elif issubclass(kind, np.generic):
        number = float(value)
    else:
        try:
            number = int.__float__(value)
        except OverflowError:
            number = _LARGEST if int.__gt__(value, 0) else -_LARGEST
    if not math.isfinite(number):
        return None
    return min(max(number, -_LARGEST), _LARGEST)


_NUMBERS = (int, float, np.integer, np.floating)

_LENGTHS: tuple[tuple[type, Callable[[Any], int]], ...] = (
    (str, str.__len__),
    (bytes, bytes.__len__),
    (list, list.__len__),
    (tuple, tuple.__len__),
    (dict, dict.__len__),
    (bytearray, bytearray.__len__),
    (set, set.__len__),
    (frozenset, frozenset.__len__),
)


def _length(value: Any, kind: type) -> float | None:
    """Bytes or elements, where they can be had at once."""
    for known, length in _LENGTHS:
        if issubclass(kind, known):
            return length(value)
    if issubclass(kind, np.ndarray):
        return float(np.ndarray.nbytes.__get__(value))
    if kind is range or kind is slice:
        return _steps(value.start, value.stop, value.step)
    if _module_of(kind).partition(".")[0] in _LIBRARIES:
        return _of_library(value)
    return None


def _steps(start: object, stop: object, step: object) -> float | None:
    edges = [edge for edge in (0 if start is None else start, stop, 1 if step is None else step) if type(edge) is int]
    if len(edges) < 3 or edges[2] == 0:
        return None
    return min(float(max((min(edges[1], _FAR) - max(edges[0], -_FAR)) // edges[2], 0)), float(_FAR))


def _of_library(value: Any) -> float | None:
    try:
        shape = value.shape
        size = float(math.prod(shape)) if type(shape) is tuple else float(value.nbytes)
    except Exception:  # noqa: BLE001 - what another library raises for an odd object is not for us to list
        return None
    return size if 0.0 <= size <= _LARGEST else None


def _parts(value: Any) -> tuple[Any, ...]:
    """The elements of a list, a tuple or Dask's own container of them, without its `__iter__`."""
    kind = type(value)
    parts: Iterable[Any] = ()
    if issubclass(kind, tuple):
        parts = tuple.__getitem__(value, slice(MOST_VALUES))
    elif issubclass(kind, list):
        parts = list.__getitem__(value, slice(MOST_VALUES))
    elif _module_of(kind) == _GRAPH_NODES and kind.__name__ in ("List", "Tuple"):
        parts = value.args[:MOST_VALUES]
    return tuple(parts)
