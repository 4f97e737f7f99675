"""Limits that users set on tasks: how long one may run, how often it is tried again, how long it rests before.  PURE

A task that has run too long is taken from its worker and tried elsewhere, since nobody can tell whether it hangs
because of what it does or because of where it does it. After the last try it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from swarm.config import check
from swarm.errors import SettingsError

if TYPE_CHECKING:
    from random import Random

Task = Any
"""As whoever uses this names it; hashable."""
Worker = Any

ANNOTATIONS = {"swarm_timeout": "task_timeout", "swarm_retries": "task_retries", "swarm_backoff": "task_backoff"}
"""Name of the annotation → the setting whose values it may have, and which it overrides."""
SPREAD = 0.25
"""By this share a rest is longer or shorter, at random: tasks that hung on the same thing do not all come back at
once."""
MOST_DOUBLINGS = 16
LEAST_LOOK_S = 0.25
"""Between two looks at a task that waits on its worker."""


class Limit(NamedTuple):
    """Of one task."""

    timeout_s: float | None = None
    """None: it may run as long as it likes."""
    retries: int = 3
    backoff_s: float = 1.0
    rests_after_errors: bool = False
    """Whether it rests also before a retry of Dask's own (`retries=`): where its annotation says how long, for without
    one Dask tries again at once."""


class Attempt(NamedTuple):
    """A run that was too long."""

    worker: Worker
    ran_s: float


def read(annotations: Mapping[str, Any], default: Limit) -> Limit:
    """The limit that annotations ask for.

    Raises
    ------
    SettingsError
        A value is not allowed; names all such.
    """
    values: dict[str, Any] = dict(zip(ANNOTATIONS, default, strict=False))
    wrong = []
    for name, setting in ANNOTATIONS.items():
        if annotations.get(name) is not None or (name == "swarm_timeout" and name in annotations):
            try:
                values[name] = check(setting, annotations[name])
            except SettingsError as error:
                wrong.append(f"{name} = {annotations[name]!r} {error}")
    if wrong:
        raise SettingsError("; ".join(wrong))
    return Limit(*values.values())._replace(rests_after_errors=annotations.get("swarm_backoff") is not None)


class _Watched:
    """A task that has a limit of its own, or has been too long."""

    __slots__ = ("attempts", "errors", "limit", "rests_until_s", "sent_at_s", "tried")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.attempts: list[Attempt] = []
        self.errors = 0
        """Runs that have raised, and that Dask has followed with another."""
        self.tried: set[Worker] = set()
        self.sent_at_s = 0.0
        self.rests_until_s = 0.0


class Limits:
    """Who has run too long, and what is done about it.

    Parameters
    ----------
    default
        Of tasks that say nothing themselves.
    rng
        For the length of rests.
    """

    def __init__(self, default: Limit, rng: Random) -> None:
        self._default = default
        self._rng = rng
        self._watched: dict[Task, _Watched] = {}
        self._looks: list[tuple[float, int, Task, Worker, float]] = []
        """Heap: when it may have run too long at the earliest, the task, where, sent when."""
        self._resting: list[tuple[float, int, Task]] = []
        self._serial = 0

    @property
    def is_asked_for(self) -> bool:
        """Whether any task has a limit, or must not run now."""
        return bool(self._watched) or self._default.timeout_s is not None

    def set_limit(self, task: Task, limit: Limit) -> None:
        """A task has a limit of its own; to be told again while it runs changes nothing."""
        watched = self._watched.get(task)
        if watched is None:
            self._watched[task] = _Watched(limit)
        else:
            watched.limit = limit

    def hold_back(self, task: Task) -> None:
        """It shall never run."""
        self._watched.setdefault(task, _Watched(self._default)).rests_until_s = inf

    def given(self, task: Task, worker: Worker, now_s: float) -> None:
        """A worker was sent a task."""
        watched = self._watched.get(task)
        limit = self._default if watched is None else watched.limit
        if limit.timeout_s is None:
            return
        if watched is None:
            watched = self._watched[task] = _Watched(limit)
        watched.sent_at_s = now_s
        self._look_at(now_s + limit.timeout_s, task, worker, now_s)

    def _look_at(self, at_s: float, task: Task, worker: Worker, sent_at_s: float) -> None:
        self._serial += 1
        heappush(self._looks, (at_s, self._serial, task, worker, sent_at_s))

    def too_long(
        self,
        now_s: float,
        worker_of: Callable[[Task], Worker | None],
        ran_s: Callable[[Task, Worker, float], float],
    ) -> list[tuple[Task, Worker, float]]:
        """Tasks that have run too long, where, and how long.

        Parameters
        ----------
        worker_of
            Where a task is now; None: nowhere.
        ran_s
            (task, worker, sent when) → how long it has run there; what it waited for a thread or for inputs not.
        """
        found: list[tuple[Task, Worker, float]] = []
        while self._looks and self._looks[0][0] <= now_s:
            _, _, task, worker, sent_at_s = heappop(self._looks)
            watched = self._watched.get(task)
            if watched is None or watched.sent_at_s != sent_at_s or watched.limit.timeout_s is None:
                continue
            here = worker_of(task)
            if here is None:
                continue
            if here is not worker:  # it goes on as its copy
                self.given(task, here, now_s)
                continue
            elapsed_s = ran_s(task, worker, sent_at_s)
            missing_s = watched.limit.timeout_s - elapsed_s
            if missing_s > 0.0:
                soon_s = max(watched.limit.timeout_s / 4, LEAST_LOOK_S)  # it may have waited until now
                self._look_at(now_s + min(missing_s, soon_s), task, worker, sent_at_s)
            else:
                found.append((task, worker, elapsed_s))
        return found

    def failed(self, task: Task, worker: Worker, ran_s: float, now_s: float) -> float | None:
        """A task has run too long: how long it rests before it is tried again, or None when that was the last try."""
        watched = self._watched[task]
        watched.attempts.append(Attempt(worker, ran_s))
        watched.tried.add(worker)
        count = len(watched.attempts)
        if count > watched.limit.retries:
            return None
        return self._rest(task, watched, count, now_s)

    def erred(self, task: Task, now_s: float) -> float:
        """A task has raised, and Dask will try it again: how long it rests before."""
        watched = self._watched.get(task)
        if watched is None or not watched.limit.rests_after_errors:
            return 0.0
        watched.errors += 1
        return self._rest(task, watched, watched.errors, now_s)

    def _rest(self, task: Task, watched: _Watched, count: int, now_s: float) -> float:
        doubled_s = watched.limit.backoff_s * 2.0 ** min(count - 1, MOST_DOUBLINGS)
        rest_s = doubled_s * self._rng.uniform(1.0 - SPREAD, 1.0 + SPREAD)
        watched.rests_until_s = now_s + rest_s
        if rest_s > 0.0:
            self._serial += 1
            heappush(self._resting, (watched.rests_until_s, self._serial, task))
        return rest_s

    def attempts(self, task: Task) -> list[Attempt]:
        return self._watched[task].attempts

    def limit(self, task: Task) -> Limit:
        watched = self._watched.get(task)
        return self._default if watched is None else watched.limit

    def rests(self, task: Task, now_s: float) -> bool:
        watched = self._watched.get(task)
        return watched is not None and watched.rests_until_s > now_s

    def rested(self, now_s: float) -> list[Task]:
        """Tasks whose rest is over, each once."""
        over = []
        while self._resting and self._resting[0][0] <= now_s:
            task = heappop(self._resting)[2]
            if task in self._watched:
                over.append(task)
        return over

    def may_run(self, task: Task, worker: Worker, workers: set[Worker]) -> bool:
        """Whether this is a worker on which it has not hung yet; of `workers`, if there is one.

        Where it has hung on all of them, any but the last will do; and where there is but one, that.
        """
        watched = self._watched.get(task)
        if watched is None or worker not in watched.tried:
            return True
        if workers - watched.tried:
            return False
        return worker is not watched.attempts[-1].worker or len(workers) <= 1

    def ended(self, task: Task) -> None:
        """It has a result, or has failed for good: should it ever run again, then as if for the first time."""
        watched = self._watched.get(task)
        if watched is not None and (watched.attempts or watched.errors):
            self._watched[task] = _Watched(watched.limit)

    def worker_left(self, worker: Worker) -> None:
        """Nobody can run there any more; what comes back is another worker."""
        for watched in self._watched.values():
            watched.tried.discard(worker)

    def forget(self, task: Task) -> None:
        """The task is over."""
        self._watched.pop(task, None)
