"""All simulated workers: they register, beat, end, come back, and have faults."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from distributed.comm.core import Comm, CommClosedError
from distributed.worker_state_machine import FreeKeysEvent, UpdateDataEvent

import swarm
from swarm.agents.watch.black_box import shown
from swarm.errors import TwinError
from swarm.protocol import POST_MORTEM, Telemetry
from swarm.twin import comm as comms
from swarm.twin.models import Cost, Key, WorkerModel
from swarm.twin.network import SCHEDULER, Fabric, Process
from swarm.twin.record import Recorder
from swarm.twin.scheduler import Registration, TwinScheduler
from swarm.twin.worker import SimulatedWorker

FIRST_PORT = 40_000
EXTENSION = "swarm"
DASK_PLUGINS = {"shuffle"}
"""Worker plugins of every Dask cluster. Peer-to-peer shuffles are not simulated."""
KILL_AFTER_S = 4.0
"""`Nanny.kill`: a process that does not stop when it shall, or does not hear it, is killed after 0.8 of 5 s."""
ANSWERED = object()
"""In place of an answer that has been sent already; None is the answer of some requests."""


class Fleet:
    """Starts, ends and disturbs the workers of a simulation."""

    def __init__(
        self,
        scheduler: TwinScheduler,
        fabric: Fabric,
        record: Recorder,
        *,
        cost_of: Callable[[Key], Cost],
        seed: int,
        validate: bool,
        agents: bool,
        heartbeat_s: float | None = None,
        jitter: float = 0.0,
    ) -> None:
        self.scheduler = scheduler
        self.fabric = fabric
        self.record = record
        self.by_address: dict[str, SimulatedWorker] = {}
        self.by_name: dict[str, SimulatedWorker] = {}
        self.steals = 0
        self.peak_bytes: dict[str, int] = {}
        self._cost_of = cost_of
        self._rng = random.Random(f"{seed} fleet")
        self._validate = validate
        self._agents = agents
        self._heartbeat_s = heartbeat_s
        self._jitter = jitter
        self._streams: dict[str, Registration] = {}
        self._started = 0
        self._expected = 0
        self._registered: asyncio.Future[None] | None = None
        self.to_come = 0
        """Faults that will still begin or end, and workers that will start again."""
        self.cut: dict[int, tuple[str, ...]] = {}
        """Partitions that last: number → names of the workers on the far side."""
        self._zero_s: float | None = None
        self._stopping = False

    # -- workers come ----------------------------------------------------------------------------------------------

    def start(self, model: WorkerModel) -> SimulatedWorker:
        """Start a worker process, which registers."""
        self._started += 1
        host = model.host or model.name
        address = f"{comms.PREFIX}://{host}:{FIRST_PORT + self._started}"
        worker = SimulatedWorker(
            model,
            address,
            self.fabric,
            self._cost_of,
            self.by_address,
            self.record,
            phase=self._rng.uniform(0.05, 1.0),
            pause_s=self._pause_s,
            validate=self._validate,
            agent=self._telemetry if self._agents else None,
            on_heartbeat=self._heartbeat,
            on_end=self._ended,
        )
        self.by_name[model.name] = worker
        if model.nanny:
            self.fabric.process(worker.nanny_address)
        if self._zero_s is not None:
            worker.start_clock(self._zero_s)
        for number, names in self.cut.items():
            if model.name in names:
                self.fabric.cut(self.processes_of(worker), number)
        self._listen(address, worker)
        if model.nanny:
            self._listen(worker.nanny_address, worker)
        self.fabric.carry(address, SCHEDULER, 0, 1, self._register, worker)
        return worker

    def processes_of(self, worker: SimulatedWorker) -> list[Process]:
        """Its own, and that of its nanny."""
        addresses = [worker.address, worker.nanny_address] if worker.model.nanny else [worker.address]
        return [self.fabric.processes[address] for address in addresses]

    def start_clock(self) -> None:
        """Times of speed models count from now."""
        self._zero_s = self.fabric.loop.now_s
        for worker in self.by_address.values():
            worker.start_clock(self._zero_s)

    async def all_registered(self) -> None:
        """Wait until every worker that was started is known to the scheduler."""
        self._expected = self._started
        if len(self.scheduler.workers) < self._expected:
            self._registered = self.fabric.loop.create_future()
            await self._registered

    def _register(self, worker: SimulatedWorker) -> None:
        nanny_plugins = self.scheduler.nanny_plugins if worker.model.nanny else {}
        if plugins := sorted({*self.scheduler.worker_plugins, *nanny_plugins} - DASK_PLUGINS):
            raise TwinError(f"{worker.name} can't have the plugin {plugins[0]}: a simulated worker runs no real code")
        self.fabric.loop.create_task(self._registration(worker))

    async def _registration(self, worker: SimulatedWorker) -> None:
        hello = self.scheduler.handlers.get("swarm_hello_worker") if self._agents else None
        if hello is not None:
            await hello(worker=worker.address, version=swarm.__version__, explicit={}, agents=["resource"], absent={})
        comm = Registration(self.scheduler, self.fabric, worker, self._stole)
        self._streams[worker.address] = comm
        await self.scheduler.add_worker(cast("Comm", comm), **worker.registration())
        if worker.model.nanny and (started := self.scheduler.handlers.get("swarm_witness_started")) and self._agents:
            await started(worker=worker.address)
        self.record.event("joined", worker.name)
        waiting = self._registered
        if waiting is not None and not waiting.done() and len(self.scheduler.workers) >= self._expected:
            waiting.set_result(None)

    def _pause_s(self, asked_s: float) -> float:
        """Until the next heartbeat, when the scheduler asks for this interval."""
        interval_s = self._heartbeat_s or asked_s
        return interval_s * (1.0 + self._rng.uniform(0.0, self._jitter)) if self._jitter else interval_s

    def _stole(self) -> None:
        self.steals += 1

    # -- and go ----------------------------------------------------------------------------------------------------

    def _ended(self, worker: SimulatedWorker, reason: str) -> None:
        """A process ended: the network tells who was connected to it."""
        self.peak_bytes[worker.name] = max(self.peak_bytes.get(worker.name, 0), worker.peak_bytes)
        self.record.event(f"ended ({reason})", worker.name)
        worker.peers.abandon()
        for peer in worker.peers.waiting:
            self.fabric.carry(worker.address, peer.address, 0, 1, peer.peers.lost, worker.address)
        if reason == "memory" and worker.has_nanny:  # as `NannyMemoryManager.memory_monitor`, before it kills
            killed = {"worker": worker.address, "pid": 0, "rss": worker.peak_bytes}
            nanny = worker.nanny_address
            self.fabric.carry(nanny, SCHEDULER, 0, 1, self.scheduler.log_event, "worker-restart-memory", killed)
        self.fabric.carry(worker.address, SCHEDULER, 0, 1, self.stream_lost, worker.address)
        if worker.has_nanny and self._agents:
            report = _post_mortem(worker, reason)
            self.fabric.carry(worker.nanny_address, SCHEDULER, 0, 1, self.scheduler.log_event, POST_MORTEM, report)
        if worker.has_nanny and not self._stopping:
            self.to_come += 1
            again_s = self.fabric.loop.now_s + worker.lingers_s + worker.model.restart_s
            self.fabric.loop.schedule(again_s, self._restart, worker.model)

    def _restart(self, model: WorkerModel) -> None:
        self.to_come -= 1
        if not self._stopping:
            self.start(dataclasses.replace(model))

    def stream_lost(self, address: str) -> None:
        """As the end of `Scheduler.handle_worker`."""
        comm = self._streams.pop(address, None)
        if comm is None:
            return
        comm.stream.abort()
        if address in self.scheduler.stream_comms:
            stimulus_id = f"handle-worker-cleanup-{self.fabric.loop.now_s}"
            self.fabric.loop.create_task(self.scheduler.remove_worker(address, stimulus_id=stimulus_id))

    def stop(self) -> None:
        """No more restarts and heartbeats: the simulation is over."""
        self._stopping = True
        for worker in list(self.by_address.values()):
            self.peak_bytes[worker.name] = max(self.peak_bytes.get(worker.name, 0), worker.peak_bytes)
            worker.process.is_alive = False

    def expects_something(self) -> bool:
        """Whether a task runs that will end, a fault will begin or end, or a worker will start again."""
        return self.to_come > 0 or any(
            worker.executions and worker.rate > 0 and not worker.process.frozen for worker in self.by_address.values()
        )

    def broken(self) -> list[str]:
        """Rules about workers that do not hold."""
        return [
            f"{worker.name} used {used} bytes, its limit is {worker.model.memory.limit_bytes}"
            for worker in self.by_address.values()
            if (used := max(worker.memory_bytes, worker.peak_bytes)) > (worker.model.memory.limit_bytes or math.inf)
        ]

    # -- heartbeats ------------------------------------------------------------------------------------------------

    def _heartbeat(self, worker: SimulatedWorker, message: dict[str, Any]) -> None:
        if message["extensions"] and EXTENSION not in self.scheduler.extensions:
            message["extensions"] = {}
        reply = self.scheduler.handlers["heartbeat_worker"](**message)
        if self._heartbeat_s is not None and "heartbeat-interval" in reply:  # `Worker.find_missing` goes by it too
            reply["heartbeat-interval"] = self._heartbeat_s
        self.fabric.carry(SCHEDULER, worker.address, 0, 1, worker.heartbeat_answered, reply)

    def _telemetry(self, worker: SimulatedWorker) -> Mapping[str, Any]:
        """What the resource agent of this worker would see, of what the model knows; all else is absent."""
        memory = worker.model.memory
        return {
            EXTENSION: Telemetry(
                taken_at_s=self.fabric.loop.now_s,
                interval_s=1.0,
                host_cpu_count=worker.model.threads,
                host_cpu_percent=100.0 * len(worker.executions) / worker.model.threads,
                worker_cpu_percent=100.0 * len(worker.executions),
                worker_memory_bytes=worker.memory_bytes,
                worker_memory_limit_bytes=memory.limit_bytes or None,
            ).to_wire()
        }

    # -- what servers ask workers and nannies ----------------------------------------------------------------------

    def _listen(self, address: str, worker: SimulatedWorker) -> None:
        async def handle(comm: Comm) -> None:
            try:
                while True:
                    message = await comm.read()
                    if message["op"] == "close":  # as `Server.handle_comm`
                        await comm.close()
                        return
                    answer = await self._answer(worker, address, message, comm)
                    if message.get("reply", True) and answer is not ANSWERED:
                        await comm.write(answer)
                    if message.get("close"):
                        await comm.close()
                        return
            except CommClosedError:
                return

        self.fabric.listeners[address] = comms.SimulatedListener(address.partition("://")[2], handle, True)

    async def _answer(self, worker: SimulatedWorker, address: str, message: Mapping[str, Any], comm: Comm) -> Any:
        op = message["op"]
        if address == worker.nanny_address:
            return await self._answer_of_nanny(worker, op)
        answer: Any = None
        if op == "get_data":
            data = {key: worker.state.data[key] for key in message["keys"] if key in worker.state.data}
            await comm.write({"status": "OK", "data": data})
            await comm.read()
            answer = ANSWERED
        elif op == "gather":
            answer = self._gather_on(worker, message["who_has"])
        elif op == "free_keys":
            worker.handle(FreeKeysEvent(keys=message["keys"], stimulus_id=message["stimulus_id"]))
        elif op == "terminate":
            worker.close(str(message.get("reason", "scheduler-terminate")))
            answer = "OK"
        elif op == "keys":
            answer = list(worker.state.data)
        elif op == "ping":
            answer = b"pong"
        else:
            answer = self._unable(worker, "worker", op)
        return answer

    async def _answer_of_nanny(self, worker: SimulatedWorker, op: str) -> Any:
        if op == "close_gracefully":  # whoever asks ends the worker itself
            worker.has_nanny = False
            return None
        if op == "swarm_witness" and self._agents:
            return _report(worker)
        if op == "swarm_end_worker" and self._agents:
            worker.end("killed by its nanny")
            return {"ended": True}
        if op not in ("kill", "restart", "terminate"):
            return self._unable(worker, "nanny", op)
        if worker.process.frozen and worker.is_alive:
            await asyncio.sleep(KILL_AFTER_S)
        elif worker.is_alive:  # it says goodbye, then waits for its threads
            worker.lingers_s = min(KILL_AFTER_S, worker.busy_for_s())
        worker.has_nanny &= op != "terminate"
        worker.end("killed by its nanny")
        await asyncio.sleep(worker.lingers_s)
        return None if op == "kill" else "OK"

    def _unable(self, worker: SimulatedWorker, who: str, op: str) -> object:
        """End the simulation: whoever asks would wait for ever, or go on as if nothing were missing."""

        def fail() -> None:
            raise TwinError(f"the simulated {who} {worker.name} can't answer {op!r}: it runs no real code")

        self.fabric.loop.schedule(self.fabric.loop.now_s, fail)
        return ANSWERED

    def _gather_on(self, worker: SimulatedWorker, who_has: Mapping[Key, Sequence[str]]) -> dict[str, Any]:
        """As `Worker.gather`, in no time: used by `Scheduler.replicate` and `rebalance` only."""
        found, failed = {}, []
        for key, holders in who_has.items():
            source = next((self.by_address[h] for h in holders if h in self.by_address), None)
            if source is None or key not in source.state.data:
                failed.append(key)
            else:
                found[key] = source.state.data[key]
        worker.handle(UpdateDataEvent(data=found, stimulus_id=f"gather-{self.fabric.loop.now_s}"))
        if failed:
            return {"status": "partial-fail", "keys": failed}
        return {"status": "OK"}


def _report(worker: SimulatedWorker) -> dict[str, Any]:
    """As `agents.watch.witness.Witness.report`: the kernel tells a process that is stopped from one that is busy."""
    if not worker.is_alive:
        return {"process": "gone"}
    state = "stopped" if worker.stopped else "runs"
    return {"process": state, "cpu_s": 0.0, "ticks": not worker.process.frozen, "worker": worker.address}


def _post_mortem(worker: SimulatedWorker, reason: str) -> dict[str, Any]:
    """As `swarm.agents.watch.witness.Witness._post_mortem`."""
    exitcode = {"killed": -signal.SIGKILL, "killed by its nanny": -signal.SIGKILL, "memory": -signal.SIGTERM}
    return {
        "worker": worker.address,
        "exitcode": int(exitcode.get(reason, 0)),
        "oom_kills": 0,
        "memory": [],
        "running": [shown(task.key) for task in worker.state.executing],
        "last_lines": [],
    }
