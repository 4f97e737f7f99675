"""The home of agents on one Dask server: a worker, a nanny, or the scheduler.

A worker or nanny has one once the scheduler has sent it an agent (`swarm.agents.door`), the scheduler always.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed.protocol import pickle

from swarm.agents.life.supervisor import Supervisor
from swarm.agents.spec import AgentSpec, unpack_state
from swarm.agents.watch.process_state import identity
from swarm.channels.acl import AccessRules
from swarm.channels.across_hosts import FULL, TAKEN, Arrivals, DaskCarrier, outcome_of
from swarm.channels.communicator import Carrier, Communicator, Registrar, Whereabouts, error_of
from swarm.channels.folder import station_folder
from swarm.channels.handshake import ID_BYTES
from swarm.channels.messages import ERROR, MAX_BYTES, Message, Priority, decode
from swarm.channels.station import Options, PeerInfo, Station
from swarm.config import Layer, Settings, resolve
from swarm.errors import (
    AgentError,
    AgentFailedError,
    ChannelError,
    ChannelFullError,
    ForbiddenMessageError,
    MessageError,
    SwarmError,
    UnknownAgentError,
)
from swarm.protocol import AGENTS
from swarm.telemetry.logs import get_logger

PATIENCE_S = 10.0
"""For an answer of the scheduler to where an agent is."""
BUSY = 100
"""Messages per second on a channel that make shared memory worth it."""
ROOM_S = 10.0
"""A frame waits for room in its mailbox for so long, then is asked about again: its recipient may have moved."""
MAX_REPORT_BYTES = 1 << 20
"""Of the states that go with one heartbeat; what does not fit goes with a later one."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What the last heartbeat said of an agent."""

    at_s: float
    busy_s: float
    kept: bytes = b""


