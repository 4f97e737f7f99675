"""Ways to send bytes between two processes of a host, each with a wait that blocks: our rings and their peers.

pyzmq and iceoryx2 are measured where they are installed; swarm does not need them, so it does not ask for them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from swarm.channels.ring import SPIN_US, Ring

CAPACITY_BYTES = 1 << 20
LARGEST_BYTES = 65536
WAIT_S = 60.0
BATCH = 256

Send, Receive = Callable[[bytes], Any], Callable[[], bytes]


class Transport:
    """Made before the fork; then each process opens its side, 0 or 1."""

    name: ClassVar[str]

    def open(self, side: int) -> tuple[Send, Receive]:
        raise NotImplementedError

    def many(self, side: int) -> tuple[Callable[[Sequence[bytes]], Any], Callable[[], list[bytes]]] | None:
        """Send and receive lists, where there is such a thing."""
        return None

    def close(self) -> None:
        """In both processes, at the end."""

    @staticmethod
    def absent() -> str:
        """Why it can't be measured here; empty when it can."""
        return ""


class Rings(Transport):
    name = "ring"
    spin_us = SPIN_US

    def __init__(self) -> None:
        self.rings = [Ring.create(CAPACITY_BYTES) for _ in range(2)]

    def open(self, side: int) -> tuple[Send, Receive]:
        if side:  # a child does not use the rings of its parent: it maps them anew, as after SCM_RIGHTS
            self.rings = [Ring.attach(os.dup(ring.fd)) for ring in self.rings]
        self.writer = self.rings[side].writer(spin_us=self.spin_us)
        self.reader = self.rings[1 - side].reader(spin_us=self.spin_us)
        return lambda data: self.writer.send(data, WAIT_S), lambda: self.reader.receive(WAIT_S) or b""

    def many(self, side: int) -> tuple[Callable[[Sequence[bytes]], Any], Callable[[], list[bytes]]]:
        return lambda messages: self.writer.send_many(messages, WAIT_S), lambda: self.reader.receive_many(WAIT_S)

    def close(self) -> None:
        for ring in self.rings:
            ring.close()


class RingsWithoutSpinning(Rings):
    name = "ring, never spins"
    spin_us = 0.0


class UnixSocket(Transport):
    name = "Unix socket (SEQPACKET)"

    def __init__(self) -> None:
        self.pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def open(self, side: int) -> tuple[Send, Receive]:
        ours = self.pair[side]
        return ours.send, lambda: ours.recv(LARGEST_BYTES)

    def close(self) -> None:
        for end in self.pair:
            end.close()


class Pipe(Transport):
    name = "multiprocessing.Pipe"

    def __init__(self) -> None:
        self.pair = multiprocessing.Pipe()

    def open(self, side: int) -> tuple[Send, Receive]:
        return self.pair[side].send_bytes, self.pair[side].recv_bytes

    def close(self) -> None:
        for end in self.pair:
            end.close()


class Queue(Transport):
    name = "multiprocessing.Queue"

    def __init__(self) -> None:
        self.queues: list[Any] = [multiprocessing.get_context("fork").Queue() for _ in range(2)]

    def open(self, side: int) -> tuple[Send, Receive]:
        return self.queues[side].put, self.queues[1 - side].get

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
            queue.join_thread()


class ZeroMQ(Transport):
    name = "pyzmq (ipc)"

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="swarm-zmq-")
        self.owner = os.getpid()

    def open(self, side: int) -> tuple[Send, Receive]:
        zmq = import_module("zmq")
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.set_hwm(10_000)
        address = f"ipc://{Path(self.folder.name, 'socket')}"
        self.socket.connect(address) if side else self.socket.bind(address)
        return self.socket.send, self.socket.recv

    def close(self) -> None:
        self.context.destroy(linger=0)
        if os.getpid() == self.owner:
            self.folder.cleanup()

    @staticmethod
    def absent() -> str:
        return "" if find_spec("zmq") else "pyzmq is not installed"


class Iceoryx2(Transport):
    """Publish and subscribe, with an event for each message, so that the receiver can block."""

    name = "iceoryx2"

    def __init__(self) -> None:
        self.prefix = f"swarm-benchmark-{os.getpid()}"

    def open(self, side: int) -> tuple[Send, Receive]:
        iox = import_module("iceoryx2")
        iox.set_log_level(iox.LogLevel.Error)
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        self.kept: list[Any] = []
        names = [iox.ServiceName.new(f"{self.prefix}-{way}") for way in (0, 1)]
        data = [
            self.node.service_builder(name)
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .subscriber_max_buffer_size(16)
            .enable_safe_overflow(False)
            .open_or_create()
            for name in names
        ]
        events = [self.node.service_builder(name).event().open_or_create() for name in names]
        publisher = (
            data[side]
            .publisher_builder()
            .initial_max_slice_len(LARGEST_BYTES)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        subscriber = data[1 - side].subscriber_builder().create()
        notifier, listener = events[side].notifier_builder().create(), events[1 - side].listener_builder().create()
        self.kept = [data, events, publisher, subscriber, notifier, listener]
        while not (data[side].dynamic_config.number_of_subscribers and events[side].dynamic_config.number_of_listeners):
            time.sleep(0.001)

        def send(message: bytes) -> None:
            sample = publisher.loan_slice_uninit(len(message))
            ctypes.memmove(sample.payload_ptr, message, len(message))
            sample.assume_init().send()
            notifier.notify()

        def receive() -> bytes:
            while (sample := subscriber.receive()) is None:
                listener.blocking_wait()
            message = ctypes.string_at(sample.payload_ptr, sample.header.number_of_elements)
            sample.delete()
            return message

        return send, receive

    def close(self) -> None:
        self.kept.clear()
        del self.node

    @staticmethod
    def absent() -> str:
        return "" if find_spec("iceoryx2") else "iceoryx2 is not installed (pip install iceoryx2)"


TRANSPORTS: tuple[type[Transport], ...] = (*(Rings, RingsWithoutSpinning, UnixSocket, Pipe, Queue, ZeroMQ, Iceoryx2),)
