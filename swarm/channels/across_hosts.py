"""Messages over Dask's own comms: between hosts, and on one host when nothing else works.

Frames for one process travel over one connection of Dask's pool, and those that come up while a call is under way go
together in the next. A batch has a number, and is sent again when the connection breaks: whoever has taken it already
answers as before. TLS is Dask's (`distributed.Security`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed.core import send_recv

from swarm.channels.communicator import Whereabouts, error_of
from swarm.channels.messages import MAX_BYTES, Priority
from swarm.errors import ChannelFullError, MessageTooLargeError, PeerLostError

BATCH_BYTES = 4 << 20
"""Of frames that go together: enough to hide the round trip, and little for an event loop."""
FIRST_RETRY_S, LAST_RETRY_S = 0.005, 0.1
"""Between two tries while the recipient has no room, or the connection breaks again and again."""
CONNECT_S = 0.5
"""Dask tries for so long to connect to a port at which nobody listens; a process that is only busy is connected to."""
MOST_PEERS = 4096
"""Whose last batch is remembered."""

TAKEN, FULL = "taken", "full"

Lane = tuple[str, Priority]
"""Frames for one agent with one priority arrive in the order in which they were sent."""


@dataclass(eq=False, slots=True)
class _Waiting:
    lane: Lane
    frame: bytes
    outcome: asyncio.Future[Any]
    was_full: bool = False


@dataclass(eq=False, slots=True)
class _Line:
    """What waits for one process."""

    address: str
    station: str
    waiting: list[_Waiting] = field(default_factory=list)
    resting: dict[Lane, tuple[float, float]] = field(default_factory=dict)
    """Whose recipient had no room → when to try again, and how long to rest then."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
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
        self._lines: dict[tuple[str, str], _Line] = {}
        self._numbers = itertools.count(1)

    def reaches(self, to: Whereabouts) -> bool:
        return bool(to.address)

    def send_now(self, to: Whereabouts, frame: bytes, priority: Priority) -> bool:
        """False: an answer has to be waited for."""
        return False

    async def send(self, to: Whereabouts, frame: bytes, priority: Priority, timeout_s: float) -> None:
        """Returns when the process has taken the frame; raises what it answers, or `PeerLostError`."""
        if len(frame) > MAX_BYTES:
            raise MessageTooLargeError(f"a frame has {len(frame)} bytes, at most {MAX_BYTES} are allowed")
        key = (to.address, to.station)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(*key)
        waiting = _Waiting((to.agent, priority), frame, asyncio.get_running_loop().create_future())
        line.waiting.append(waiting)
        line.news.set()
        if line.sender is None:
            line.sender = asyncio.create_task(self._send_all(line))
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await waiting.outcome
        except TimeoutError:
            if waiting.was_full:
                what = f"{to.agent} has made no room within {timeout_s:g} s; send less, or wait longer"
                raise ChannelFullError(what) from None
            raise PeerLostError(f"the process at {to.address} has not answered in time; it hangs, or is gone") from None
        if outcome != TAKEN:
            raise error_of(outcome)

    async def _send_all(self, line: _Line) -> None:
        try:
            while line.waiting:
                line.news.clear()
                if batch := _next_batch(line):
                    await self._send_some(line, batch)
                elif line.waiting:  # all of it for recipients without room
                    until_s = min(line.resting[each.lane][0] for each in line.waiting)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(until_s - time.monotonic()):
                            await line.news.wait()
        finally:
            line.sender = None
            if not line.waiting:
                self._lines.pop((line.address, line.station), None)

    async def _send_some(self, line: _Line, batch: list[_Waiting]) -> None:
        answer = await self._answer_to(line, batch)
        if isinstance(answer, str) or len(answer) != len(batch):
            said = answer if isinstance(answer, str) else f"gave {len(answer)} answers to {len(batch)} frames"
            lost = outcome_of(PeerLostError(f"the process at {line.address} {said}"))
            answer = [lost] * len(batch)
        refused = []
        for each, outcome in zip(batch, answer, strict=True):
            if outcome == FULL:
                each.was_full = True
                refused.append(each)
            else:
                line.resting.pop(each.lane, None)
                if not each.outcome.done():
                    each.outcome.set_result(outcome)
        line.waiting[:0] = refused
        for lane in {each.lane for each in refused}:
            _, pause_s = line.resting.get(lane, (0.0, FIRST_RETRY_S))
            line.resting[lane] = (time.monotonic() + pause_s, min(2 * pause_s, LAST_RETRY_S))

    async def _answer_to(self, line: _Line, batch: list[_Waiting]) -> Any:
        """One outcome for each frame, or why there is none; tries again as long as anybody waits for it."""
        call: dict[str, Any] = {
            "op": "swarm_message",
            "station": self._me,
            "to": line.station,
            "number": next(self._numbers),
            "lanes": [[agent, int(priority)] for agent, priority in (each.lane for each in batch)],
            "frames": [each.frame for each in batch],
        }
        pause_s, why = FIRST_RETRY_S, ""
        while not all(each.outcome.done() for each in batch):
            try:
                comm = await self._rpc.connect(line.address, timeout=CONNECT_S)
                try:
                    answer = await send_recv(comm, **call)
                finally:
                    self._rpc.reuse(line.address, comm)
            except OSError as error:
                why = f"can't be reached: {error}"
                if _is_refused(error):
                    return f"has ended, {why}"
            except Exception as error:  # noqa: BLE001 - of the handler there, or of Dask's pool here as it closes
                return f"can't be sent to: {type(error).__name__}: {error}"
            else:
                return "has no agents any more" if answer is None else answer  # Dask's answer without such a handler
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)
        return why

    async def close(self) -> None:
        senders = [line.sender for line in self._lines.values() if line.sender is not None]
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)