class RemoteRegistrar:
    """Asks the scheduler where agents are."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    async def find(self, agent: str) -> Whereabouts:
        return Whereabouts.from_wire(await self._ask("swarm_find_agent", agent=agent))

    async def of_kind(self, kind: str) -> list[Whereabouts]:
        return [Whereabouts.from_wire(entry) for entry in await self._ask("swarm_agents_of_kind", kind=kind)]

    async def _ask(self, operation: str, **arguments: str) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await getattr(self._scheduler, operation)(**arguments)
        except (OSError, TimeoutError) as error:
            raise ChannelError(f"the scheduler can't be asked where agents are: {error}") from None
        if isinstance(answer, Mapping):
            raise error_of(answer)
        return answer


class StationCarrier:
    """Shared memory and Unix sockets, for the processes of this host."""

    name = "host"

    def __init__(self, station: Station, host: str) -> None:
        self._station = station
        self._host = host

    def reaches(self, to: Whereabouts) -> bool:
        return bool(to.socket) and to.host == self._host

    def send_now(self, to: Whereabouts, frame: bytes, priority: Priority) -> bool:
        return self._station.send_now(to.station, frame, priority)

    async def send(self, to: Whereabouts, frame: bytes, priority: Priority, timeout_s: float) -> None:
        await self._station.send(to.socket, to.station, frame, priority, timeout_s)


class Home:
    """What a Dask server needs to have agents.

    Parameters
    ----------
    server
        The `Worker`, `Nanny` or `Scheduler`.
    registrar
        Who knows where agents are.
    """

    def __init__(self, server: Any, registrar: Registrar) -> None:
        self._server = server
        self._registrar = registrar
        self._log = get_logger(agent="home", place=server.address)
        self._loop = asyncio.get_running_loop()
        self._opening = asyncio.Lock()
        self._is_closed = False
        self._reported: dict[str, Reported] = {}
        self._arrivals = Arrivals(self._take)
        self.id = secrets.token_hex(ID_BYTES)
        """Of this process, among all of the swarm."""
        self.host = ""
        self.supervisor: Supervisor | None = None
        self.station: Station | None = None
        self.communicator: Communicator | None = None
        self.no_station = ""
        """Why this process can't be reached at a socket, if it can't."""
        self.handlers: dict[str, Callable[..., Awaitable[Any]]] = {
            "swarm_agent_start": self.start_agent,
            "swarm_agent_stop": self.stop_agent,
            "swarm_agent_status": self.status,
            "swarm_message": self.message,
        }

    async def open(self, settings: Settings, token: bytes) -> Communicator:
        """Be ready for agents, and for messages to them; raises `AgentFailedError` when it is too late."""
        async with self._opening:
            if self._is_closed:
                raise AgentFailedError(f"{self._server.address} is closing: it takes no agents any more")
            if self.communicator is None:
                await self._listen(settings, token)
                carriers: list[Carrier] = [DaskCarrier(self.id, self._server.rpc)]
                if self.station is not None:
                    carriers.insert(0, StationCarrier(self.station, self.host))
                self.communicator = Communicator(
                    self.id, lambda: self.supervisor, self._registrar, carriers, AccessRules.default(), self.audit
                )
                self.supervisor = Supervisor(
                    self.communicator,
                    settings,
                    on_event=self._on_event,
                    audit=self.audit,
                    place=self._server.address,
                    dask=self._server,
                )
        return self.communicator

    async def _listen(self, settings: Settings, token: bytes) -> None:
        try:
            folder = station_folder()
            options = Options(
                channel_size=settings.channel_size,
                encrypt=settings.channel_encryption,
                hasten_after=BUSY if settings.shared_memory else None,
            )
            station = Station(folder, token, self._on_frame, on_refused=self._on_refused, options=options)
            await station.start()
        except (SwarmError, OSError) as error:
            self.no_station = str(error)
            self._log.warning("no_channels_on_this_host", reason=str(error), consequence="messages go over Dask")
            return
        self.station, self.id, self.host = station, station.id, host_of(folder)

    async def close(self) -> None:
        """End all agents and channels; an agent that comes now is refused."""
        async with self._opening:
            self._is_closed = True
            if self.supervisor is not None:
                await self.supervisor.close()
            if self.communicator is not None:
                for carrier in self.communicator.carriers:
                    if isinstance(carrier, DaskCarrier):
                        await carrier.close()
            if self.station is not None:
                await self.station.close()
            self.supervisor = self.station = self.communicator = None

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    async def start_agent(
        self, agent: str, spec: bytes, kept: bytes, settings: Mapping[str, Any], token: bytes
    ) -> dict[str, Any]:
        """Start an agent here; answers where it can be reached, or an error."""
        try:
            await self.open(resolve([Layer("scheduler", dict(settings))]).settings, token)
            assert self.supervisor is not None
            made: AgentSpec = replace(pickle.loads(spec), agent_id=agent)
            await self.supervisor.create(replace(made, state=unpack_state(kept)) if kept else made)
        except SwarmError as error:
            return dict(outcome_of(error))
        except Exception as error:  # noqa: BLE001 - the class comes from a user: whatever is wrong with it, say so there
            what = f"{agent} can't be made on {self._server.address}: {type(error).__name__}: {error}"
            return {"error": "AgentFailedError", "message": " ".join(what.split())}
        return {
            "station": self.id,
            "address": self._server.address,
            "socket": "" if self.station is None else str(self.station.path),
            "host": self.host,
        }

    async def stop_agent(self, agent: str) -> dict[str, Any]:
        """End an agent."""
        if self.supervisor is not None:
            try:
                await self.supervisor.destroy(agent)
            except AgentError as error:
                return dict(outcome_of(error))
        return {}

    async def status(self) -> dict[str, Any]:
        """All that is known of the agents here, and of their messages."""
        return {
            "place": self._server.address,
            "agents": [] if self.supervisor is None else self.supervisor.status(),
            "messages": None if self.communicator is None else self.communicator.statistics(),
            "channels": None if self.station is None else self.station.status(),
            "no_channels": self.no_station,
        }

    # -- messages -----------------------------------------------------------------------------------------------------

    async def message(
        self, station: str, to: str, number: int, lanes: Sequence[Sequence[Any]], frames: Sequence[bytes]
    ) -> list[Any] | str:
        """Frames from another process over Dask (`DaskCarrier`): for each `taken`, `full`, or an error."""
        if to != self.id:
            return "has ended, another one is there now"
        return await self._arrivals.came(station, number, lanes, frames)

    async def _take(self, station: str, frame: object) -> Any:
        if self.communicator is None:
            return outcome_of(UnknownAgentError(f"there are no agents at {self._server.address}"))
        if not isinstance(frame, bytes | bytearray | memoryview) or len(frame) > MAX_BYTES:
            return outcome_of(MessageError(f"a frame is a {type(frame).__name__}, must be at most {MAX_BYTES} bytes"))
        try:
            return TAKEN if await self.communicator.arrived(bytes(frame), station) else FULL
        except SwarmError as error:
            return outcome_of(error)

    def _on_frame(self, peer: PeerInfo, frame: bytes, priority: Priority) -> bool | Awaitable[bool]:
        """A frame from a process of this host."""
        assert self.communicator is not None
        return self.communicator.arrived_now(frame, peer.id) or self._on_unusual_frame(peer, frame)

    async def _on_unusual_frame(self, peer: PeerInfo, frame: bytes) -> bool:
        """One that has to wait for room, or be asked about, or is refused, which is answered if its sender waits."""
        assert self.communicator is not None
        try:
            return await self.communicator.arrived(frame, peer.id, timeout_s=ROOM_S)
        except ChannelFullError:
            return False
        except SwarmError as error:
            if not isinstance(error, MessageError | ForbiddenMessageError):  # those are in the audit trail already
                self.audit("message_undeliverable", station=peer.id, reason=str(error))
            if not isinstance(error, MessageError) and (message := decode(frame)).wants_answer:
                await self._refuse(message, error)
            return True

    def _on_refused(self, what: str) -> None:
        self.audit("caller_refused", reason=what)

    async def _refuse(self, message: Message, error: SwarmError) -> None:
        assert self.communicator is not None
        try:
            await self.communicator.send(message.answer(dict(outcome_of(error)), ERROR), timeout_s=1.0)
        except SwarmError as why_not:  # whoever asked will hear nothing until its own deadline
            self._log.warning("refusal_not_sent", to=message.sender, reason=str(why_not))

    # -- what the scheduler hears -------------------------------------------------------------------------------------

    def report(self) -> dict[str, dict[str, Any]]:
        """For a heartbeat: the load of each agent, and its state if that is not as last reported."""
        report: dict[str, dict[str, Any]] = {}
        if self.supervisor is None:
            return report
        room, now_s = MAX_REPORT_BYTES, time.monotonic()
        for agent, (restarts, busy_s, fill_ratio) in self.supervisor.loads():
            before = self._reported.get(agent, Reported(now_s, busy_s))
            load = (busy_s - before.busy_s) / max(now_s - before.at_s, 1e-3)
            load = min(1.0, max(load, fill_ratio))
            said: dict[str, Any] = {"restarts": restarts, "load": round(load, 4)}
            report[agent] = said
            kept = self.supervisor.kept(agent)
            if kept != before.kept and len(kept) <= room:
                said["kept"] = kept
                room -= len(kept)
            else:
                kept = before.kept
            self._reported[agent] = Reported(now_s, busy_s, kept)
        return report

    def audit(self, what: str, **details: Any) -> None:
        """Note a change that an agent makes to the system, or a message that was refused."""
        self._tell("audit", what=what, **details)

    def _on_event(self, name: str, details: Mapping[str, Any]) -> None:
        self._tell("agent", what=name, **details)
        if name in ("stopped", "failed"):
            self._reported.pop(str(details["agent"]), None)

    def _tell(self, about: str, **details: Any) -> None:
        self._log.info(about, **details)
        message = {"about": about, "place": self._server.address, "at_s": time.time(), **details}
        self._loop.call_soon_threadsafe(self._server.log_event, AGENTS, message)  # agents may have threads of their own


def host_of(folder: Path) -> str:
    """The same for processes that see the same folder of sockets."""
    there = folder.stat()
    return f"{identity()[2]} {there.st_dev}:{there.st_ino}"
