"""Every error that swarm raises on purpose: one line that says what, where, what is allowed, what to do.  PURE

`SwarmError` and its children carry a message that is complete in itself. The command line prints it as
`swarm: error: <message>` and exits with `exit_code`; a traceback appears only with `--log-level DEBUG`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.twin.saved import Case


class SwarmError(Exception):
    """Base of all errors of swarm. The message is one line, complete in itself."""

    exit_code = 1


class SettingsError(SwarmError):
    """A settings key or value that is not allowed; names the key, the value and what is allowed."""

    exit_code = 2


class SettingsConflictError(SettingsError):
    """Two places give different values for the same setting."""


class UnknownWorkloadError(SwarmError):
    """No workload has this name; the message suggests the nearest one."""

    exit_code = 2


class WorkloadParameterError(SwarmError):
    """A parameter of a workload that is unknown, of the wrong type or out of range."""

    exit_code = 2


class UnreadableInputError(SwarmError):
    """An input file of a workload that is missing or can't be read."""

    exit_code = 2


class SubmissionError(SwarmError):
    """What was submitted is not a workload, a Dask collection, a Delayed or a graph."""

    exit_code = 2


class ConnectError(SwarmError):
    """No Dask scheduler answers at the address."""


class PortInUseError(SwarmError):
    """A port that was asked for is taken by another process."""


class MissingPackageError(SwarmError):
    """A scheduler or worker can't import swarm."""


class VersionMismatchError(SwarmError):
    """Client, scheduler and workers do not run the same version of swarm; names all three."""


class SchedulerLostError(SwarmError):
    """The scheduler went away while a run was under way."""


class TwinError(SwarmError):
    """A simulation was asked for that can't be: a wrong model, fault, trace or graph."""

    exit_code = 2
    case: Case | None = None
    """The simulation that came to nothing; `case.save(path)` keeps it."""


class DeadlockError(TwinError):
    """A simulation came to a standstill: names the tasks that will never finish, and why."""

    exit_code = 1


class InvariantError(TwinError):
    """A simulated run broke a rule that every run must keep: a defect of a policy, of Dask or of the twin."""

    exit_code = 1


class JournalError(SwarmError):
    """The journal of runs can't be written or read, or has nothing of the kind; says which file, and why."""


class ModelsError(SwarmError):
    """The file of what was learned in former runs can't be used or written; says which file, and why."""


class ResultStoreError(SwarmError):
    """The store of durable results is full, unreachable or not safe; says which, and why."""


class DamagedResultError(SwarmError):
    """A stored result or graph is not what was stored; says which file, and what is wrong with it."""


class DurabilityError(SwarmError):
    """A run can't be durable, or can't be resumed; says why."""


class UnknownKeyError(SwarmError):
    """No task and no worker is known by that name, or several tasks are."""

    exit_code = 2

    @classmethod
    def about(cls, what: str, similar: Sequence[str], prefixes: Sequence[str], where: str = "") -> UnknownKeyError:
        """No task begins with `what`, and no worker is called so; names the nearest of what there is."""
        near = nearest(what, similar) or nearest(what, prefixes)
        if near == what:
            hint = ": those of that name are forgotten"
        elif near:
            hint = f"; did you mean {near}?"
        elif prefixes:
            hint = f" (tasks begin with {', '.join(prefixes[:5])}{', …' if prefixes[5:] else ''})"
        else:
            hint = " (there are no tasks)"
        return cls(f"there is no task or worker {what!r}{where}{hint}")


class RunFailedError(SwarmError):
    """A run did not end well for a reason that is not an exception of one of its tasks."""


class RunCancelledError(RunFailedError):
    """The run was cancelled before its result was there."""


class TaskTimeoutError(SwarmError):
    """A task ran longer than its timeout on every try; says where, and for how long each."""

    def __init__(self, message: str, attempts: Sequence[tuple[str, float]] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)
        """(worker address, seconds that it ran there), in order."""


class TaskMemoryError(SwarmError):
    """A task needs more memory than any worker has; says how much of what."""


class VerificationError(SwarmError):
    """A result was computed, and its verification says that it is wrong."""


class ProcessError(SwarmError):
    """A scheduler or worker process that swarm started ended, or never got ready."""


class ProtocolError(SwarmError):
    """A message that does not fit `swarm.protocol`."""


class AgentError(SwarmError):
    """Base of what can go wrong with agents and the messages between them."""


class UnknownAgentError(AgentError):
    """No agent has this id; the message suggests the nearest one."""

    exit_code = 2


class AgentExistsError(AgentError):
    """An agent of this id is there already."""

    exit_code = 2


class TooManyAgentsError(AgentError):
    """As many agents run as `max_agents` allows."""


class AgentDefinitionError(AgentError):
    """What was asked to become an agent can't: a wrong class, id, option, isolation or place; says what is allowed."""

    exit_code = 2


class AgentFailedError(AgentError):
    """An agent did not start, failed too often and was given up, or raised while it handled a request."""


class MessageError(AgentError):
    """Bytes that are no message, or a message with a field that is not allowed."""

    exit_code = 2


class MessageTooLargeError(MessageError):
    """A message is larger than what the channel takes; names both sizes."""


class ForbiddenMessageError(AgentError):
    """The sender may not send this, or is not who it says it is."""


class ChannelError(AgentError):
    """A channel between two processes can't be opened, or is broken."""


class ChannelFullError(ChannelError):
    """The receiver did not make room before the deadline (back-pressure)."""


class PeerLostError(ChannelError):
    """The process at the other end of a channel has ended."""


class NoAnswerError(AgentError):
    """A request was delivered, and not answered before the deadline."""


class LedgerError(SwarmError):
    """The table of a host's cores, memory and watts can't be used; says which file, why, and what to do."""


class NotGrantedError(LedgerError):
    """What was asked of the ledger was not free before the deadline, or is more than the host has."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like `word`, or None when none is near.

    >>> nearest("kmean", ["kmeans", "heat"])
    'kmeans'
    >>> nearest("zzz", ["kmeans", "heat"]) is None
    True
    """
    folded = {k.casefold().replace("-", "_"): k for k in known}
    found = difflib.get_close_matches(word.casefold().replace("-", "_"), folded, n=1, cutoff=0.5)
    return folded[found[0]] if found else None
