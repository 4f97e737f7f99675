"""Jobs of the compute agent: workloads that run in threads of this process, or on the cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarm import ledger
from swarm.errors import AgentFailedError, ConnectError

if TYPE_CHECKING:
    from distributed import Client

    from swarm.submission import Submission

REFRESH_S = 1.0
"""Between two renewals of the lease on cores."""
LEASE_S, PATIENCE_S = 60.0, 60.0
"""How long a lease counts without a renewal, which is what one task may take; how long to wait for the first core."""
LOOK_S = 0.25
"""Between two looks how far a run on the cluster is."""


@dataclass(eq=False)
class Job:
    """One workload that somebody asked for."""

    job: str
    workload: str
    where: str
    keep: bool
    """Whether the result stays in the memory of a worker, under a key."""
    state: str = "waiting"
    done: int = 0
    tasks: int = 0
    cores: int = 0
    future: Future[dict[str, Any]] = field(default_factory=Future)
    """What the asker is told in the end."""
    kept: Any = None
    """The Dask future that keeps the result."""
    is_unwanted: bool = False

    def let_go(self) -> bool:
        """Of the result that was kept; whether there was one."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.release()
        return kept is not None

    def told(self) -> dict[str, Any]:
        """How far it is; data only. Raises what made it fail."""
        about = {
            "job": self.job,
            "workload": self.workload,
            "where": self.where,
            "state": self.state,
            "done": self.done,
            "tasks": self.tasks,
        }
        return about | self.future.result() if self.future.done() else about

    def summary(self) -> dict[str, Any]:
        """As `told`, and of a failure only that it was one."""
        return {"job": self.job, "workload": self.workload, "where": self.where, "state": self.state}


Compute = Callable[[Job, "Submission"], tuple[Any, Any]]
"""Returns the result, and the Dask future that keeps it if it is to be kept."""


def run(job: Job, submission: Submission, compute: Compute) -> None:
    """Compute, verify, and settle the job's future."""
    try:
        if job.is_unwanted:
            raise AgentFailedError(f"job {job.job} was given up: its agent ends")  # noqa: TRY301
        job.state = "running"
        began_s = time.perf_counter()
        result, job.kept = compute(job, submission)
        took_s = time.perf_counter() - began_s
        answer = {"seconds": took_s, "cores": job.cores, **_judged(submission.workload, result)}
        if job.kept is not None:
            answer["key"] = str(job.kept.key)
    except BaseException as error:  # noqa: BLE001 - it goes to whoever asks for the job
        job.state = "failed"
        job.future.set_exception(error)
    else:
        job.state = "finished"
        job.future.set_result(answer)


def _judged(workload: Any, result: Any) -> dict[str, Any]:
    verdict = workload.verify(result)
    summary = workload.summary(result) if hasattr(workload, "summary") else verdict.summary
    return {"summary": str(summary), "verified": bool(verdict.passed), "verification": str(verdict.summary)}


# -- here -------------------------------------------------------------------------------------------------------------


class Here:
    """Runs a graph with Dask's own threaded scheduler, on the cores that the ledger of the host grants.

    Parameters
    ----------
    up_to
        Cores to ask for.
    keep
        Puts a result into the memory of a worker, and returns a Dask future for it.
    """

    def __init__(self, up_to: int, keep: Callable[[Any], Any]) -> None:
        self._up_to = up_to
        self._keep = keep

    def __call__(self, job: Job, submission: Submission) -> tuple[Any, Any]:
        from dask.threaded import get

        graph = submission.graph
        if hasattr(graph, "__dask_graph__"):
            graph = graph.__dask_graph__()
        with (
            ledger.lend(self._up_to, timeout_s=PATIENCE_S, for_s=LEASE_S) as lent,
            ThreadPoolExecutor(cores := lent.granted, f"swarm-{job.job}", initializer=lent.adopt) as pool,
        ):
            job.cores, refreshed_at_s = cores, time.monotonic()

            def starts(_: Any, state: Mapping[str, Any]) -> None:
                job.tasks = sum(len(state[name]) for name in ("ready", "waiting"))

            def begins(*_: Any) -> None:
                if job.is_unwanted:
                    raise AgentFailedError(f"job {job.job} was given up: its agent ends")

            def ends(*_: Any) -> None:
                nonlocal refreshed_at_s
                job.done += 1
                if time.monotonic() - refreshed_at_s > REFRESH_S:
                    lent.refresh()
                    refreshed_at_s = time.monotonic()

            # Not a `dask.callbacks.Callback` as a context: that would hear of all graphs of this process.
            watch = (None, starts, begins, ends, None)
            values = get(graph, list(submission.keys), pool=pool, callbacks=[watch])
        result = submission.assemble(dict(zip(submission.keys, values, strict=True)))
        return result, self._keep(result) if job.keep else None


