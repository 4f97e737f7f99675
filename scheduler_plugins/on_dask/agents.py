"""The agents of a swarm, seen from the scheduler: creates them where they belong, finds them, starts them again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.agent_scale import Autoscaler
from scheduler_plugins.decide.agents import SCHEDULER, Group, Member, Plan, Registry, Start, Worker
from swarm.agents.home import Home
from swarm.channels.across_hosts import outcome_of
from swarm.channels.communicator import Communicator, Whereabouts
from swarm.channels.messages import ANSWER, Message, decode, encode
from swarm.errors import AgentDefinitionError, AgentError, AgentFailedError, SwarmError, UnknownAgentError
from swarm.protocol import AGENTS, AgentChanged, ChangeAudited, Event

if TYPE_CHECKING:
    from distributed import Scheduler

    from scheduler_plugins.on_dask.membership import Membership
    from swarm.config import Settings

PART = "agents"
"""What the guard calls it."""
CLIENT = "client"
"""What the messages of clients have as their sender, and what access rules call it."""
START_TIMEOUT_S = 60.0
"""A process of its own that imports much on a busy host may take long."""
STOP_TIMEOUT_S = 30.0
NANNY_PATIENCE_S = 30.0
"""For a nanny to start another worker; then its agents are started elsewhere."""
PATIENCE_S, LOOK_S = 5.0, 0.02
"""Who looks for an agent that is starting, perhaps in another place, waits so long."""

TAKES_CODE = "register_scheduler_plugin"
"""Dask's handler that takes code too; who blocks it wants no code of others in the scheduler."""
STATES = {"started": "running", "restarted": "running", "moved": "running"}
"""What supervisors say has happened → the state after it."""

Reply = Mapping[str, Any]


