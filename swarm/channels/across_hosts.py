"""Messages over Dask's own comms: between hosts, and on one host when nothing else works.

Frames for one process travel over one connection of Dask's pool, and those that come up while a call is under way go
together in the next. TLS is Dask's (`distributed.Security`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarm.channels.communicator import Whereabouts, error_of
from swarm.channels.messages import Priority
from swarm.errors import ChannelFullError, PeerLostError

BATCH_BYTES = 4 << 20
"""Of frames that go together: enough to hide the round trip, and little for an event loop."""
FIRST_RETRY_S, LAST_RETRY_S = 0.005, 0.1
"""Between two tries while the recipient has no room."""

TAKEN, FULL = "taken", "full"


@dataclass(eq=False)
class _Waiting:
    frame: bytes
    priority: Priority
    outcome: asyncio.Future[Any]


@dataclass(eq=False)
class _Line:
    """What waits for one process."""

    waiting: list[_Waiting] = field(default_factory=list)
    sender: asyncio.Task[None] | None = None


class DaskCarrier:
    """Sends frames to the handler `swarm_message` of Dask servers.

    Parameters
    ----------
    me
        Id of this process.
    rpc
        `distributed.core.Server.rpc` of the server here: its pool of connections.
    """

    name = "dask"

    def __init__(self, me: str, rpc: Any) -> None:
        self._me = me
        self._rpc = rpc
        self._lines: dict[str, _Line] = {}

    def reaches(self, to: Whereabouts) -> bool:
        return bool(to.address)

    async def send(self, to: Whereabouts, frame: bytes, priority: Priority, timeout_s: float) -> None:
        """Returns when the process has taken the frame; raises what it answers, or `PeerLostError`."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = FIRST_RETRY_S
        while (outcome := await self._once(to, frame, priority, deadline_s)) == FULL:
            if time.monotonic() + pause_s > deadline_s:
                raise ChannelFullError(f"{to.agent} has made no room within {timeout_s:g} s; send less, or wait longer")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)
        if outcome != TAKEN:
            raise error_of(outcome)

    async def _once(self, to: Whereabouts, frame: bytes, priority: Priority, deadline_s: float) -> Any:
        line = self._lines.setdefault(to.address, _Line())
        waiting = _Waiting(frame, priority, asyncio.get_running_loop().create_future())
        line.waiting.append(waiting)
        if line.sender is None:
            line.sender = asyncio.create_task(self._send_all(to.address, line))
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic()) + LAST_RETRY_S):
                return await waiting.outcome
        except TimeoutError:
            raise PeerLostError(f"the process at {to.address} has not answered in time; it hangs, or is gone") from None

    async def _send_all(self, address: str, line: _Line) -> None:
        try:
            while line.waiting:
                await self._send_some(address, _next_batch(line))
        finally:
            line.sender = None
            if not line.waiting:
                self._lines.pop(address, None)

    async def _send_some(self, address: str, batch: list[_Waiting]) -> None:
        try:
            answer = await self._rpc(address).swarm_message(station=self._me, frames=[each.frame for each in batch])
        except OSError as error:
            answer = f"can't be reached: {error}"
        if answer is None:  # what Dask answers when it has no such handler
            answer = "has no agents any more"
        if isinstance(answer, str) or len(answer) != len(batch):
            said = answer if isinstance(answer, str) else f"gave {len(answer)} answers to {len(batch)} frames"
            lost = outcome_of(PeerLostError(f"the process at {address} {said}"))
            answer = [lost] * len(batch)
        for each, outcome in zip(batch, answer, strict=True):
            if not each.outcome.done():
                each.outcome.set_result(outcome)

    async def close(self) -> None:
        senders = [line.sender for line in self._lines.values() if line.sender is not None]
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)


def _next_batch(line: _Line) -> list[_Waiting]:
    """Of what waits and is still wanted, the most urgent first: as much as may go together."""
    line.waiting = [each for each in line.waiting if not each.outcome.done()]
    line.waiting.sort(key=lambda each: each.priority)  # stable: the oldest of a priority stay first
    n, size = 0, 0
    for each in line.waiting:
        size += len(each.frame)
        if n and size > BATCH_BYTES:
            break
        n += 1
    batch, line.waiting = line.waiting[:n], line.waiting[n:]
    return batch


def outcome_of(error: Exception) -> Mapping[str, str]:
    """What `swarm_message` answers for a frame that it refuses."""
    return {"error": type(error).__name__, "message": " ".join(str(error).split())}
