"""Plays a script of chaos on real worker processes and in the twin, and judges what came out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from distributed import Client, Future, KilledWorker, Nanny, as_completed
from distributed.diagnostics.plugin import SchedulerPlugin

from swarm import twin
from swarm.errors import TwinError
from swarm.protocol import Event, PartDisabled, WorkerDied, WorkerSuspected
from swarm.twin.faults import (
    BlockLoop,
    Crash,
    Fault,
    Hang,
    HoldGil,
    Join,
    Leave,
    LoseHeartbeats,
    Partition,
    Preempt,
    SchedulerLag,
    SlowDown,
)
from swarm.twin.policies import POLICIES, Policy
from tests.support.chaos_script import CUT_OFF_S, Script, hold_gil, key_of, spin
from tests.support.nannies import new_worker, processes
from tests.support.partitions import cut_here
from tests.support.waiting import wait_until

PATIENCE_S = 90.0
"""For all results, beyond ten times what a script takes at least: a busy machine is no defect."""
EARLY_S = 1e-3
"""Clocks are rounded."""
AFTER_S = 10.0
"""So long after a worker was killed, its end is heard of at last; on a busy machine."""
MOST_POISONED = 2
"""Workers that one poisonous task may take with it, of those whose end was seen."""


class Ended(NamedTuple):
    """A worker left that nobody had asked to."""

    at_s: float
    """After the submission."""
    name: str


class Played(NamedTuple):
    """A fault that happened to somebody."""

    fault: Fault
    at_s: float
    """When it really began."""


class Verdict(NamedTuple):
    """What came of a script."""

    where: str
    """real, or twin."""
    played: int
    """Faults."""
    tasks: int
    wrong: int
    """Results that differ from the serial run's."""
    lost: int
    """Results that the client did not get, or not exactly once."""
    evicted: int
    """Workers that were removed although they were neither killed nor stopped, nor poisoned."""
    reruns: int
    """Tasks that began again."""
    suspected: int
    """Suspicions."""
    worker_s: float
    took_s: float
    trouble: tuple[str, ...]
    """What is wrong, for a person; nothing where all is well."""


# -- judging -----------------------------------------------------------------------------------------------------------


def evicted_falsely(ended: Sequence[Ended], played: Sequence[Played]) -> list[Ended]:
    """Those whose end no fault explains: a kill, an order to leave, a stop or a cut that lasted then."""
    return [each for each in ended if not any(_explains(fault, at_s, each) for fault, at_s in played)]


def _explains(fault: Fault, at_s: float, end: Ended) -> bool:
    if end.name not in victims(fault) or end.at_s < at_s - EARLY_S:
        return False
    if isinstance(fault, Leave | Preempt):
        return True
    if isinstance(fault, Partition):
        return fault.for_s is None or at_s + CUT_OFF_S - 10.0 < end.at_s < at_s + fault.for_s + AFTER_S
    if isinstance(fault, Crash):
        return end.at_s < at_s + AFTER_S
    if isinstance(fault, Hang):  # removed is who was seen stopped; it is killed right afterwards
        return fault.for_s is None or end.at_s < at_s + fault.for_s + AFTER_S
    return False


def victims(fault: Fault) -> tuple[str, ...]:
    """Names of those it happens to."""
    return getattr(fault, "workers", ()) or (getattr(fault, "worker", ""),)


# -- in the twin -------------------------------------------------------------------------------------------------------


def in_the_twin(script: Script, policy: str | Policy = "swarm") -> Verdict:
    """Results are checked there by the rules of every run: made of the right inputs, one per key."""
    began_s = time.perf_counter()
    trouble: list[str] = []
    ends: list[Ended] = []
    lost = wrong = reruns = 0
    worker_s = 0.0
    cluster = twin.uniform(script.workers, nanny=True)
    suspicions = Suspicions()
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    policy = Policy(**{**vars(policy), "plugins": _and(policy.plugins, suspicions)})
    try:
        outcome = twin.simulate(
            script.work(), cluster, policy=policy, faults=script.faults, seed=script.seed, gather=True
        )
    except TwinError as error:
        trouble.append(f"{type(error).__name__}: {error}")
        wrong = len(script.wanted)
    else:
        if outcome.status != "finished":
            lost = len(outcome.failed) or len(script.wanted)
            trouble.append(f"it {outcome.status}: {dict(outcome.failed)}")
        ends = [Ended(at_s, name) for at_s, what, name in outcome.events if what.startswith("ended")]
        reruns, worker_s = outcome.reruns, script.workers * outcome.makespan_s
    false = evicted_falsely(ends, [Played(fault, fault.at_s) for fault in script.faults])
    trouble += [f"evicted without need: {each}" for each in false]
    trouble += suspicions.broken()
    return Verdict(
        "twin",
        len(script.faults),
        len(script.steps),
        wrong,
        lost,
        len(false),
        reruns,
        suspicions.count(),
        worker_s,
        time.perf_counter() - began_s,
        tuple(trouble),
    )


