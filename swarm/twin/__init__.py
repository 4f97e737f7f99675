"""The twin: Dask's real scheduler and swarm's real policies on a simulated cluster, in virtual time.

>>> from swarm import twin
>>> twin.simulate(twin.independent(100, twin.Constant(1.0)), twin.uniform(10)).makespan_s  # doctest: +SKIP
10.04
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.twin.models import (
        ByArgument,
        ClusterModel,
        Constant,
        Cost,
        Drifting,
        Fixed,
        FromTrace,
        Link,
        LogNormal,
        Memory,
        Network,
        Pareto,
        SchedulerCpu,
        Sudden,
        WorkerModel,
        uniform,
    )
    from swarm.twin.outcome import Outcome
    from swarm.twin.policies import Policy
    from swarm.twin.simulation import simulate
    from swarm.twin.work import Work, fan_out, from_graph, independent, layered, made_up, tree

_WHERE = {
    "models": (
        *("ByArgument", "ClusterModel", "Constant", "Cost", "Drifting", "Fixed", "FromTrace", "Link", "LogNormal"),
        *("Memory", "Network", "Pareto", "SchedulerCpu", "Sudden", "WorkerModel", "uniform"),
    ),
    "outcome": ("Outcome",),
    "policies": ("Policy",),
    "simulation": ("simulate",),
    "work": ("Work", "fan_out", "from_graph", "independent", "layered", "made_up", "tree"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "ByArgument",
    "ClusterModel",
    "Constant",
    "Cost",
    "Drifting",
    "Fixed",
    "FromTrace",
    "Link",
    "LogNormal",
    "Memory",
    "Network",
    "Outcome",
    "Pareto",
    "Policy",
    "SchedulerCpu",
    "Sudden",
    "Work",
    "WorkerModel",
    "fan_out",
    "from_graph",
    "independent",
    "layered",
    "made_up",
    "simulate",
    "tree",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
