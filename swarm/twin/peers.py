"""How a simulated worker gets results from others and gives away its own, as `Worker.gather_dep` and `get_data`."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import parse_bytes, parse_timedelta
from distributed.core import Status
from distributed.worker_state_machine import (
    GatherDep,
    GatherDepBusyEvent,
    GatherDepNetworkFailureEvent,
)

from swarm.twin.machine import Gathered
from swarm.twin.models import Key
from swarm.twin.store import Store

if TYPE_CHECKING:
    from swarm.twin.worker import SimulatedWorker

NOTED_BYTES = 1_000_000
"""Transfers from this size on count for the bandwidth (`Worker._update_metrics_received_data`)."""


@dataclass(slots=True, eq=False)
class Transfer:
    """Results on their way from a peer."""

    asker: SimulatedWorker
    peer: str
    keys: Collection[Key]
    total_nbytes: int
    began_s: float
    server: SimulatedWorker | None = None
    """The peer, while it sends."""
    is_over: bool = False


class Peers:
    """The transfers of one worker, in both directions."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._fabric = worker.fabric
        self._loop = worker.loop
        self._connected: set[str] = set()
        """Peers with a connection in the pool: these are not asked for a handshake again."""
        self._unanswered: deque[tuple[float, Transfer]] = deque()
        """Asked for without a connection, and when it is given up."""
        self._is_patient = False
        """Whether the end of a wait is planned: one event for all, since few of them ever matter."""
        self._mine: dict[Transfer, None] = {}
        self._asked: dict[Transfer, None] = {}
        """Of others, which wait for an answer from here."""
        self._connect_timeout_s = float(parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))
        self._limit = int(dask.config.get("distributed.worker.connections.outgoing"))
        self.outgoing = 0
        self.bandwidth = float(parse_bytes(dask.config.get("distributed.scheduler.bandwidth")))
        self.bandwidth_by_peer: dict[str, tuple[float, int]] = {}
        """Since the last heartbeat: (sum, count)."""

    # -- what this worker asks for ---------------------------------------------------------------------------------

    def gather(self, instruction: GatherDep) -> None:
        """Ask a peer for results."""
        now_s, address = self._loop.now_s, instruction.worker
        transfer = Transfer(self._worker, address, instruction.to_gather, instruction.total_nbytes, now_s)
        self._mine[transfer] = None
        if self._worker.fleet.get(address) is None:
            latency_s = self._fabric.model.default.latency_s
            self._loop.schedule(now_s + latency_s, self._worker.local, self._failed, transfer)
            return
        if address not in self._connected:
            self._unanswered.append((now_s + self._connect_timeout_s, transfer))
            if not self._is_patient:
                self._is_patient = True
                self._loop.schedule(now_s + self._connect_timeout_s, self._no_handshake)
        peer = self._worker.fleet[address].peers
        peer._asked[transfer] = None
        self._fabric.carry(
            self._worker.address, address, 0, 1, peer.serve, transfer, delay_s=self._fabric.model.request_s
        )

    def _no_handshake(self) -> None:
        """Give up what was asked for too long ago, and plan the next look."""
        unanswered, now_s = self._unanswered, self._loop.now_s
        while unanswered and (unanswered[0][0] <= now_s or unanswered[0][1].is_over):
            _, transfer = unanswered.popleft()
            if not transfer.is_over and transfer.peer not in self._connected:
                self._worker.local(self._failed, transfer)
        self._is_patient = bool(unanswered)
        if unanswered:
            self._loop.schedule(unanswered[0][0], self._no_handshake)

    def _over(self, transfer: Transfer) -> bool:
        """Close a transfer; False when it was closed before."""
        if transfer.is_over:
            return False
        transfer.is_over = True
        self._mine.pop(transfer, None)
        peer = self._worker.fleet.get(transfer.peer)
        if peer is not None:
            peer.peers._asked.pop(transfer, None)
        return True

    def _busy(self, transfer: Transfer) -> None:
        self._connected.add(transfer.peer)
        if self._over(transfer):
            stimulus_id = f"gather-dep-busy-{self._loop.now_s}"
            self._worker.handle(
                GatherDepBusyEvent(worker=transfer.peer, total_nbytes=transfer.total_nbytes, stimulus_id=stimulus_id)
            )

    def _arrived(self, transfer: Transfer, data: dict[Key, Any]) -> None:
        _sent(transfer)
        self._connected.add(transfer.peer)
        if not self._over(transfer):
            return
        self._note(transfer, data)
        self._worker.handle(
            Gathered(
                worker=transfer.peer,
                total_nbytes=transfer.total_nbytes,
                data=data,
                stimulus_id=f"gather-dep-success-{self._loop.now_s}",
            )
        )

    def _failed(self, transfer: Transfer) -> None:
        """The peer is gone, or does not answer."""
        if not self._over(transfer):
            return
        self._connected.discard(transfer.peer)
        stimulus_id = f"gather-dep-network-failure-{self._loop.now_s}"
        self._worker.handle(
            GatherDepNetworkFailureEvent(
                worker=transfer.peer, total_nbytes=transfer.total_nbytes, stimulus_id=stimulus_id
            )
        )

    def lost(self, address: str) -> None:
        """The connection to a peer was reset."""
        self._connected.discard(address)
        for transfer in [transfer for transfer in self._mine if transfer.peer == address]:
            self._worker.local(self._failed, transfer)

    def _note(self, transfer: Transfer, data: Mapping[Key, Any]) -> None:
        """As `Worker._update_metrics_received_data`."""
        now_s, tasks = self._loop.now_s, self._worker.state.tasks
        cause = None
        for key in transfer.keys:
            cause = tasks[key]
            if cause.dependents:
                cause = next(iter(cause.dependents))
                break
        if cause is not None:
            cause.startstops.append(
                {"action": "transfer", "start": transfer.began_s, "stop": now_s, "source": transfer.peer}
            )
        size = sum(tasks[key].get_nbytes() for key in data)
        self._worker.record.transferred(self._worker, transfer.peer, size, transfer.began_s, now_s)
        if size > NOTED_BYTES:
            bandwidth = size / max(0.001, now_s - transfer.began_s)
            self.bandwidth = 0.95 * self.bandwidth + 0.05 * bandwidth
            total, count = self.bandwidth_by_peer.get(transfer.peer, (0.0, 0))
            self.bandwidth_by_peer[transfer.peer] = (total + bandwidth, count + 1)

    # -- what others ask for ---------------------------------------------------------------------------------------

    def serve(self, transfer: Transfer) -> None:
        """A peer asks for results."""
        worker, asker = self._worker, transfer.asker
        limit = self._limit * 2 if asker.process.host == worker.process.host else self._limit
        if worker.status is Status.paused:
            limit = 1
        if self.outgoing >= limit:
            self._fabric.carry(worker.address, asker.address, 0, 1, asker.peers._busy, transfer)
            return
        store = worker.state.data
        data = {key: store[key] for key in transfer.keys if key in store}
        self.outgoing += 1
        transfer.server = worker
        size = sum(getattr(value, "nbytes", 0) for value in data.values())
        delay_s = store.read_back(data) if isinstance(store, Store) else 0.0
        is_taken = self._fabric.carry(
            worker.address, asker.address, size, 1, asker.peers._arrived, transfer, data, delay_s=delay_s
        )
        if not is_taken:
            _sent(transfer)

    def abandon(self) -> None:
        """The worker has ended: nobody sends to it any more."""
        for transfer in self._mine:
            _sent(transfer)

    @property
    def waiting(self) -> list[SimulatedWorker]:
        """Workers that wait for an answer from here."""
        return list(dict.fromkeys(transfer.asker for transfer in self._asked))


def _sent(transfer: Transfer) -> None:
    if transfer.server is not None:
        transfer.server.peers.outgoing -= 1
        transfer.server = None
