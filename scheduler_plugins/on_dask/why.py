"""Why a task went where it went: what was decided and what happened, kept for those who ask later.

On the hot path this keeps tuples of plain values and nothing else; they are put into words by whoever asks
(`scheduler_plugins.on_dask.explaining`, `swarm.explain`). So a task costs about a microsecond, and the collector of
garbage leaves most of what is kept alone. `swarm.story` tells what the parts of the tuples are.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.decide.load import Load
    from scheduler_plugins.decide.placement import Choice
    from scheduler_plugins.on_dask.copies import Copying, End
    from scheduler_plugins.on_dask.estimates import Estimates
    from swarm.story import Entry

Key = Any
Recall = Literal["asked back", "given back", "taken back", "kept"]
"""given back: with the consent of the worker; taken back: without; kept: it had begun."""

KEPT = 20_000
"""Tasks that are over and still known; some 15 MB."""
BATCH = 500
"""So many are forgotten at a time."""
MOST_ENTRIES = 100
"""Of one task: one that is lost again and again must not fill the memory. The oldest go."""
RECENT = 20
"""Recalls and copies that are kept for each worker."""


def _raised(error: Exception) -> None:
    raise error


class Why:
    """Remembers what became of each task that is under way, and of the last `kept` that are over.

    Parameters
    ----------
    estimates
        Say what is predicted, at the moment of each decision.
    on_failure
        Is given what goes wrong in here; nothing is raised where it is told something.
    """

    def __init__(
        self, estimates: Estimates, on_failure: Callable[[Exception], None] = _raised, *, kept: int = KEPT
    ) -> None:
        self.kept = kept
        self._most = kept + BATCH
        self.is_on = True
        self.strategy: str | None = None
        """By which tasks are placed; None where there is no choice."""
        self._estimates = estimates
        self._on_failure = on_failure
        self._open: dict[Key, list[Entry]] = {}
        self._over: dict[Key, list[Entry]] = {}
        self._finished: TaskState | None = None
        """The task that finished last: the inputs of those that become ready now are complete with it."""
        self.counts: dict[str, Counter[str]] = {}
        """Worker → what happened to its tasks, of recalls and copies → how often."""
        self._recent: dict[str, deque[tuple[Key, Entry]]] = {}

    # -- told, on the hot path -------------------------------------------------------------------------------------

    def transition(self, task: TaskState, start: str, finish: str, details: Mapping[str, Any]) -> None:
        """After each transition of a task."""
        if not self.is_on:
            return
        try:
            if finish == "queued":
                key, last = task.key, self._finished
                with_ = last.key if last is not None and task.dependencies and last in task.dependencies else None
                if key in self._open or key in self._over:
                    self._story(key).append(("ready", time.time(), with_))
                else:
                    self._open[key] = [("ready", time.time(), with_)]
            elif finish == "processing":
                if start != "queued" and task.processing_on is not None:  # `chosen` tells what comes from our pool
                    self._story(task.key).append(("given by Dask", time.time(), task.processing_on.address))
            elif start == "processing":
                if finish == "memory":
                    self._finished = task
                    self._done(task, details)
                else:
                    self._left(task, finish, details)
            elif finish == "forgotten" or finish == "erred":  # noqa: PLR1714 - quicker, and it counts here
                self._close(task.key)
        except Exception as error:  # noqa: BLE001 - whoever listens counts it
            self._on_failure(error)

    def chosen(self, choice: Choice, now_s: float) -> None:
        """A task of the pool was given to a worker, or several alike."""
        if not self.is_on:
            return
        try:
            task, worker, rule, more = choice
            prefix = None
            for each in (task, *more):
                if each.prefix is not prefix:
                    prefix = each.prefix
                    entry = ("given", now_s, worker.address, rule, *self._estimates.told(each, worker), self.strategy)
                (self._open.get(each.key) or self._story(each.key)).append(entry)
        except Exception as error:  # noqa: BLE001 - whoever listens counts it
            self._on_failure(error)

    def _story(self, key: Key) -> list[Entry]:
        story = self._open.get(key)
        if story is None:
            story = self._open[key] = self._over.pop(key, [])
        if len(story) >= MOST_ENTRIES:
            del story[: MOST_ENTRIES // 2]
        return story

    def _done(self, task: TaskState, details: Mapping[str, Any]) -> None:
        key, start_s, stop_s, transfer_s, transfers = task.key, None, None, 0.0, 0
        for span in details.get("startstops") or ():
            action = span["action"]
            if action == "compute":  # the last one has led to the result
                start_s, stop_s = span["start"], span["stop"]
            elif action == "transfer":
                transfer_s += span["stop"] - span["start"]
                transfers += 1
        story = self._open.pop(key, None)
        if story is None:
            story = self._over.pop(key, [])
        story.append(("done", time.time(), details["worker"], start_s, stop_s, transfer_s, transfers, task.nbytes))
        self._over[key] = story
        if len(self._over) > self._most:
            self._make_room()

    def _make_room(self) -> None:
        for key in list(islice(self._over, len(self._over) - self.kept)):
            del self._over[key]

    def _left(self, task: TaskState, finish: str, details: Mapping[str, Any]) -> None:
        worker = details.get("worker") or ""
        story = self._story(task.key)
        if not worker:
            given = next((entry for entry in reversed(story) if entry[0].startswith("given")), None)
            worker = given[2] if given is not None else ""
        reason = task.exception_text if finish == "erred" else str(details.get("stimulus_id", "")).rpartition("-")[0]
        story.append(("left", time.time(), worker, finish, reason or ""))
        if finish in ("erred", "forgotten"):
            self._close(task.key)

    def _close(self, key: Key) -> None:
        story = self._open.pop(key, None)
        if story is not None:
            self._over[key] = story
            if len(self._over) > self._most:
                self._make_room()

    # -- told, now and then ----------------------------------------------------------------------------------------

    def recalled(self, what: Recall, task: TaskState, worker: WorkerState, load: Load | None = None) -> None:
        """A task that waits on a worker is called back to the pool.

        Parameters
        ----------
        load
            Of the worker, when it is asked.
        """
        entry: tuple[Any, ...] = (what, time.time(), worker.address)
        if what == "asked back":
            behind: tuple[Any, ...] = (None, None, None)
            free_in_s = None
            if load is not None:
                now_s, free_in_s = entry[1], load.free_in_s(entry[1])
                runs = [(now_s - (each.started_at_s or now_s), each) for each in load.running.values()]
                for_s, slowest = max(runs, key=lambda one: one[0] - one[1].p99_s, default=(None, None))
                if slowest is not None:
                    behind = (slowest.task.key, for_s, slowest.p99_s)
            entry = (*entry, *behind, free_in_s)
        self._note(task.key, entry)

    def copied(
        self, task: TaskState, worker: WorkerState, to: WorkerState, elapsed_s: float, p50_s: float, p99_s: float
    ) -> None:
        """A copy of a running task was started elsewhere; what was predicted is for the worker where it runs."""
        self._note(task.key, ("copied", time.time(), worker.address, to.address, elapsed_s, p50_s, p99_s))

    def copy_ended(self, copying: Copying, how: End) -> None:
        """As `Copies` tells its `on_end`."""
        now_s = time.time()
        entry = ("copy ended", now_s, copying.first.address, copying.second.address, how, now_s - copying.began_s)
        self._note(copying.task.key, entry)

    def waits(self, task: TaskState, reason: str) -> None:
        """A task must wait for something else than its inputs or a worker: for memory, until it may be tried again."""
        self._note(task.key, ("waits", time.time(), reason))

    def _note(self, key: Key, entry: Entry) -> None:
        """What happens now and then; its worker is to remember it, too."""
        if not self.is_on:
            return
        try:
            over = None if key in self._open else self._over.get(key)
            # The end of a copy may be heard of after the result.
            (self._story(key) if over is None else over).append(entry)
            if entry[0] != "waits":
                self.counts.setdefault(entry[2], Counter())[entry[0]] += 1
                self._recent.setdefault(entry[2], deque(maxlen=RECENT)).append((key, entry))
        except Exception as error:  # noqa: BLE001 - whoever listens counts it
            self._on_failure(error)

    def worker_left(self, address: str) -> None:
        self.counts.pop(address, None)
        self._recent.pop(address, None)

    # -- asked -----------------------------------------------------------------------------------------------------

    def __contains__(self, key: Key) -> bool:
        return key in self._open or key in self._over

    def keys(self) -> list[Key]:
        """Of all tasks that are remembered, those that are over first."""
        return [*self._over, *self._open]

    def story(self, key: Key) -> tuple[Entry, ...]:
        """All that is remembered of a task, in order."""
        return tuple(self._open.get(key) or self._over.get(key) or ())

    def recent(self, address: str) -> list[tuple[Key, Entry]]:
        """The last recalls and copies of tasks of a worker."""
        return list(self._recent.get(address, ()))
