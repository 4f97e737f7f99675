"""The door to the home of agents on a worker or nanny: a home is made when the first agent is to live there.

Most servers never have an agent, and all that a home needs (channels, supervisor, encryption) is as much as a quarter
of what a worker imports.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from distributed.utils import offload

if TYPE_CHECKING:
    from swarm.agents.home import Home

HOME = "swarm.agents.home"


class Door:
    """Takes what the scheduler and others ask of a home, and has one made when it is about an agent.

    Parameters
    ----------
    server
        The `Worker` or `Nanny`.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self.home: Home | None = None
        """Behind it, since the first agent came."""
        self._is_closed = False
        self._handlers: dict[str, Callable[..., Awaitable[Any]]] = {
            "swarm_agent_start": self._start_agent,
            "swarm_agent_stop": self._stop_agent,
            "swarm_agent_status": self._status,
            "swarm_message": self._message,
        }

    def connect(self) -> None:
        self._server.handlers.update(self._handlers)

    def report(self) -> dict[str, dict[str, Any]]:
        """For a heartbeat (`Home.report`)."""
        return {} if self.home is None else self.home.report()

    async def close(self) -> None:
        """End all agents and channels."""
        self._is_closed = True
        for name in self._handlers:
            self._server.handlers.pop(name, None)
        if self.home is not None:
            await self.home.close()

    async def _start_agent(self, **about: Any) -> Any:
        if self.home is None:
            await offload(importlib.import_module, HOME)
            from swarm.agents.home import Home, RemoteRegistrar

            if self.home is None:  # somebody else may have been quicker
                self.home = Home(self._server, RemoteRegistrar(self._server.scheduler))
                if self._is_closed:
                    await self.home.close()  # it says itself that it takes no agents
        return await self.home.start_agent(**about)

    async def _stop_agent(self, agent: str) -> Any:
        return {} if self.home is None else await self.home.stop_agent(agent)

    async def _status(self) -> Any:
        if self.home is not None:
            return await self.home.status()
        return {
            "place": self._server.address,
            "agents": [],
            "messages": None,
            "channels": None,
            "no_channels": "",
        }

    async def _message(self, to: str, **frames: Any) -> Any:
        if self.home is None:
            return "has ended, another one is there now"
        return await self.home.message(to=to, **frames)
