"""What an agent is: the class to subclass, and what its host gives it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, get_args

from swarm.channels.messages import Message, Payload, Priority, check_name
from swarm.errors import AgentDefinitionError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from swarm.config import Settings

Isolation: TypeAlias = Literal["loop", "thread", "process"]
"""Where an agent's code runs: on the event loop of its worker, in a thread of its own, in a process of its own."""

State: TypeAlias = dict[str, Payload]
"""What an agent wants to have again after it was restarted: data, as in messages."""

MAX_STATE_BYTES = 1 << 20


class Voice(Protocol):
    """How an agent talks to others; all may be awaited from the agent's own coroutines."""

    async def send(self, message: Message, timeout_s: float) -> None: ...

    async def request(self, message: Message, timeout_s: float) -> Payload: ...

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int: ...


@dataclass
class Surroundings:
    """What the host of an agent gives it before `setup`."""

    settings: Settings
    log: BoundLogger
    voice: Voice
    audit: Callable[..., None]
    """`audit("what", **details)`: must be called before any change to the system outside the agent itself."""
    place: str = ""
    """The worker, nanny or scheduler that the agent lives on: its Dask address."""
    dask: Any = None
    """The Dask `Worker`, `Nanny` or `Scheduler` itself; None in a process of its own."""
    extras: dict[str, Any] = field(default_factory=dict)


class BaseAgent:
    """An agent: runs `execute_cycle` at an interval and answers messages, for as long as the swarm wants it.

    Every method below may be a coroutine function or a plain one. With `isolation="loop"` a plain one must return
    within a millisecond, since Dask waits; slow plain ones belong into a thread or a process, which is where an agent
    with a plain `execute_cycle` is put if nothing else is asked for.

    An exception in `setup` or `execute_cycle` restarts the agent, with the state that `state` returned last, after a
    pause that doubles; an agent that fails again and again is given up, which all can see. An exception in
    `handle_message` goes to whoever asked.

    Parameters
    ----------
    agent_id
        How others call it; unique in the swarm.
    **options
        What was given to `create_agent` beyond its own parameters.

    Examples
    --------
    >>> class Greeter(BaseAgent):
    ...     '''Counts whom it greets.'''
    ...     def __init__(self, agent_id, word="hello"):
    ...         super().__init__(agent_id)
    ...         self.word, self.greeted = word, 0
    ...     async def handle_message(self, message):
    ...         self.greeted += 1
    ...         return f"{self.word}, {message.sender}"
    ...     def state(self):
    ...         return {"greeted": self.greeted}
    ...     def restore(self, state):
    ...         self.greeted = state["greeted"]
    >>> greeter = Greeter("greeter", word="good morning")
    """

    kind: ClassVar[str] = "custom"
    """What access rules and statistics call agents of this class."""
    interval_s: float = 1.0
    """From the begin of one cycle to the begin of the next; a cycle that takes longer is followed by the next."""

    surroundings: Surroundings

    def __init__(self, agent_id: str, **options: Any) -> None:
        self.agent_id = check_name(agent_id)
        if options:
            wrong = ", ".join(sorted(options))
            raise AgentDefinitionError(f"{type(self).__name__} takes no option {wrong}; see its __init__")

    # -- for subclasses -------------------------------------------------------------------------------------------

    def setup(self) -> Any:
        """Acquire what the agent needs; `surroundings` is there."""

    def teardown(self) -> Any:
        """Give everything back. Called once for each `setup` that succeeded, also before a restart."""

    def execute_cycle(self) -> Any:
        """Do the agent's work once."""

    def handle_message(self, message: Message) -> Any:
        """Answer a message; what it returns goes back if the sender waits for it.

        A subclass that does not know a kind of message leaves it to this: it raises if the sender waits, and ignores
        the rest, which may be a broadcast that is for others.

        One message at a time, and never during a cycle.
        """
        if message.wants_answer:
            raise AgentDefinitionError(f"{type(self).__name__} {self.agent_id} does not answer {message.kind}")

    def optimize_performance(self) -> Any:
        """Improve what the agent is responsible for; called every `optimization_interval`."""
        return self._agent_specific_optimization()

    def _agent_specific_optimization(self) -> Any:
        """What `optimize_performance` does, for agents that add to it."""

    def state(self) -> State:
        """What to keep across a restart: data, at most 1 MiB. Called after cycles and messages, so keep it cheap."""
        return {}

    def restore(self, state: State) -> None:
        """Take back what `state` returned; called between `__init__` and `setup`, and not if it was empty."""

    # -- for use by subclasses ------------------------------------------------------------------------------------

    async def send(
        self,
        recipient: str,
        kind: str,
        payload: Payload = None,
        *,
        priority: Priority = Priority.NORMAL,
        timeout_s: float = 5.0,
    ) -> None:
        """Send a message; returns when the recipient's mailbox, or the channel to it, has taken it.

        Raises
        ------
        UnknownAgentError
            Nobody is called so.
        ChannelFullError
            The recipient did not make room within `timeout_s`.
        MessageError, MessageTooLargeError, ForbiddenMessageError
            It can't, or may not, be sent.
        """
        await self.surroundings.voice.send(self._message(recipient, kind, payload, priority), timeout_s)

    async def request(
        self,
        recipient: str,
        kind: str,
        payload: Payload = None,
        *,
        priority: Priority = Priority.NORMAL,
        timeout_s: float = 5.0,
    ) -> Payload:
        """Send a message, and return what its recipient's `handle_message` returned.

        Raises
        ------
        NoAnswerError
            The recipient did not answer within `timeout_s`.
        AgentFailedError
            It raised; the message tells what.
        """
        return await self.surroundings.voice.request(self._message(recipient, kind, payload, priority), timeout_s)

    async def broadcast(
        self,
        kind: str,
        payload: Payload = None,
        *,
        to: str = "*",
        priority: Priority = Priority.NORMAL,
        timeout_s: float = 5.0,
    ) -> int:
        """Send a message to all other agents, or all of the kind `to`; returns how many took it."""
        return await self.surroundings.voice.broadcast(
            self._message(self.agent_id, kind, payload, priority), to, timeout_s
        )

    def _message(self, recipient: str, kind: str, payload: Payload, priority: Priority) -> Message:
        return Message(self.agent_id, recipient, check_name(kind, "kind of a message"), payload, Priority(priority))


def check_class(cls: object) -> type[BaseAgent]:
    """`cls`, if agents can be made of it.

    Raises
    ------
    AgentDefinitionError
        They can't; says what is missing.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseAgent)):
        raise AgentDefinitionError(f"{cls!r} is not a subclass of swarm.BaseAgent")
    check_name(cls.kind, f"kind of {cls.__name__}")
    return cls


def isolation_of(cls: type[BaseAgent], asked: str | None) -> Isolation:
    """Where agents of this class run; by default on the loop if their cycle is a coroutine, else in a thread.

    Raises
    ------
    AgentDefinitionError
        There is no such isolation.
    """
    for known in get_args(Isolation):
        if asked == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    if asked is not None:
        raise AgentDefinitionError(f"isolation is {asked!r}, must be one of {', '.join(get_args(Isolation))}")
    cycle = cls.execute_cycle
    return "loop" if cycle is BaseAgent.execute_cycle or inspect.iscoroutinefunction(cycle) else "thread"
