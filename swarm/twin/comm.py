"""Dask comms over the simulated network, for what is not hot: clients, requests between servers, nannies.

The streams between scheduler and workers go through `swarm.twin.wire` instead, without a coroutine per message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.comm.core import BaseListener, Comm, CommClosedError, Connector
from distributed.comm.registry import Backend, backends
from distributed.protocol.serialize import Serialize, _nested_deserialize

if TYPE_CHECKING:
    from swarm.twin.network import Fabric

PREFIX = "sim"
_fabrics: list[Fabric] = []
"""The one of the simulation that runs."""

_EOF = object()


class SimulatedComm(Comm):
    """One end of a connection; each message arrives when the network has carried it."""

    def __init__(self, fabric: Fabric, local: str, peer: str, deserialize: bool) -> None:
        super().__init__(deserialize=deserialize)
        self._fabric = fabric
        self._local = local
        self._peer = peer
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[Any] | None = None
        self._closed = False
        self.other: SimulatedComm

    # Names that `distributed.comm.connect` reads.
    @property
    def _local_addr(self) -> str:
        return self._local

    @property
    def _peer_addr(self) -> str:
        return self._peer

    @property
    def local_address(self) -> str:
        return self._local

    @property
    def peer_address(self) -> str:
        return self._peer

    @property
    def same_host(self) -> bool:
        return host_of(self._local) == host_of(self._peer)

    async def read(self, deserializers: Any = None) -> Any:
        if self._closed:
            raise CommClosedError(f"connection to {self._peer} is closed")
        if self._inbox:
            message = self._inbox.popleft()
        else:
            self._reader = self._fabric.loop.create_future()
            try:
                message = await self._reader
            finally:
                self._reader = None
        if message is _EOF:
            self._closed = True
            raise CommClosedError(f"{self._peer} closed the connection")
        return _nested_deserialize(message, self.deserialize)

    async def write(self, msg: Any, serializers: Any = None, on_error: Any = None) -> int:
        if self.closed():
            raise CommClosedError(f"connection to {self._peer} is closed")
        size = payload_bytes(msg)
        messages = len(msg) if isinstance(msg, (list, tuple)) else 1
        self._fabric.carry(self._local, self._peer, size, messages, self.other._arrived, msg)
        return max(size, 1)

    def _arrived(self, message: Any) -> None:
        if self._closed:
            return
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(message)
        else:
            self._inbox.append(message)

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._fabric.carry(self._local, self._peer, 0, 0, self.other._arrived, _EOF)
        if self._reader is not None and not self._reader.done():
            self._reader.set_exception(CommClosedError(f"connection to {self._peer} is closed"))

    def reset(self) -> None:
        """The other end is gone, or out of reach for too long."""
        if not self._closed:
            self._arrived(_EOF)

    def closed(self) -> bool:
        return self._closed or (bool(self._inbox) and self._inbox[0] is _EOF)


class SimulatedListener(BaseListener):
    """Takes connections for an address."""

    prefix = PREFIX

    def __init__(self, location: str, handle_comm: Callable[[Comm], Any], deserialize: bool) -> None:
        super().__init__()
        self.address = f"{PREFIX}://{location}"
        self.handle_comm = handle_comm
        self.deserialize = deserialize

    async def start(self) -> None:
        _fabrics[-1].listeners[self.address] = self

    def stop(self) -> None:
        if _fabrics and _fabrics[-1].listeners.get(self.address) is self:
            del _fabrics[-1].listeners[self.address]

    async def accept(self, comm: Comm) -> None:
        try:
            await self.on_connection(comm)
        except CommClosedError:
            return
        await self.handle_comm(comm)

    @property
    def listen_address(self) -> str:
        return self.address

    @property
    def contact_address(self) -> str:
        return self.address


class SimulatedConnector(Connector):
    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Comm:
        fabric = _fabrics[-1]
        peer = f"{PREFIX}://{address}"
        local = f"{PREFIX}://{fabric.caller_host()}:{next(fabric.ports)}"
        fabric.place_port(local, peer)
        accepted = fabric.loop.create_future()
        fabric.carry(local, peer, 0, 1, fabric.knock, local, peer, deserialize, accepted)
        comm: Comm = await accepted
        return comm


class SimulatedBackend(Backend):
    def get_connector(self) -> Connector:
        return SimulatedConnector()

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any) -> SimulatedListener:
        return SimulatedListener(loc, handle_comm, deserialize)

    def get_address_host(self, loc: str) -> str:
        return loc.rpartition(":")[0]

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        return f"{PREFIX}://{_fabrics[-1].caller_host()}:0"


def host_of(address: str) -> str:
    """The host of an address.

    >>> host_of("sim://h7:9000")
    'h7'
    """
    return address.partition("://")[2].rpartition(":")[0]


def payload_bytes(message: Any) -> int:
    """What the data in an answer to `get_data`, or in a batch of results, weighs."""
    if isinstance(message, dict):
        data = message.get("data")
        if isinstance(data, dict):
            return sum(_weight(value) for value in data.values())
    return 0


def _weight(value: Any) -> int:
    if isinstance(value, Serialize):
        value = value.data
    return int(getattr(value, "nbytes", 0))


backends.setdefault(PREFIX, SimulatedBackend())
