"""Clusters whose makespans can be computed by hand, and short questions to an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from swarm.twin import ClusterModel, Cost, Fixed, Link, Network, Outcome, SchedulerCpu, Work, WorkerModel, made_up
from swarm.twin.models import Memory, Speed
from swarm.twin.record import Executed

SOON_S = 0.03
"""Batches of messages leave every 2 and 5 ms: a chain of decisions takes that long beside what is modelled."""
NO_CPU = SchedulerCpu(message_s=0.0, graph_task_s=0.0)


def ideal(
    workers: int,
    threads: int = 1,
    *,
    speeds: Sequence[Speed] = (),
    memory: Memory | None = None,
    nanny: bool = False,
    network: Network | None = None,
    scheduler: SchedulerCpu = NO_CPU,
    resources: Mapping[str, Mapping[str, float]] | None = None,
) -> ClusterModel:
    """Workers `w0`… without overhead; messages and the scheduler's decisions take no time."""
    models = [
        WorkerModel(
            f"w{i}",
            threads=threads,
            host=f"h{i}",
            speed=speeds[i] if speeds else Fixed(),
            memory=memory or Memory(),
            resources=(resources or {}).get(f"w{i}", {}),
            nanny=nanny,
            task_overhead_s=0.0,
        )
        for i in range(workers)
    ]
    return ClusterModel(models, network or Network(Link(0.0, 1e12), request_s=0.0), scheduler)


def pinned(tasks: Sequence[tuple[str, Sequence[str], Cost, str]], *, wanted: Sequence[str] | None = None) -> Work:
    """A graph of (key, keys it depends on, cost, name of the only worker that may run it, or "")."""
    where = {key: [worker] for key, _, _, worker in tasks if worker}
    return made_up([task[:3] for task in tasks], wanted=wanted, annotations={"workers": where} if where else {})


def of(outcome: Outcome, key: str) -> Executed:
    """The one execution of a task."""
    (found,) = executions(outcome, key)
    return found


def executions(outcome: Outcome, key: str) -> list[Executed]:
    return [entry for entry in outcome.executions if entry.key == key]


def ends(outcome: Outcome, worker: str = "") -> list[tuple[float, str]]:
    """(time, event) of each worker process that ended."""
    return [(at_s, what) for at_s, what, name in outcome.events if what.startswith("ended") and worker in ("", name)]


def joins(outcome: Outcome, worker: str) -> list[float]:
    """When the worker joined, after the submission."""
    return [at_s for at_s, what, name in outcome.events if what == "joined" and name == worker and at_s > 0]


def on_worker(outcome: Outcome, worker: str, such: Callable[[Executed], bool] = lambda entry: True) -> list[Executed]:
    return [entry for entry in outcome.executions if entry.worker == worker and such(entry)]
