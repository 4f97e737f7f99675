"""Swarm's own kinds of agents, by name; imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.agents.base import BaseAgent

KINDS = {
    "compute": "swarm.agents.kinds.compute:ComputeAgent",
    "resource": "swarm.agents.kinds.resources:ResourceAgent",
    "optimization": "swarm.agents.kinds.optimization:OptimizationAgent",
    "thermal": "swarm.agents.kinds.thermal:ThermalAgent",
    "fault_tolerance": "swarm.agents.kinds.fault_tolerance:FaultToleranceAgent",
    "learning": "swarm.agents.kinds.learning:LearningAgent",
}


def load(kind: str) -> type[BaseAgent]:
    """The class of agents of that kind, which must be one of `KINDS`."""
    module, _, name = KINDS[kind].partition(":")
    found: type[BaseAgent] = getattr(import_module(module), name)
    return found
