"""Keeps the agents of one process: starts them, watches them, starts them again, ends them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from swarm.agents.base import Surroundings
from swarm.agents.life.charge import Charge, Load, OnEvent
from swarm.agents.life.isolation import Circumstances, Courier
from swarm.agents.life.lifecycle import RestartRule
from swarm.agents.spec import AgentSpec
from swarm.channels.messages import Message, Priority
from swarm.config import Settings
from swarm.errors import AgentDefinitionError, AgentExistsError, UnknownAgentError, nearest
from swarm.telemetry.logs import get_logger

LOOK_S = 0.25
"""Between two looks at what the agents do; one takes some microseconds for each."""


class Supervisor:
    """The agents of one process: of a worker, a nanny, a scheduler, a client or a test.

    All methods are called on one event loop, which is the loop of agents with `isolation="loop"`.

    Parameters
    ----------
    voice
        How agents talk; also carries their answers.
    on_event
        Called with `started`, `degraded` (it failed, and will be started again), `restarted`, `moved` (from the loop
        to a thread), `failed` (given up) or `stopped`, and details: `agent`, `kind`, and `reason` where there is one.
    audit
        Called with what an agent is about to change in the system, `agent=` and details.
    place, dask
        Where the agents live: an address, and the Dask `Worker`, `Nanny` or `Scheduler`.
    mailbox_bytes
        How much may wait for each agent, at each priority; None: as much as a channel holds.
    """

    def __init__(
        self,
        voice: Courier,
        settings: Settings,
        *,
        on_event: OnEvent | None = None,
        audit: Callable[..., None] | None = None,
        place: str = "",
        dask: Any = None,
        extras: dict[str, Any] | None = None,
        rule: RestartRule | None = None,
        mailbox_bytes: int | None = None,
    ) -> None:
        log = get_logger(place=place)
        surroundings = Surroundings(settings, log, voice, audit or _no_audit, place, dask, extras or {})
        self._circumstances = Circumstances(
            asyncio.get_running_loop(), surroundings, voice, settings.model_dump(), settings.optimization_interval
        )
        self._on_event = on_event or _nobody_listens
        self._rule = rule or RestartRule()
        self._mailbox_bytes = mailbox_bytes or settings.channel_size
        self._charges: dict[str, Charge] = {}
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    async def create(self, spec: AgentSpec) -> None:
        """Start an agent; returns when it runs.

        Raises
        ------
        AgentExistsError
            There is one of this id, even if it was given up.
        AgentDefinitionError
            It can't be made here.
        AgentFailedError
            It raised while it started, or was destroyed meanwhile.
        """
        agent_id = spec.agent_id
        if self._closing:
            raise AgentDefinitionError(f"agent {agent_id} can't start: its place is closing")
        if (known := self._charges.get(agent_id)) is not None:
            raise AgentExistsError(f"there is an agent {agent_id} already ({known.life.stage}); destroy it first")
        _check_cores(spec)
        charge = Charge(spec, self._circumstances, self._rule, self._mailbox_bytes, self._on_event)
        self._charges[agent_id] = charge
        self._watch()
        try:
            await charge.begin()
        except BaseException:
            await self._remove(charge)
            raise

    async def destroy(self, agent_id: str) -> None:
        """End an agent, with `teardown`; returns when nothing of it runs any more.

        Raises
        ------
        UnknownAgentError
            There is none of this id.
        """
        await self._remove(self._charge(agent_id))

    async def close(self) -> None:
        """End all agents, at the same time."""
        self._closing = True
        await asyncio.gather(*map(self._remove, list(self._charges.values())))
        self._circumstances.nursery.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def status(self) -> list[dict[str, Any]]:
        """What is known of each agent, as data: `swarm.agents.life.charge.Charge.status`."""
        return [charge.status() for charge in self._charges.values()]

    def loads(self) -> Iterator[tuple[str, Load]]:
        """Each agent, and how busy it is."""
        return ((agent_id, charge.load()) for agent_id, charge in self._charges.items())

    def deliver(self, agent_id: str, frame: bytes, priority: Priority, message: Message | None = None) -> bool:
        """Put a message into an agent's mailbox; False when there is no room. `message` is the frame, if it is read.

        Raises
        ------
        UnknownAgentError
            There is none of this id.
        AgentFailedError
            It was given up.
        """
        return self._charge(agent_id).post.put(frame, priority, message)

    async def room(self, agent_id: str, priority: Priority, timeout_s: float) -> bool:
        """Wait until `deliver` may find room; False when there was none in time. Raises as `deliver` does."""
        return await self._charge(agent_id).post.room(priority, timeout_s)

    def kept(self, agent_id: str) -> bytes:
        """An agent's state as it would be restored, packed; raises `UnknownAgentError`."""
        return self._charge(agent_id).kept

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._charges

    def _charge(self, agent_id: str) -> Charge:
        charge = self._charges.get(agent_id)
        if charge is None:
            near = nearest(str(agent_id), self._charges)
            raise UnknownAgentError(f"there is no agent {agent_id} here{f'; did you mean {near}?' if near else ''}")
        return charge

    async def _remove(self, charge: Charge) -> None:
        await charge.end()
        if self._charges.get(charge.spec.agent_id) is charge:
            del self._charges[charge.spec.agent_id]

    def _watch(self) -> None:
        """Look at all agents, now and then, as long as there are any."""
        if self._timer is None:
            self._timer = self._circumstances.loop.call_later(self._pause_s(), self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        for charge in self._charges.values():
            charge.look(now_s)
        if self._charges:
            self._watch()

    def _pause_s(self) -> float:
        shortest_s = min((charge.spec.cycle_timeout_s for charge in self._charges.values()), default=LOOK_S)
        return min(max(shortest_s / 4, LOOK_S / 10), LOOK_S)


def _check_cores(spec: AgentSpec) -> None:
    if spec.cpu_affinity is None or not hasattr(os, "sched_getaffinity"):
        return
    ours = os.sched_getaffinity(0)
    if missing := spec.cpu_affinity - ours:
        raise AgentDefinitionError(
            f"cpu_affinity of agent {spec.agent_id} names cores {sorted(missing)}, this place has {sorted(ours)}"
        )


def _no_audit(what: str, **details: Any) -> None:
    """Of a supervisor that was given no audit."""


def _nobody_listens(name: str, details: dict[str, Any]) -> None:
    """Of a supervisor that was given no handler."""
