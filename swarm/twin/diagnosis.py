"""Why a simulation came to a standstill: which tasks wait for what, and what will never happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from swarm.twin.models import Key

if TYPE_CHECKING:
    from distributed import Scheduler

    from swarm.twin.fleet import Fleet

SHOWN = 5


def why_stuck(scheduler: Scheduler, fleet: Fleet, wanted: Iterable[Key]) -> list[tuple[Key, str]]:
    """(key, reason) of each task at which the chain of waiting ends; those that most others wait for come first."""
    roots: Counter[Key] = Counter()
    reasons: dict[Key, str] = {}
    for key in wanted:
        task = scheduler.tasks.get(key)
        if task is not None and task.state in ("memory", "erred"):
            continue
        seen = {key}
        while task is not None and task.state == "waiting" and task.waiting_on:
            task = min(task.waiting_on, key=lambda t: str(t.key))
            if task.key in seen:
                break
            seen.add(task.key)
        root = key if task is None else task.key
        roots[root] += 1
        if root not in reasons:
            reasons[root] = "the scheduler does not know it" if task is None else _reason(scheduler, fleet, task)
    return [(key, reasons[key]) for key, _ in roots.most_common()]


def _reason(scheduler: Scheduler, fleet: Fleet, task: Any) -> str:
    if task.state == "processing" and task.processing_on is not None:
        return _on_worker(fleet, task)
    if task.state in ("no-worker", "queued"):
        if not scheduler.workers:
            return "there are no workers"
        wishes = {
            "workers": sorted(task.worker_restrictions or ()),
            "hosts": sorted(task.host_restrictions or ()),
            "resources": dict(task.resource_restrictions or {}),
        }
        asked = ", ".join(f"{name} {value}" for name, value in wishes.items() if value)
        if asked:
            return f"it is {task.state}: no worker has the {asked} that it asks for"
        running = len(scheduler.running)
        return f"it is {task.state}: {running} of {len(scheduler.workers)} workers take tasks, and none has room"
    return f"it is {task.state} at the scheduler"


def _on_worker(fleet: Fleet, task: Any) -> str:
    address = task.processing_on.address
    worker = fleet.by_address.get(address)
    if worker is None:
        return f"the scheduler waits for {address}, which is gone, and has not noticed"
    theirs = worker.state.tasks.get(task.key)
    if worker.process.cut_off:
        why = ", which is cut off from the scheduler"
    elif worker.process.frozen:
        why = ", which stands still"
    elif theirs is None:
        why = ", which does not know it"
    elif theirs.state == "waiting":
        inputs = sorted(str(need.key) for need in theirs.waiting_for_data)
        why = f", which waits for {len(inputs)} inputs: {', '.join(inputs[:3])}"
    elif theirs.state == "executing" and worker.rate <= 0:
        why = ", where it runs at speed 0"
    else:
        why = f" in state {theirs.state}, worker status {worker.status.name}"
    return f"it is with worker {worker.name}{why}"


def summary(lines: list[tuple[Key, str]], silent_s: float) -> str:
    """One line for a person."""
    told = "; ".join(f"{key!r}: {reason}" for key, reason in lines[:SHOWN])
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"nothing has moved for {silent_s:.0f} virtual seconds, {len(lines)} tasks hold up the rest: {told}{more}"
