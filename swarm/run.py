"""A run: the handle on something that was submitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from distributed import as_completed

from swarm.errors import (
    MissingPackageError,
    RunCancelledError,
    RunFailedError,
    SchedulerLostError,
    SwarmError,
    VerificationError,
)
from swarm.keeper import forget
from swarm.protocol import AlertCleared, AlertRaised, Event, RunStatus, WorkerJoined, WorkerLeft, from_wire

if TYPE_CHECKING:
    from distributed import Future
    from rich.console import Console, ConsoleOptions, RenderResult

    from swarm.client import Swarm
    from swarm.submission import Submission
    from workloads import Verification, WorkloadProtocol

OURS = ("swarm", "workloads", "scheduler_plugins")


class Run:
    """What `Swarm.submit` returns. `await run` gives the result as well.

    With an asynchronous `Swarm` all methods return awaitables, but `progress`, which waits.
    """

    def __init__(
        self,
        swarm: Swarm,
        run: str,
        submission: Submission,
        futures: Mapping[Any, Future[Any]],
        *,
        is_durable: bool = False,
    ) -> None:
        self.id = run
        self.name = submission.name
        self.workload = submission.workload
        self.is_durable = is_durable
        self.futures = dict(futures)
        """Dask's futures of the wanted keys."""
        self._swarm = swarm
        self._submission = submission
        self._submitted_at = time.monotonic()
        self._is_cancelled = False

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self.status}>"

    @property
    def status(self) -> RunStatus:
        """`running`, `finished`, `error`, `cancelled`, or `lost` when the scheduler that knew the run is gone."""
        states = {future.status for future in self.futures.values()}
        if "error" in states:
            return "error"
        if states & {"cancelled", "lost"}:
            return "cancelled" if self._is_cancelled else "lost" if not self._swarm.is_connected else "cancelled"
        return "finished" if states <= {"finished"} else "running"

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits for as long as it takes.

        Raises
        ------
        TimeoutError
            It is not there in time; the run goes on.
        SchedulerLostError, RunCancelledError
            It will not come.
        Exception
            What the task raised that failed, with a note that says which one and where.
        """
        return self._swarm.sync(self._result, timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._swarm.asynchronous:
            return self._result(None).__await__()
        return asyncio.to_thread(self.result).__await__()

    def cancel(self) -> Any:
        """Stop the run: what has not started will not start. Returns when the scheduler knows."""
        return self._swarm.sync(self._cancel)

    def info(self) -> Any:
        """How far the run is: a dict with `tasks`, `finished`, `erred`, `functions`, `workers` and more."""
        return self._swarm.sync(self._info)

    def explain(self, key: Any = None) -> Any:
        """What ran where, what took long, and what happened in the cluster meanwhile: an `Explanation`.

        With a key: why that task went where it went, and what it waited for (`Swarm.explain`).
        """
        return self._swarm.sync(self._explain) if key is None else self._swarm.explain(key)

    def verify(self, timeout: float | None = None) -> Any:
        """Check the result by other means than those that computed it, giving a `Verification`; see the workload.

        Raises
        ------
        VerificationError
            This run has no workload that could tell.
        """
        if self.workload is None:
            raise VerificationError(f"run {self.id} is no workload, so there is nothing to verify it with")
        if self._swarm.asynchronous:
            return self._verify(self.workload, timeout)
        return self.workload.verify(self.result(timeout))

    def progress(self, console: Console | None = None, *, timeout: float | None = None) -> Self:
        """Show a live progress display until the run is over, or for `timeout` seconds; returns the run.

        Never raises for a run that fails: ask `result` for that.
        """
        from swarm.progress import show

        if self._swarm.asynchronous:
            raise SwarmError(f"progress() of run {self.id} would block the event loop: use `await run.info()` instead")
        show([self], console, timeout)
        return self

    # -- coroutines --------------------------------------------------------------------------------------------

    async def _result(self, timeout: float | None) -> Any:
        if self.status == "running":
            try:
                await asyncio.wait_for(self._settled(), timeout)
            except TimeoutError:
                raise TimeoutError(await self._late(timeout)) from None
        for future in self.futures.values():
            if future.status == "error":
                raise await self._explained(await _exception(future)) from None
        if any(future.status in ("cancelled", "lost") for future in self.futures.values()):
            raise await self._why_cancelled()
        try:
            values = await self._swarm.client.gather(self.futures, asynchronous=True)
        except CancelledError:
            raise await self._why_cancelled() from None
        answer = self._submission.assemble(values)
        if self.is_durable:
            await forget(self._swarm, self.id)
        return answer

    async def _verify(self, workload: WorkloadProtocol, timeout: float | None) -> Verification:
        return await asyncio.to_thread(workload.verify, await self._result(timeout))

    async def _settled(self) -> None:
        """Return when all results are there, or the first one will never be."""
        # The loop is given, or it would be that of the default client, who may be another one.
        async for future in as_completed(self.futures.values(), loop=self._swarm.client.loop):
            if future.status != "finished":
                return

    async def _late(self, timeout: float | None) -> str:
        head = f"run {self.id} is not finished after {timeout:g} s"
        try:
            info = await asyncio.wait_for(self._info(), 2.0)
        except (TimeoutError, SwarmError):
            return f"{head}, and the scheduler does not say how far it is"
        workers = "" if info.get("workers") or info["finished"] else "; has the cluster workers?"
        return f"{head}: {info['finished']} of {info['tasks']} tasks are done, it goes on{workers}"

    async def _why_cancelled(self) -> RunFailedError | SchedulerLostError:
        if self._is_cancelled:
            return RunCancelledError(f"run {self.id} was cancelled")
        if self._swarm.is_connected:
            try:
                info = await asyncio.wait_for(self._info(), 5.0)
            except (TimeoutError, SwarmError):
                pass  # a scheduler that does not know the run is another one than we submitted to
            else:
                why = f": {info['reason']}" if info["reason"] else ""  # the scheduler may hear of it after we do
                return RunCancelledError(f"run {self.id} was cancelled{why}")
        done = sum(future.status == "finished" for future in self.futures.values())
        address = self._swarm.address
        return SchedulerLostError(
            f"the scheduler at {address} went away during run {self.id} "
            f"({done} of {len(self.futures)} results were there); start it again, connect, and submit again"
        )

    async def _explained(self, error: Exception) -> Exception:
        """The exception of a task, with what a person needs to find it."""
        failed = [key for key, future in self.futures.items() if future.status == "error"]
        try:
            info = await asyncio.wait_for(self._info(), 2.0)
            worker = info["failed_on"]
        except (TimeoutError, SwarmError):
            worker = ""
        where = f" on worker {worker}" if worker else ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in OURS:
            from swarm import __version__

            install = f"install dask-swarm=={__version__} there, or remove that worker"
            return MissingPackageError(f"a task of run {self.id} can't run{where}: {error}; {install}")
        if isinstance(error, SwarmError):
            return error
        error.add_note(f"swarm: run {self.id} failed{where}" + (f" at {failed[0]!r}" if failed else ""))
        return error

    async def _cancel(self) -> None:
        self._is_cancelled = True
        await self._swarm.ask("swarm_end_run", run=self.id, status="cancelled", reason="cancelled by its client")
        await self._swarm.client.cancel(list(self.futures.values()), asynchronous=True)
        if self.is_durable:
            await forget(self._swarm, self.id)

    async def _info(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self._swarm.ask("swarm_run", run=self.id)
        return answer

    async def _explain(self) -> Explanation:
        answer = await self._swarm.ask("swarm_explain_run", run=self.id)
        events = [event for event in map(from_wire, answer["events"]) if isinstance(event, Event)]
        return Explanation(answer, events)


@dataclass(frozen=True)
class Explanation:
    """Why a run took as long as it took: print it, or read `facts` and `events`."""

    facts: Mapping[str, Any]
    """What `Run.info` gives, and `names`: worker address → name."""
    events: list[Event] = field(repr=False)
    """What happened in the cluster while the run was under way."""

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The explanation as text."""
        facts, names = self.facts, self.facts.get("names", {})
        head = f"Run {facts['run']} {_verb(facts['status'])} after {facts['elapsed_s']:.1f} s"
        lines = [f"{head}: {facts['finished']} of {facts['tasks']} tasks done, {facts['erred']} failed."]
        if facts["reason"]:
            lines.append(f"Reason: {str(facts['reason']).splitlines()[-1]}")
        if facts["recomputed"]:
            lines.append(f"{facts['recomputed']} tasks were computed again, because their results had been lost.")
        functions = sorted(facts["functions"].items(), key=lambda item: -item[1]["total_s"])
        for name, tally in functions[:12]:
            took = f"{tally['tasks']} tasks, {tally['total_s']:.2f} s in all"
            if tally["tasks"]:
                took += f", mean {tally['total_s'] / tally['tasks']:.3f} s, longest {tally['longest_s']:.3f} s"
            lines.append(f"  {name}: {took}" + (f", {tally['erred']} failed" if tally["erred"] else ""))
        busiest = sorted(facts["workers"].items(), key=lambda item: -item[1]["busy_s"])
        for worker, share in busiest[:12]:
            lines.append(
                f"  on {names.get(worker, 'a worker that left')} ({worker}): "
                f"{share['tasks']} tasks, busy {share['busy_s']:.2f} s"
            )
        lines += [f"  meanwhile: {sentence}" for sentence in self.happenings()]
        return lines

    def happenings(self) -> list[str]:
        """Alerts, and workers that came and went, each as a sentence."""
        found = []
        for event in self.events:
            match event:
                case AlertRaised():
                    found.append(f"alert, {event.reason} (rule {event.rule})")
                case AlertCleared():
                    found.append(f"alert over after {event.lasted_s:.1f} s, {event.reason}")
                case WorkerLeft():
                    found.append(f"worker {event.worker} left ({event.reason or 'no reason given'})")
                case WorkerJoined():
                    found.append(f"worker {event.name} ({event.worker}) joined")
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        head, *rest = self.lines()
        yield Text(head, style="bold")
        yield from map(Text, rest)


async def _exception(future: Future[Any]) -> Exception:
    """What the task raised, with its traceback."""
    try:
        await future._result()
    except Exception as error:  # noqa: BLE001 — it is what we came for
        return error
    raise AssertionError(f"{future} has no error")


def _verb(status: RunStatus) -> str:
    return {"finished": "finished", "error": "failed", "cancelled": "was cancelled"}.get(status, f"is {status}")
