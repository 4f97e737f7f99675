"""The same work several times over in the twin, with what was learned kept from pass to pass, beside stock and oracle.

Run as a program it is a child process of `in_children`, with a hash seed of its own: Dask iterates over sets of
strings.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.on_dask.estimates import Estimates
from scheduler_plugins.on_dask.guard import Guard
from swarm.errors import TwinError
from swarm.twin.bounds import heft, lower_bound_s
from swarm.twin.faults import Fault
from swarm.twin.models import ClusterModel
from swarm.twin.policies import POLICIES, Policy
from swarm.twin.scenarios import scenario
from swarm.twin.simulation import simulate
from swarm.twin.work import Work

LIMIT_S = 3600.0
"""Virtual time for a run, far above what any should take."""


class FailLoudly(SchedulerPlugin):
    """Where a part of swarm fails, the simulation fails: else Dask's own rules would be measured under its name."""

    name = "swarm-bench-fail-loudly"

    async def start(self, scheduler: Scheduler) -> None:
        loop, count = asyncio.get_running_loop(), _count_failure

        def failed(guard: Guard, part: str, error: Exception) -> None:
            count(guard, part, error)
            loop.call_exception_handler({"message": f"swarm's {part} has failed", "exception": error})

        setattr(Guard, "failed", failed)  # noqa: B010 - mypy allows no other way


_count_failure = Guard.failed

SWARM = replace(POLICIES["swarm"], plugins=lambda _: (FailLoudly(),))


@dataclass(frozen=True)
class Passes:
    """What one piece of work took, in virtual seconds; None: it did not finish."""

    bound_s: float
    oracle_s: float
    """Of HEFT, which knows all costs and speeds beforehand."""
    stock_s: float | None
    swarm_s: Sequence[float | None]
    """Of each pass; the first has nothing to go by."""
    trouble: str = ""

    def over_bound(self) -> list[float]:
        """Makespan over bound of stock Dask, of each pass and of the oracle; infinite where it did not finish."""
        return [float("inf") if s is None else s / self.bound_s for s in (self.stock_s, *self.swarm_s, self.oracle_s)]


def passes(work: Work, cluster: ClusterModel, faults: Sequence[Fault], seed: int, count: int) -> Passes:
    """Every pass is a simulation of its own, on a fresh cluster; only the cost model is handed on."""
    trouble: list[str] = []

    def run(policy: str | Policy) -> float | None:
        try:
            outcome = simulate(work, cluster, policy=policy, faults=faults, seed=seed, time_limit_s=LIMIT_S)
        except TwinError as error:
            trouble.append(f"{getattr(policy, 'name', policy)}: {error}")
            return None
        return outcome.makespan_s if outcome.status == "finished" else None

    made = Estimates.__init__
    used: list[Estimates] = []

    def with_what_is_known(self: Estimates, scheduler: Scheduler, costs: Any = None, **more: Any) -> None:
        made(self, scheduler, used[-1]._costs if used else costs, **more)
        used.append(self)

    stock_s = run("stock")
    with patch.object(Estimates, "__init__", with_what_is_known):
        swarm_s = [run(SWARM) for _ in range(count)]
    assert len(used) == count
    slots = heft(work.order, work.dependencies, work.dependents, work.costs, cluster)
    oracle_s = max(slot.stop_s for slot in slots)
    bound_s = lower_bound_s(work.total_s, work.critical_path_s, cluster.workers)
    return Passes(bound_s, oracle_s, stock_s, swarm_s, "; ".join(trouble))


def of_scenario(name: str, seed: int, count: int) -> dict[str, Any]:
    """Three passes over a scenario of the twin."""
    work, cluster, faults = scenario(name).setting(seed)
    found = passes(work, cluster, faults, seed, count)
    return {"scenario": name, "seed": seed, "faults": bool(faults), **vars(found)}


# -- processes -----------------------------------------------------------------------------------------------------

Call = tuple[Any, ...]


def in_children(
    function: Callable[..., dict[str, Any]], batches: Sequence[tuple[int, Sequence[Call]]]
) -> Iterator[dict[str, Any]]:
    """What the function gives for the arguments in each batch, each batch in a process with that hash seed.

    As many run at a time as there are CPUs. The function belongs to a module that a child can import.
    """

    def run(hash_seed: int, calls: Sequence[Call]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.mind.passes"],
            input=pickle.dumps((function, calls)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(run, *batch) for batch in batches]):
            yield from done.result()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody prints must not get into the answers
    function, calls = pickle.load(sys.stdin.buffer)
    for call in calls:
        print(json.dumps(function(*call)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