def _next_batch(line: _Line) -> list[_Waiting]:
    """Of what waits and is still wanted, the most urgent first: as much as may go together."""
    line.waiting = [each for each in line.waiting if not each.outcome.done()]
    line.waiting.sort(key=lambda each: each.lane[1])  # stable: the oldest of a priority stay first
    now_s, size = time.monotonic(), 0
    batch, rest = list[_Waiting](), list[_Waiting]()
    for each in line.waiting:
        until_s, _ = line.resting.get(each.lane, (0.0, 0.0))
        is_awake = until_s <= now_s
        size += is_awake * len(each.frame)
        (batch if is_awake and (size <= BATCH_BYTES or not batch) else rest).append(each)
    line.waiting = rest
    return batch


def _is_refused(error: BaseException | None) -> bool:
    """Whether nobody listens there any more: Dask tells how a connection failed in the cause of the cause."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


class Arrivals:
    """Takes what `DaskCarrier` sends: each batch once, however often it comes, and the batches of a peer in order.

    Parameters
    ----------
    take
        `take(station, frame)` takes a frame from a process: `TAKEN`, `FULL`, or `outcome_of` an error.
    """

    def __init__(self, take: Callable[[str, object], Awaitable[Any]]) -> None:
        self._take = take
        self._last: dict[str, tuple[int, asyncio.Task[list[Any]]]] = {}

    async def came(
        self, station: str, number: int, lanes: Sequence[Sequence[Any]], frames: Sequence[object]
    ) -> list[Any]:
        """For each frame what became of it."""
        last, taking = self._last.pop(station, (0, None))
        if taking is None or last != number:
            taking = asyncio.create_task(self._take_all(taking, station, lanes, frames))
        self._last[station] = (number, taking)
        if len(self._last) > MOST_PEERS:
            del self._last[next(iter(self._last))]
        return await asyncio.shield(taking)  # the handler is cancelled with its connection, not what it began

    async def _take_all(
        self,
        before: asyncio.Task[list[Any]] | None,
        station: str,
        lanes: Sequence[Sequence[Any]],
        frames: Sequence[object],
    ) -> list[Any]:
        if before is not None:
            await asyncio.wait({before})
        full, outcomes = set[tuple[Any, ...]](), list[Any]()
        for lane, frame in zip(map(tuple, lanes), frames, strict=True):
            outcome = FULL if lane in full else await self._take(station, frame)
            if outcome == FULL:  # what comes after it must not overtake it
                full.add(lane)
            outcomes.append(outcome)
        return outcomes


def outcome_of(error: Exception) -> Mapping[str, str]:
    """What `swarm_message` answers for a frame that it refuses."""
    return {"error": type(error).__name__, "message": " ".join(str(error).split())}
