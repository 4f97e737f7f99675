"""Which workers fail tasks that others do not, and which accelerators lose bits: signs that a machine is ill.  PURE

That a task raises says nothing of its worker: most errors are the code's or the data's. So a worker is compared with
its peers, function by function: as many errors as they would have had on the same tasks are expected of it too, and
what it has had is surprising or not (the tail of the Poisson distribution). What ran on one worker only is no evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import exp
from typing import TYPE_CHECKING

from swarm.protocol import ClearAlert, RaiseAlert

if TYPE_CHECKING:
    from swarm.protocol import Telemetry

WINDOW_S = 300.0
"""Over which tasks are counted; twice that at most."""
LEAST_PEERS = 20
"""Tasks of a function that ended elsewhere, before it says what is usual."""
UNSEEN = 0.5
"""Errors that peers are thought to have had beyond those they had: none in twenty may be luck."""
LEAST_ERRORS = 5
"""In several functions, and twice as many in one: tasks on a broken file raise on the worker that has it."""
TIMES = 5.0
"""As many errors as its peers would have had."""
CHANCE, CALM = 1e-6, 1e-2
"""That a worker which is well has so many: at most for an alert, at least for its end."""
CORRECTED_MANY, CORRECTED_S = 10, 600.0
"""Corrected errors, and in how long, that are a storm: single ones are usual, and few a sign of nothing (Schroeder et
al.: "DRAM errors in the wild", SIGMETRICS 2009: a third of machines has some in a year, most of them very many)."""


def tail(count: int, expected: float) -> float:
    """The chance of `count` or more of something that is expected `expected` times (Poisson).

    >>> round(tail(1, 1.0), 3), tail(0, 3.0), tail(10, 0.5) < 1e-9
    (0.632, 1.0, True)
    """
    if count <= 0:
        return 1.0
    term = exp(-expected)
    for n in range(1, count + 1):
        term *= expected / n
    total, n = 0.0, count  # from the far end: one minus the rest would lose all digits
    while term > 1e-18 * max(total, 1e-300) and n < count + 1000:
        total, n = total + term, n + 1
        term *= expected / n
    return min(total, 1.0)


class Errors:
    """Counts how tasks ended, and says which workers have more errors than they should.

    >>> errors = Errors()
    >>> for n in range(100):
    ...     errors.ended(f"w{n % 4}", "load", is_error=n % 4 == 0, at_s=0.1 * n)
    >>> {worker: erred for worker, (erred, _) in errors.look(10.0).items()}
    {'w0': 25}
    """

    def __init__(self) -> None:
        self._now: dict[str, dict[str, list[int]]] = {}
        """Function → worker → tasks that ended, and those of them that raised; of this window."""
        self._before: dict[str, dict[str, list[int]]] = {}
        self._since_s: float | None = None
        self._ill: set[str] = set()

    def ended(self, worker: str, function: str, *, is_error: bool, at_s: float) -> None:
        """A task ran to its end, or raised."""
        if self._since_s is None or at_s - self._since_s > WINDOW_S:
            old = self._since_s is None or at_s - self._since_s > 2.0 * WINDOW_S
            self._before, self._now, self._since_s = {} if old else self._now, {}, at_s
        counts = self._now.setdefault(function, {}).setdefault(worker, [0, 0])
        counts[0] += 1
        counts[1] += is_error

    def look(self, now_s: float) -> dict[str, tuple[int, float]]:
        """Workers that are ill → errors they had, and those that their peers would have had."""
        had: dict[str, tuple[int, float]] = {}
        kinds: Counter[str] = Counter()
        recent = [] if self._since_s is None else [self._now, self._before]
        if self._since_s is not None and now_s - self._since_s > WINDOW_S:
            recent = [self._now] if now_s - self._since_s <= 2.0 * WINDOW_S else []
        for function in {name for counts in recent for name in counts}:
            ends: dict[str, tuple[int, int]] = {}
            for counts in recent:
                for worker, (tasks, erred) in counts.get(function, {}).items():
                    tasks_before, erred_before = ends.get(worker, (0, 0))
                    ends[worker] = tasks + tasks_before, erred + erred_before
            all_tasks, all_erred = (sum(each) for each in zip(*ends.values(), strict=True))
            if not all_erred:
                continue
            for worker, (tasks, erred) in ends.items():
                peers = all_tasks - tasks
                if peers >= LEAST_PEERS:
                    expected = tasks * (all_erred - erred + UNSEEN) / (peers + 2.0 * UNSEEN)
                    erred_before, expected_before = had.get(worker, (0, 0.0))
                    had[worker] = erred + erred_before, expected + expected_before
                    kinds[worker] += erred > 0
        self._ill = {worker for worker, figures in had.items() if self._is_ill(worker, *figures, kinds[worker])}
        return {worker: had[worker] for worker in sorted(self._ill)}

    def _is_ill(self, worker: str, erred: int, expected: float, functions: int) -> bool:
        if worker in self._ill:
            return tail(erred, expected) < CALM
        least = LEAST_ERRORS * (1 if functions > 1 else 2)
        return erred >= max(least, TIMES * expected) and tail(erred, expected) < CHANCE


class Wear:
    """Alerts of accelerators whose memory errs: at once what could not be corrected, and storms of what could.

    The counters are of a host, and go back to zero with its driver; one worker speaks for it.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._storms: dict[str, tuple[float, int]] = {}
        """Host → since when, and how many."""
        self._raised_at_s: dict[str, float] = {}
        """Speaker → since when; until it leaves: memory does not heal."""

    def worker_joined(self, worker: str, name: str, host: str) -> None:
        self._names[worker] = (name, host)

    def worker_left(self, worker: str, at_s: float) -> Iterator[ClearAlert]:
        name, host = self._names.pop(worker, ("", ""))
        if self._hosts.get(host) == worker:
            del self._hosts[host]
            self._last.pop(host, None)
            self._storms.pop(host, None)
        since_s = self._raised_at_s.pop(worker, None)
        if since_s is not None:
            yield ClearAlert(
                rule="symptoms.ecc",
                reason=f"worker {name} left",
                alert=f"symptoms-ecc {worker}",
                worker=worker,
                resource="accelerator",
                value=None,
                lasted_s=at_s - since_s,
            )

    def telemetry_arrived(self, worker: str, sample: Telemetry, at_s: float) -> Iterator[RaiseAlert]:
        """One sample; where there is no ECC there is no reading, and nothing happens."""
        corrected, uncorrected = sample.accelerator_ecc_corrected, sample.accelerator_ecc_uncorrected
        if worker not in self._names or corrected is None or uncorrected is None:
            return
        host = self._names[worker][1]
        if self._hosts.setdefault(host, worker) != worker:
            return
        before = self._last.get(host)
        self._last[host] = corrected, uncorrected
        if before is None or worker in self._raised_at_s:
            return
        new, lost = corrected - before[0], uncorrected - before[1]
        since_s, many = self._storms.get(host, (at_s, 0))
        since_s, many = (at_s, 0) if at_s - since_s > CORRECTED_S else (since_s, many)
        many += max(new, 0)
        self._storms[host] = since_s, many
        if lost <= 0 and many < CORRECTED_MANY:
            return
        self._raised_at_s[worker] = at_s
        what = f"{lost} errors that ECC could not correct" if lost > 0 else f"{many} corrected errors in a short time"
        yield RaiseAlert(
            rule="symptoms.ecc",
            reason=f"memory of a GPU of host {host}: {what}",
            inputs={"uncorrected": max(lost, 0), "corrected": many},
            alert=f"symptoms-ecc {worker}",
            worker=worker,
            resource="accelerator",
            value=float(lost if lost > 0 else many),
            threshold=1.0 if lost > 0 else float(CORRECTED_MANY),
            unit="errors",
        )
