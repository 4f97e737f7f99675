"""What of a durable run is worth storing, and what has to run again after a crash.  PURE

Storing costs: a worker's thread serialises, checks and writes, and the disk is busy. Not storing costs when something
dies: whatever led to the result is computed again. So a result is stored when one of these holds.

1. It is dear: to compute it again, with all that it needs and that is not stored either, takes at least `times` as long
   as to write it and read it once. At 1 MB and the figures of `Policy` that is 18 ms.
2. Much is exposed: of what is finished and not stored, more than `exposed_s` would be computed again. Then what has
   just finished is stored even if it is cheap, as long as the writers are less than `backlog_s` behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Key = Any

MOST_ANCESTORS = 200
"""Of a result, which are looked at: so many that are finished and not stored are seldom cheap to compute again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What storing is thought to cost, and how much may be lost."""

    file_s: float = 0.004
    """To write a file, or to read one, whatever its size: two `fsync`s on a disk of today."""
    bytes_per_s: float = 1e9
    """Of writing or reading: the slower of the checksum (BLAKE2b) and the page cache."""
    times: float = 1.8
    """A result is dear if it costs so many times what it costs to store and to load it."""
    exposed_s: float = 4.0
    """Finished work that may be lost, in seconds of a thread."""
    backlog_s: float = 5.0
    """So much writing may wait before cheap results are left alone."""

    def store_s(self, size_bytes: int) -> float:
        """To write a result, or to read it.

        >>> round(Policy().store_s(1_000_000), 4)
        0.005
        """
        return self.file_s + size_bytes / self.bytes_per_s

    def is_worth(self, redo_s: float, size_bytes: int, exposed_s: float = 0.0, backlog_s: float = 0.0) -> bool:
        """Whether to store a result.

        Parameters
        ----------
        redo_s
            To compute it again, with what it needs that is not stored.
        exposed_s
            Finished work of the run that would be done again, this result included.
        backlog_s
            Writing that waits.

        Examples
        --------
        >>> policy = Policy()
        >>> policy.is_worth(0.050, 1_000_000), policy.is_worth(0.001, 1_000_000)
        (True, False)
        >>> policy.is_worth(0.001, 1_000_000, exposed_s=4.5), policy.is_worth(0.001, 1_000_000, 4.5, backlog_s=6.0)
        (True, False)
        """
        if redo_s >= self.times * 2 * self.store_s(size_bytes):
            return True
        return exposed_s > self.exposed_s and backlog_s < self.backlog_s


class Ledger:
    """What of a run is finished, what of that is stored, and what would be done again.

    Parameters
    ----------
    parents, children
        Key → the keys that it needs, and those that need it. Somebody who wants the result itself counts as a child,
        by any name that is no key.
    """

    def __init__(
        self,
        policy: Policy,
        parents: Callable[[Key], Iterable[Key]],
        children: Callable[[Key], Collection[Any]],
    ) -> None:
        self.policy = policy
        self.stored: set[Key] = set()
        """What is stored, or is on its way."""
        self.exposed_s = 0.0
        """Finished work that is not stored, and that somebody wants or something that is not stored rests on."""
        self._parents = parents
        self._children = children
        self._took_s: dict[Key, float] = {}
        """Of what is finished and not stored."""
        self._left: dict[Key, int] = {}
        """Of these → the children that are neither stored nor covered. At none it is covered: nobody needs it again."""

    def finished(self, key: Key, took_s: float, size_bytes: int, backlog_s: float = 0.0) -> bool:
        """A result is there. Whether it is to be stored; if so, it counts as stored until `failed`."""
        if key in self.stored:
            return False
        is_counted = self._left.get(key) == 0  # its parents know already that it does not need them
        self._forget(key)
        self._took_s[key] = took_s
        left = self._left[key] = self._unsafe_children(key)
        if not left:
            if not is_counted:
                self._count(key, -1)
            return False
        if is_counted:
            self._count(key, +1)
        self._expose(took_s)
        redo_s = took_s + sum(self._took_s.get(each, 0.0) for each in self._ancestors(key))
        if not self.policy.is_worth(redo_s, size_bytes, self.exposed_s, backlog_s):
            return False
        self._forget(key)
        self.stored.add(key)
        self._count(key, -1)
        return True

    def failed(self, key: Key, took_s: float) -> None:
        """What was to be stored is not; it is exposed again, and with it what only it rests on."""
        if key in self.stored:
            self.stored.discard(key)
            self._took_s[key] = took_s
            self._left[key] = self._unsafe_children(key)
            if self._left[key]:
                self._expose(took_s)
                self._count(key, +1)

    def forgotten(self, key: Key) -> None:
        """Nobody will ask for a key again."""
        self._forget(key)
        self.stored.discard(key)

    def _forget(self, key: Key) -> None:
        took_s = self._took_s.pop(key, 0.0)
        if self._left.pop(key, 0):
            self._expose(-took_s)

    def _unsafe_children(self, key: Key) -> int:
        return sum(child not in self.stored and self._left.get(child) != 0 for child in self._children(key))

    def _expose(self, more_s: float) -> None:
        # What floats lose would otherwise stay for good.
        self.exposed_s = max(0.0, self.exposed_s + more_s) if self._took_s else 0.0

    def _count(self, key: Key, step: int) -> None:
        """A key needs its parents no more (-1), or again (+1); so do those that are covered by that, upwards."""
        front = [key]
        while front:
            for parent in self._parents(front.pop()):
                if parent in self._left:
                    left = self._left[parent] = max(0, self._left[parent] + step)
                    if left == max(0, step):  # it was the last one, or is the first one again
                        self._expose(step * self._took_s[parent])
                        front.append(parent)

    def _ancestors(self, key: Key) -> list[Key]:
        """What would be computed again with a key; at most `MOST_ANCESTORS`, those that are near."""
        seen = {key}
        found: list[Key] = []
        front = [key]
        while front and len(found) < MOST_ANCESTORS:
            below = []
            for each in front:
                for parent in self._parents(each):
                    if parent not in seen and parent not in self.stored:
                        seen.add(parent)
                        below.append(parent)
            found += below
            front = below
        return found


class Plan(NamedTuple):
    """What becomes of the keys of a graph after a crash; the others are not needed any more."""

    load: set[Key]
    run: set[Key]
    known: set[Key]
    """Elsewhere: the scheduler has them already."""
    lost: set[Key]
    """Needed, and in no graph."""


def plan(
    wanted: Iterable[Key],
    parents: Callable[[Key], Iterable[Key] | None],
    stored: Container[Key],
    known: Container[Key] = (),
) -> Plan:
    """Cull a graph, from the keys that are wanted down to those that are stored.

    Parameters
    ----------
    parents
        Key → what it needs; None for a key that is in no graph.

    Examples
    --------
    >>> graph = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["c"]}
    >>> found = plan(["d"], graph.get, stored={"b"})
    >>> sorted(found.run), sorted(found.load)
    (['a', 'c', 'd'], ['b'])
    >>> plan(["d"], graph.get, stored={"d", "b"}).run
    set()
    """
    found = Plan(set(), set(), set(), set())
    front, seen = list(wanted), set(wanted)
    while front:
        key = front.pop()
        if key in known:
            found.known.add(key)
        elif key in stored:
            found.load.add(key)
        elif (needs := parents(key)) is None:
            found.lost.add(key)
        else:
            found.run.add(key)
            for need in needs:
                if need not in seen:
                    seen.add(need)
                    front.append(need)
    return found
