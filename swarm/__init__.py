"""Swarm: a Dask cluster that looks after itself.

    import swarm

    s = swarm.connect("tcp://host:8786")        # no address: a local cluster in processes of its own
    run = s.submit("kmeans", clusters=16)       # a workload, a Dask collection, a Delayed or a graph
    run.progress()
    run.result(timeout=60)

Names are imported when they are first used, so that importing one part of swarm does not load all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.agents.base import BaseAgent
    from swarm.channels.messages import Message, Priority
    from swarm.client import Swarm, connect, current, durable, map, submit  # noqa: A004
    from swarm.errors import SwarmError
    from swarm.orchestrator import Orchestrator
    from swarm.run import Explanation, Run
    from workloads import Verification, Workload

__version__ = "0.1.0"

__all__ = [
    "BaseAgent",
    "Explanation",
    "Message",
    "Orchestrator",
    "Priority",
    "Run",
    "Swarm",
    "SwarmError",
    "Verification",
    "Workload",
    "__version__",
    "connect",
    "current",
    "durable",
    "map",
    "submit",
]

_HOMES = {
    "BaseAgent": "swarm.agents.base",
    "Message": "swarm.channels.messages",
    "Orchestrator": "swarm.orchestrator",
    "Priority": "swarm.channels.messages",
    "Explanation": "swarm.run",
    "Run": "swarm.run",
    "Swarm": "swarm.client",
    "SwarmError": "swarm.errors",
    "Verification": "workloads",
    "Workload": "workloads",
    "connect": "swarm.client",
    "current": "swarm.client",
    "durable": "swarm.client",
    "map": "swarm.client",
    "submit": "swarm.client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swarm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
