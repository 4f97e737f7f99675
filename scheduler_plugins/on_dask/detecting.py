"""Fault detection on Dask's heartbeats: who is silent is suspected, a witness is asked, and the verdict is carried out.

A suspected worker is given nothing new: it is `paused` in Dask's own sense, so Dask's rules and the active memory
manager leave it alone as ours do. What waits there is taken back and what runs there may be copied (`mind`). It is
removed on evidence only: its process was stopped or is gone, says the nanny; or nobody on its host answers for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

from distributed.comm.addressing import parse_address, parse_host_port
from distributed.core import Status
from distributed.scheduler import heartbeat_interval
from tornado.ioloop import PeriodicCallback

from scheduler_plugins.decide.faults import (
    CONDEMNED,
    DEFAULT,
    Change,
    Detector,
    Report,
    Rules,
    Verdict,
    verdict,
)
from swarm.protocol import Event, WorkerCleared, WorkerCondemned, WorkerSuspected

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

LOOK_S = 0.1
LOOKS = 5.5
"""At all workers, between two heartbeats of one; with a thousand of them, one look takes a millisecond."""
ASK_AGAIN_S, LONGEST_PAUSE_S = 0.5, 4.0
"""Between two questions about the same worker; more each time."""
ANSWER_S = 2.0
"""For a witness to answer: it looks twice, and its host may be busy."""
STIMULUS = "swarm-condemned"
MOST_KEPT = 1000
"""Condemned workers that are kept until their end was judged."""
REASONS: dict[Verdict, str] = {
    "stopped": "its process was stopped (state T), says a witness on its host",
    "gone": "its process is gone",
    "unreachable": "neither it nor anybody on its host answers",
    "cut off": "its process works, says its nanny, but the scheduler hears nothing of it",
}


class Detecting:
    """Suspects, asks, and removes.

    Parameters
    ----------
    has_witness
        Whether the nanny of a worker has an agent of ours.
    neighbour_of
        (worker, those that are silent) → another worker that can look at its process, which that is, since when.
    publish
        Takes the events.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        has_witness: Callable[[str], bool],
        neighbour_of: Callable[[str, Collection[str]], tuple[str, int, float] | None],
        publish: Callable[[Event], None],
        on_failure: Callable[[Exception], None],
        rules: Rules = DEFAULT,
    ) -> None:
        self._scheduler = scheduler
        self._has_witness = has_witness
        self._neighbour_of = neighbour_of
        self.on_suspected: Callable[[WorkerState], None] = lambda _worker: None
        """Is told each worker that is suspected, once."""
        self._publish = publish
        self._on_failure = on_failure
        self._rules = rules
        self._detector = Detector(LOOK_S, rules)
        self._seen_s: dict[WorkerState, float] = {}
        self._asked: dict[WorkerState, asyncio.Task[None]] = {}
        self._said: dict[WorkerState, Verdict] = {}
        self._lives: dict[WorkerState, bool] = {}
        """Suspected worker → whether its witness has seen its process, at work or waiting."""
        self._paused: set[WorkerState] = set()
        """Those that we paused, and not they themselves."""
        self._condemned: dict[str, Verdict] = {}
        """Address → why, until its end was judged."""
        self.is_on = False
        self._next_look_s = 0.0
        self._look = PeriodicCallback(self._on_look, LOOK_S * 1000)

    # -- in and out ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.is_on = True
        for worker in self._scheduler.workers.values():
            self.add_worker(worker)
        self._look.start()

    def stop(self) -> None:
        """Trust everybody again."""
        self.is_on = False
        self._look.stop()
        for asking in self._asked.values():
            asking.cancel()
        for worker in list(self._paused):
            self._resume(worker)
        self._seen_s.clear()

    def add_worker(self, worker: WorkerState) -> None:
        if worker in self._seen_s:
            return
        self._seen_s[worker] = worker.last_seen
        self._detector.join(worker, time.time(), heartbeat_interval(len(self._scheduler.workers)))

    def remove_worker(self, address: str) -> None:
        worker = next((each for each in self._seen_s if each.address == address), None)
        if worker is None:
            return
        self._detector.leave(worker)
        self._seen_s.pop(worker, None)
        self._said.pop(worker, None)
        self._lives.pop(worker, None)
        self._paused.discard(worker)
        if (asking := self._asked.pop(worker, None)) is not None and asking is not asyncio.current_task():
            asking.cancel()

    @property
    def suspected(self) -> Collection[WorkerState]:
        """Those that are silent, as they are now: it changes."""
        return self._detector.suspected.keys()

    def has_lost_touch(self, worker: WorkerState) -> bool:
        """Whether a worker is suspected, its witness was asked, and nobody has said that it lives."""
        return worker in self._detector.suspected and worker in self._said and not self._lives.get(worker, False)

    def why_condemned(self, address: str) -> str | None:
        """Why we removed it, in a sentence, once; None where we did not."""
        why = self._condemned.pop(address, None)
        return None if why is None else REASONS[why]

    # -- the look ------------------------------------------------------------------------------------------------------

    def _on_look(self) -> None:
        try:
            self._look_around()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)

    def _look_around(self) -> None:
        now_s = time.time()
        detector = self._detector
        detector.tick(now_s)
        if now_s < self._next_look_s:
            return
        interval_s = heartbeat_interval(len(self._seen_s))
        self._next_look_s = now_s + interval_s / LOOKS
        for worker, seen_s in self._seen_s.items():
            if worker.last_seen != seen_s:
                self._seen_s[worker] = worker.last_seen
                detector.heard(worker, worker.last_seen, interval_s)
        for change in detector.look(now_s):
            (self._suspect if change.is_suspected else self._clear)(change, now_s)
        for worker in detector.suspected:
            if worker not in self._asked:
                loop = self._scheduler.loop.asyncio_loop  # type: ignore[attr-defined]
                self._asked[worker] = loop.create_task(self._ask(worker))

    def _suspect(self, change: Change, now_s: float) -> None:
        worker: WorkerState = change.worker
        self._publish(
            WorkerSuspected(at_s=now_s, worker=worker.address, silence_s=change.silence_s, phi=min(change.phi, 99.0))
        )
        self.on_suspected(worker)
        if worker.status is Status.running:
            self._paused.add(worker)
            self._scheduler.handle_worker_status_change(Status.paused, worker, f"swarm-suspected-{now_s}")

    def _clear(self, change: Change, now_s: float) -> None:
        worker: WorkerState = change.worker
        said = self._said.pop(worker, "")
        self._lives.pop(worker, None)
        self._publish(WorkerCleared(at_s=now_s, worker=worker.address, silence_s=change.silence_s, witness=said))
        self._resume(worker)
        if (asking := self._asked.pop(worker, None)) is not None:
            asking.cancel()

    def _resume(self, worker: WorkerState) -> None:
        if worker in self._paused:
            self._paused.discard(worker)
            if worker.status is Status.paused and self._scheduler.workers.get(worker.address) is worker:
                self._scheduler.handle_worker_status_change(Status.running, worker, f"swarm-cleared-{time.time()}")

    # -- the witness ---------------------------------------------------------------------------------------------------

    async def _ask(self, worker: WorkerState) -> None:
        """Ask about a suspected worker until it is cleared or condemned."""
        pause_s = ASK_AGAIN_S
        ticks_since_s: float | None = None
        try:
            while worker in self.suspected:
                report = await self._report(worker)
                if worker not in self.suspected:
                    return
                self._lives[worker] = report is not None and report.is_witnessed
                now_s = time.time()
                silence_s = self._detector.silence_s(worker, now_s)
                ticks_since_s = (ticks_since_s or now_s) if report is not None and report.ticks else None
                said = self._said[worker] = verdict(
                    report,
                    silence_s,
                    self._rules,
                    ticked_s=now_s - (ticks_since_s or now_s),
                    interval_s=heartbeat_interval(len(self._seen_s)),
                )
                if said in CONDEMNED:
                    await self._condemn(worker, said, silence_s)
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        finally:
            if self._asked.get(worker) is asyncio.current_task():
                del self._asked[worker]

    async def _report(self, worker: WorkerState) -> Report | None:
        """Of the nanny's witness, else of a neighbour on its host; else whether its host takes a connection for it."""
        if worker.nanny and self._has_witness(worker.address):
            answer = await self._within(self._call(worker.nanny, op="swarm_witness"))
            if answer and answer.get("worker", worker.address) == worker.address:
                return Report(answer["process"], answer.get("cpu_s", 0.0), answer.get("ticks"), is_witnessed=True)
        silent = {each.address for each in self.suspected}
        if (neighbour := self._neighbour_of(worker.address, silent)) is not None:
            address, pid, created_s = neighbour
            answer = await self._within(self._call(address, op="swarm_neighbour", pid=pid, created_s=created_s))
            if answer:
                return Report(answer["process"], answer.get("cpu_s", 0.0), is_witnessed=True)
        return await self._knock(worker.address)

    async def _call(self, address: str, op: str, **message: Any) -> Any:
        return await getattr(self._scheduler.rpc(addr=address), op)(**message)

    async def _within(self, answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(answer, ANSWER_S)
        except (OSError, TimeoutError):  # Dask's CommClosedError is one
            return None

    async def _knock(self, address: str) -> Report | None:
        """Whether anybody listens there: the kernel takes connections also for a process that is busy or stopped."""
        scheme, location = parse_address(address)
        if scheme not in ("tcp", "tls"):
            return Report("runs")
        host, port = parse_host_port(location)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), ANSWER_S)
        except ConnectionRefusedError:
            return Report("gone")
        except (OSError, TimeoutError):
            return None
        writer.close()
        return Report("runs")

    # -- the verdict ---------------------------------------------------------------------------------------------------

    async def _condemn(self, worker: WorkerState, why: Verdict, silence_s: float) -> None:
        address, scheduler = worker.address, self._scheduler
        if scheduler.workers.get(address) is not worker:
            return
        reason = REASONS[why]
        self._publish(
            WorkerCondemned(at_s=time.time(), worker=address, verdict=why, silence_s=silence_s, reason=reason)
        )
        self._condemned[address] = why
        if len(self._condemned) > MOST_KEPT:  # nobody asks for it where placement is off
            del self._condemned[next(iter(self._condemned))]
        nanny = worker.nanny if self._has_witness(address) else None
        await scheduler.remove_worker(address, stimulus_id=f"{STIMULUS}-{time.time()}")
        # Fencing: a worker that went on would serve results that nobody knows of, and finish tasks a second time.
        if nanny is not None and why in ("stopped", "cut off"):
            await self._within(self._call(nanny, op="swarm_end_worker", worker=address))
