"""Start-up self-test: is everything of distributed that swarm uses still there, and of the shape we know?

Swarm pins the version of distributed that its tests run on, but a user may install another. A name that is gone
switches off the feature that needs it, and says so; the others go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dask._expr import LLGExpr
from dask._task_spec import Task
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import TaskGroup, TaskState, WorkerState, heartbeat_interval
from distributed.worker_state_machine import ComputeTaskEvent, FreeKeysEvent, StealRequestEvent

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
    "placement": {
        "Scheduler.is_rootish(ts)": lambda s: _takes(s.is_rootish, "ts"),
        "Scheduler.decide_worker_rootish_queuing_enabled()": lambda s: (
            not inspect.signature(s.decide_worker_rootish_queuing_enabled).parameters
        ),
        "Scheduler.stimulus_queue_slots_maybe_opened(stimulus_id)": lambda s: _takes(
            s.stimulus_queue_slots_maybe_opened, "stimulus_id"
        ),
        "Scheduler.check_idle_saturated(ws)": lambda s: _takes(s.check_idle_saturated, "ws"),
        "Scheduler.idle_task_count": lambda s: isinstance(s.idle_task_count, set),
        "Scheduler.WORKER_SATURATION, UNKNOWN_TASK_DURATION, bandwidth": lambda s: all(
            isinstance(each, float | int) for each in (s.WORKER_SATURATION, s.UNKNOWN_TASK_DURATION, s.bandwidth)
        ),
        "Scheduler.bandwidth_workers, running, queued": lambda s: (
            all(hasattr(s, name) for name in ("bandwidth_workers", "running")) and hasattr(s.queued, "peek")
        ),
        "Scheduler.transitions(recommendations, stimulus_id)": lambda s: _takes(
            s.transitions, "recommendations", "stimulus_id"
        ),
        "Scheduler.stream_handlers, stream_comms": lambda s: all(
            hasattr(s, name) for name in ("stream_handlers", "stream_comms")
        ),
        "Scheduler.loop.asyncio_loop": lambda s: hasattr(s.loop, "asyncio_loop"),
        "TaskState": lambda _: all(
            hasattr(TaskState, name)
            for name in (
                "run_spec",
                "run_id",
                "_queueable",
                "who_has",
                "dependencies",
                "dependents",
                "priority",
                "prefix",
                "group",
            )
        ),
        "WorkerState.nthreads, address": lambda _: {"nthreads", "address"} <= {*WorkerState.__slots__},
    },
    "copies": {
        "Scheduler.stream_handlers[task-finished, task-erred, reschedule, long-running]": lambda s: (
            {"task-finished", "task-erred", "reschedule", "long-running"} <= {*s.stream_handlers}
        ),
        "Scheduler.handlers[heartbeat_worker, unregister]": lambda s: (
            {"heartbeat_worker", "unregister"} <= {*s.handlers}
        ),
        "Scheduler.heartbeat_worker(address, executing)": lambda s: _takes(s.heartbeat_worker, "address", "executing"),
        "Scheduler.stimulus_task_finished(key, worker, run_id)": lambda s: _takes(
            s.stimulus_task_finished, "key", "worker", "run_id"
        ),
        "Scheduler.stimulus_task_erred(key, worker, run_id)": lambda s: _takes(
            s.stimulus_task_erred, "key", "worker", "run_id"
        ),
        "Scheduler._reschedule(key, worker)": lambda s: _takes(s._reschedule, "key", "worker"),
        "Scheduler.handle_long_running(key, worker, run_id)": lambda s: _takes(
            s.handle_long_running, "key", "worker", "run_id"
        ),
        "Scheduler.remove_worker(address, expected)": lambda s: _takes(s.remove_worker, "address", "expected"),
        "Scheduler.request_remove_replicas(addr, keys, stimulus_id)": lambda s: _takes(
            s.request_remove_replicas, "addr", "keys", "stimulus_id"
        ),
        "Scheduler.worker_send(worker, msg)": lambda s: _takes(s.worker_send, "worker", "msg"),
        "Scheduler._task_to_msg(ts)": lambda s: _takes(s._task_to_msg, "ts"),
        "Scheduler.valid_workers(ts)": lambda s: _takes(s.valid_workers, "ts"),
        "Scheduler.coerce_address(addr)": lambda s: _takes(s.coerce_address, "addr"),
        "Scheduler.allowed_failures": lambda s: isinstance(s.allowed_failures, int),
        "Scheduler.plugins": lambda s: isinstance(s.plugins, Mapping),
        "WorkerState.add_to_processing, remove_from_processing(ts)": lambda _: (
            _takes(WorkerState.add_to_processing, "ts") and _takes(WorkerState.remove_from_processing, "ts")
        ),
        "WorkerState.long_running, memory_limit": lambda _: (
            {"long_running", "memory_limit"} <= {*WorkerState.__slots__}
        ),
        "TaskState.processing_on, suspicious": lambda _: {"processing_on", "suspicious"} <= {*TaskState.__slots__},
        "worker events ComputeTask(run_id), FreeKeys(keys), StealRequest(key)": lambda _: (
            "run_id" in ComputeTaskEvent.__dataclass_fields__
            and "keys" in FreeKeysEvent.__dataclass_fields__
            and "key" in StealRequestEvent.__dataclass_fields__
        ),
    },
    "faults": {
        "distributed.scheduler.heartbeat_interval(n)": lambda _: isinstance(heartbeat_interval(10), float | int),
        "Scheduler.handle_worker_status_change(status, worker, stimulus_id)": lambda s: _takes(
            s.handle_worker_status_change, "status", "worker", "stimulus_id"
        ),
        "Scheduler.remove_worker(address, stimulus_id)": lambda s: _takes(s.remove_worker, "address", "stimulus_id"),
        "Scheduler.request_acquire_replicas(addr, keys, stimulus_id)": lambda s: _takes(
            s.request_acquire_replicas, "addr", "keys", "stimulus_id"
        ),
        "Scheduler.rpc(addr), loop.asyncio_loop": lambda s: all(
            hasattr(*each) for each in ((s, "rpc"), (s.loop, "asyncio_loop"))
        ),
        "WorkerState.last_seen, nanny, status, has_what": lambda _: (
            {"last_seen", "nanny", "status", "_has_what"} <= {*WorkerState.__slots__}
        ),
        "Status.paused, running": lambda _: {"paused", "running"} <= {*Status.__members__},
    },
    "strategy": {
        "Scheduler.total_nthreads": lambda s: isinstance(getattr(s, "total_nthreads", None), int),
        "Scheduler.unrunnable, queued": lambda s: hasattr(s, "unrunnable") and hasattr(s, "queued"),
        "TaskGroup.states": lambda _: hasattr(TaskGroup, "states"),
    },
    "durability": {
        "Scheduler.update_graph(client, expr_ser, keys, span_metadata, annotations)": lambda s: _takes(
            s.update_graph, "client", "expr_ser", "keys", "span_metadata", "annotations"
        ),
        "Scheduler.update_graph(internal_priority, submitting_task)": lambda s: _takes(
            s.update_graph, "internal_priority", "submitting_task"
        ),
        "Scheduler.add_plugin(plugin, name), plugins": lambda s: (
            _takes(s.add_plugin, "plugin", "name") and isinstance(s.plugins, Mapping)
        ),
        "Scheduler.worker_send(worker, msg)": lambda s: _takes(s.worker_send, "worker", "msg"),
        "Scheduler.transitions(recommendations, stimulus_id)": lambda s: _takes(
            s.transitions, "recommendations", "stimulus_id"
        ),
        "Scheduler.client_releases_keys(keys, client, stimulus_id)": lambda s: _takes(
            s.client_releases_keys, "keys", "client", "stimulus_id"
        ),
        "TaskState.add_dependency(other)": lambda _: _takes(TaskState.add_dependency, "other"),
        "TaskState.run_spec, who_wants, who_has, actor": lambda _: (
            {"run_spec", "who_wants", "who_has", "actor"} <= {*TaskState.__slots__}
        ),
        "dask._expr.LLGExpr(dsk)": lambda _: LLGExpr._parameters == ["dsk"],
        "dask._task_spec.Task(key, func)": lambda _: _takes(Task.__init__, "key", "func"),
    },
    "scaling": {
        "Scheduler.handlers[adaptive_target, workers_to_close, retire_workers]": lambda s: (
            {"adaptive_target", "workers_to_close", "retire_workers"} <= {*s.handlers}
        ),
        "Scheduler.adaptive_target(target_duration)": lambda s: _takes(s.adaptive_target, "target_duration"),
        "Scheduler.workers_to_close(memory_ratio, n, key, minimum, target, attribute)": lambda s: _takes(
            s.workers_to_close, "memory_ratio", "n", "key", "minimum", "target", "attribute"
        ),
        "Scheduler.retire_workers(workers, names)": lambda s: _takes(s.retire_workers, "workers", "names"),
        "Scheduler.unrunnable, queued, running, total_nthreads": lambda s: all(
            hasattr(s, name) for name in ("unrunnable", "queued", "running", "total_nthreads")
        ),
        "WorkerState.long_running, actors, has_what, memory_limit, nbytes": lambda _: (
            {"long_running", "actors", "memory_limit", "nbytes"} <= {*WorkerState.__slots__}
            and hasattr(WorkerState, "has_what")
        ),
        "SchedulerPlugin.valid_workers_downscaling(scheduler, workers)": lambda _: _takes(
            SchedulerPlugin.valid_workers_downscaling, "scheduler", "workers"
        ),
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
