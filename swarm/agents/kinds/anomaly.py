"""How strange a process behaves, from what the kernel says of it: robust scores against its own past.  PURE

Each rule turns the last samples into a number of times its limit: at 1 and beyond, for several samples in a row, the
process is suspicious. Rates are compared with the median of the process's own past in units of its median absolute
deviation (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993), and what all processes of a host show alike
is the host's doing. What leaks is told by a growth that hardly ever turns back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

PAST = 300
"""Samples of a rate that are its past."""
LEAST_PAST = 20
"""Samples without which a rate has no past to compare it with."""
GROWTH_S, MEMORY_GROWTH_S = 30.0, 60.0
"""Over which a growth is looked at; memory breathes."""
IN_A_ROW = 3
"""Samples beyond the limit that make a process suspicious; one may be anything."""
CALM_IN_A_ROW = 5
MAD_TO_SIGMA = 1.4826
Z_LIMIT = 8.0

BLOCKED_S = 2.0
"""Without a turn of the event loop (`swarm.agents.watch.witness.TICKS_S`)."""
IDLE_SPIN_CORES, IDLE_SPIN_S = 0.6, 8.0
"""CPU time that a worker wants while it runs no task, and for how long: to move data takes bursts of less."""
LEAK_FILES, LEAK_THREADS, LEAK_MEMORY_RATIO = 24, 12, 0.25
"""Growth within its time that is a leak, if it is also half of what there was.

Of memory it is the share of the limit, while no task runs."""
BUSY_MEMORY_RATIO = 0.75
"""The same of memory while tasks run: their results grow too, and the scheduler's forecast knows how much they are."""
MAJOR_FAULTS_PER_S = 40.0
"""Pages that came from disk in a second; a start of a process takes as many, but not for long."""
SWITCHES_PER_S = 20_000.0
"""This one is only told: a healthy worker that moves data switches as often as one that is in trouble."""


class Facts(NamedTuple):
    """One look at a process. Counts and seconds of CPU grow from its start."""

    at_s: float
    wanted_s: float
    """CPU seconds that its threads had, or waited for while others had them: on a full host it would seem idle else."""
    resident_bytes: int
    major_faults: int
    switches: int
    """Context switches of its main thread, where the event loop runs."""
    threads: int
    files: int | None
    """Open ones; None: they can't be counted."""
    tick_age_s: float | None = None
    """Since the last turn of the event loop."""
    running: int | None = None
    """Tasks."""


@dataclass(slots=True)
class Score:
    """How strange a process is now."""

    times: dict[str, float] = field(default_factory=dict)
    """Rule → times its limit."""
    is_suspicious: bool = False
    because: str = ""
    """The rule that is furthest beyond its limit, of a process that is suspicious."""

    @property
    def score(self) -> float:
        """From 0 to 1; 0.5 is the limit."""
        most = max(self.times.values(), default=0.0)
        return most / (1.0 + most)


class _Past:
    """The past of a rate, as far as it was normal.

    Parameters
    ----------
    limit
        Below it nothing is strange, whatever the past; nor is a deviation strange that is small against it.
    """

    def __init__(self, limit: float) -> None:
        self._values: deque[float] = deque(maxlen=PAST)
        self._limit = limit

    def times(self, value: float) -> float:
        """How many times its limit it is, both the plain one and that in deviations above the median of the past."""
        times = value / self._limit
        if times >= 1.0 and len(self._values) >= LEAST_PAST:
            middle = median(self._values)
            deviation = median(abs(each - middle) for each in self._values)
            times = min(times, (value - middle) / max(MAD_TO_SIGMA * deviation * Z_LIMIT, self._limit))
        if times < 1.0 or len(self._values) < LEAST_PAST:
            self._values.append(value)
        return times


