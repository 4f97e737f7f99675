"""What of a worker process can be set while it runs: each with the values that it can have, and a way back."""

from __future__ import annotations

import gc
import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from threadpoolctl import ThreadpoolController

from swarm import tunables
from swarm.tunables import Tunable, Value


class Measured(Protocol):
    """What is known of a function's tasks; ratios are of their time."""

    @property
    def gc_ratio(self) -> float: ...

    @property
    def helpers_ratio(self) -> float:
        """CPU time of threads that are not of tasks."""

    @property
    def tunables(self) -> frozenset[str]:
        """Read while they ran."""

    def per_1000(self, counter: str) -> float | None:
        """Of a hardware counter, per 1,000 instructions; None where it doesn't count."""


class Knob(ABC):
    """One thing to set.

    `values` are in an order in which neighbours do similarly, and `original` is the one that it had.
    """

    name: str
    values: tuple[Value, ...]
    original: Value
    in_thread: ClassVar[bool] = False
    """`apply` and `restore` are called in the thread of a task, before and after it; else they are for all threads."""

    by_cpu: bool = False
    """Judged by the CPU time of the task's thread, in which other load on the host is no noise; not where a value may
    move work to other threads."""

    @abstractmethod
    def apply(self, value: Value) -> None:
        """Set it; within a millisecond."""

    def restore(self) -> None:
        """As it was."""
        self.apply(self.original)

    @abstractmethod
    def plausible_gain(self, measured: Measured) -> float:
        """Share of a task's time that may be saved by it, at best; 0: leave it alone."""


class GcKnob(Knob):
    """How often Python looks for cycles of garbage.

    `calm` takes what is there now out of the search (`gc.freeze`), and looks at new objects 70 times less often, at
    old ones too. Reference counts free what has no cycles as before; garbage in cycles stays longer.
    """

    name = "gc"
    by_cpu = True
    values = ("as it was", "calm")
    THRESHOLD = 50_000
    """Of the youngest generation; Python's own is 700."""

    def __init__(self) -> None:
        self.original = "as it was"
        self._threshold = gc.get_threshold()
        self._is_calm = False

    def apply(self, value: Value) -> None:
        if value == "calm" and not self._is_calm:
            gc.freeze()
            young, *older = self._threshold
            # 0 means that somebody has turned it off
            gc.set_threshold(max(young, self.THRESHOLD) if young else 0, *older)
        elif value != "calm" and self._is_calm:
            gc.unfreeze()
            gc.set_threshold(*self._threshold)
        self._is_calm = value == "calm"

    def plausible_gain(self, measured: Measured) -> float:
        return measured.gc_ratio


class BlasKnob(Knob):
    """How many threads BLAS uses for one call, by halves: less where they only stand in each other's way.

    More than there were is not for this knob: those cores are others', until the ledger lends them.
    """

    name = "blas threads"

    def __init__(self, controller: ThreadpoolController, threads: int) -> None:
        self._controller = controller
        self.original = threads
        self.values = tuple(sorted({max(1, threads >> halvings) for halvings in range(threads.bit_length())}))

    def apply(self, value: Value) -> None:
        for library in self._controller.lib_controllers:
            library.set_num_threads(int(value))

    def plausible_gain(self, measured: Measured) -> float:
        return min(0.5, measured.helpers_ratio) if measured.helpers_ratio > 0.1 else 0.0


class NumbaKnob(Knob):
    """How many threads the parallel kernels of numba use, by halves. Holds for the thread that sets it."""

    name = "numba threads"
    in_thread = True

    def __init__(self, numba: Any) -> None:
        self._numba = numba
        self.original = threads = int(numba.get_num_threads())
        self.values = tuple(sorted({max(1, threads >> halvings) for halvings in range(threads.bit_length())}))

    def apply(self, value: Value) -> None:
        self._numba.set_num_threads(int(value))

    def plausible_gain(self, measured: Measured) -> float:
        return min(0.5, measured.helpers_ratio) if measured.helpers_ratio > 0.1 else 0.0


class TunableKnob(Knob):
    """A tunable that some kernel has registered."""

    def __init__(self, tunable: Tunable) -> None:
        self._tunable = tunable
        self.name = tunable.name
        self.values = tunable.values
        self.original = tunable.value
        self.by_cpu = not tunable.is_parallel

    def apply(self, value: Value) -> None:
        self._tunable.set(value)

    def plausible_gain(self, measured: Measured) -> float:
        if self.name not in measured.tunables:
            return 0.0
        misses = measured.per_1000("cache_misses")
        # Without counters nobody knows; with them, a kernel that waits for memory has more to gain.
        return 0.1 if misses is None else min(0.5, 0.05 + misses / 50.0)


class Knobs:
    """Those of this process. More come as modules are imported: ask again.

    Attributes
    ----------
    absent
        Knob → why it isn't there.
    """

    def __init__(self) -> None:
        self.absent: dict[str, str] = {}
        self._there: dict[str, Knob] = {GcKnob.name: GcKnob()}

    @property
    def wants_look(self) -> bool:
        """Whether `look` may find more."""
        is_known = BlasKnob.name in self._there or BlasKnob.name in self.absent
        return not is_known and "numpy" in sys.modules

    def look(self) -> None:
        """Look for BLAS among the loaded libraries: some 10 ms, so not on an event loop."""
        if self.wants_look:
            self._find_blas()

    def all(self) -> dict[str, Knob]:
        """Name → knob."""
        for name, tunable in tunables.TUNABLES.items():
            if name not in self._there:
                self._there[name] = TunableKnob(tunable)
        if NumbaKnob.name not in self._there and (numba := sys.modules.get("numba")) is not None:
            self._find_numba(numba)
        return self._there

    def _find_blas(self) -> None:
        # OpenMP sets the number for the thread that asks, so a change from another thread is for nobody.
        found = ThreadpoolController().select(user_api="blas")
        threads = {library.num_threads for library in found.lib_controllers}
        if not threads:
            self.absent[BlasKnob.name] = "no BLAS is loaded that threadpoolctl knows"
        elif any(getattr(library, "threading_layer", "") == "openmp" for library in found.lib_controllers):
            self.absent[BlasKnob.name] = "BLAS takes its threads from OpenMP"
        elif len(threads) > 1 or threads == {1}:
            self.absent[BlasKnob.name] = f"BLAS uses {' and '.join(map(str, sorted(threads)))} threads as it is"
        else:
            self._there[BlasKnob.name] = BlasKnob(found, threads.pop())

    def _find_numba(self, numba: Any) -> None:
        try:
            numba.threading_layer()
        except (ValueError, AttributeError):  # no parallel kernel has run yet, or numba is half imported
            return
        if numba.get_num_threads() > 1:
            self._there[NumbaKnob.name] = NumbaKnob(numba)
