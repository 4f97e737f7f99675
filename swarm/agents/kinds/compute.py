"""The compute agent: runs workloads on request, has the kernels compiled before the first task, pins threads.

Messages that it answers:

`execute_workload` {"workload", "parameters": {}, "where": "here" or "cluster", "keep": False, "wait_s": 10.0}
    With what came out, if that takes no longer than `wait_s`: {"summary", "verified", "verification", "seconds",
    "cores"} and, when the result is kept in the memory of a worker, "key"; else how far it is, with its "job".
`workload_status` {"job", "wait_s": 0.0}
    The same for a job; without "job" a list of all. A job that failed raises its error.
`release` {"job"}
    Lets go of a result that was kept.
`status`
    Kernels, threads, cores, jobs.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from typing import Any

from swarm.agents.base import BaseAgent
from swarm.agents.kinds.jobs import Here, Job, OnCluster, cores_here, run
from swarm.agents.kinds.pinning import Pinning, check_pin
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentDefinitionError, AgentError, MessageError, nearest

KERNELS = "swarm.kernels"
"""Group of entry points: functions that compile a package's kernels, or load them, and return what they run on."""
MOST_OPEN, MOST_KEPT = 32, 200
"""Jobs that wait or run at a time, and jobs that are remembered."""
AT_A_TIME = 4
"""Jobs on the cluster; of those here, one runs at a time, for it takes all cores that it is granted."""
LONGEST_WAIT_S = 25.0
"""Others wait meanwhile, and a message that takes 30 s counts as stuck."""