class Behaviour:
    """One process over time.

    Parameters
    ----------
    limit_bytes
        Of its memory; 0: none.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self._limit_bytes = limit_bytes
        self._looks: deque[Facts] = deque()
        self._faults = _Past(MAJOR_FAULTS_PER_S)
        self._switches = _Past(SWITCHES_PER_S)
        self._beyond: dict[str, int] = {}
        self._calm = 0
        self.score = Score()

    def look(self, now: Facts) -> dict[str, float]:
        """Times the limit, by rule."""
        looks = self._looks
        if looks and now.at_s <= looks[-1].at_s:
            return {}
        before = looks[-1] if looks else None
        looks.append(now)
        while looks[-1].at_s - looks[0].at_s > MEMORY_GROWTH_S:
            looks.popleft()
        times: dict[str, float] = {}
        if now.tick_age_s is not None:
            times["blocked"] = max(now.tick_age_s, 0.0) / BLOCKED_S
        if before is None:
            return times
        passed_s = now.at_s - before.at_s
        times["swaps"] = self._faults.times((now.major_faults - before.major_faults) / passed_s)
        times["switches"] = self._switches.times((now.switches - before.switches) / passed_s)
        times["spins"] = self._spins()
        times["files"] = self._grows([look.files for look in looks], LEAK_FILES, GROWTH_S)
        times["threads"] = self._grows([look.threads for look in looks], LEAK_THREADS, GROWTH_S)
        if self._limit_bytes:
            is_idle = all(look.running == 0 for look in looks)
            share = LEAK_MEMORY_RATIO if is_idle else BUSY_MEMORY_RATIO
            resident = [look.resident_bytes for look in looks]
            times["memory"] = self._grows(resident, share * self._limit_bytes, MEMORY_GROWTH_S, relative=0.0)
        return {rule: max(each, 0.0) for rule, each in times.items()}

    def judge(self, times: Mapping[str, float]) -> bool:
        """Take a look's numbers, less what the host is to blame for; whether the process has just become suspicious."""
        was_suspicious = self.score.is_suspicious
        self._beyond = {
            rule: self._beyond.get(rule, 0) + 1 for rule, each in times.items() if each >= 1.0 and rule != "switches"
        }
        self._calm = 0 if self._beyond else self._calm + 1
        lasting = [rule for rule, count in self._beyond.items() if count >= IN_A_ROW]
        is_suspicious = bool(lasting) or (was_suspicious and self._calm < CALM_IN_A_ROW)
        because = max(lasting, key=times.__getitem__) if lasting else self.score.because if is_suspicious else ""
        self.score = Score(dict(times), is_suspicious, because)
        return is_suspicious and not was_suspicious

    def _spins(self) -> float:
        """CPU time while no task runs."""
        now, since = self._looks[-1], self._looks[-1]
        for look in reversed(self._looks):
            if look.running != 0:
                return 0.0
            since = look
            if now.at_s - look.at_s >= IDLE_SPIN_S:
                return (now.wanted_s - since.wanted_s) / (now.at_s - since.at_s) / IDLE_SPIN_CORES
        return 0.0

    def _grows(self, values: Iterable[float | None], limit: float, within_s: float, relative: float = 0.5) -> float:
        """Growth over its limit, if it goes on: the second half of the way counts as much as the first.

        A step up, as when other workers join, is none; nor is what goes up and down.
        """
        looks, end_s = self._looks, self._looks[-1].at_s
        if end_s - looks[0].at_s < 0.9 * within_s:
            return 0.0
        thirds: tuple[list[float], list[float], list[float]] = ([], [], [])
        for value, look in zip(values, looks, strict=True):
            age = (end_s - look.at_s) / within_s
            if value is not None and age <= 1.0:
                thirds[2 - min(int(3.0 * age), 2)].append(value)
        if not all(thirds):
            return 0.0
        first, middle, last = map(median, thirds)
        # The middles of the outer thirds are two thirds of the time apart.
        return 3.0 * min(middle - first, last - middle) / max(limit, relative * first)


class Host:
    """All processes of a host that are compared with each other.

    >>> host = Host()
    >>> for second in range(40):
    ...     news = host.look({"a": Facts(second, 0.1 * second, 2**30, 0, 50 * second, 8, 20 + 3 * second)})
    >>> host.scores["a"].is_suspicious, host.scores["a"].because
    (True, 'files')
    """

    def __init__(self) -> None:
        self._behaviours: dict[str, Behaviour] = {}

    @property
    def scores(self) -> dict[str, Score]:
        return {worker: behaviour.score for worker, behaviour in self._behaviours.items()}

    def look(self, facts: Mapping[str, Facts], limits_bytes: Mapping[str, int] | None = None) -> list[str]:
        """One look at each process; those that have just become suspicious. Who is not in it is forgotten."""
        for gone in self._behaviours.keys() - facts.keys():
            del self._behaviours[gone]
        times: dict[str, dict[str, float]] = {}
        for worker, each in facts.items():
            if worker not in self._behaviours:
                self._behaviours[worker] = Behaviour((limits_bytes or {}).get(worker, 0))
            times[worker] = self._behaviours[worker].look(each)
        return [worker for worker, own in times.items() if self._behaviours[worker].judge(_less(own, times, worker))]


def _less(own: Mapping[str, float], all_times: Mapping[str, Mapping[str, float]], worker: str) -> dict[str, float]:
    """Without what the others of the host show too, where there are two others at least: of two, who is the odd one?"""
    others = [times for name, times in all_times.items() if name != worker]
    if len(others) < 2:
        return dict(own)
    return {
        rule: value / max(3.0 * median(times.get(rule, 0.0) for times in others), 1.0)
        if rule in _OF_THE_HOST
        else value
        for rule, value in own.items()
    }


_OF_THE_HOST = frozenset(("swaps", "switches", "blocked"))
"""What a host in trouble does to all its processes; no host makes them all leak."""
