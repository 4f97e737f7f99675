"""What is read from Dask's tasks, so that the cost model can tell them apart; and which of them need not be read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from itertools import islice
from math import log1p
from typing import TYPE_CHECKING, Any

from scheduler_plugins.learn.features import features_of
from scheduler_plugins.learn.protocol import TaskFeatures

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

    from scheduler_plugins.learn.costs import Function, Key
    from scheduler_plugins.on_dask.estimates import Estimate

NAME = "swarm"
"""Of the entry in a task's metadata in which the worker's agents say what memory it took."""

MOST_KINDS = 2_000
MATURE = 32
"""Tasks after which it is known which model does best."""
MANY = 8
"""Tasks whose keys have a prefix in common, from which on it tells them from others that call the same."""
MOST_INPUTS = 64
"""Inputs of a task that are looked at; of more, these stand for all."""

SHORT_S, SMALL_BYTES = 0.01, 65_536
"""What takes less, and returns less, is not worth a second thought each time."""
TRIFLE_S = 0.001
"""What takes less costs Dask as much as it takes: it makes no difference what it is called with. And a task that takes
so much more than twice its p99 is a surprise; less is the doing of other threads of its process."""
CALM, CALMEST = 64, 2048
"""Short and small tasks in a row that make a kind of which no books need be kept; and the most that are counted."""
LONGEST_STRIDE = 31
"""Of a kind that has long been calm, one task in so many teaches. Odd: workers often come in powers of two."""


class Seen:
    """What was read from a task, and what was said of it."""

    __slots__ = ("estimate", "features", "function", "is_open", "key", "kind", "stands", "version", "x")

    def __init__(self, features: TaskFeatures, x: tuple[float, ...], *, is_open: bool = False) -> None:
        self.features = features
        self.key: Key = (features.function, features.names)
        self.x = x
        self.is_open = is_open
        """Whether it is to be read again: an input had no size yet, or it stood for others and does so no more."""
        self.kind: Kind | None = None
        self.stands = False
        """Whether it stands for all tasks of its kind."""
        self.function: Function | None = None
        self.version = -2
        self.estimate: Estimate | None = None


class Kind:
    """Tasks without inputs that call the same function and share a prefix.

    One task stands for all of them as long as nobody knows anything of the function, and where arguments do not matter:
    a model without them does best, or all are trifles. Those that finish are still read and teach, all while they are
    long or large or surprise; of those that are short and small, the fewer the longer it has been calm.
    """

    __slots__ = ("_left", "calm", "func", "is_alike", "most_s", "stand")

    def __init__(self, func: weakref.ref[Any]) -> None:
        self.func = func
        self.stand: Seen | None = None
        self.is_alike = False
        """Whether arguments do not matter, as far as is known."""
        self.calm = 0
        """Short and small tasks in a row; a surprise halves them, one that is long or large leaves a quarter."""
        self.most_s = TRIFLE_S
        """What takes longer is a surprise."""
        self._left = 0
        """Tasks that need not teach before the next that must."""

    def stand_for_all(self, seen: Seen) -> Seen:
        self.stand = stand = Seen(seen.features, seen.x)
        stand.kind = self
        stand.stands = True
        return stand

    def dissolve(self) -> None:
        """Each task is to be read from now on."""
        if self.stand is not None:
            self.stand.is_open = True
        self.stand = None
        self.is_alike = False

    def learned(self, seen: Seen) -> None:
        """One of its tasks has taught the function something."""
        function = seen.function
        assert function is not None
        is_indifferent = _is_indifferent(function)
        if is_indifferent or self.calm >= (CALM // 4 if self.is_alike else CALM):
            if not self.is_alike:
                self.dissolve()
                self.is_alike = True
                self.stand_for_all(seen)
        elif self.stand is not None:
            self.dissolve()
        self.most_s = TRIFLE_S
        if is_indifferent and self.stand is not None and self.stand.estimate is not None:
            self.most_s = min(2.0 * self.stand.estimate.p99_s + TRIFLE_S, SHORT_S)

    def saw(self, details: Mapping[str, Any]) -> float | None:
        """One of its tasks has finished: how long it ran, if it need not teach anything."""
        spans = details["startstops"]
        if not spans or len(spans) != 1 or NAME in (details.get("metadata") or ()):
            return None
        span = spans[0]
        if span["action"] != "compute":
            return None
        took_s = span["stop"] - span["start"]
        if not 0.0 <= took_s < SHORT_S or details["nbytes"] > SMALL_BYTES:
            self.calm >>= 2
            return None
        if took_s > self.most_s:
            self.calm >>= 1
            self._left = 0
            return None
        if self.calm < CALMEST:
            self.calm += 1
        self._left -= 1
        if self._left >= 0 and self.is_alike:
            return took_s  # type: ignore[no-any-return]
        self._left = min(self.calm >> 5, LONGEST_STRIDE) - 1
        return None


def _is_indifferent(function: Function) -> bool:
    """Whether models without arguments do best for all that is predicted."""
    duration, output, peak = function.duration, function.output, function.peak
    return (
        duration.age >= MATURE
        and duration.source in ("average", "recent")
        and (output is None or output.source == "average")
        and (peak is None or peak.source == "average")
    )


class Kinds:
    """Knows which tasks are of a kind.

    Parameters
    ----------
    is_known
        Whether anything is known of a function.
    """

    def __init__(self, is_known: Callable[[Key], bool]) -> None:
        self._is_known = is_known
        self._of: dict[tuple[int, str], Kind] = {}
        """Function, by identity, and key prefix → tasks that have both."""

    def seen(self, ts: TaskState) -> Seen:
        """What a task calls and with what, or what stands for it."""
        if ts.dependencies:
            return read(ts)
        try:
            func = ts.run_spec.func  # type: ignore[union-attr]
        except AttributeError:  # it calls nothing
            return read(ts)
        kind = self._of.get((id(func), ts.prefix.name))
        if kind is None or kind.func() is not func:
            return self._first(ts, func)
        if kind.stand is not None:
            return kind.stand
        seen = read(ts)
        seen.kind = kind
        return seen

    def own(self, ts: TaskState, stand: Seen) -> Seen:
        """What a task itself calls, though another stood for it."""
        seen = read(ts)
        seen.kind = stand.kind
        return seen

    def _first(self, ts: TaskState, func: object) -> Seen:
        seen = read(ts)
        if sum(ts.prefix.states.values()) < MANY:
            return seen
        try:
            kind = Kind(weakref.ref(func))
        except TypeError:  # its life can't be followed
            return seen
        if len(self._of) >= MOST_KINDS:
            for each in self._of.values():
                each.dissolve()
            self._of.clear()
        self._of[id(func), ts.prefix.name] = kind
        if not self._is_known(seen.key):
            return kind.stand_for_all(seen)
        seen.kind = kind
        return seen


def read(ts: TaskState, features: TaskFeatures | None = None) -> Seen:
    """What a task calls, with which arguments and inputs."""
    if features is None:
        features = features_of_task(ts)
    dependencies = ts.dependencies
    count = len(dependencies)
    if not count:
        return Seen(features, (*features.terms, 0.0, 0.0, _ALONE))
    is_open, size = False, 0.0
    for dependency in dependencies if count <= MOST_INPUTS else islice(dependencies, MOST_INPUTS):
        if dependency.nbytes < 0:
            is_open = True
            size += _usual_bytes(dependency)
        else:
            size += dependency.nbytes
    if count > MOST_INPUTS:
        size *= count / MOST_INPUTS
    return Seen(features, (*features.terms, log1p(size), log1p(count), _ALONE), is_open=is_open)


_ALONE = log1p(1)
"""The term for what else runs on the host: nobody knows that before a task is placed."""


def features_of_task(ts: TaskState) -> TaskFeatures:
    """Of the function and its arguments."""
    prefix = ts.prefix
    try:
        features = features_of(ts.run_spec)
    except Exception:  # noqa: BLE001 - arguments are whatever people pass
        return TaskFeatures(f"unreadable {prefix.name}")
    function = features.function
    if function.partition("#")[0].endswith(prefix.name) or sum(prefix.states.values()) < MANY:
        return features
    # The same function may do different things under different names, as Dask's own does that runs fused tasks; but
    # where every key has a name of its own, names say nothing.
    return features._replace(function=f"{function} {prefix.name}")


def _usual_bytes(ts: TaskState) -> float:
    """What tasks with such a key have returned, on average."""
    prefix = ts.prefix
    states = prefix.states
    returned = states["memory"] + states["released"] + states["forgotten"]
    return max(prefix.nbytes_total, 0) / returned if returned else 0.0
