"""The simulated network and the processes on it: who reaches whom, when a message arrives, who is frozen or dead."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swarm.twin import comm as comms
from swarm.twin.clock import VirtualLoop
from swarm.twin.models import Network, SchedulerCpu

if TYPE_CHECKING:
    from swarm.twin.wire import Stream

SCHEDULER = "sim://scheduler:8786"
CLIENT_HOST = "client"


class Process:
    """Something with an address that can be frozen, cut off or dead."""

    __slots__ = ("address", "backlog", "cut_off", "frozen", "host", "is_alive")

    def __init__(self, address: str) -> None:
        self.address = address
        self.host = comms.host_of(address)
        self.is_alive = True
        self.frozen = 0
        """How many faults keep it from handling what arrives."""
        self.cut_off: set[int] = set()
        """Partitions that it is on the far side of."""
        self.backlog: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        """What arrived while it was frozen."""


class Fabric:
    """Carries messages between processes in virtual time.

    The scheduler's process has one CPU: messages wait for it in the order in which they arrive.
    """

    def __init__(self, loop: VirtualLoop, model: Network, cpu: SchedulerCpu) -> None:
        self.loop = loop
        self.model = model
        self.cpu = cpu
        self.processes: dict[str, Process] = {}
        self.listeners: dict[str, comms.SimulatedListener] = {}
        self.ports = itertools.count(50_000)
        self.scheduler = self.process(SCHEDULER)
        self.client = self.process(f"sim://{CLIENT_HOST}:0")
        self.is_delivering = False
        """Whether a message is being handled: what is sent meanwhile leaves when that is done."""
        self.full_streams: list[Stream] = []
        self.in_flight = 0
        """Messages on their way or waiting for the scheduler's CPU."""
        self.scheduler_cpu_s = 0.0
        self.messages_to_scheduler = 0
        self._scheduler_free_s = 0.0
        self._scheduler_busy_s = 0.0
        self._sends_until: dict[str, float] = {}
        self._receives_until: dict[str, float] = {}
        self._uplink_until = 0.0
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._held: list[tuple[str, str, int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._connections: dict[str, list[comms.SimulatedComm]] = {}

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Make it the one that Dask's comms go through."""
        comms._fabrics.append(self)
        try:
            yield
        finally:
            comms._fabrics.remove(self)

    # -- processes -------------------------------------------------------------------------------------------------

    def process(self, address: str) -> Process:
        """A new process that listens at `address`, in the place of one that had it before."""
        new = self.processes[address] = Process(address)
        return new

    def caller_host(self) -> str:
        """Only the client and the scheduler open Dask comms here; a scheduler does not call itself."""
        return CLIENT_HOST

    def place_port(self, local: str, peer: str) -> None:
        """Say whose port an outgoing connection uses."""
        self.processes[local] = self.client if peer == SCHEDULER else self.scheduler

    def freeze(self, process: Process) -> None:
        process.frozen += 1

    def thaw(self, process: Process) -> None:
        process.frozen -= 1
        if not process.frozen and process.is_alive:
            backlog, process.backlog = process.backlog, []
            for deliver, arguments in backlog:
                self.in_flight += 1
                self.loop.schedule(self.loop.now_s, self._delivered, process, deliver, arguments)

    def kill(self, process: Process) -> None:
        """End a process: the kernel resets its connections."""
        process.is_alive = False
        process.backlog.clear()
        self.break_connections(process)

    def break_connections(self, process: Process) -> None:
        """The other ends notice, one latency later, if they can be reached."""
        for comm in self._connections.pop(process.address, []):
            for end in (comm, comm.other):
                self.carry(process.address, end._local, 0, 1, end.reset)

    # -- messages --------------------------------------------------------------------------------------------------

    def carry(
        self,
        source: str,
        to: str,
        payload_bytes: int,
        messages: int,
        deliver: Callable[..., object],
        *arguments: Any,
        delay_s: float = 0.0,
    ) -> bool:
        """Call `deliver(*arguments)` when a message from one address has reached the other.

        `messages` is what the scheduler's CPU is charged for, if it goes there. It leaves after `delay_s`. False when
        nobody is there to take it.
        """
        sender, receiver = self.processes[source], self.processes.get(to)
        if receiver is None or not receiver.is_alive:
            return False
        if sender.cut_off != receiver.cut_off and sender is not receiver:
            self._held.append((source, to, payload_bytes, messages, deliver, arguments))
            return True
        if sender is self.scheduler and self.cpu.batch_s:
            self.charge_scheduler(self.cpu.batch_s)
        loop, model = self.loop, self.model
        leaves_s = loop.now_s + delay_s
        if sender is self.scheduler and leaves_s < self._scheduler_busy_s:
            leaves_s = self._scheduler_busy_s
        is_near = sender.host == receiver.host
        link = model.link(sender.host, receiver.host) if is_near or model.links else model.default
        if payload_bytes:
            arrives_s = self._transferred(sender.host, receiver.host, payload_bytes, link.bytes_per_s, leaves_s)
            arrives_s = max(arrives_s + link.latency_s, self._last_arrival.get((source, to), 0.0))
            self._last_arrival[source, to] = arrives_s
        else:
            arrives_s = leaves_s + link.latency_s
            if sender.is_alive and (source, to) in self._last_arrival:  # a reset overtakes what it cuts short
                arrives_s = max(arrives_s, self._last_arrival[source, to])
        self.in_flight += 1
        if receiver is self.scheduler:
            loop.schedule(arrives_s, self._reached_scheduler, messages, deliver, arguments)
        else:
            loop.schedule(arrives_s, self._delivered, receiver, deliver, arguments)
        return True

    def _transferred(self, source: str, to: str, size: int, bytes_per_s: float, from_s: float) -> float:
        """When the last byte of a payload has left the wire: it waits for both ends, and for a shared uplink."""
        begins_s = max(from_s, self._sends_until.get(source, 0.0), self._receives_until.get(to, 0.0))
        rate = bytes_per_s
        shared = self.model.shared_uplink if source != to else None
        if shared is not None:
            begins_s = max(begins_s, self._uplink_until)
            rate = min(rate, shared.bytes_per_s)
        ends_s = begins_s + size / rate
        self._sends_until[source] = self._receives_until[to] = ends_s
        if shared is not None:
            self._uplink_until = ends_s
        return ends_s

    def _reached_scheduler(self, messages: int, deliver: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        cost_s = messages * self.cpu.message_s
        self.messages_to_scheduler += messages
        self.scheduler_cpu_s += cost_s
        self._scheduler_free_s = max(self._scheduler_free_s, self.loop.now_s) + cost_s
        self.loop.schedule(self._scheduler_free_s, self._delivered, self.scheduler, deliver, arguments)

    def _delivered(self, receiver: Process, deliver: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.in_flight -= 1
        if receiver.frozen:
            receiver.backlog.append((deliver, arguments))
        elif receiver.is_alive:
            self.handle(deliver, *arguments)

    def handle(self, call: Callable[..., object], *arguments: Any) -> None:
        """Let a process handle something, then put what it sent on its way."""
        self.is_delivering = True
        call(*arguments)
        self.is_delivering = False
        if self.full_streams:
            full, self.full_streams = self.full_streams, []
            for stream in full:
                stream.flush()

    def charge_scheduler(self, cpu_s: float) -> None:
        """The scheduler computes now: what it sends leaves later, what comes in waits."""
        self.scheduler_cpu_s += cpu_s
        self._scheduler_busy_s = max(self._scheduler_busy_s, self.loop.now_s) + cpu_s
        self._scheduler_free_s = max(self._scheduler_free_s + cpu_s, self._scheduler_busy_s)

    # -- partitions ------------------------------------------------------------------------------------------------

    def cut(self, processes: list[Process], number: int) -> None:
        for process in processes:
            process.cut_off.add(number)

    def heal(self, processes: list[Process], number: int) -> None:
        for process in processes:
            process.cut_off.discard(number)
        held, self._held = self._held, []
        for source, to, size, messages, deliver, arguments in held:
            self.carry(source, to, size, messages, deliver, *arguments)

    def give_up(self, process: Process) -> None:
        """Both ends close the connections of a process that is cut off; what was under way with them is lost."""
        comms_of = self._connections.pop(process.address, [])
        mine = {process.address} | {end._local for comm in comms_of for end in (comm, comm.other)} - {SCHEDULER}
        self._held = [entry for entry in self._held if entry[0] not in mine and entry[1] not in mine]
        for comm in comms_of:
            comm.reset()
            comm.other.reset()

    @property
    def held(self) -> int:
        return len(self._held)

    # -- connections -----------------------------------------------------------------------------------------------

    def knock(self, local: str, peer: str, deserialize: bool, accepted: asyncio.Future[Any]) -> None:
        """A connection request has arrived; the listener's process handles it."""
        listener = self.listeners.get(peer)
        if accepted.done():
            return
        if listener is None:
            accepted.set_exception(OSError(f"nobody listens at {peer}"))
            return
        ours = comms.SimulatedComm(self, local, peer, deserialize)
        theirs = comms.SimulatedComm(self, peer, local, listener.deserialize)
        ours.other, theirs.other = theirs, ours
        for process in {self.processes[local].address, self.processes[peer].address} - {SCHEDULER, self.client.address}:
            self._connections.setdefault(process, []).append(ours)
        self.loop.create_task(listener.accept(theirs))
        accepted.set_result(ours)
