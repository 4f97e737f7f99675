"""Start-up self-test: is everything of distributed that swarm uses still there, and of the shape we know?

Swarm pins the version of distributed that its tests run on, but a user may install another. A name that is gone
switches off the feature that needs it, and says so; the others go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler

Check = Callable[["Scheduler"], bool]


def _takes(function: Callable[..., Any], *names: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) or {*names} <= {p.name for p in parameters}


def _dict(name: str) -> Check:
    return lambda scheduler: isinstance(getattr(scheduler, name, None), Mapping)


NEEDS: dict[str, dict[str, Check]] = {
    "membership": {
        "Scheduler.handlers": _dict("handlers"),
        "Scheduler.workers": _dict("workers"),
        "Scheduler.task_metadata": _dict("task_metadata"),
        "Scheduler._ongoing_background_tasks.call_soon": lambda s: callable(
            getattr(getattr(s, "_ongoing_background_tasks", None), "call_soon", None)
        ),
        "Scheduler.broadcast(msg, workers, on_error)": lambda s: _takes(s.broadcast, "msg", "workers", "on_error"),
    },
    "telemetry": {
        "Scheduler.extensions": _dict("extensions"),
        "Scheduler.heartbeat_worker(extensions)": lambda s: _takes(s.heartbeat_worker, "extensions"),
    },
    "events": {"Scheduler.log_event(topic, msg)": lambda s: _takes(s.log_event, "topic", "msg")},
    "runs": {
        "SchedulerPlugin.update_graph(tasks, keys)": lambda _: _takes(SchedulerPlugin.update_graph, "tasks", "keys"),
        "SchedulerPlugin.transition(key, start, finish)": lambda _: _takes(
            SchedulerPlugin.transition, "key", "start", "finish"
        ),
        "Scheduler.tasks": _dict("tasks"),
    },
    "samples": {
        "Scheduler.queued": lambda s: hasattr(s, "queued") and hasattr(s.queued, "__len__"),
        "Scheduler.task_groups": _dict("task_groups"),
        "Scheduler.total_nthreads": lambda s: isinstance(getattr(s, "total_nthreads", None), int),
    },
    "dashboard": {
        "Scheduler.http_application.add_application": lambda s: callable(
            getattr(getattr(s, "http_application", None), "add_application", None)
        )
    },
}
"""Feature → what it needs of distributed."""


def missing(scheduler: Scheduler) -> dict[str, str]:
    """Feature → what of distributed it needs and does not find. Empty when all is well."""
    found: dict[str, str] = {}
    for feature, checks in NEEDS.items():
        gone = [name for name, check in checks.items() if not _passes(check, scheduler)]
        if gone:
            found[feature] = f"this version of distributed lacks {', '.join(gone)}"
    return found


def _passes(check: Check, scheduler: Scheduler) -> bool:
    try:
        return check(scheduler)
    except (AttributeError, TypeError, ValueError):  # what a changed name or signature raises
        return False
