"""The life of an agent: what may follow what, and when one that failed is started again.  PURE

Events go in, decisions come out (`Life.on`); `swarm.agents.life.charge` carries them out. The transitions are data,
after `h11/_state.py <https://github.com/python-hyper/h11/blob/master/h11/_state.py>`_.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Stage(StrEnum):
    """Where an agent is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    """It failed, and waits to be started again; its mailbox is open."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It was given up."""


class Happened(StrEnum):
    """What can happen to an agent."""

    BEGUN = "begun"
    """Its host begins to start it, for the first time or again."""
    STARTED = "started"
    """Its `setup` has returned."""
    FAULTED = "faulted"
    """It raised, crashed, or did not come back in time."""
    GIVEN_UP = "given up"
    """It faulted too often; follows from `FAULTED`, nobody else says it."""
    DISPLACED = "displaced"
    """It must run elsewhere, as it stood in the way of others; no fault of its work."""
    STOP_ASKED = "stop asked"
    ENDED = "ended"
    """Nothing of it runs any more."""


TRANSITIONS: dict[Stage, dict[Happened, Stage]] = {
    Stage.CREATED: {
        Happened.BEGUN: Stage.STARTING,
        Happened.STOP_ASKED: Stage.STOPPING,
    },
    Stage.STARTING: {
        Happened.STARTED: Stage.RUNNING,
        Happened.FAULTED: Stage.DEGRADED,
        Happened.GIVEN_UP: Stage.FAILED,
        Happened.STOP_ASKED: Stage.STOPPING,
    },
    Stage.RUNNING: {
        Happened.FAULTED: Stage.DEGRADED,
        Happened.GIVEN_UP: Stage.FAILED,
        Happened.DISPLACED: Stage.STARTING,
        Happened.STOP_ASKED: Stage.STOPPING,
    },
    Stage.DEGRADED: {
        Happened.BEGUN: Stage.STARTING,
        Happened.STOP_ASKED: Stage.STOPPING,
    },
    Stage.STOPPING: {
        Happened.ENDED: Stage.STOPPED,
    },
    Stage.STOPPED: {},
    Stage.FAILED: {
        Happened.STOP_ASKED: Stage.STOPPING,
    },
}


@dataclass(frozen=True, slots=True)
class RestartRule:
    """When an agent that failed is started again, and when it is given up.

    The pauses double: 0.1 s is no burden and keeps what hits an agent once within the two seconds in which it is to be
    back. Eight failures in a row wait for 12.7 s in all: longer than most of what passes by itself (a server that
    restarts, a full disk that is cleaned), and short enough that somebody who watches sees the agent given up. Failures
    are in a row as long as the agent has not done its work for a minute between two of them. One that hangs works
    for no time at all, however long it took to find out.
    """

    first_pause_s: float = 0.1
    longest_pause_s: float = 30.0
    failures: int = 8
    good_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """After so many failures in a row, at least one.

        >>> [RestartRule().pause_s(n) for n in (1, 2, 3, 100)]
        [0.1, 0.2, 0.4, 30.0]
        """
        return min(self.first_pause_s * 2.0 ** min(failures - 1, 60), self.longest_pause_s)


@dataclass(frozen=True, slots=True)
class Start:
    """Start it, after a pause."""

    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it where it is."""

    failures: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End it, and tell when that is done."""


Decision: TypeAlias = Start | GiveUp | Stop | None


class Life:
    """One agent's life, over all its restarts.

    An agent that has never run is given up when it fails: whoever creates it is there to see why, and a mistake in it
    does not go away by itself.

    Examples
    --------
    >>> life = Life(RestartRule(), now_s=0.0)
    >>> life.on(Happened.BEGUN, 0.0), life.on(Happened.STARTED, 0.1), life.stage.value
    (None, None, 'running')
    >>> life.on(Happened.FAULTED, 5.0, good_s=4.9), life.stage.value
    (Start(pause_s=0.1), 'degraded')
    """

    def __init__(self, rule: RestartRule, now_s: float) -> None:
        self.stage = Stage.CREATED
        self.since_s = now_s
        """When it came to this stage."""
        self.starts = 0
        """How often its `setup` has returned."""
        self.failures = 0
        """In a row."""
        self._rule = rule

    @property
    def restarts(self) -> int:
        """How often it has run again."""
        return max(self.starts - 1, 0)

    @property
    def is_over(self) -> bool:
        """It will not run again."""
        return self.stage in (Stage.STOPPING, Stage.STOPPED, Stage.FAILED)

    def may(self, happened: Happened) -> bool:
        """Can this happen now?"""
        return happened in TRANSITIONS[self.stage]

    def on(self, happened: Happened, now_s: float, *, good_s: float = 0.0) -> Decision:
        """What to do about it.

        Parameters
        ----------
        good_s
            Of `FAULTED`: how long the agent had done its work, from its start to the end of its last good turn.

        Raises
        ------
        ValueError
            It can't happen in this stage.
        """
        decision: Decision = None
        if happened is Happened.FAULTED and self.may(happened):
            self.failures = 1 if good_s >= self._rule.good_s else self.failures + 1
            if not self.starts or self.failures >= self._rule.failures:
                happened, decision = Happened.GIVEN_UP, GiveUp(self.failures)
            else:
                decision = Start(self._rule.pause_s(self.failures))
        elif happened is Happened.DISPLACED:
            decision = Start()
        elif happened is Happened.STOP_ASKED:
            decision = Stop()
        if not self.may(happened):
            raise ValueError(f"an agent that is {self.stage} can't be {happened}")
        self.starts += happened is Happened.STARTED
        self.stage, self.since_s = TRANSITIONS[self.stage][happened], now_s
        return decision