class Agents:
    """Keeps the agents that users asked for.

    Parameters
    ----------
    members
        Which workers have agents and witnesses.
    publish
        Takes events.
    """

    def __init__(
        self, scheduler: Scheduler, members: Membership, settings: Settings, publish: Callable[[Event], None]
    ) -> None:
        self._scheduler = scheduler
        self._members = members
        self._settings = settings
        self._publish = publish
        self._scalers: dict[str, Autoscaler] = {}
        self._is_closed = False
        self._nannies: dict[str, str] = {}
        self._away: dict[str, tuple[str, float]] = {}
        self._specs: dict[str, bytes] = {}
        self.registry = Registry(settings.max_agents)
        self.token = secrets.token_bytes(32)
        """What processes of this swarm know each other by."""
        self.home = Home(scheduler, self)
        self.hear: Callable[[Message], None] | None = None
        """Takes what agents send to the scheduler itself."""
        self.handlers: dict[str, Callable[..., Any]] = {
            "swarm_create_agent": self.create_agent,
            "swarm_destroy_agent": self.destroy_agent,
            "swarm_find_agent": self.find_agent,
            "swarm_agents_of_kind": self.agents_of_kind,
            "swarm_send_message": self.send_message,
            "swarm_broadcast_message": self.broadcast_message,
            "swarm_system_status": self.system_status,
            "swarm_message": self.home.message,
        }

    # -- Dask's hooks -------------------------------------------------------------------------------------------------

    def workers_changed(self) -> None:
        """A worker has joined, has got its agents, or is gone."""
        if not self._is_closed and (self.registry.groups or self.registry.members):
            self._mend_soon()

    def log_event(self, topic: str, message: object) -> None:
        """A worker or nanny tells about its agents."""
        if topic != AGENTS or not isinstance(message, Mapping):
            return
        told = dict(message)
        about, place, at_s = told.pop("about", ""), str(told.pop("place", "")), float(told.pop("at_s", 0.0))
        what = str(told.pop("what", ""))
        told.pop("worker", None)  # Dask's addition
        if about == "agent":
            state = STATES.get(what, what)
            self._changed(
                str(told.get("agent")), place, state, str(told.get("reason") or ""), told.get("restarts"), at_s
            )
        elif about == "audit":
            agent = str(told.pop("agent", ""))
            self._publish(ChangeAudited(at_s=at_s, place=place, what=what, agent=agent, details=_plain(told)))

    def heard(self, report: object) -> None:
        """A heartbeat brought what is new of a worker's agents."""
        for agent, said in report.items() if isinstance(report, Mapping) else ():
            member = self.registry.members.get(agent)
            if member is not None and isinstance(said, Mapping):
                member.status.update({name: said[name] for name in ("load", "restarts") if name in said})
                if isinstance(kept := said.get("kept"), bytes):
                    member.kept = kept

    def look(self) -> None:
        """Let groups grow and shrink with their load; called each second."""
        if not self._settings.auto_scaling:
            return
        for group in self.registry.groups.values():
            if group.maximum > group.minimum:
                loads = [float(m.status.get("load") or 0.0) for m in self._of(group) if m.state == "running"]
                scaler = self._scalers.setdefault(group.name, Autoscaler())
                before = group.target
                group.target = scaler.look(
                    loads, before, minimum=group.minimum, maximum=group.maximum, now_s=time.monotonic()
                )
                if group.target != before:
                    self._tell_scaled(group, before, loads)
                    self._mend_soon()

    def _tell_scaled(self, group: Group, before: int, loads: list[float]) -> None:
        load = round(sum(loads), 2)
        details: dict[str, float | int | str | None] = {"from": before, "to": group.target, "load": load}
        self._publish(
            ChangeAudited(at_s=time.time(), place=SCHEDULER, what="agents_scaled", agent=group.name, details=details)
        )

    async def close(self) -> None:
        self._is_closed = True
        await self.home.close()

    # -- creating and destroying --------------------------------------------------------------------------------------

    async def create_agent(self, spec: bytes, about: Mapping[str, Any]) -> Reply:
        """A user wants an agent, or several; answers which run, and where."""
        try:
            group = Group(**about, spec=spec)
            if group.spread == "scheduler" and TAKES_CODE not in self._scheduler.handlers:
                raise AgentDefinitionError(f"the scheduler takes no code ({TAKES_CODE} is among its blocked-handlers)")
            self.registry.add(group)
        except AgentError as error:
            return outcome_of(error)
        plan = await self.mend()
        mine = self._of(group)
        if any(member.state == "running" for member in mine):
            return {"agents": [_summary(member) for member in mine]}
        why = self._why_none(group, mine, plan)
        if self.registry.groups.get(group.name) is group:
            self.registry.remove(group.name)
            await self.mend()
        return outcome_of(why)

    def _why_none(self, group: Group, mine: list[Member], plan: Plan) -> AgentError:
        if mine:
            return AgentFailedError(mine[0].reason or f"{mine[0].agent} is {mine[0].state}")
        if plan.refused:
            return self.registry.too_many(group.name)
        where = f"no worker {group.worker!r}" if group.spread == "worker" else "no worker with swarm's agents"
        return UnknownAgentError(f"{group.name} has no place: there is {where}; see swarm status")

    async def destroy_agent(self, name: str) -> Reply:
        """Nobody wants these any more; answers when they have ended."""
        try:
            self.registry.remove(name)
        except AgentError as error:
            return outcome_of(error)
        self._scalers.pop(name, None)
        plan = await self.mend()
        return {"agents": [agent for agent, _ in plan.stops]}

    def _mend_soon(self) -> None:
        async def mend() -> None:
            await self.mend()

        self._scheduler._ongoing_background_tasks.call_soon(mend)

    async def mend(self) -> Plan:
        """Start what is missing and stop what is too many."""
        workers = self._workers()
        plan = self.registry.plan(
            workers, self._nannies_without(workers)
        )  # what it says counts as done: who comes next plans on it
        for agent in (*plan.lost, *(agent for agent, _ in plan.stops)):
            self._forget(agent)
        for agent in plan.lost:
            self._tell_change(agent, "", "", "lost", "its worker is gone; it is started again where it may be")
        await asyncio.gather(*(self._stop(agent, place) for agent, place in plan.stops))
        await asyncio.gather(*map(self._start, plan.starts))
        return plan

    async def _start(self, start: Start) -> None:
        member, group = self.registry.members[start.agent], self.registry.groups.get(start.group)
        if group is None:
            return
        message = {
            "agent": start.agent,
            "spec": group.spec,
            "kept": member.kept,
            "settings": self._settings.flat(),
            "token": self.token,
        }
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = await self._ask(start.place, "swarm_agent_start", **message)
        except (OSError, TimeoutError) as error:
            answer = {"error": "", "message": f"{start.place} can't be reached: {str(error) or 'it does not answer'}"}
        if "error" in answer:
            self.registry.failed(start.agent, str(answer["message"]))
            self._tell_change(start.agent, group.kind, start.place, "failed", str(answer["message"]))
            return
        member.station, member.socket, member.host = answer["station"], answer["socket"], answer["host"]
        member.address = answer["address"]
        member.state = "running"
        if self.registry.members.get(start.agent) is not member:  # nobody wants it any more
            await self._stop(start.agent, start.place)

    async def _stop(self, agent: str, place: str) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ask(place, "swarm_agent_stop", agent=agent)
        except (OSError, TimeoutError) as error:
            self._tell_change(agent, "", place, "lost", f"{place} did not say that it has stopped: {error}")

    async def _ask(self, place: str, operation: str, **arguments: Any) -> Mapping[str, Any]:
        if place == SCHEDULER:
            answered: Mapping[str, Any] = await self.home.handlers[operation](**arguments)
            return answered
        answer = await getattr(self._scheduler.rpc(place), operation)(**arguments)
        if not isinstance(answer, Mapping):
            return {"error": "", "message": f"{place} takes no agents"}
        return answer

    def _workers(self) -> list[Worker]:
        return [
            Worker(ws.address, str(ws.name), host, (ws.nanny or "") if self._members.has_witness(ws.address) else "")
            for ws in self._scheduler.workers.values()
            if (host := self._members.host_of(ws.address)) is not None
        ]

    def _nannies_without(self, workers: list[Worker]) -> dict[str, str]:
        """Nannies whose worker has left a short time ago: they mostly start another."""
        now_s, here = time.monotonic(), {worker.nanny: worker.host for worker in workers if worker.nanny}
        for nanny, host in self._nannies.items():
            if nanny not in here and nanny not in self._away:
                self._away[nanny] = (host, now_s)
                asyncio.get_running_loop().call_later(NANNY_PATIENCE_S + 1.0, self.workers_changed)
        self._nannies = here
        for nanny, (_, since_s) in list(self._away.items()):
            if nanny in here or now_s - since_s > NANNY_PATIENCE_S:
                del self._away[nanny]
        return {nanny: host for nanny, (host, _) in self._away.items()}

    def _of(self, group: Group) -> list[Member]:
        return [member for member in self.registry.members.values() if member.group == group.name]

    def _forget(self, agent: str) -> None:
        """It is not where it was."""
        if self.home.communicator is not None:
            self.home.communicator.forget(agent)

    def _changed(self, agent: str, place: str, state: str, reason: str, restarts: object, at_s: float) -> None:
        member = self.registry.members.get(agent)
        kind = member.kind if member is not None else ""
        if member is not None:
            if state in ("running", "degraded", "failed"):
                member.state, member.reason = state, reason
            if isinstance(restarts, int):
                member.restarts = restarts
        self._tell_change(agent, kind, place, state, reason, member.restarts if member is not None else 0, at_s)

    def _tell_change(
        self, agent: str, kind: str, place: str, state: str, reason: str, restarts: int = 0, at_s: float | None = None
    ) -> None:
        now_s = time.time() if at_s is None else at_s
        self._publish(
            AgentChanged(at_s=now_s, agent=agent, kind=kind, place=place, state=state, reason=reason, restarts=restarts)
        )

    # -- finding ------------------------------------------------------------------------------------------------------

    async def find(self, agent: str) -> Whereabouts:
        """As `Registrar`, for the communicator of the scheduler itself."""
        if agent in (CLIENT, SCHEDULER):
            if agent == SCHEDULER and self.home.communicator is None:
                await self._communicator()  # or there would be nobody to take the message
            return Whereabouts(agent, agent, self.home.id, self._scheduler.address, "", "")
        deadline_s = time.monotonic() + PATIENCE_S
        while self.registry.is_starting(agent) and time.monotonic() < deadline_s:  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(LOOK_S)
        return _whereabouts(self.registry.find(agent))

    async def of_kind(self, kind: str) -> list[Whereabouts]:
        return [_whereabouts(member) for member in self.registry.of_kind(kind)]

    async def find_agent(self, agent: str) -> Any:
        try:
            return (await self.find(agent)).to_wire()
        except AgentError as error:
            return outcome_of(error)

    async def agents_of_kind(self, kind: str) -> list[list[str]]:
        return [entry.to_wire() for entry in await self.of_kind(kind)]

    # -- messages of clients ------------------------------------------------------------------------------------------

    async def _communicator(self) -> Communicator:
        communicator = await self.home.open(self._settings, self.token)
        communicator.aliases |= {CLIENT, SCHEDULER}
        communicator.hear = self.hear
        return communicator

    async def send_message(self, frame: bytes, timeout_s: float) -> Reply:
        """A client sends a message, and wants an answer if it says so."""
        try:
            message = decode(frame)
            communicator = await self._communicator()
            if not message.wants_answer:
                await communicator.send(message, timeout_s)
                return {}
            payload = await communicator.request(message, timeout_s)
            return {"answer": encode(message.answer(payload, ANSWER))}
        except SwarmError as error:
            return outcome_of(error)

    async def broadcast_message(self, frame: bytes, to: str, timeout_s: float) -> Reply:
        """A client sends a message to all agents of a kind."""
        try:
            return {"taken": await (await self._communicator()).broadcast(decode(frame), to, timeout_s)}
        except SwarmError as error:
            return outcome_of(error)

    # -- for people ---------------------------------------------------------------------------------------------------

    async def system_status(self) -> Reply:
        """Every group and agent, and what each place says of its own."""
        places = {member.place for member in self.registry.members.values()} - {SCHEDULER}
        own = await self.home.status()
        told = await asyncio.gather(*(self._told_by(place) for place in sorted(places)))
        return {
            "max_agents": self.registry.max_agents,
            "auto_scaling": self._settings.auto_scaling,
            "groups": [
                {"name": g.name, "kind": g.kind, "where": g.worker or g.spread, "wanted": g.target}
                for g in self.registry.groups.values()
            ],
            "agents": [_summary(member) for member in self.registry.members.values()],
            "places": [own, *told],
        }

    async def _told_by(self, place: str) -> Reply:
        try:
            async with asyncio.timeout(2.0):
                return await self._ask(place, "swarm_agent_status")
        except (OSError, TimeoutError) as error:
            return {"place": place, "absent": f"it does not answer: {str(error) or 'timeout'}"}


def _whereabouts(member: Member) -> Whereabouts:
    return Whereabouts(member.agent, member.kind, member.station, member.address, member.socket, member.host)


def _summary(member: Member) -> dict[str, Any]:
    names = ("agent", "group", "kind", "place", "state", "reason", "restarts", "moves")
    return {**{name: getattr(member, name) for name in names}, "load": member.status.get("load")}


def _plain(details: Mapping[str, Any]) -> dict[str, float | int | str | None]:
    def plain(value: Any) -> float | int | str | None:
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return value if value is None or isinstance(value, int | float | str) else str(value)

    return {str(name): plain(value) for name, value in details.items()}
