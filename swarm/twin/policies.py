"""Who decides in a simulation: stock Dask, a baseline, swarm, or any preload of the user's."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from swarm.errors import TwinError, nearest


@dataclass(frozen=True)
class Policy:
    """How the scheduler of a simulation is set up."""

    name: str
    preload: Sequence[str] = ()
    """As `dask scheduler --preload`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of Dask, by dotted key."""
    plugins: Callable[[int], Sequence[SchedulerPlugin]] = lambda _: ()
    """Seed → more plugins of the scheduler."""
    agents: bool = False
    """Whether the workers run swarm's agents, as with `dask worker --preload swarm.agents`."""
    copies: int = 0
    """Of one task, that it may run beside it."""


class RandomPlacement(SchedulerPlugin):
    """Gives each task that is ready to a worker drawn at random, of those that may run it."""

    name = "swarm-twin-random-placement"

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"{seed} placement")

    async def start(self, scheduler: Scheduler) -> None:
        def decide(task: Any) -> Any:
            valid = scheduler.valid_workers(task)
            candidates = scheduler.running if valid is None else valid
            return self._rng.choice(sorted(candidates, key=lambda ws: str(ws.address))) if candidates else None

        placement: Any = scheduler
        placement.decide_worker_non_rootish = placement.decide_worker_rootish_queuing_disabled = decide


POLICIES = {
    "stock": Policy("stock"),
    "no-stealing": Policy("no-stealing", config={"distributed.scheduler.work-stealing": False}),
    "random": Policy(
        "random",
        config={
            "distributed.scheduler.work-stealing": False,
            "distributed.scheduler.worker-saturation": "inf",  # else tasks wait for the worker that Dask chooses
        },
        plugins=lambda seed: (RandomPlacement(seed),),
    ),
    "swarm": Policy("swarm", preload=("scheduler_plugins",), agents=True, copies=2),
}


def policy(what: str | Policy) -> Policy:
    """A policy by name, or by the name of a module that is a scheduler preload.

    Raises
    ------
    TwinError
        Neither a policy nor a module has this name.
    """
    if isinstance(what, Policy):
        return what
    if what in POLICIES:
        return POLICIES[what]
    try:
        importlib.import_module(what)
    except ImportError as error:
        hint = nearest(what, POLICIES)
        raise TwinError(
            f"policy {what!r} is not known ({', '.join(POLICIES)}), and is no module that could be a preload ({error})"
            + (f"; did you mean {hint!r}?" if hint else "")
        ) from None
    return Policy(what, preload=(what,))
