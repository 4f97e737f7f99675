"""Which workers are silent for longer than they should be, and what a witness's report makes of it.  PURE

Phi-accrual after Hayashibara et al.: "The phi accrual failure detector", SRDS 2004: silence is not compared with a
fixed time-out, but with how regular this worker's heartbeats have been; phi is the negative decimal logarithm of the
probability that the next one is still to come. And after Dadgar et al.: "Lifeguard: local health awareness for more
accurate failure detection", DSN-W 2018: whoever is late itself suspects nobody. A suspicion is cheap and often wrong;
it takes a second witness, or a long silence, to condemn.
"""

from __future__ import annotations

from math import exp, log10, sqrt
from typing import Any, Literal, NamedTuple

Worker = Any
"""Hashable."""


class Rules(NamedTuple):
    """What an operator may set."""

    phi: float = 8.0
    """From which on a worker is suspected: one heartbeat in 10**8 is so late, if it is as regular as it was."""
    least_spread: float = 0.1
    """Standard deviation of an interval that is assumed at least, as a share of it: a calm hour proves little."""
    grace_s: float = 0.25
    """Silence beyond the interval that is never suspicious: a garbage collection, a page fault, a busy host."""
    memory: int = 100
    """Heartbeats over which spread and lateness are averaged (exponentially)."""
    many_ratio: float = 0.5
    """When more than this share of the workers is late at once, it is rather the network or the scheduler."""
    patience_s: float = 20.0
    """Silence after which a worker is condemned that no witness can reach either, on a host that does not answer."""
    longest_stall: float = 3.0
    """Periods between two looks beyond which time counts as the scheduler's own lag, and as nobody's silence."""


DEFAULT = Rules()


UNKNOWN_SPREAD = 0.5
"""Standard deviation of a worker's first intervals, as a share of them: it still imports what its tasks need."""


class Rhythm:
    """When a worker's heartbeats come."""

    __slots__ = ("count", "interval_s", "last_s", "late_s", "variance")

    def __init__(self, now_s: float, interval_s: float) -> None:
        self.last_s = now_s
        self.interval_s = interval_s
        """After which the worker was asked to send the next one."""
        self.late_s = 0.0
        """By how much they come later than that, on average."""
        self.variance = (UNKNOWN_SPREAD * interval_s) ** 2
        self.count = 1

    def heard(self, now_s: float, interval_s: float, memory: int) -> None:
        """A heartbeat, to which the scheduler answers with the interval until the next one."""
        late_s = now_s - self.last_s - self.interval_s
        self.count = min(self.count + 1, memory)
        off_s = late_s - self.late_s
        self.late_s += off_s / self.count
        self.variance += (off_s * (late_s - self.late_s) - self.variance) / self.count
        self.last_s, self.interval_s = now_s, interval_s

    def phi(self, now_s: float, least_spread: float) -> float:
        """How improbable this silence is: -log10 of the chance that a heartbeat is later than now.

        The tail of the normal distribution is the logistic approximation that Akka uses (`PhiAccrualFailureDetector`).
        """
        spread_s = max(sqrt(max(self.variance, 0.0)), least_spread * self.interval_s)
        z = (now_s - self.last_s - self.interval_s - max(self.late_s, 0.0)) / spread_s
        if z > 8.0:  # beyond it the formula runs out of digits
            return 15.0 + z
        tail = exp(-z * (1.5976 + 0.070566 * z * z))
        return -log10(tail / (1.0 + tail)) if z > 0 else -log10(1.0 - 1.0 / (1.0 + tail))


class Change(NamedTuple):
    """A worker is suspected, or no more."""

    worker: Worker
    is_suspected: bool
    silence_s: float
    """How long nothing has been heard of it; of one that is cleared: how long it had been."""
    phi: float


