"""Which agents there should be, and where: what was asked for, held against what is there.  PURE

A user asks for a group: one agent, a few that follow the load, one on every worker, or one on every host. From the
groups and the workers of the moment `Registry.plan` derives which agents are missing and which are too many; so a
worker that joins, leaves or dies needs no rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from swarm.errors import (
    AgentDefinitionError,
    AgentExistsError,
    TooManyAgentsError,
    UnknownAgentError,
    nearest,
)

Spread: TypeAlias = Literal["anywhere", "worker", "every-worker", "every-host", "scheduler"]
SCHEDULER = "scheduler"
"""The place of agents that live in the scheduler's process."""

RESERVED = frozenset({"client", "scheduler", "*"})
"""Ids that no agent may have, because others are called so."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that can have agents."""

    address: str
    name: str
    host: str
    """Whatever is the same for the workers of one host, and for no others."""
    nanny: str = ""
    """Address of the nanny, if there is one that can have agents."""


@dataclass(slots=True)
class Group:
    """What a user asked for with one `create_agent`."""

    name: str
    kind: str
    spread: Spread = "anywhere"
    worker: str = ""
    """Address or name, with the spread `worker`."""
    minimum: int = 1
    maximum: int = 1
    """How many, with the spread `anywhere`."""
    spec: bytes = b""
    """What the place needs to make such an agent; not looked at here."""
    target: int = 0
    """How many there should be now: `minimum`, and more under load."""

    def __post_init__(self) -> None:
        if self.spread not in get_args(Spread):
            raise AgentDefinitionError(f"where is {self.spread!r}, must be a worker or one of {_spreads()}")
        if not 1 <= self.minimum <= self.maximum:
            raise AgentDefinitionError(
                f"{self.name}: min_agents is {self.minimum} and max_agents is {self.maximum}, must be 1 or more, and "
                "min_agents not above max_agents"
            )
        if self.maximum > 1 and self.spread != "anywhere":
            raise AgentDefinitionError(f"{self.name}: min_agents and max_agents are for agents without a fixed place")
        self.target = max(self.target, self.minimum)


