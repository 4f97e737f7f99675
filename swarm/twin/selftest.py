"""Is everything of distributed and asyncio that the twin replaces still there, and of the shape it knows?"""

from __future__ import annotations

import asyncio
import inspect
from functools import cache, singledispatchmethod
from importlib.metadata import version
from typing import Any

import distributed.active_memory_manager as amm
import distributed.worker_state_machine as wsm
from distributed import Client, Scheduler, versions

from swarm.errors import TwinError
from swarm.twin.worker import STIMULI


def _takes(function: Any, *names: str) -> bool:
    # Of a class with `__new__` above its `__init__`, Python 3.11.2 would show the signature of `__new__`.
    called = inspect.getattr_static(function, "__init__") if isinstance(function, type) else function
    return set(names) <= set(inspect.signature(called).parameters)


@cache
def changed() -> tuple[str, ...]:
    """Names of distributed and asyncio that are gone or have another shape."""
    checks = {
        "Scheduler.start_http_server": hasattr(Scheduler, "start_http_server"),
        "Scheduler.handle_worker(comm, worker)": _takes(Scheduler.handle_worker, "comm", "worker"),
        "Scheduler.add_worker(…, server_id, nanny, extra)": _takes(Scheduler.add_worker, "server_id", "nanny", "extra"),
        "Scheduler.heartbeat_worker(executing, extensions)": _takes(
            Scheduler.heartbeat_worker, "executing", "extensions"
        ),
        "Scheduler.retire_workers(workers, close_workers)": _takes(
            Scheduler.retire_workers, "workers", "close_workers"
        ),
        "Scheduler.decide_worker_non_rootish(ts)": _takes(Scheduler.decide_worker_non_rootish, "ts"),
        "versions.error_message": hasattr(versions, "error_message"),
        "worker_state_machine.TaskState.__hash__": {"__hash__", "__post_init__"} <= set(vars(wsm.TaskState)),
        "worker_state_machine.TaskCounter": {"_current_count", "_new_tasks"} <= set(wsm.TaskCounter.__slots__)
        and _takes(wsm.TaskCounter.transitions, "prev_states")
        and _takes(wsm.TaskCounter.current_count, "by_prefix"),
        "WorkerState._handle_event": isinstance(vars(wsm.WorkerState).get("_handle_event"), singledispatchmethod),
        "ActiveMemoryManagerPolicy": hasattr(amm, "ActiveMemoryManagerPolicy"),
        "WorkerState(nthreads, address, data)": _takes(wsm.WorkerState, "nthreads", "address", "data", "validate"),
        "WorkerState.handle_stimulus": hasattr(wsm.WorkerState, "handle_stimulus"),
        "ExecuteSuccessEvent(run_id, value, nbytes)": _takes(wsm.ExecuteSuccessEvent, "run_id", "value", "nbytes"),
        "GatherDepSuccessEvent(worker, total_nbytes, data)": _takes(
            wsm.GatherDepSuccessEvent, "worker", "total_nbytes", "data"
        ),
        "GatherDep.to_gather": "to_gather" in wsm.GatherDep.__annotations__,
        "the messages of a worker's stream": all(_takes(kind, "stimulus_id") for kind in STIMULI.values()),
        "Client.get(dsk, keys, sync)": _takes(Client.get, "dsk", "keys", "sync"),
        "asyncio.BaseEventLoop._run_once": hasattr(asyncio.BaseEventLoop, "_run_once"),
    }
    return tuple(name for name, is_there in checks.items() if not is_there)


def require() -> None:
    """Raise `TwinError` when this version of distributed is not the one that the twin knows."""
    if gone := changed():
        raise TwinError(
            f"distributed {version('distributed')} is not supported by the twin: {'; '.join(gone)} changed; "
            "install the version that swarm pins"
        )