class Detector:
    """Whom to suspect.

    Parameters
    ----------
    period_s
        Between two calls of `tick`, as planned.

    >>> detector = Detector(period_s=0.1)
    >>> detector.join("w", 0.0, 0.5)
    >>> for beat in range(1, 21):
    ...     detector.heard("w", 0.5 * beat, 0.5)
    >>> looks = [detector.look(10.0 + 0.1 * number) for number in range(20)]
    >>> [round(change.silence_s, 1) for changes in looks for change in changes]
    [0.8]
    """

    def __init__(self, period_s: float, rules: Rules = DEFAULT) -> None:
        self._period_s = period_s
        self._rules = rules
        self._rhythms: dict[Worker, Rhythm] = {}
        self.suspected: dict[Worker, float] = {}
        """Worker → when it was last heard of, by the detector's clock."""
        self._ticked_s: float | None = None
        self._stalled_s = 0.0
        """What the scheduler itself was late, ever: time in which nobody was silent."""

    def join(self, worker: Worker, now_s: float, interval_s: float) -> None:
        self._rhythms[worker] = Rhythm(now_s - self._stalled_s, interval_s)

    def leave(self, worker: Worker) -> None:
        self._rhythms.pop(worker, None)
        self.suspected.pop(worker, None)

    def heard(self, worker: Worker, at_s: float, interval_s: float) -> None:
        """A heartbeat arrived, and the next one is asked for after `interval_s`."""
        rhythm = self._rhythms.get(worker)
        if rhythm is not None:
            at_s -= self._stalled_s
            if worker in self.suspected:  # what it did meanwhile is no rhythm
                rhythm.last_s, rhythm.interval_s = at_s, interval_s
            else:
                rhythm.heard(at_s, interval_s, self._rules.memory)

    def silence_s(self, worker: Worker, now_s: float) -> float:
        """How long nothing has been heard of it, the scheduler's own lag subtracted; 0 where it is unknown."""
        rhythm = self._rhythms.get(worker)
        return 0.0 if rhythm is None else max(now_s - self._stalled_s - rhythm.last_s, 0.0)

    def tick(self, now_s: float) -> None:
        """A period has passed, or should have: what it took longer, the scheduler was late itself."""
        if self._ticked_s is not None:
            late_s = now_s - self._ticked_s - self._period_s
            if late_s > self._rules.longest_stall * self._period_s or late_s < -self._period_s:
                self._stalled_s += late_s  # also where the clock was set back
        self._ticked_s = now_s

    def look(self, now_s: float) -> list[Change]:
        """Who is suspected from now on, and who no more. O(workers)."""
        at_s = now_s - self._stalled_s
        changes = [
            Change(worker, False, self._rhythms[worker].last_s - last_s, 0.0)
            for worker, last_s in self.suspected.items()
            if self._rhythms[worker].last_s > last_s
        ]
        for change in changes:
            del self.suspected[change.worker]
        judged = (self._judge(worker, rhythm, at_s) for worker, rhythm in self._rhythms.items())
        late = [change for change in judged if change is not None]
        known = len(self._rhythms)
        if known > 2 and len(late) + len(self.suspected) > max(self._rules.many_ratio * known, 1):
            late = [change for change in late if change.silence_s > self._doubted_s(change.worker)]
        for change in late:
            self.suspected[change.worker] = self._rhythms[change.worker].last_s
        return changes + late

    def _judge(self, worker: Worker, rhythm: Rhythm, at_s: float) -> Change | None:
        if at_s - rhythm.last_s <= rhythm.interval_s + self._rules.grace_s or worker in self.suspected:
            return None
        phi = rhythm.phi(at_s, self._rules.least_spread)
        return Change(worker, True, at_s - rhythm.last_s, phi) if phi >= self._rules.phi else None

    def _doubted_s(self, worker: Worker) -> float:
        """The silence that is needed when most others are silent as well: three heartbeats more."""
        return 4.0 * self._rhythms[worker].interval_s + self._rules.grace_s


# -- what a witness says ---------------------------------------------------------------------------------------------


Process = Literal["runs", "stopped", "blocked", "gone"]
"""What the kernel says of a process: it runs or sleeps (R, S, I), was stopped by a signal or a debugger (T, t), is in
an uninterruptible call such as a read from a disk that hangs or from swap (D), or is a zombie or no more (Z, X)."""


class Report(NamedTuple):
    """What somebody on the worker's host says of its process, after looking at it twice."""

    process: Process
    cpu_s: float = 0.0
    """CPU time that it took between the two looks."""
    ticks: bool | None = None
    """Whether its event loop turns; None: not known."""
    is_witnessed: bool = False
    """Whether somebody has seen the process, and not only that its host takes connections for it."""


Verdict = Literal["stopped", "gone", "unreachable", "busy", "cut off"]
"""stopped, gone: the process will not answer again by itself; unreachable: neither it nor anybody on its host has
answered for long; cut off: it answers its neighbours, but not the scheduler, and has not for long; busy: it lives."""

CONDEMNED: frozenset[Verdict] = frozenset(("stopped", "gone", "unreachable", "cut off"))


STEADY = 2.0
"""Heartbeats for which an event loop must have turned, none of them heard, before its worker counts as cut off."""


def verdict(
    report: Report | None, silence_s: float, rules: Rules = DEFAULT, *, ticked_s: float, interval_s: float
) -> Verdict:
    """What becomes of a suspected worker; "busy" for whoever is given more time.

    Parameters
    ----------
    report
        None: no witness has answered.
    ticked_s
        For how long each report has said that the event loop turns. Who has just been let go by a task that held the
        GIL has its heartbeat under way.
    interval_s
        Between two heartbeats.
    """
    if report is None:
        return "unreachable" if silence_s > rules.patience_s else "busy"
    if report.process in ("stopped", "gone"):
        return "stopped" if report.process == "stopped" else "gone"
    if report.ticks and ticked_s > STEADY * interval_s and silence_s > rules.patience_s:
        return "cut off"
    return "busy"
