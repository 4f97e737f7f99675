"""What a scheduler answers to "why": about one task or one worker, as plain facts that `swarm.explain` puts into words.

Whatever goes through all tasks lets the event loop run in between.
"""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from itertools import chain, islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from swarm.errors import UnknownKeyError
from swarm.story import named

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.decide.load import Given
    from scheduler_plugins.on_dask.mind import Key, Mind

SLICE = 1000
"""Tasks or workers that are looked at in one go: half a millisecond."""
SHOWN = 10
"""Inputs, running and waiting tasks that are named; of the others only how many there are."""
SIMILAR = 200
"""Keys among which the client looks for the nearest, where none is meant."""
SAME = 4
"""Letters at its beginning that a key must share for that."""


class Explaining:
    """Answers for one scheduler."""

    def __init__(self, scheduler: Scheduler, mind: Mind) -> None:
        self._scheduler = scheduler
        self._mind = mind

    async def answer(self, what: Any, why_not: str = "") -> dict[str, Any]:
        """Facts about a task or a worker; msgpack types only.

        Parameters
        ----------
        what
            The key of a task, as Dask has it or its text or the beginning of that; or a worker's name or address.
        why_not
            Why placement is Dask's, if it is.
        """
        key = self._key(what)
        if key is None and (worker := self._worker(str(what))) is not None:
            facts = self._of_worker(worker)
        elif key is None and (death := self._death(str(what))) is not None:
            facts = {"kind": "worker", "status": "dead", "recent": [], **death}
        else:
            if key is None:
                key = await self._by_beginning(str(what))
            facts = await self._of_task(key)
        facts["at_s"] = time.time()
        facts["placement_off"] = why_not
        dead = {address: death["name"] for address, death in self._mind.deaths.records.items()}
        facts["names"] = dead | {state.address: str(state.name) for state in self._scheduler.workers.values()}
        return facts

    # -- what is meant ---------------------------------------------------------------------------------------------

    def _key(self, what: Any) -> Key | None:
        for key in (what, _as_tuple(what)):
            try:
                if key is not None and (key in self._scheduler.tasks or key in self._mind.why):
                    return key
            except TypeError:  # it has no hash, so it is no key
                continue
        return None

    def _worker(self, what: str) -> WorkerState | None:
        state = self._scheduler.workers.get(what)
        if state is None:
            state = next((each for each in self._scheduler.workers.values() if str(each.name) == what), None)
        return state

    def _death(self, what: str) -> dict[str, Any] | None:
        """Of the last worker with that name or address that was lost."""
        deaths = reversed(self._mind.deaths.records.values())
        return next((death for death in deaths if what in (death["worker"], death["name"])), None)

    async def _by_beginning(self, what: str) -> Key:
        found: dict[str, Key] = {}
        similar: dict[str, None] = {}
        async for key in _in_slices(list(chain(self._scheduler.tasks, self._mind.why.keys()))):
            text = str(key)
            if text.startswith(what):
                found[text] = key
            elif not found and len(similar) < SIMILAR and text[:SAME] == what[:SAME]:
                similar[text] = None
        if what in found or len(found) == 1:
            return found.get(what, next(iter(found.values())))
        if found:
            some = ", ".join(islice(found, 3)) + (", …" if len(found) > 3 else "")
            raise UnknownKeyError(f"{len(found)} tasks begin with {what!r} ({some}): give more of the key")
        workers = [str(state.name) for state in self._scheduler.workers.values()]
        prefixes = [str(name) for name in islice(self._scheduler.task_prefixes, SIMILAR)]
        error = await asyncio.to_thread(UnknownKeyError.about, what, [*similar, *workers], prefixes)
        raise UnknownKeyError(f"{error} (the last {self._mind.why.kept:,} tasks that are over are remembered)")

    # -- a task ----------------------------------------------------------------------------------------------------

    async def _of_task(self, key: Key) -> dict[str, Any]:
        task = self._scheduler.tasks.get(key)
        facts: dict[str, Any] = {
            "kind": "task",
            "key": str(key),
            "state": "forgotten" if task is None else task.state,
            "events": [named(entry) for entry in self._mind.why.story(key)],
        }
        if task is not None:
            facts["function"] = self._mind.estimates.function(task)
            facts["inputs"] = len(task.dependencies)
            facts["held_by"] = [state.address for state in islice(task.who_has or (), SHOWN)]
            facts["error"] = task.exception_text or ""
            facts["waits"] = await self._waits(task)
        return facts

    async def _waits(self, task: TaskState) -> dict[str, Any] | None:
        """What a task that is not done waits for, or for how long it runs."""
        waits: dict[str, Any] | None = None
        match task.state:
            case "waiting":
                lacking = task.waiting_on or ()
                some = [self._input(need) for need in islice(lacking, SHOWN)]
                waits = {"for": "inputs", "count": len(lacking), "some": some}
            case "queued" if task in self._pool:
                waits = await self._in_pool(task)
            case "queued" if self._mind.is_on and self._mind.limits.rests(task):
                waits = {"for": "its rest to be over, after it has failed (swarm_backoff)"}
            case "queued":
                waits = {"for": "a worker"}
            case "no-worker":
                allowed = {
                    "workers": sorted(task.worker_restrictions or ()),
                    "hosts": sorted(task.host_restrictions or ()),
                    "resources": [f"{name} {much:g}" for name, much in (task.resource_restrictions or {}).items()],
                }
                waits = {"for": "a worker that it may run on", "allowed": allowed}
            case "processing" if task.processing_on is not None:
                waits = self._on_worker(task, task.processing_on)
        return waits

    def _input(self, task: TaskState) -> dict[str, Any]:
        state = task.processing_on
        given = None if state is None else self._given(task, state)
        runs_s = None if given is None or given.started_at_s is None else time.time() - given.started_at_s
        return {
            "key": str(task.key),
            "state": task.state,
            "worker": None if state is None else state.address,
            "runs_s": None if runs_s is None else max(0.0, runs_s),
            "p50_s": None if given is None else given.p50_s,
        }

    @property
    def _pool(self) -> dict[Any, Any]:
        return self._mind.placing.placement._entries if self._mind.is_on else {}

    async def _in_pool(self, task: TaskState) -> dict[str, Any]:
        """Where it stands in the pool, and where it would go now."""
        entry = self._pool[task]
        ahead, ahead_s, total, is_behind = 0, 0.0, len(self._pool), False
        async for other in _in_slices(list(self._pool.values())):
            is_behind = is_behind or other is entry  # of the same priority, the first comes first
            if other.priority < entry.priority or (other.priority == entry.priority and not is_behind):
                ahead += 1
                ahead_s += other.cost.p50_s
        best: tuple[float, float, str, float] | None = None
        speed, unfit = 0.0, 0
        placing, factor, now_s = self._mind.placing, self._mind.estimates.factor, time.time()
        async for view in _in_slices(list(placing.placement.views.values())):
            if view.worker not in self._scheduler.running:
                continue
            if not self._mind._fits(task, view.worker):
                unfit += 1
                continue
            speed += view.load.threads / view.factor
            free_s = view.load.free_in_s(now_s)
            there_s = entry.cost.p50_s * factor(task, view.worker)
            move_s = placing.transfer_s(task, view.worker)
            rated = (free_s + move_s + there_s, there_s, view.worker.address, free_s)
            best = rated if best is None else min(best, rated)
        home = getattr(entry.home, "address", None)
        return {
            "for": "a worker",
            "ahead": ahead,
            "ahead_s": ahead_s / speed if speed else None,
            "pool": total,
            "path_s": entry.rank_s,
            "inputs_on": home,
            "unfit": unfit,
            "would_go_to": None if best is None else best[2],
            "free_in_s": None if best is None else _finite(best[3]),
            "p50_s": None if best is None else best[1],
        }

    def _given(self, task: TaskState, state: WorkerState) -> Given | None:
        """What placement knows of a task that a worker has."""
        view = self._mind.placing.placement.views.get(state) if self._mind.is_on else None
        if view is None:
            return None
        load = view.load
        return load.running.get(task) or load.waiting.get(task) or load.fetching.get(task)

    def _on_worker(self, task: TaskState, state: WorkerState) -> dict[str, Any]:
        given, now_s = self._given(task, state), time.time()
        where = {"worker": state.address}
        if given is None:
            return {"for": "its result", **where, "runs_s": state.executing.get(task)}
        load = self._mind.placing.placement.views[state].load
        predicted = {"p50_s": given.p50_s, "p99_s": given.p99_s, "is_known": given.is_known}
        if given.started_at_s is not None:
            return {"for": "its result", **where, **predicted, "runs_s": max(0.0, now_s - given.started_at_s)}
        if task in load.fetching:
            return {
                "for": "its inputs to be moved",
                **where,
                **predicted,
                "left_s": max(0.0, given.arrives_at_s - now_s),
            }
        behind = list(load.waiting).index(task)
        return {
            "for": "a thread",
            **where,
            **predicted,
            "behind": behind,
            "free_in_s": _finite(load.free_in_s(now_s)),
            "since_s": now_s - given.sent_at_s,
        }

    # -- a worker --------------------------------------------------------------------------------------------------

    def _of_worker(self, state: WorkerState) -> dict[str, Any]:
        why, address, now_s = self._mind.why, state.address, time.time()
        facts: dict[str, Any] = {
            "kind": "worker",
            "worker": address,
            "name": str(state.name),
            "host": state.host,
            "threads": state.nthreads,
            "status": state.status.name,
            "has": len(state.processing),
            "counts": dict(why.counts.get(address, {})),
            "recent": [{"key": str(key), **named(entry)} for key, entry in why.recent(address)],
            "runs": [],
            "waiting": 0,
            "before": self._death(str(state.name)),
        }
        view = self._mind.placing.placement.views.get(state) if self._mind.is_on else None
        if view is None:
            facts["runs"] = [
                {"key": str(task.key), "runs_s": runs_s} for task, runs_s in islice(state.executing.items(), SHOWN)
            ]
            return facts
        factor, doubt = self._mind.estimates.worker_factor(state)
        load = view.load
        running = sorted(load.running.values(), key=lambda given: given.started_at_s or now_s)
        facts |= {
            "factor": factor,
            "doubt": doubt,
            "ended": view.seen,
            "held": load.held,
            "waiting": len(load.waiting),
            "fetching": len(load.fetching),
            "free_in_s": _finite(load.free_in_s(now_s)),
            "runs": [self._run(given, now_s) for given in running[:SHOWN]],
        }
        return facts

    def _run(self, given: Given, now_s: float) -> dict[str, Any]:
        return {
            "key": str(given.task.key),
            "function": self._mind.estimates.function(given.task),
            "runs_s": max(0.0, now_s - (given.started_at_s or now_s)),
            "p50_s": given.p50_s,
            "p99_s": given.p99_s,
            "is_known": given.is_known,
        }


def _as_tuple(what: Any) -> tuple[Any, ...] | None:
    """The key that a text such as "('x', 0, 1)" is meant to be."""
    if isinstance(what, list):
        return tuple(what)
    if isinstance(what, str) and what.startswith("("):
        try:
            key = ast.literal_eval(what)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        return key if isinstance(key, tuple) else None
    return None


def _finite(seconds: float) -> float | None:
    return seconds if isfinite(seconds) else None


async def _in_slices(everything: list[Any]) -> AsyncIterator[Any]:
    for start in range(0, len(everything), SLICE):
        part: Iterable[Any] = everything[start : start + SLICE]
        for each in part:
            yield each
        await asyncio.sleep(0)