@dataclass(slots=True)
class Member:
    """One agent that is there, or about to be."""

    agent: str
    group: str
    kind: str
    place: str
    """Dask address of the worker or nanny, or `SCHEDULER`."""
    station: str = ""
    """Of the process that it is in, once it runs."""
    address: str = ""
    """Dask address of that process."""
    socket: str = ""
    host: str = ""
    state: str = "starting"
    reason: str = ""
    """Why it is in that state, if that is not plain."""
    restarts: int = 0
    moves: int = 0
    """Times that it was started again elsewhere because its place was gone."""
    kept: bytes = b""
    """Its state, as last heard."""
    status: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    agent: str
    group: str
    place: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do so that the agents are as asked for."""

    starts: tuple[Start, ...] = ()
    stops: tuple[tuple[str, str], ...] = ()
    """Agents and their places."""
    lost: tuple[str, ...] = ()
    """Agents whose place is gone."""
    refused: tuple[str, ...] = ()
    """Agents that should be there and may not: there are `max_agents`."""
    homeless: tuple[str, ...] = ()
    """Agents for which there is no place."""


class Registry:
    """All groups and agents of a swarm.

    Parameters
    ----------
    max_agents
        How many agents there may be.

    Examples
    --------
    >>> registry = Registry(max_agents=8)
    >>> registry.add(Group("mine", "custom"))
    >>> workers = [Worker("tcp://a:1", "a", "host"), Worker("tcp://b:1", "b", "host")]
    >>> registry.plan(workers).starts
    (Start(agent='mine', group='mine', place='tcp://a:1'),)
    """

    def __init__(self, max_agents: int) -> None:
        self.max_agents = max_agents
        self.groups: dict[str, Group] = {}
        self.members: dict[str, Member] = {}
        self._turn = 0

    # -- what is asked for --------------------------------------------------------------------------------------------

    def add(self, group: Group) -> None:
        """A user wants these.

        Raises
        ------
        AgentExistsError
            There is a group or an agent of that name.
        TooManyAgentsError
            There are as many agents as may be.
        """
        if group.name in RESERVED:
            raise AgentDefinitionError(
                f"an agent can't be called {group.name}: {', '.join(sorted(RESERVED))} are taken"
            )
        if group.name in self.groups or group.name in self.members:
            raise AgentExistsError(f"there is an agent {group.name!r} already; destroy it first, or choose another id")
        if len(self.members) + group.minimum > self.max_agents:
            raise self.too_many(group.name)
        self.groups[group.name] = group

    def too_many(self, name: str) -> TooManyAgentsError:
        """The error for an agent more than there may be."""
        what_to_do = "destroy one, or start the scheduler with a higher max_agents"
        return TooManyAgentsError(
            f"there is no room for {name}: max_agents is {self.max_agents}, {len(self.members)} are there; {what_to_do}"
        )

    def remove(self, name: str) -> None:
        """Nobody wants these any more, or, of several of a group, this one; `plan` then stops them.

        Raises
        ------
        UnknownAgentError
            There is no such group or agent.
        """
        if name in self.groups:
            del self.groups[name]
        elif name in self.members:
            group = self.members[name].group
            raise AgentDefinitionError(f"{name} is one of {group}, which would start it again; destroy {group}")
        else:
            raise self.unknown(name)

    def unknown(self, name: str) -> UnknownAgentError:
        """The error for a name that nobody has."""
        names = {*self.groups, *self.members}
        hint = f"; did you mean {near}?" if (near := nearest(name, names)) else ""
        return UnknownAgentError(f"there is no agent {name!r}{hint}")

    # -- what is there ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Member:
        """The agent of that id, or one of that group, in turn.

        Raises
        ------
        UnknownAgentError
            There is none.
        """
        if (member := self.members.get(name)) is not None:
            if not member.station:
                why = f": {member.reason}" if member.reason else ""
                raise UnknownAgentError(f"{name} does not run, it is {member.state}{why}")
            return member
        if name in self.groups:
            ready = [member for member in self.members.values() if member.group == name and member.station]
            if ready:
                self._turn += 1
                return ready[self._turn % len(ready)]
            raise UnknownAgentError(f"no agent of {name!r} runs now; see swarm status")
        raise self.unknown(name)

    def is_starting(self, name: str) -> bool:
        """Whether it is worth to ask again in a moment."""
        asked = [member for member in self.members.values() if name in (member.agent, member.group)]
        return not any(member.station for member in asked) and any(member.state == "starting" for member in asked)

    def of_kind(self, kind: str) -> list[Member]:
        """Agents of a kind, `*` for all, that can be sent to."""
        return [m for m in self.members.values() if m.station and kind in ("*", m.kind, m.group)]

    def failed(self, agent: str, reason: str) -> None:
        """The agent could not be started, or was given up where it was."""
        if (member := self.members.get(agent)) is not None:
            member.state, member.reason = "failed", reason

    # -- what to do ---------------------------------------------------------------------------------------------------

    def plan(self, workers: Sequence[Worker], nannies: Mapping[str, str] | None = None) -> Plan:
        """What is missing and what is too many; the missing count as starting from now on, the others as gone.

        `nannies`: address → host of nannies whose worker is away for a moment, to be started again.
        """
        nannies = nannies or {}
        places = {SCHEDULER, *(w.address for w in workers), *(w.nanny for w in workers), *nannies}
        lost = tuple(m.agent for m in self.members.values() if m.place not in places)
        before = {agent: self.members.pop(agent) for agent in lost}
        wanted = {
            agent: (group, place)
            for group in self.groups.values()
            for agent, place in self._of(group, workers, nannies)
        }
        stops = tuple(
            (m.agent, m.place)
            for m in self.members.values()
            if m.agent not in wanted or wanted[m.agent][1] not in ("", m.place)
        )
        for agent, _ in stops:
            before[agent] = self.members.pop(agent)
        starts, refused, homeless = [], [], []
        for agent, (group, fixed) in wanted.items():
            if agent in self.members:
                continue
            place = fixed or self._roomiest(workers)
            if not place:
                homeless.append(agent)
            elif len(self.members) >= self.max_agents:
                refused.append(agent)
            else:
                self.members[agent] = member = Member(agent, group.name, group.kind, place)
                if (old := before.get(agent)) is not None:
                    member.kept, member.restarts, member.moves = old.kept, old.restarts, old.moves + 1
                starts.append(Start(agent, group.name, place))
        return Plan(tuple(starts), stops, lost, tuple(refused), tuple(homeless))

    def _of(self, group: Group, workers: Sequence[Worker], nannies: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Agents that a group should have, with their place; "" for one that may be anywhere."""
        match group.spread:
            case "scheduler":
                yield group.name, SCHEDULER
            case "worker":
                named = (w.address for w in workers if group.worker in (w.address, w.name))
                if (place := next(named, None)) is not None:
                    yield group.name, place
            case "every-worker":
                for worker in workers:
                    yield f"{group.name}.{_in_id(worker.name)}", worker.address
            case "every-host":
                yield from self._on_hosts(group, workers, nannies)
            case "anywhere" if group.maximum == 1:
                yield group.name, ""
            case "anywhere":
                for i in range(group.target):
                    yield f"{group.name}.{i}", ""

    def _on_hosts(
        self, group: Group, workers: Sequence[Worker], nannies: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        """In a nanny, which outlives its worker; in a worker where there is none. Where it is, it stays."""
        by_host: dict[str, list[str]] = {}
        for worker in workers:
            by_host.setdefault(worker.host, []).append(worker.nanny or worker.address)
        for nanny, host in nannies.items():
            by_host.setdefault(host, []).append(nanny)
        for host, places in by_host.items():
            agent = f"{group.name}.{_in_id(host)}"
            there = self.members.get(agent)
            yield agent, there.place if there is not None and there.place in places else places[0]

    def _roomiest(self, workers: Collection[Worker]) -> str:
        """The worker with the fewest agents, the first of these; "" without workers."""
        agents = dict.fromkeys((w.address for w in workers), 0)
        for member in self.members.values():
            if member.place in agents:
                agents[member.place] += 1
        return min(agents, key=agents.__getitem__, default="")


def spread_of(where: object) -> tuple[Spread, str]:
    """What `create_agent(where=…)` means: the spread, and the worker if it names one.

    >>> spread_of(None), spread_of("every-worker"), spread_of("tcp://10.0.0.5:4000")
    (('anywhere', ''), ('every-worker', ''), ('worker', 'tcp://10.0.0.5:4000'))
    """
    if where is None:
        return "anywhere", ""
    for known in get_args(Spread):
        if where == known:
            if known == "worker":
                break
            return known, ""
    if isinstance(where, int | str) and not isinstance(where, bool) and where not in ("", "worker"):
        return "worker", str(where)  # the names of workers may be numbers
    raise AgentDefinitionError(f"where is {where!r}, must be the name or address of a worker or one of {_spreads()}")


def _spreads() -> str:
    return ", ".join(each for each in get_args(Spread) if each != "worker")


def _in_id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[-40:] or "0"
