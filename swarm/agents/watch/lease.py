"""The lease: a worker that is cut off from the scheduler starts no more tasks, since others are given them.

The scheduler gives up a worker of which it has heard nothing for `silence_patience`. The worker can't be told: its TCP
connection breaks only after half a minute (`distributed.comm.timeouts.tcp`), and until then it would go on starting
what waits there, a second time. So it has to hear from the scheduler to go on (Gray and Cheriton: "Leases", SOSP 1989).

To hear means either of two: the answer to a heartbeat, or that the scheduler's host has acknowledged a packet. A host
does that also for a process that is busy, stopped or swapped out: a slow scheduler takes nobody's lease away.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

from distributed.core import Status
from distributed.worker_state_machine import PauseEvent, UnpauseEvent
from tornado.ioloop import PeriodicCallback

from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Worker

LOOK_S = 0.25
SHARE = 0.75
"""Of the scheduler's patience: the lease is over before the tasks are given away."""
LATE_SHARE = 0.5
"""Of it, by which the answer to a heartbeat may be late at least, however rare heartbeats are."""
LEAST_S = 2.0
PROBES = 4
"""In the time of a lease, on a connection where nothing else is said; the kernel sends them in whole seconds."""
LAST_ACK = struct.Struct("@56xI")
"""`tcp_info.tcpi_last_ack_recv` of linux/tcp.h, in milliseconds."""


def lease_s(patience_s: float, interval_s: float) -> float:
    """How long a worker may go on without hearing anything.

    >>> lease_s(20.0, interval_s=0.5), lease_s(20.0, interval_s=6.0), lease_s(20.0, interval_s=30.0)
    (15.0, 16.0, 40.0)
    """
    return max(SHARE * patience_s, interval_s + LATE_SHARE * patience_s, LEAST_S)


class Lease:
    """Holds back the tasks of one worker while it hears nothing; what runs goes on.

    `absent` says why it does nothing, where that is so.
    """

    def __init__(self, worker: Worker, patience_s: float) -> None:
        self._worker = worker
        self._patience_s = patience_s
        self._looking = PeriodicCallback(self.look, LOOK_S * 1000)
        self._is_prepared = False
        self._answer = 0.0
        self._heard_s = time.monotonic()
        self.is_over = False
        self.absent = ""

    def start(self) -> None:
        self._looking.start()

    def stop(self) -> None:
        self._looking.stop()
        self._go_on()

    def look(self) -> None:
        """Whether anything was heard. A connection that is gone is Dask's affair, which closes the worker."""
        stream = self._worker.batched_stream
        if stream.comm is None or stream.comm.closed():
            return
        try:
            if not self._is_prepared:  # agents start before the worker has joined
                self._prepare()
            self._judge(time.monotonic())
        except Exception as error:  # noqa: BLE001 - whatever Dask has changed, the worker goes on without a lease
            self.absent = f"{type(error).__name__}: {error}"
            self.stop()
            get_logger(worker=self._worker.address, agent="lease").warning("lease_absent", reason=self.absent)

    def _prepare(self) -> None:
        """Have the kernel ask the scheduler's host now and then, and use once all that will be needed."""
        if sys.platform != "linux":
            raise OSError(f"{sys.platform} does not say when a packet was acknowledged")
        every_s = max(1, int(lease_s(self._patience_s, 0.0) / PROBES))
        connection = self._connection()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            if connection.getsockopt(socket.IPPROTO_TCP, option) > every_s:
                connection.setsockopt(socket.IPPROTO_TCP, option, every_s)
        self._last_ack_s()
        self._worker.handle_stimulus, self._worker.state.running  # noqa: B018 - are they there?
        self._heard_s = time.monotonic()
        self._is_prepared = True

    def _connection(self) -> socket.socket:
        """That on which tasks come."""
        return self._worker.batched_stream.comm.stream.socket  # type: ignore[no-any-return, union-attr]

    def _heartbeat_s(self) -> float:
        return float(self._worker.periodic_callbacks["heartbeat"].callback_time) / 1000.0

    def _last_ack_s(self) -> float:
        told = self._connection().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_ACK.size)
        return float(LAST_ACK.unpack(told)[0]) / 1000.0

    def _judge(self, now_s: float) -> None:
        if self._worker.scheduler_delay != self._answer:  # measured anew with each answer
            self._answer, self._heard_s = self._worker.scheduler_delay, now_s
        lease, silence_s = lease_s(self._patience_s, self._heartbeat_s()), now_s - self._heard_s
        if silence_s > lease:
            silence_s = min(silence_s, self._last_ack_s())
        if silence_s > lease:
            self._hold(silence_s)
        else:
            self._go_on()

    def _hold(self, silence_s: float) -> None:
        worker = self._worker
        if not self.is_over:
            self.is_over = True
            log = get_logger(worker=worker.address, agent="lease")
            log.warning("lease_over", silence_s=round(silence_s, 1), consequence="no task starts until it hears again")
        if worker.state.running:  # at once, and again where Dask has let it go on after a pause of its own
            worker.handle_stimulus(PauseEvent(stimulus_id=f"swarm-lease-over-{time.time()}"))

    def _go_on(self) -> None:
        worker = self._worker
        if not self.is_over:
            return
        self.is_over = False
        get_logger(worker=worker.address, agent="lease").info("lease_renewed")
        if worker.status is Status.running:
            worker.handle_stimulus(UnpauseEvent(stimulus_id=f"swarm-lease-renewed-{time.time()}"))