class Suspicions(SchedulerPlugin):
    """Remembers the swarm of a simulation."""

    name = "chaos-suspicions"

    async def start(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def count(self) -> int:
        return len(events(self._scheduler, WorkerSuspected))

    def broken(self) -> list[str]:
        return parts_off(self._scheduler)


def _and(plugins: Callable[[int], Sequence[SchedulerPlugin]], one: SchedulerPlugin) -> Any:
    return lambda seed: (*plugins(seed), one)


def events(scheduler: Any, kind: type[Event]) -> list[Any]:
    return [event for event in list(scheduler.plugins["swarm"].loop.history) if isinstance(event, kind)]


def parts_off(scheduler: Any) -> list[str]:
    """What of swarm has failed so often that it was switched off."""
    return [f"{event.part} is off: {event.reason}" for event in events(scheduler, PartDisabled)]


# -- on real processes -------------------------------------------------------------------------------------------------


def on_processes(script: Script, folder: Path) -> Verdict:
    """Play it on workers that are processes with nannies; scheduler and client are here.

    Parameters
    ----------
    folder
        For the ledger of what began.
    """
    ledger = folder / f"chaos-{script.kind}-{script.seed}.ledger"
    ledger.write_text("")
    began_s = time.perf_counter()
    with processes(script.workers) as (cluster, client):
        play = Play(script, cluster, client)
        cluster.scheduler.add_plugin(play, name=Play.name)
        started_s = time.monotonic()
        delivered = play.run(ledger)
        play.settle()
        worker_s = script.workers * (time.monotonic() - started_s)
        trouble = [*play.trouble, *parts_off(cluster.scheduler)]
        deaths = events(cluster.scheduler, WorkerDied)
        suspected = len(events(cluster.scheduler, WorkerSuspected))
        cluster.scheduler.remove_plugin(Play.name)
        play.close()
    wrong, lost = _compare(script, delivered, trouble)
    false = evicted_falsely(play.without_poison(deaths), play.played)
    trouble += [f"evicted without need: {each}, {play.said(each, deaths)}" for each in false]
    trouble += _too_poisonous(script, deaths)
    began = Counter(map(int, ledger.read_text().split()))
    reruns = sum(count - 1 for number, count in began.items() if number not in script.poison)
    return Verdict(
        "real",
        len(play.played),
        len(script.steps),
        wrong,
        lost,
        len(false),
        reruns,
        suspected,
        worker_s,
        time.perf_counter() - began_s,
        tuple(trouble),
    )


def _compare(script: Script, delivered: Sequence[tuple[str, object]], trouble: list[str]) -> tuple[int, int]:
    """(wrong, lost) beside the serial run."""
    oracle, got = script.oracle(), dict(delivered)
    poison = {key_of(number) for number in script.poison}
    counts = Counter(key for key, _ in delivered)
    lost = [key for key in (*oracle, *poison) if counts[key] != 1]
    wrong = [key for key in oracle if isinstance(got.get(key), bytes) and got[key] != oracle[key]]
    failed = [key for key in oracle if key in got and not isinstance(got[key], bytes)]
    spared = [key for key in poison if key in got and not isinstance(got[key], KilledWorker)]
    trouble += [f"{key} came {counts[key]} times" for key in lost]
    trouble += [f"{key} is wrong" for key in wrong]
    trouble += [f"{key} failed: {got[key]!r}" for key in failed]
    trouble += [f"{key} is poison, and it ended with {got[key]!r}" for key in spared]
    return len(wrong), len(lost) + len(failed)


def _too_poisonous(script: Script, deaths: Sequence[WorkerDied]) -> list[str]:
    killed = {
        key_of(number): [each for each in deaths if each.exitcode and key_of(number) in each.running]
        for number in script.poison
    }
    return [
        f"{key} took {len(of)} workers with it: {[each.cause for each in of]}"
        for key, of in killed.items()
        if len(of) > MOST_POISONED
    ]


class Play(SchedulerPlugin):
    """One script on one cluster; as a plugin, hears of workers that leave."""

    name = "chaos"

    def __init__(self, script: Script, cluster: Any, client: Client) -> None:
        self._script = script
        self._cluster = cluster
        self._client = client
        self._scheduler = cluster.scheduler
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[attr-defined]
        self._names = {ws.address: f"w{ws.name}" for ws in self._scheduler.workers.values()}
        self._ends: list[tuple[float, str]] = []
        self._on_their_own: set[asyncio.Task[Any]] = set()
        """What goes on when the results are there."""
        self._stopped: dict[int, int] = {}
        """Number of a nanny → the process that stands still."""
        self._joined: dict[int, Nanny] = {}
        self._gone: set[int] = set()
        """Numbers of nannies that were told to leave."""
        self._over_s = 0.0
        self._zero_s = 0.0
        self.played: list[Played] = []
        self.trouble: list[str] = []

    # -- as a plugin ---------------------------------------------------------------------------------------------------

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._names[worker] = f"w{scheduler.workers[worker].name}"

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        self._ends.append((self._now_s(), worker))

    def _now_s(self) -> float:
        return time.monotonic() - self._zero_s

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, ledger: Path) -> list[tuple[str, object]]:
        """(key, result or error) of what the client got, in that order."""
        self._zero_s = time.monotonic()
        playing = asyncio.run_coroutine_threadsafe(self._play(), self._loop)
        delivered: list[tuple[str, object]] = []
        try:
            keys = [key_of(number) for number in self._script.wanted]
            futures = self._client.get(self._script.graph(ledger), keys, sync=False)  # type: ignore[no-untyped-call]
            timeout_s = PATIENCE_S + 10.0 * self._script.ideal_s
            for future in as_completed(futures, timeout=timeout_s):  # type: ignore[no-untyped-call]
                delivered.append((future.key, _result(future, timeout_s)))  # noqa: PERF401 - it may end half-way
        except TimeoutError:
            self.trouble.append(f"after {self._now_s():.0f} s there is no more than {len(delivered)} results")
        finally:
            playing.cancel()
        return delivered

    def settle(self) -> None:
        """Wait until all faults are over, nobody is suspected any more, and all workers are there again."""
        detecting = self._scheduler.plugins["swarm"].detecting
        self._loop.call_soon_threadsafe(self._go_on)
        wait_until(lambda: self._now_s() > self._over_s, "the faults are over", timeout_s=60)
        try:
            wait_until(lambda: all(each.done() for each in self._on_their_own), "they have left", timeout_s=60)
            wait_until(lambda: not detecting.suspected, "nobody is suspected", timeout_s=60)
            there = self._script.workers + len(self._joined) - len(self._gone)
            wait_until(lambda: len(self._scheduler.workers) == there, f"{there} workers are there", timeout_s=60)
        except AssertionError as error:
            self.trouble.append(str(error))

    def close(self) -> None:
        """End the workers that have joined."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(60.0)

    async def _close(self) -> None:
        await asyncio.gather(*self._on_their_own, *(each.close() for each in self._joined.values()))

    def _go_on(self) -> None:
        for number, pid in list(self._stopped.items()):
            self._cont(number, pid)

    def without_poison(self, deaths: Sequence[WorkerDied]) -> list[Ended]:
        """Workers that left, but for those that a poisonous task has ended."""
        poison = {key_of(number) for number in self._script.poison}
        poisoned = {each.worker for each in deaths if each.exitcode != 0 and not poison.isdisjoint(each.running)}
        return [Ended(at_s, self._names[address]) for at_s, address in self._ends if address not in poisoned]

    def said(self, end: Ended, deaths: Sequence[WorkerDied]) -> str:
        """What swarm said of that death."""
        causes = [each.cause for each in deaths if self._names[each.worker] == end.name]
        return f"its deaths: {causes}"

    # -- faults --------------------------------------------------------------------------------------------------------

    async def _play(self) -> None:
        under_way = set()
        try:
            for fault in self._script.faults:
                await asyncio.sleep(max(0.0, fault.at_s - self._now_s()))
                under_way.add(asyncio.create_task(self._inflict(fault)))
            await asyncio.gather(*under_way)
        except Exception as error:  # noqa: BLE001 - nobody awaits this; the verdict tells
            self.trouble.append(f"the script could not be played: {error!r}")

    async def _inflict(self, fault: Fault) -> None:
        if isinstance(fault, SchedulerLag):
            self._note(fault)
            time.sleep(fault.for_s)  # noqa: ASYNC251 - that is the fault
            return
        if isinstance(fault, Join):
            self._note(fault)
            number = int(fault.model.name[1:])
            self._joined[number] = await new_worker(self._scheduler.address, number)
            return
        number = int(victims(fault)[0][1:])
        nanny = self._cluster.workers[number]
        address, pid = nanny.worker_address, nanny.pid
        if pid is None or not self._is_whole(address):
            return  # what is gone, or starts, has no faults
        if isinstance(fault, Crash):
            self._note(fault)
            os.kill(pid, signal.SIGKILL)
        elif isinstance(fault, Hang):
            self._note(fault)
            os.kill(pid, signal.SIGSTOP)
            self._stopped[number] = pid
            if fault.for_s is not None:
                self._loop.call_later(fault.for_s, self._cont, number, pid)
        elif isinstance(fault, Leave):
            self._note(fault)
            self._on_their_own.add(asyncio.create_task(self._leave(number, address)))
        elif isinstance(fault, Preempt):
            self._note(fault)
            self._gone.add(number)
            closing = nanny.close(reason=f"signal-{signal.SIGTERM.value}")  # what `dask worker` does with it
            self._on_their_own.add(asyncio.create_task(closing))
        else:
            self._note(fault)
            if isinstance(fault, Partition):  # neither hears the other
                ports = {each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.laddr}
                self._on_their_own.add(
                    asyncio.create_task(cut_here(fault.for_s or 60.0, lambda each: _peer(each) in ports))
                )
            with suppress(OSError, TimeoutError):  # another fault was there first
                await self._client._run(*_inside(fault), workers=[address], wait=False)

    async def _leave(self, number: int, address: str) -> None:
        """Dask keeps a worker whose results nobody can take."""
        if await self._scheduler.retire_workers(workers=[address], close_workers=True, stimulus_id="chaos"):
            self._gone.add(number)

    def _is_whole(self, address: str) -> bool:
        members = self._scheduler.plugins["swarm"].members
        return address in self._scheduler.workers and members.has_witness(address)

    def _note(self, fault: Fault) -> None:
        now_s = self._now_s()
        self.played.append(Played(fault, now_s))
        self._over_s = max(self._over_s, now_s + (getattr(fault, "for_s", None) or 0.0))

    def _cont(self, number: int, pid: int) -> None:
        if self._stopped.pop(number, None) is not None and self._cluster.workers[number].pid == pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _peer(each: socket.socket) -> int:
    """The port of the other side; 0 where there is none."""
    try:
        return int(each.getpeername()[1])
    except OSError:
        return 0


def _result(future: Future, timeout_s: float) -> object:
    """The result, or the error of the task."""
    try:
        return future.result(timeout=timeout_s)
    except KilledWorker as error:
        return error


def _inside(fault: Fault) -> tuple[Any, ...]:
    """What to call in the worker's process, on its event loop."""
    match fault:
        case HoldGil(for_s=for_s):
            return in_a_thread, hold_gil, for_s
        case BlockLoop(for_s=for_s):
            return block, for_s
        case SlowDown(for_s=for_s):  # how much slower, says the kernel
            return in_a_thread, spin, for_s
        case LoseHeartbeats(for_s=for_s):
            return mute, for_s
        case Partition(for_s=for_s):
            return cut_here, for_s or 60.0
        case _:
            raise TypeError(f"no real worker can be given a {type(fault).__name__}")


# Coroutines, since of those alone `Worker.run` does not wait for the end.


async def in_a_thread(what: Callable[[float], None], seconds: float) -> None:
    threading.Thread(target=what, args=(seconds,), name="chaos", daemon=True).start()


async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


async def mute(seconds: float, dask_worker: Any = None) -> None:
    """No heartbeats for a while."""
    beating = dask_worker.periodic_callbacks["heartbeat"]
    beating.stop()
    dask_worker.loop.call_later(seconds, beating.start)
