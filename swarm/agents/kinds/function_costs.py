"""What tasks of a function cost, of those that were measured.  PURE"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

REMEMBERED = 128
"""Measured tasks of a function that count."""
SLOW = 2.0
"""Over what is typical of tasks of its size, from which on a task counts as slow."""
OWN_SHARE = 0.5
"""Of the time that a slow task took longer, in which it must have done more for that to be the reason."""
FEW_ALIKE = 5
"""Tasks of a size that say what is typical."""
MOST_HELP = 1.0
"""`FunctionCosts.helpers_ratio` above which others do most of it, and it is unknown what a task did."""


@dataclass(slots=True)
class Cost:
    """Of one task."""

    function: str
    """What Dask calls the prefix of its key."""
    wall_s: float
    cpu_s: float
    """Of its own thread."""
    setting: int = 0
    """`TaskCounters.setting` while it ran; -1 if that changed meanwhile."""
    gc_s: float = 0.0
    """In which the garbage collector had the interpreter, for whomever."""
    page_faults: int = 0
    preemptions: int = 0
    """Times that the thread lost its core to another (involuntary context switches)."""
    process_cpu_s: float = 0.0
    """Of all threads of the process meanwhile."""
    side_by_side: int = 1
    """Tasks that ran in the process, this one included."""
    counted: Mapping[str, float] = field(default_factory=dict)
    """Name of a hardware counter → count; empty where nothing counts."""
    is_full: bool = False
    """Whether more than the times was measured."""
    tunables: tuple[str, ...] = ()
    """Names of `swarm.tunables` that its thread has read."""
    input_bytes: int = 0
    output_bytes: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """The same for tasks whose inputs, and whose outputs, differ by less than a factor of about 1.4."""
        return _half_octave(self.input_bytes), _half_octave(self.output_bytes)


def _half_octave(nbytes: int) -> int:
    return round(2 * math.log2(nbytes)) if nbytes > 0 else 0


def _done_s(costs: Sequence[Cost]) -> list[float]:
    """What each did, in seconds of CPU at the usual speed: by instructions where all are counted."""
    if not all("instructions" in cost.counted for cost in costs):
        return [cost.cpu_s for cost in costs]
    typical = median(cost.counted["instructions"] for cost in costs) or 1.0
    typical_s = median(cost.cpu_s for cost in costs)
    return [cost.counted["instructions"] / typical * typical_s for cost in costs]


class FunctionCosts:
    """Of the newest tasks of one function.

    Examples
    --------
    >>> costs = FunctionCosts("load")
    >>> costs.learn(Cost("load", 2.0, 1.0, gc_s=0.5, is_full=True, counted={"cycles": 4e9, "instructions": 2e9}), 0.0)
    >>> costs.typical_s, costs.gc_ratio, costs.row()["ipc"]
    (2.0, 0.25, 0.5)
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self.measured = 0
        """Tasks ever measured in full."""
        self.seen_s = 0.0
        """When the last one ended."""
        self._full: deque[Cost] = deque(maxlen=REMEMBERED)
        self._times: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    def learn(self, cost: Cost, now_s: float) -> None:
        self.seen_s = now_s
        self._times.append((cost.wall_s, cost.cpu_s))
        if cost.is_full:
            self.measured += 1
            self._full.append(cost)

    def changed(self) -> None:
        """From now on its tasks run with another setting."""
        self._times.clear()

    @property
    def timed(self) -> int:
        """Tasks with the present setting of which the time is remembered."""
        return len(self._times)

    @property
    def typical_s(self) -> float:
        """Median of the time that passed."""
        return median(wall_s for wall_s, _ in self._times) if self._times else 0.0

    @property
    def typical_cpu_s(self) -> float:
        """Median of the time on a CPU."""
        return median(cpu_s for _, cpu_s in self._times) if self._times else 0.0

    @property
    def wall_s(self) -> float:
        return sum(cost.wall_s for cost in self._full) or 1e-9

    @property
    def gc_ratio(self) -> float:
        return sum(cost.gc_s for cost in self._full) / self.wall_s

    @property
    def helpers_ratio(self) -> float:
        """CPU time of threads that are not of tasks, those of BLAS and numba above all, per time of a task.

        Taken as if the tasks that ran beside it used as much CPU as it did.
        """
        helpers_s = sum(max(0.0, cost.process_cpu_s - cost.side_by_side * cost.cpu_s) for cost in self._full)
        return helpers_s / self.wall_s

    @property
    def tunables(self) -> frozenset[str]:
        return frozenset(name for cost in self._full for name in cost.tunables)

    def counted(self) -> dict[str, float]:
        """Sums of the hardware counters."""
        sums: dict[str, float] = {}
        for cost in self._full:
            for name, count in cost.counted.items():
                sums[name] = sums.get(name, 0.0) + count
        return sums

    def per_1000(self, counter: str) -> float | None:
        """Of a counter, per 1,000 instructions; None where it or they don't count."""
        sums = self.counted()
        instructions = sums.get("instructions", 0.0)
        return 1000.0 * sums[counter] / instructions if counter in sums and instructions else None

    def slow(self) -> tuple[int, int, int]:
        """Measured tasks, and those that took twice as long as is typical: without doing more, and because they did.

        By instructions where they are counted, since a CPU that is slow or shared takes more time for the same work.
        Where other threads do most of the work, nobody knows what each task has done: none counts as slow.
        """
        if self.helpers_ratio > MOST_HELP:
            return len(self._full), 0, 0
        alike: dict[tuple[int, int], list[Cost]] = {}
        for cost in self._full:
            alike.setdefault(cost.size, []).append(cost)
        tasks = held_up = by_themselves = 0
        for costs in alike.values():
            if len(costs) < FEW_ALIKE:
                continue
            tasks += len(costs)
            typical_s, usual_s = median(cost.wall_s for cost in costs), _done_s(costs)
            typical_done_s = median(usual_s)
            for cost, done_s in zip(costs, usual_s, strict=True):
                if cost.wall_s > SLOW * typical_s:
                    is_own = done_s - typical_done_s > OWN_SHARE * (cost.wall_s - typical_s)
                    by_themselves, held_up = by_themselves + is_own, held_up + (not is_own)
        return tasks, held_up, by_themselves

    def row(self) -> dict[str, float | int | str | list[str] | None]:
        """What is known, as data; None for what does not count here."""
        sums = self.counted()
        instructions, cycles = sums.get("instructions"), sums.get("cycles")
        full = list(self._full)
        return {
            "function": self.function,
            "measured": self.measured,
            "remembered": len(full),
            "typical_s": self.typical_s,
            "ipc": instructions / cycles if instructions and cycles else None,
            "cache_misses_per_1000_instructions": self.per_1000("cache_misses"),
            "branch_misses_per_1000_instructions": self.per_1000("branch_misses"),
            "cache_references_per_1000_instructions": self.per_1000("cache_references"),
            "cpu_ratio": sum(cost.cpu_s for cost in full) / self.wall_s,
            "gc_ratio": self.gc_ratio,
            "helpers_ratio": self.helpers_ratio,
            "page_faults_per_s": sum(cost.page_faults for cost in full) / self.wall_s,
            "preemptions_per_s": sum(cost.preemptions for cost in full) / self.wall_s,
            "tunables": sorted(self.tunables),
        }