# -- on the cluster ---------------------------------------------------------------------------------------------------


class OnCluster:
    """Sends a graph to the scheduler, with a Dask client that is made for the first job.

    Parameters
    ----------
    scheduler
        Its address; empty where it is not known.
    security
        As Dask takes it.
    worker
        Address of the worker that keeps what is to be kept.
    """

    def __init__(self, scheduler: str, security: Any = None, worker: str = "") -> None:
        self._scheduler = scheduler
        self._security = security
        self._worker = worker
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._runs: dict[str, str] = {}
        """Job → its run, as the scheduler's side of swarm calls it."""

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def client(self) -> Client:
        """For use from any thread that is not Dask's event loop.

        Raises
        ------
        ConnectError
            It is not known where the scheduler is.
        """
        with self._lock:
            if self._client is None:
                if not self._scheduler:
                    raise ConnectError('the address of the scheduler is not known here: give scheduler="tcp://…"')
                from distributed import Client

                self._client = Client(
                    self._scheduler, security=self._security, asynchronous=False, set_as_default=False, name="swarm"
                )
            return self._client

    def __call__(self, job: Job, submission: Submission) -> tuple[Any, Any]:
        client, keys = self.client(), list(submission.keys)
        if client.get_metadata(["swarm"], default=None) is not None:
            self._announce(client, job, submission)
        futures = client.get(submission.graph, keys, sync=False)
        try:
            while (done := _settled(client, futures)) < len(futures):
                job.done = done
                self._look(job)
                if job.is_unwanted:
                    client.cancel(futures)
                    raise AgentFailedError(f"job {job.job} was given up: its agent ends")
            result = submission.assemble(dict(zip(keys, client.gather(futures), strict=True)))
            self._look(job)
            if not job.keep:
                return result, None
            has_a_name = len(keys) == 1 and isinstance(keys[0], str)  # other keys don't survive a message
            return result, futures[0] if has_a_name else self.keep(result)
        finally:
            self._runs.pop(job.job, None)

    def keep(self, result: Any) -> Any:
        """Put a result into the memory of the agent's own worker."""
        return self.client().scatter(result, workers=[self._worker] if self._worker else None, hash=False)

    def _announce(self, client: Client, job: Job, submission: Submission) -> None:
        """So that `swarm status` and the dashboard show it, and it can be explained."""
        run = f"{submission.name}-agent-{secrets.token_hex(3)}"
        told = {"run": run, "name": submission.name, "client": client.id, "wanted": list(submission.keys)}
        scheduler: Any = client.scheduler
        client.sync(scheduler.swarm_announce_run, **told)
        self._runs[job.job] = run

    def _look(self, job: Job) -> None:
        """Ask the scheduler how far the run is."""
        if (run := self._runs.get(job.job)) is not None:
            client = self.client()
            scheduler: Any = client.scheduler
            about: dict[str, Any] = client.sync(scheduler.swarm_run, run=run)
            job.done, job.tasks = int(about.get("finished", 0)), int(about.get("tasks", 0))
            job.cores = max(len(about.get("workers", ())), job.cores)


def _settled(client: Client, futures: Sequence[Any]) -> int:
    """How many are done, after a while or when all are."""
    from distributed import wait

    with client.as_current(), contextlib.suppress(TimeoutError):
        wait(futures, timeout=LOOK_S)
    return sum(future.done() for future in futures)


def cores_here() -> int:
    """That this process may use: its affinity and the limits of its control group."""
    from dask.system import CPU_COUNT

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else CPU_COUNT
    return max(1, min(int(CPU_COUNT), affinity))
