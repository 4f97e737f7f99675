"""The user's side of agents: create them, destroy them, talk to them, see how they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from distributed import Client
from distributed.protocol import pickle

from swarm.agents.base import BaseAgent, check_class
from swarm.agents.spec import AgentSpec, Limits
from swarm.channels.messages import Message, Payload, Priority, check_name, decode, encode
from swarm.errors import AgentDefinitionError, nearest

if TYPE_CHECKING:
    from swarm.client import Swarm

CLIENT = "client"
"""The sender of a client's messages."""
START_TIMEOUT_S = 90.0
CYCLE_TIMEOUT_S = 30.0


class Orchestrator:
    """Creates agents on a swarm and speaks with them.

    Every method works as it does on a `distributed.Client`: it blocks, or, with an asynchronous client, returns
    something to await.

    Parameters
    ----------
    what
        A `Swarm`, a `distributed.Client`, the address of a scheduler, or None for the swarm that was connected last.

    Examples
    --------
    >>> orchestrator = swarm.Orchestrator()  # doctest: +SKIP
    >>> orchestrator.create_agent(Greeter, "mine", isolation="process")  # doctest: +SKIP
    >>> orchestrator.communicator.send_message("mine", "hello", wait_for_answer=True)  # doctest: +SKIP
    'hello, client'
    """

    def __init__(self, what: Swarm | Client | str | None = None) -> None:
        self.swarm = _swarm_of(what)
        self.communicator = ClientCommunicator(self.swarm)

    def __repr__(self) -> str:
        return f"<Orchestrator of {self.swarm!r}>"

    def create_agent(
        self,
        agent_type: type[BaseAgent] | str,
        agent_id: str,
        *,
        where: str | int | None = None,
        isolation: str | None = None,
        priority: int = 0,
        cpu_affinity: Collection[int] | None = None,
        memory_limit: int | str | None = None,
        cpu_limit: int | None = None,
        interval: float | str | None = None,
        cycle_timeout: float | str = CYCLE_TIMEOUT_S,
        min_agents: int = 1,
        max_agents: int = 1,
        **options: Any,
    ) -> Any:
        """Create an agent; returns when it runs.

        Parameters
        ----------
        agent_type
            A subclass of `swarm.BaseAgent`, or the name of one of swarm's own kinds (`swarm.agents.kinds.KINDS`).
        agent_id
            How others call it.
        where
            None: on the worker with the fewest agents; when that dies, on another. The name or address of a worker:
            there only. "every-worker", "every-host" (in the nanny, which outlives its worker) or "scheduler"; on
            every worker the ids are `agent_id.<name of the worker>`.
        isolation
            "loop", "thread" or "process"; see `swarm.BaseAgent`.
        priority
            As `nice`, -20 (most urgent) to 19, for an agent in a thread or a process of its own. Less than 0 needs
            the right to it.
        cpu_affinity
            Cores that it may run on.
        memory_limit, cpu_limit
            Of a process of its own: bytes, or text such as "1GiB"; and seconds of CPU, after which it is started again.
        interval
            Seconds from one cycle to the next, by default what its class says.
        cycle_timeout
            Seconds after which a cycle counts as hanging.
        min_agents, max_agents
            More than one: a group that grows and shrinks with its load, if `auto_scaling` is on. Its agents are
            `agent_id.0`, `agent_id.1` and so on; a message to `agent_id` goes to one of them, in turn.
        **options
            For the agent's `__init__`.

        Returns
        -------
        list of dict
            The agents that run now: `agent`, `place`, `state` and more.

        Raises
        ------
        AgentDefinitionError, AgentExistsError, TooManyAgentsError, AgentFailedError, UnknownAgentError
        """
        cls = agent_class(agent_type)
        limits = None if memory_limit is None and cpu_limit is None else Limits(_bytes(memory_limit), cpu_limit)
        spec = AgentSpec(
            agent_class=cls,
            agent_id=agent_id,
            options=options,
            isolation=isolation,  # type: ignore[arg-type]  # AgentSpec says what is wrong with it
            priority=priority,
            cpu_affinity=cpu_affinity,  # type: ignore[arg-type]
            limits=limits,
            interval_s=None if interval is None else _seconds("interval", interval),
            cycle_timeout_s=_seconds("cycle_timeout", cycle_timeout),
        )
        from scheduler_plugins.decide.agents import Group, spread_of

        spread, worker = spread_of(where)
        group = Group(agent_id, cls.kind, spread, worker, min_agents, max_agents)
        about = {name: getattr(group, name) for name in ("name", "kind", "spread", "worker", "minimum", "maximum")}
        return self.swarm.sync(self._create, pickle.dumps(spec), about)

    async def _create(self, spec: bytes, about: dict[str, Any]) -> list[dict[str, Any]]:
        answer = await self.swarm.ask("swarm_create_agent", within_s=START_TIMEOUT_S, spec=spec, about=about)
        return list(answer["agents"])  # msgpack has made it a tuple

    def destroy_agent(self, agent_id: str) -> Any:
        """End an agent, or all of a group; returns the ids of those that have ended.

        Raises
        ------
        UnknownAgentError
            There is none of that id.
        """
        return self.swarm.sync(self._destroy, agent_id)

    async def _destroy(self, agent_id: str) -> list[str]:
        answer = await self.swarm.ask("swarm_destroy_agent", within_s=START_TIMEOUT_S, name=agent_id)
        return list(answer["agents"])  # msgpack has made it a tuple

    def get_system_status(self) -> Any:
        """A dict: `agents` (each with place, state, restarts), `groups`, `places` with their channels, `max_agents`."""
        return self.swarm.sync(self._status)

    async def _status(self) -> dict[str, Any]:
        answer = await self.swarm.ask("swarm_system_status")
        # msgpack has made lists tuples
        return {name: list(value) if isinstance(value, tuple) else value for name, value in answer.items()}

    def add_event_handler(self, event: Any, handler: Callable[[Any], object]) -> None:
        """Call `handler` with each event of a kind, such as `AgentChanged`; see `Swarm.add_event_handler`."""
        self.swarm.add_event_handler(event, handler)

    def remove_event_handler(self, event: Any, handler: Callable[[Any], object]) -> None:
        """Take back `add_event_handler`."""
        self.swarm.remove_event_handler(event, handler)


