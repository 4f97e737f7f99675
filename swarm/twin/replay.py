"""Replay a recorded run on other clusters: what if there had been 64 workers, or another policy?

A run comes from the journal of a scheduler (`scheduler_plugins.io.journal`) or from a trace in WfFormat
(`swarm.twin.wfformat`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler_plugins.io import recorded as journal
from swarm.errors import TwinError
from swarm.twin import wfformat
from swarm.twin.bounds import lower_bound_s
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.matrix import versions
from swarm.twin.models import LIMIT_S, MOST_S, ClusterModel, Cost, Memory, WorkerModel
from swarm.twin.outcome import Outcome
from swarm.twin.policies import policy
from swarm.twin.progress import Progress, span
from swarm.twin.simulation import require_within
from swarm.twin.work import Work, made_up

if TYPE_CHECKING:
    from rich.console import Console

RECORDED = "recorded"
LONG_S = 1800.0
"""Lower bound of the makespan from which a run counts as long."""
SELDOM_S = 20.0
"""Between two heartbeats in a long run."""
RARE_S = 120.0
"""And in one of days; Dask misses a worker after 300 s."""
BEATS = 3600
"""Heartbeats of a worker that are enough for a run, where these two leave a choice."""
HASH_SEED = 0
WIDE = 68
"""Columns of a terminal from which the table needs no short headings."""
NOTABLE = 0.02
"""Share of the makespan from which a start-up delay is worth a remark."""


@dataclass(frozen=True, slots=True)
class Row:
    """How the work went on one cluster. None: not known."""

    workers: int
    threads: int
    """Of all workers together."""
    policy: str
    """`recorded` for the run itself."""
    makespan_s: float | None
    over_bound: float | None
    """Makespan over max(work / threads, critical path)."""
    busy_share: float | None
    steals: int | None
    transfers: int | None


@dataclass(frozen=True)
class Recording:
    """A run as it was, ready to be simulated."""

    name: str
    work: Work
    workers: Sequence[WorkerModel]
    row: Row
    remarks: tuple[str, ...] = ()
    file: str | None = None
    """Path of the trace; None: it is from a journal, which knows it by its name."""

    def cluster(self, workers: int | None = None, threads: int | None = None) -> ClusterModel:
        """The recorded cluster, or so many workers like the ones that were there.

        Those that are made up are all like the largest one, and as many share a host as did on average.
        """
        if workers is None and threads is None:
            return self._beating(self.workers)
        like = max(self.workers, key=lambda worker: (worker.threads, worker.memory.limit_bytes))
        per_host = math.ceil(len(self.workers) / len({worker.host for worker in self.workers}))
        return self._beating(
            [
                WorkerModel(f"w{i}", threads=threads or like.threads, memory=like.memory, host=f"host-{i // per_host}")
                for i in range(workers or len(self.workers))
            ]
        )

    def _beating(self, workers: Sequence[WorkerModel]) -> ClusterModel:
        """With fewer heartbeats where the run takes hours: nothing fails in a replay that they would tell of."""
        bound_s = lower_bound_s(self.work.total_s, self.work.critical_path_s, workers)
        seldom_s = min(max(SELDOM_S, bound_s / BEATS), RARE_S)
        return ClusterModel(workers, heartbeat_s=seldom_s if bound_s > LONG_S else None)


def find(run: str, path: Path | None) -> Recording:
    """The run that a person means.

    Parameters
    ----------
    run
        Path of a WfFormat file, or `latest`, the name of a workload, or the beginning of the id of a run.
    path
        Of the journal; None when there is no place for one.

    Raises
    ------
    JournalError, TwinError
        There is no such run, or it can't be replayed.
    """
    file = Path(run)
    if file.suffix == ".json" or file.is_file():
        return replace(from_trace(wfformat.load(file)), file=run)
    if path is None:
        raise TwinError("the setting state_directory is null, so there is no journal; name one with --journal")
    return from_journal(journal.read(path, run))


def from_trace(trace: wfformat.Trace) -> Recording:
    """A trace in WfFormat. How its tasks shared the cores of the machines it does not tell, so a task takes one."""
    machines = trace.machines or (wfformat.Machine("machine", None),)
    workers = [
        WorkerModel(f"{machine.name}-{i}", threads=machine.cores or 1, host=machine.name)
        for i, machine in enumerate(machines)
    ]
    threads = sum(worker.threads for worker in workers)
    row = Row(len(trace.machines), threads, RECORDED, trace.makespan_s, None, None, None, None)
    return Recording(trace.work.name, trace.work, workers, row, trace.remarks)


def from_journal(run: journal.RecordedRun) -> Recording:
    """A run of the journal. The compute time of a task is its work on a worker of speed 1."""
    if not run.tasks:
        raise TwinError(f"run {run.run} executed no tasks: all its results were there already")
    known = {task.key for task in run.tasks}
    rows = [
        (task.key, [key for key in task.dependencies if key in known], Cost(task.compute_s, task.output_bytes))
        for task in run.tasks
    ]
    wanted = [task.key for task in run.tasks if task.is_wanted]
    work = made_up(rows, name=run.name, wanted=wanted or None)
    workers = [_worker(worker) for worker in run.workers]
    if not workers:
        raise TwinError(f"run {run.run} has no workers in the journal")
    threads = sum(worker.threads for worker in workers)
    busy_share = work.total_s / (threads * run.makespan_s) if run.makespan_s > 0 else None
    row = Row(
        len(workers),
        threads,
        RECORDED,
        run.makespan_s,
        _over_bound(work, workers, run.makespan_s),
        busy_share,
        None,
        sum(task.transfers for task in run.tasks),
    )
    return Recording(run.run, work, workers, row, tuple(_remarks(run, known)))


def _remarks(run: journal.RecordedRun, known: Collection[str]) -> Iterator[str]:
    if elsewhere := {key for task in run.tasks for key in task.dependencies}.difference(known):
        yield f"{len(elsewhere)} inputs were there before the run began and cost nothing here"
    begins_s = [task.start_s for task in run.tasks if task.start_s is not None]
    waited_s = min(begins_s) - run.submitted_at_s if begins_s else 0.0
    if waited_s > NOTABLE * run.makespan_s:
        yield (
            f"of the recorded {run.makespan_s:.4g} s, {waited_s:.2g} s passed before the first task began (new workers "
            "import what it needs); a simulated worker knows no such delay"
        )


def _worker(worker: journal.RecordedWorker) -> WorkerModel:
    limit = worker.memory_limit_bytes
    memory = Memory(limit, min(Memory().baseline_bytes, limit // 2)) if limit else Memory()
    return WorkerModel(f"{worker.name} {worker.address}", threads=worker.threads, memory=memory, host=worker.host)


def _over_bound(work: Work, workers: Sequence[WorkerModel], makespan_s: float) -> float | None:
    bound_s = lower_bound_s(work.total_s, work.critical_path_s, workers)
    return makespan_s / bound_s if bound_s > 0 else None


def replay(
    recording: Recording,
    *,
    workers: Sequence[int] = (),
    threads: int | None = None,
    policies: Sequence[str] = ("swarm",),
    seed: int = 0,
    limit_s: float = LIMIT_S,
    on_progress: Callable[[int, Progress], object] | None = None,
) -> Generator[Row]:
    """Simulate each number of workers with each policy; yields a row for each as it comes, in this order.

    Without `workers` it is the recorded cluster. The same arguments give the same rows: each simulation runs in a
    process with the hash seed `HASH_SEED`.

    Parameters
    ----------
    limit_s
        Virtual seconds that a simulation may take.
    on_progress
        Is told the number of a row and how far it is, a few times a second, in a thread of its own.

    Raises
    ------
    TwinError
        There is no such policy, the work takes longer than the limit, or a simulation failed.
    """
    if not 0 < limit_s <= MOST_S:
        raise TwinError(f"limit_s is {limit_s!r}, must be above 0 and at most {MOST_S:.4g} (100 years)")
    for name in policies:
        policy(name)
    cases = [(recording.cluster(count, threads), name) for count in (workers or (None,)) for name in policies]
    for cluster, _ in cases:
        require_within(limit_s, recording.work, cluster.workers, "--limit")
    options = {"seed": seed, "time_limit_s": limit_s}
    jobs = [Job((recording.work, cluster), {"policy": name, **options}, HASH_SEED) for cluster, name in cases]
    with closing(simulate_all(jobs, on_progress=on_progress)) as answers:
        for (cluster, name), answer in zip(cases, answers, strict=True):
            yield _row(recording.work, cluster, name, answer, limit_s)


def titles(recording: Recording, workers: Sequence[int], policies: Sequence[str]) -> list[str]:
    """What to call the rows of `replay`, in their order."""
    return [f"{count or len(recording.workers)} workers, {name}" for count in (workers or (None,)) for name in policies]


def command_line(
    run: str,
    journal_file: Path | None,
    *,
    workers: Sequence[int],
    threads: int | None,
    policies: Sequence[str],
    seed: int,
    limit_s: float,
) -> str:
    """What gives the same rows again."""
    words = ["swarm", "replay", run]
    words += ["--journal", str(journal_file)] if journal_file is not None else []
    words += [word for count in workers for word in ("--workers", str(count))]
    words += ["--threads", str(threads)] if threads is not None else []
    words += [word for name in policies for word in ("--policy", name)]
    words += ["--seed", str(seed)]
    words += ["--limit", f"{limit_s!r} s"] if limit_s != LIMIT_S else []
    return shlex.join(words)


def _row(work: Work, cluster: ClusterModel, policy_name: str, answer: Outcome | TwinError, limit_s: float) -> Row:
    case = f"{len(cluster.workers)} workers, {policy_name}"
    if not isinstance(answer, Outcome):
        raise type(answer)(f"{case}: {answer}")
    if answer.status == "time limit":
        raise TwinError(f"{case}: not finished after {span(limit_s)}; allow more with --limit, up to {span(MOST_S)}")
    if answer.status != "finished":
        key, reason = next(iter(answer.failed.items()))
        raise TwinError(f"{case}: {len(answer.failed)} wanted tasks failed, the first is {key!r}: {reason}")
    return Row(
        len(cluster.workers),
        cluster.threads,
        policy_name,
        answer.makespan_s,
        _over_bound(work, cluster.workers, answer.makespan_s),
        answer.busy_share,
        answer.steals,
        answer.transfers,
    )


def as_json(recording: Recording, rows: Sequence[Row], *, seed: int, again: str) -> dict[str, Any]:
    """For other programs: the recorded run and the rows, in the units of the names, and what gives them again."""
    return {
        "run": recording.name,
        "seed": seed,
        "hash_seed": HASH_SEED,
        "again": again,
        "versions": versions(),
        "tasks": len(recording.work),
        "work_s": recording.work.total_s,
        "critical_path_s": recording.work.critical_path_s,
        "rows": [asdict(row) for row in (recording.row, *rows)],
        "remarks": list(recording.remarks),
    }


def render(recording: Recording, rows: Sequence[Row], out: Console, err: Console) -> None:
    """Print it for a person."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from swarm.terminal import printable

    work = recording.work
    sizes = f"{len(work)} tasks, {work.total_s:.4g} s of work, longest chain {work.critical_path_s:.4g} s"
    title = f"{recording.name}: {sizes}"
    out.print(Text(printable(title)), soft_wrap=True)
    narrow = out.width < WIDE
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0 if narrow else (0, 1, 0, 0))
    columns = ("work-\ners", "thre-\nads") if narrow else ("workers", "threads")
    for heading in (*columns, "policy", "makespan", "over\nbound", "busy", "steals", "trans-\nfers"):
        if heading == "policy":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in (recording.row, *rows):
        table.add_row(
            str(row.workers or "–"),
            str(row.threads),
            Text(row.policy, style="bold" if row.policy == RECORDED else ""),
            "–" if row.makespan_s is None else span(row.makespan_s),
            _or_dash(row.over_bound, "{:.2f}"),
            _or_dash(row.busy_share, "{:.0%}"),
            _or_dash(row.steals, "{}"),
            _or_dash(row.transfers, "{}"),
        )
    out.print(table)
    for remark in recording.remarks:
        err.print(Text(printable(remark)), style="dim", soft_wrap=True)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
