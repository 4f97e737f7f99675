"""Advice of agents, for placement, copies and strategies: bounded, and with an end.  PURE

An agent sends the scheduler a message of one of `KINDS`. Each kind is advice on one topic:

- threads: a host is hot, so its workers are given fewer tasks at a time, as many in sum as it may use cores.
- copies: how often tasks of a function are slow for reasons that are not their own. Whether to run one a second time
  turns on that (Ananthanarayanan et al.: "Reining in the outliers in map-reduce clusters using Mantri", OSDI 2010: a
  task that has more to do than others has it everywhere).
- strategy: a kind of work is like another one, of which it is known what does best.

Advice ends when whoever gave it says so, or says nothing more for as long as it was to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import floor, inf, isfinite
from typing import Any

from swarm.errors import MessageError
from swarm.protocol import Action, AdviceHeard, AdviceTopic, DropAdvice, TakeAdvice

TEXT, COUNT = (str,), (int,)
NUMBER = (int, float)
KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    "host_hot": {
        "host": TEXT,
        "place": TEXT,
        "cores": COUNT,
        "all_cores": COUNT,
        "holds_s": NUMBER,
        "reason": TEXT,
    },
    "host_cool": {"host": TEXT},
    "slow_tasks": {
        "function": TEXT,
        "tasks": COUNT,
        "held_up": COUNT,
        "by_themselves": COUNT,
        "holds_s": NUMBER,
    },
    "strategy_advised": {
        "work": TEXT,
        "strategy": TEXT,
        "run": TEXT,
        "like": TEXT,
        "distance": NUMBER,
        "holds_s": NUMBER,
    },
}
"""Kind of message → what it must have; there may be more."""

MOST_HOLDS_S = 24 * 3600.0
"""Longest that advice holds, whatever it says."""
MOST_HELD = 4096
"""Pieces of advice at a time; the others are not taken."""

USUAL_SHARE = 0.01
"""Of all executions, those that are held up, where nothing is known: `speculate.STUCK_SHARE`."""
LEAST_SHARE, MOST_SHARE = 0.002, 0.1
"""Bounds of what advice makes of it."""
PRIOR_TASKS = 100
"""What is usual counts for as many tasks as this."""
FEW = 5
"""Slow tasks that must have been seen before they say anything."""
MOSTLY = 3
"""Slow tasks for one reason over those for the other, from which on it is the reason."""

Subject = tuple[AdviceTopic, str]


@dataclass(slots=True)
class _Held:
    """Advice in force."""

    value: float | str
    since_s: float
    until_s: float
    giver: str


@dataclass(slots=True)
class _Seen:
    """What one agent has seen of the tasks of a function."""

    tasks: int
    held_up: int
    by_themselves: int
    until_s: float


def read(kind: str, payload: object) -> dict[str, Any]:
    """The payload of such a message.

    Raises
    ------
    MessageError
        The scheduler takes no such messages, or this one makes no sense.
    """
    fields = KINDS.get(kind)
    if fields is None:
        raise MessageError(f"the scheduler takes {', '.join(KINDS)}, not {kind}")
    if not isinstance(payload, Mapping):
        raise MessageError(f"payload of {kind} is a {type(payload).__name__}, must be a mapping")
    for name, types in fields.items():
        value = payload.get(name)
        if isinstance(value, bool) or not isinstance(value, types):
            raise MessageError(f"{name} of {kind} is {value!r:.80}, must be {types[-1].__name__}")
        if types is not TEXT and not 0 <= payload[name] < inf:
            raise MessageError(f"{name} of {kind} is {value!r:.80}, must be 0 or more")
    details: dict[str, Any] = {str(name): value for name, value in payload.items() if _is_plain(value)}
    if kind == "host_hot" and not 1 <= details["cores"] <= details["all_cores"]:
        raise MessageError(f"cores of host_hot is {details['cores']}, must be 1 to all_cores, {details['all_cores']}")
    return details


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and isfinite(value))


def threads_of(workers: Mapping[str, int], cores: int, all_cores: int) -> dict[str, int]:
    """How many tasks each worker of a hot host may run at a time; in sum at least 1.

    As many as the host may use cores; where its workers have more threads than it has cores, in proportion. Each has
    its share of them, by largest remainder.

    Parameters
    ----------
    workers
        Worker → its threads.

    >>> threads_of({"a": 4, "b": 4}, cores=3, all_cores=8)
    {'a': 2, 'b': 1}
    >>> threads_of({"a": 2}, cores=3, all_cores=8)
    {'a': 2}
    """
    total = sum(workers.values())
    if not total:
        return dict(workers)
    most = max(1, min(total, floor(cores * max(1.0, total / all_cores))))
    shares = {worker: threads * most // total for worker, threads in workers.items()}
    by_rest = sorted(workers, key=lambda worker: (-(workers[worker] * most % total), worker))
    for worker in by_rest[: most - sum(shares.values())]:
        shares[worker] += 1
    return shares


def held_up_share(tasks: int, held_up: int, by_themselves: int) -> float | None:
    """Of all executions of a function, how many are held up; None where what was seen does not say.

    >>> held_up_share(tasks=200, held_up=11, by_themselves=0)
    0.04
    >>> held_up_share(tasks=200, held_up=1, by_themselves=20)  # slow by what they do: a copy would be as slow
    0.002
    """
    if held_up + by_themselves < FEW:
        return None
    if by_themselves >= MOSTLY * max(held_up, 1):
        return LEAST_SHARE
    if held_up >= MOSTLY * max(by_themselves, 1):
        share = (held_up + USUAL_SHARE * PRIOR_TASKS) / (max(tasks, held_up) + PRIOR_TASKS)
        return min(max(share, USUAL_SHARE), MOST_SHARE)
    return None


class Advice:
    """Turns what agents say into `TakeAdvice` and `DropAdvice`; the same advice again only makes it last."""

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}
        self._held: dict[Subject, _Held] = {}
        self._seen: dict[str, dict[str, _Seen]] = {}
        """Function → agent → what it has seen."""

    # -- workers ---------------------------------------------------------------------------------------------------

    def worker_joined(self, worker: str, threads: int) -> None:
        self._threads[worker] = threads

    def worker_left(self, worker: str) -> None:
        """Nobody has to be told what was held of it."""
        self._threads.pop(worker, None)
        self._held.pop(("threads", worker), None)

    # -- what agents say -------------------------------------------------------------------------------------------

    def heard(self, event: AdviceHeard) -> list[Action]:
        """One message, which `read` has read."""
        until_s = event.at_s + min(float(event.details.get("holds_s") or 0.0), MOST_HOLDS_S)
        match event.what:
            case "host_hot":
                return list(self._hot(event, until_s))
            case "host_cool":
                giver = f"host {event.details['host']}"
                return self._drop(
                    [each for each, held in self._held.items() if held.giver == giver], "it is cool again"
                )
            case "slow_tasks":
                return list(self._slow(event, until_s))
            case "strategy_advised":
                return list(self._strategy(event, until_s))
        return []

    def passed(self, now_s: float) -> list[Action]:
        """Time has passed: what was not said again ends."""
        over = [subject for subject, held in self._held.items() if held.until_s <= now_s]
        return self._drop(over, "nobody has said so again") if over else []

    def _hot(self, event: AdviceHeard, until_s: float) -> Iterator[Action]:
        about = event.details
        workers = {worker: self._threads[worker] for worker in sorted(event.workers) if worker in self._threads}
        giver = f"host {about['host']}"
        for worker, threads in threads_of(workers, about["cores"], about["all_cores"]).items():  # type: ignore[arg-type]
            if threads < workers[worker]:
                reason = f"{giver} is hot, it may use {about['cores']} of {about['all_cores']} cores: {about['reason']}"
                inputs = {"threads": threads, "of": workers[worker], "cores": about["cores"], "said_by": event.agent}
                yield from self._take(("threads", worker), threads, event.at_s, until_s, giver, reason, inputs)
            elif ("threads", worker) in self._held:
                yield from self._drop([("threads", worker)], "its host is less hot")

    def _slow(self, event: AdviceHeard, until_s: float) -> Iterator[Action]:
        about, function = event.details, str(event.details["function"])
        counts = [int(about[name] or 0) for name in ("tasks", "held_up", "by_themselves")]
        seen = self._seen.setdefault(function, {})
        seen[event.agent] = _Seen(counts[0], counts[1], counts[2], until_s)
        for agent in [agent for agent, each in seen.items() if each.until_s <= event.at_s]:
            del seen[agent]
        for stale in [each for each, by in self._seen.items() if all(one.until_s <= event.at_s for one in by.values())]:
            del self._seen[stale]
        tasks, held_up, by_themselves = (
            sum(getattr(each, name) for each in seen.values()) for name in ("tasks", "held_up", "by_themselves")
        )
        share = held_up_share(tasks, held_up, by_themselves)
        if share is None:
            yield from self._drop([("copies", function)] if ("copies", function) in self._held else [], "it is unclear")
            return
        reason = (
            f"of {tasks} tasks of {function}, {held_up} were slow without doing more, and {by_themselves} because they "
            f"did: {100 * share:.2g} % of executions count as held up"
        )
        inputs = {"tasks": tasks, "held_up": held_up, "by_themselves": by_themselves, "said_by": event.agent}
        yield from self._take(("copies", function), round(share, 3), event.at_s, until_s, function, reason, inputs)

    def _strategy(self, event: AdviceHeard, until_s: float) -> Iterator[Action]:
        about = event.details
        reason = f"run {about['run']} is like run {about['like']}, which did best with {about['strategy']}"
        inputs = {"distance": about["distance"], "like": about["like"], "said_by": event.agent}
        subject: Subject = ("strategy", str(about["work"]))
        yield from self._take(subject, str(about["strategy"]), event.at_s, until_s, event.agent, reason, inputs)

    def _take(
        self,
        subject: Subject,
        value: float | str,
        at_s: float,
        until_s: float,
        giver: str,
        reason: str,
        inputs: Mapping[str, float | int | str | None],
    ) -> Iterator[Action]:
        held = self._held.get(subject)
        if held is not None and held.value == value:
            held.until_s = max(held.until_s, until_s)
            return
        if held is None and len(self._held) >= MOST_HELD:
            return
        self._held[subject] = _Held(value, at_s, until_s, giver)
        topic, of = subject
        yield TakeAdvice(rule=f"advice.{topic}", reason=reason, inputs=inputs, topic=topic, subject=of, value=value)

    def _drop(self, subjects: Iterable[Subject], why: str) -> list[Action]:
        actions: list[Action] = []
        for subject in subjects:
            del self._held[subject]
            topic, of = subject
            actions.append(DropAdvice(rule=f"advice.{topic}", reason=why, topic=topic, subject=of))
        return actions
