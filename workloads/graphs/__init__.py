"""The workloads that come with swarm, and how their graphs are written.

Graphs are built of `dask.task_spec.Task` (https://docs.dask.org/en/stable/spec.html). Keys read
`<workload>-<step>-<token>-<indices>`, so that Dask's dashboard groups and names them by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask.task_spec import Task, TaskRef


def add(graph: dict[str, Task], key: str, function: Callable[..., Any], *arguments: Any) -> TaskRef:
    """Add a task to `graph`; the returned reference stands for its result among the arguments of later tasks."""
    graph[key] = task = Task(key, function, *arguments)
    reference: TaskRef = task.ref()
    return reference