class ClientCommunicator:
    """Messages from a client to agents, as the sender `client`."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def send_message(
        self,
        recipient: str,
        kind: str,
        payload: Payload = None,
        *,
        priority: Priority | int = Priority.NORMAL,
        wait_for_answer: bool = False,
        timeout: float = 5.0,
    ) -> Any:
        """Send a message to an agent, or to one of a group; returns its answer if that is waited for.

        Raises
        ------
        UnknownAgentError, ChannelFullError, PeerLostError, MessageError, ForbiddenMessageError
            As `swarm.BaseAgent.send` says.
        NoAnswerError, AgentFailedError
            As `swarm.BaseAgent.request` says.
        """
        message = _message(recipient, kind, payload, priority, wants_answer=wait_for_answer)
        return self._swarm.sync(self._send, encode(message), timeout)

    async def _send(self, frame: bytes, timeout: float) -> Payload:
        answer = await self._swarm.ask("swarm_send_message", within_s=timeout + 5.0, frame=frame, timeout_s=timeout)
        return decode(answer["answer"]).payload if "answer" in answer else None

    def broadcast_message(
        self,
        kind: str,
        payload: Payload = None,
        *,
        to: str = "*",
        priority: Priority | int = Priority.NORMAL,
        timeout: float = 5.0,
    ) -> Any:
        """Send a message to all agents of a kind or group, `*` for all; returns how many have taken it."""
        return self._swarm.sync(self._broadcast, encode(_message("all", kind, payload, priority)), to, timeout)

    async def _broadcast(self, frame: bytes, to: str, timeout: float) -> int:
        answer = await self._swarm.ask(
            "swarm_broadcast_message", within_s=timeout + 5.0, frame=frame, to=to, timeout_s=timeout
        )
        return int(answer["taken"])

    def get_statistics(self) -> Any:
        """Place → counts and latencies of the messages of its agents, and of its channels."""
        return self._swarm.sync(self._statistics)

    async def _statistics(self) -> dict[str, Any]:
        places = (await self._swarm.ask("swarm_system_status"))["places"]
        return {place["place"]: {name: place.get(name) for name in ("messages", "channels")} for place in places}


def agent_class(agent_type: object) -> type[BaseAgent]:
    """The class itself, or swarm's own of that kind.

    Raises
    ------
    AgentDefinitionError
        It is neither.
    """
    if not isinstance(agent_type, str):
        return check_class(agent_type)
    from swarm.agents.kinds import KINDS, load

    if agent_type not in KINDS:
        hint = f"; did you mean {near}?" if (near := nearest(agent_type, KINDS)) else ""
        raise AgentDefinitionError(
            f"there is no kind of agent {agent_type!r}{hint} (there are {', '.join(KINDS)}; or give a class)"
        )
    return load(agent_type)


def _message(recipient: str, kind: str, payload: Payload, priority: int, *, wants_answer: bool = False) -> Message:
    try:
        checked = Priority(priority)
    except ValueError:
        raise AgentDefinitionError(f"priority is {priority!r}, must be 0 (urgent) to 3 (low)") from None
    check_name(kind, "kind of a message")
    return Message(CLIENT, check_name(recipient), kind, payload, checked, wants_answer=wants_answer)


def _swarm_of(what: Swarm | Client | str | None) -> Swarm:
    from swarm.client import Swarm, connect, current

    if what is None:
        return current()
    if isinstance(what, Swarm):
        return what
    return connect(what) if isinstance(what, str) else Swarm(what)


def _bytes(text: int | str | None) -> int | None:
    from dask.utils import parse_bytes

    try:
        return None if text is None else int(parse_bytes(text))
    except (ValueError, TypeError, AttributeError):
        raise AgentDefinitionError(f'memory_limit is {text!r}, must be bytes, or text such as "1GiB"') from None


def _seconds(name: str, text: float | str) -> float:
    from dask.utils import parse_timedelta

    try:
        return float(parse_timedelta(text))
    except (ValueError, TypeError, AttributeError, KeyError):
        raise AgentDefinitionError(f'{name} is {text!r}, must be seconds, or text such as "500ms"') from None
