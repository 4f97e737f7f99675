"""What of a kernel may be tuned while it is used: a name, the values that are allowed, and the present one.

A kernel's module says what it has, and the kernel reads the present value each time that it is called. Whoever tunes,
such as the optimization agent, finds all of the process in `TUNABLES`. Every value must give the same result.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

Value: TypeAlias = bool | int | float | str

TUNABLES: dict[str, Tunable] = {}
"""Name → tunable, of the modules that this process has imported."""


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.reads: dict[str, int] = {}


_HERE = _OfThread()


class Tunable:
    """One thing to tune, for the whole process.

    Parameters
    ----------
    name
        The kernel, a dot, and what it is: `heat_steps.sweep`.
    values
        What is allowed, in an order in which neighbours do similarly.
    default
        One of them.
    is_parallel
        Values differ in the threads that they use, so that the time counts that passes, not that of the CPU.

    Raises
    ------
    ValueError
        The default is not allowed, or another of this name is there already.

    Examples
    --------
    >>> block = Tunable("doctest.block", (16, 64, 256), 64)
    >>> block.get()
    64
    >>> block.set(256)
    >>> block.get(), reads()["doctest.block"]
    (256, 2)
    """

    __slots__ = ("default", "is_parallel", "name", "value", "values")

    def __init__(self, name: str, values: tuple[Value, ...], default: Value, is_parallel: bool = False) -> None:
        if default not in values:
            raise ValueError(f"tunable {name}: default {default!r} is not one of {', '.join(map(repr, values))}")
        if (other := TUNABLES.get(name)) is not None and (other.values, other.default) != (values, default):
            raise ValueError(f"tunable {name} is there already, with other values")
        self.name = name
        self.values: tuple[Value, ...] = values
        self.default: Value = default
        self.value: Value = default
        self.is_parallel = is_parallel
        TUNABLES[name] = self

    def get(self) -> Value:
        """The value to use now."""
        reads = _HERE.reads
        reads[self.name] = reads.get(self.name, 0) + 1
        return self.value

    def set(self, value: Value) -> None:
        """Use another from now on; raises `ValueError` if it is not allowed."""
        if value not in self.values:
            raise ValueError(
                f"tunable {self.name} can't be {value!r}, must be one of {', '.join(map(repr, self.values))}"
            )
        self.value = value


def reads() -> dict[str, int]:
    """How often this thread has asked for each of them; those that it never asked for are left out."""
    return dict(_HERE.reads)
