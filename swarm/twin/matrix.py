"""A matrix of simulations: every scenario under every policy with every seed, and the oracle beside them."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from swarm import __version__
from swarm.errors import DeadlockError, InvariantError, TwinError
from swarm.twin.bounds import heft, lower_bound_s
from swarm.twin.faults import Join, to_json
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.models import ClusterModel
from swarm.twin.outcome import Outcome
from swarm.twin.policies import policy
from swarm.twin.record import Executed
from swarm.twin.scenarios import SCENARIOS, Setting, scenario
from swarm.twin.work import Work

ORACLE = "HEFT (oracle)"
HEFT_LIMIT = 20_000_000
"""Tasks × threads beyond which HEFT would take minutes."""
GANTT_LIMIT = 5_000
"""Bars beyond which a page becomes slow."""
FORMAT = 1


@dataclass
class Run:
    """One simulation, or one schedule of the oracle."""

    scenario: str
    policy: str
    seed: int
    status: str
    """finished, failed, time limit, deadlock, broken rule, error, left out."""
    bound_s: float
    makespan_s: float | None = None
    reruns: int = 0
    steals: int = 0
    cpu_s: float = 0.0
    trace_hash: str = ""
    faults: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    outcome: Outcome | None = None

    @property
    def ratio(self) -> float | None:
        """Makespan over the lower bound, of a run that finished."""
        if self.status != "finished" or self.makespan_s is None:
            return None
        return self.makespan_s / self.bound_s if self.bound_s else math.inf

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "outcome"}
        return {**values, "ratio": self.ratio}


# -- running -----------------------------------------------------------------------------------------------------


def bound_s(setting: Setting) -> float:
    """The lower bound of a scenario, with the workers that join later as if they were there from the start."""
    work, cluster, faults = setting
    joining = [fault.model for fault in faults if isinstance(fault, Join)]
    return lower_bound_s(work.total_s, work.critical_path_s, [*cluster.workers, *joining])


def run_matrix(
    scenarios: Sequence[str],
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    processes: int | None = None,
    limit_s: float | None = None,
    oracle: bool = True,
) -> Generator[Run]:
    """Every scenario with every seed under every policy; a run as soon as it and those before it are over.

    Raises
    ------
    TwinError
        A scenario or a policy is not known.
    """
    kinds, deciders = [scenario(name) for name in scenarios], [policy(name) for name in policies]
    jobs, runs = [], []
    for seed in seeds:  # a child process stays alive for as long as the hash seed stays the same
        for kind in kinds:
            setting = kind.setting(seed)
            work, cluster, faults = setting
            told, bound = [to_json(fault) for fault in faults], bound_s(setting)
            for decider in deciders:
                options = {"policy": decider.name, "faults": faults, "seed": seed, "time_limit_s": limit_s}
                jobs.append(Job((work, cluster), options, hash_seed=seed))
                runs.append((Run(kind.name, decider.name, seed, "", bound, faults=told), setting))
    return _answered(jobs, runs, processes, oracle)


def _answered(
    jobs: Sequence[Job], runs: Sequence[tuple[Run, Setting]], processes: int | None, oracle: bool
) -> Generator[Run]:
    with closing(simulate_all(jobs, processes)) as answers:  # Ctrl-C ends the children
        before: tuple[str, int] | None = None
        for (run, setting), answer in zip(runs, answers, strict=True):
            _note(run, answer)
            yield run
            if oracle and before != (run.scenario, run.seed):
                before = (run.scenario, run.seed)
                yield _oracle(run, setting)


def _note(run: Run, answer: Outcome | TwinError) -> None:
    """What a simulation gave; nothing that went wrong is dropped."""
    if isinstance(answer, Outcome):
        run.outcome = answer
        run.status, run.makespan_s = answer.status, answer.makespan_s
        run.reruns, run.steals, run.cpu_s = answer.reruns, answer.steals, answer.cpu_s
        run.trace_hash = answer.trace_hash
        run.message = next((f"{key}: {reason}" for key, reason in answer.failed.items()), "")
        return
    run.message = str(answer)
    run.status = (
        "deadlock"
        if isinstance(answer, DeadlockError)
        else "broken rule"
        if isinstance(answer, InvariantError)
        else "error"
    )


def _oracle(like: Run, setting: Setting) -> Run:
    work, cluster, _ = setting
    run = Run(like.scenario, ORACLE, like.seed, "finished", like.bound_s, faults=like.faults)
    if len(work) * cluster.threads > HEFT_LIMIT:
        run.status, run.message = "left out", f"{len(work):,} tasks on {cluster.threads:,} threads are too many for it"
        return run
    began_s = time.process_time()
    run.outcome = _as_outcome(work, cluster, like.seed)
    run.makespan_s, run.cpu_s = run.outcome.makespan_s, time.process_time() - began_s
    return run


def _as_outcome(work: Work, cluster: ClusterModel, seed: int) -> Outcome:
    slots = heft(work.order, work.dependencies, work.dependents, work.costs, cluster)
    return Outcome(
        work=work.name,
        policy=ORACLE,
        seed=seed,
        status="finished",
        makespan_s=max(slot.stop_s for slot in slots),
        tasks=len(work),
        workers=len(cluster.workers),
        threads=cluster.threads,
        executions=[Executed(s.key, s.worker, s.lane, s.start_s, s.stop_s, "done") for s in slots],
        events=[(-1.0, "joined", worker.name) for worker in cluster.workers],
        failed={},
        steals=0,
        steal_requests=0,
        transfers=0,
        transferred_bytes=0,
        scheduler_cpu_s=0.0,
        messages=0,
        peak_bytes={},
        trace_hash="",
        hash_seed="",
        loop_events=0,
    )


# -- as plain types ---------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], with_gantt: Sequence[Run]) -> dict[str, Any]:
    """All that the tables and pictures show, as plain types."""
    return {
        "format": FORMAT,
        "kind": "policies",
        "versions": versions(),
        "scenarios": {name: SCENARIOS[name].about for name in dict.fromkeys(run.scenario for run in runs)},
        "runs": [run.to_json() for run in runs],
        "gantt": [run.outcome.to_json() for run in with_gantt if run.outcome],
    }


def versions() -> dict[str, str]:
    """What has a say in the figures."""
    return {
        "swarm": __version__,
        "dask": version("dask"),
        "distributed": version("distributed"),
        "python": platform.python_version(),
    }


def for_gantt(runs: Sequence[Run], name: str | None) -> list[Run]:
    """The runs of the first seed of a scenario; by default of the one in which the policies differ most."""
    first = [run for run in runs if run.seed == runs[0].seed and run.outcome is not None]
    first = [run for run in first if run.outcome and len(run.outcome.executions) <= GANTT_LIMIT]

    def spread(scenario_name: str) -> float:
        ratios = [run.ratio for run in first if run.scenario == scenario_name and run.ratio and run.policy != ORACLE]
        return max(ratios) / min(ratios) if ratios else 0.0

    names = list(dict.fromkeys(run.scenario for run in first if not run.faults)) or [run.scenario for run in first]
    chosen = name or max(names, key=spread, default=None)
    return [run for run in first if run.scenario == chosen]