class KernelsReady:
    """Compiles the kernels of this process in a thread of its own."""

    def __init__(self) -> None:
        self.state = "waiting"
        self.took_s: float | None = None
        self.backends: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._thread = threading.Thread(target=self._warm_up, name="swarm-kernels", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether they are ready."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return self.state in ("ready", "none")

    def told(self) -> dict[str, Any]:
        about: dict[str, Any] = {"state": self.state, "took_s": self.took_s, "backends": dict(self.backends)}
        if self.failed:
            about["failed"] = dict(self.failed)
        if self.state == "none":
            about["reason"] = f"no package offers an entry point of the group {KERNELS}"
        return about

    def _warm_up(self) -> None:
        began_s = time.perf_counter()
        found = entry_points(group=KERNELS)
        self.state = "compiling" if found else "none"
        for entry in found:
            try:
                self.backends[entry.name] = str(entry.load()())
            except Exception as error:  # noqa: BLE001 - any package's; shown in status, tasks compile for themselves
                self.failed[entry.name] = f"{type(error).__name__}: {error}"
        self.took_s = time.perf_counter() - began_s
        if found:
            self.state = "failed" if self.failed else "ready"


class ComputeAgent(BaseAgent):
    """One per worker.

    Parameters
    ----------
    pin
        "cores": each thread of the worker runs on a core of its own; "numa": on the cores of one node. By default
        they are not pinned.
    cores
        That a workload "here" asks the ledger of the host for; by default all that this process may use.
    warm_up
        Whether the kernels are compiled, or loaded, when the agent starts.
    scheduler
        Address of the scheduler, for an agent that lives on no worker.

    Raises
    ------
    AgentDefinitionError
        An option is wrong.
    """

    kind = "compute"
    interval_s = 1.0

    def __init__(
        self,
        agent_id: str,
        *,
        pin: Any = False,
        cores: Any = None,
        warm_up: bool = True,
        scheduler: str = "",
    ) -> None:
        super().__init__(agent_id)
        self._pin = check_pin(pin)
        if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int) or not 1 <= cores <= 4096):
            raise AgentDefinitionError(f"cores is {cores!r}, must be a whole number from 1 to 4096")
        self._cores: int | None = cores
        self._warms_up = warm_up
        self._scheduler = scheduler
        self._numbers = itertools.count(1)
        self._jobs: dict[str, Job] = {}
        self._pinning: Pinning | None = None
        self._why_not_pinned = ""
        self.kernels = KernelsReady()

    # -- life -------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        worker = self.surroundings.dask
        if self._warms_up:
            self.kernels.start()
        self._on_cluster = OnCluster(
            self._scheduler or str(getattr(getattr(worker, "scheduler", None), "address", "")),
            getattr(worker, "security", None),
            self.surroundings.place,
        )
        threads = int(getattr(getattr(worker, "state", None), "nthreads", 0)) or cores_here()
        self._here = Here(self._cores or cores_here(), self._on_cluster.keep)
        self._serial = ThreadPoolExecutor(1, "swarm-workload")
        self._several = ThreadPoolExecutor(AT_A_TIME, "swarm-workloads")
        if self._pin is not None:
            try:
                self._pinning = Pinning(self._pin, threads, self.surroundings.audit)
            except AgentError as refused:  # slower than could be, and no reason to give up the rest
                self._why_not_pinned = str(refused)
                self.surroundings.log.warning("pinning_refused", reason=str(refused))

    def teardown(self) -> None:
        for job in self._jobs.values():
            job.is_unwanted = True
        self._serial.shutdown(wait=False, cancel_futures=True)
        self._several.shutdown(wait=False, cancel_futures=True)
        if self._pinning is not None:
            self._pinning.undo()
        for job in self._jobs.values():
            job.let_go()
        self._on_cluster.close()

    def execute_cycle(self) -> None:
        if self._pinning is not None:
            self._pinning.look(self._threads_of_tasks())

    def _threads_of_tasks(self) -> list[int]:
        """Of the worker, as the kernel numbers them; they come with the first tasks."""
        executor = getattr(self.surroundings.dask, "executors", {}).get("default")
        return [thread.native_id for thread in tuple(getattr(executor, "_threads", ())) if thread.native_id]

    # -- messages ---------------------------------------------------------------------------------------------------

    async def handle_message(self, message: Message) -> Payload:
        match message.kind:
            case "execute_workload":
                return await self._execute(_fields(message, workload=str, parameters=dict, where=str, keep=bool))
            case "workload_status":
                asked = _fields(message, job=str)
                if "job" not in asked:
                    return [job.summary() for job in self._jobs.values()]
                return await self._told(self._job(asked["job"]), asked.get("wait_s", 0.0))
            case "release":
                job = self._job(_fields(message, job=str).get("job", ""))
                return job.let_go()
            case "status":
                return self._status()
        if not message.wants_answer:  # news, for others
            return None
        raise MessageError(
            f"a compute agent takes execute_workload, workload_status, release and status, not {message.kind}"
        )

    async def _execute(self, asked: Mapping[str, Any]) -> Payload:
        where = asked.get("where", "here")
        if where not in ("here", "cluster"):
            raise MessageError(f'where of execute_workload is {where!r}, must be "here" or "cluster"')
        if "workload" not in asked:
            raise MessageError("execute_workload names no workload")
        is_open = [job for job in self._jobs.values() if not job.future.done()]
        if len(is_open) >= MOST_OPEN:
            raise AgentError(f"{len(is_open)} jobs wait or run, which is as many as a compute agent takes; ask later")
        from swarm.submission import prepare  # numpy and Dask's collections, which take a second to import

        # In a thread: the graph of a large workload takes a while, and an input may have to be read.
        submission = await asyncio.to_thread(prepare, asked["workload"], asked.get("parameters", {}))
        job = Job(f"{self.agent_id}-{next(self._numbers)}", asked["workload"], where, asked.get("keep", False))
        self._remember(job)
        if where == "here":
            self._serial.submit(run, job, submission, self._here)
        else:
            self._several.submit(run, job, submission, self._on_cluster)
        return await self._told(job, asked.get("wait_s", 10.0))

    def _remember(self, job: Job) -> None:
        over = [each for each in self._jobs.values() if each.future.done()]
        for old in over[: max(0, len(self._jobs) + 1 - MOST_KEPT)]:
            self._jobs.pop(old.job).let_go()
        self._jobs[job.job] = job

    def _job(self, name: str) -> Job:
        if (job := self._jobs.get(name)) is None:
            hint = f"; did you mean {near}?" if (near := nearest(name, self._jobs)) else ""
            raise MessageError(f"there is no job {name!r}{hint}")
        return job

    @staticmethod
    async def _told(job: Job, wait_s: float) -> Payload:
        if not job.future.done() and wait_s:
            waiting = asyncio.wrap_future(job.future)
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # `told` raises it
            await asyncio.wait((waiting,), timeout=wait_s)
        return job.told()

    def _status(self) -> Payload:
        counts: dict[str, int] = {}
        for job in self._jobs.values():
            counts[job.state] = counts.get(job.state, 0) + 1
        pinning: dict[str, object] = {"pin": False}
        if self._pinning is not None:
            pinning = self._pinning.told()
        elif self._why_not_pinned:
            pinning["reason"] = self._why_not_pinned
        return {"kernels": self.kernels.told(), "pinning": pinning, "jobs": counts}


def _fields(message: Message, **types: type) -> dict[str, Any]:
    """The payload, if it has fields of these names and types only; `wait_s` is allowed as well.

    Raises
    ------
    MessageError
        It has others.
    """
    payload = {} if message.payload is None else message.payload
    if not isinstance(payload, Mapping):
        raise MessageError(f"payload of {message.kind} is a {type(payload).__name__}, must be a mapping")
    for name, value in payload.items():
        if name == "wait_s":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0.0 <= value <= LONGEST_WAIT_S):
                raise MessageError(f"wait_s of {message.kind} is {value!r}, must be 0 to {LONGEST_WAIT_S:g} seconds")
        elif name not in types:
            raise MessageError(f"{message.kind} has no field {name!r}; it has {', '.join((*types, 'wait_s'))}")
        elif not isinstance(value, types[name]):
            raise MessageError(f"{name} of {message.kind} is a {type(value).__name__}, not a {types[name].__name__}")
    return dict(payload)
