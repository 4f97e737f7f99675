"""Pins the threads of a worker to cores or NUMA nodes, so that what they work on stays in the caches that are near.

A core is pinned to by one thread of the host at most: who has claimed it holds the lock of a file, which the kernel
opens when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from swarm.errors import AgentDefinitionError, AgentError
from swarm.telemetry.sources.cgroup import cpu_limit
from swarm.telemetry.sources.source import SourceAbsent

Pin: TypeAlias = Literal["cores", "numa"]
NODES = "sys/devices/system/node"


def check_pin(pin: object) -> Pin | None:
    """`pin`, if it is allowed.

    Raises
    ------
    AgentDefinitionError
        It is not; says what is.
    """
    if pin is False or pin is None:
        return None
    for known in get_args(Pin):
        if pin == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    raise AgentDefinitionError(f'pin is {pin!r}, must be False, "cores" or "numa"')


def numa_nodes(root: Path = Path("/")) -> dict[int, frozenset[int]]:
    """Node → its cores, as the kernel lists them (Documentation/ABI/stable/sysfs-devices-node); empty: not told."""
    return {
        int(folder.name.removeprefix("node")): cpus
        for folder in sorted(root.joinpath(NODES).glob("node[0-9]*"))
        if (cpus := cpu_list((folder / "cpulist").read_text()))
    }


def cpu_list(text: str) -> frozenset[int]:
    """Read a list of cores of the kernel.

    >>> sorted(cpu_list("0-2,8"))
    [0, 1, 2, 8]
    """
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def cpu_limit_cores(root: Path = Path("/")) -> float | None:
    """What the tightest of this process's control groups allows, in cores; None: no limit."""
    try:
        return cpu_limit(root)[0]
    except SourceAbsent:
        return None


def plan(
    threads: int, free: Collection[int], nodes: Mapping[int, frozenset[int]], pin: Pin
) -> list[tuple[int, frozenset[int]]] | None:
    """For each thread the core that it claims, and the cores that it may run on; None when there are too few.

    All threads of a worker go to one node if one has room for them, the one with most; else they go to several.

    >>> plan(2, {1, 2, 3}, {0: frozenset({0, 1}), 1: frozenset({2, 3})}, "cores")
    [(2, frozenset({2})), (3, frozenset({3}))]
    >>> plan(1, {1}, {0: frozenset({0, 1})}, "numa")
    [(1, frozenset({0, 1}))]
    >>> plan(2, {1}, {0: frozenset({0, 1})}, "cores") is None
    True
    """
    node_of = {core: node for node, cores in nodes.items() for core in cores}
    room: dict[int, list[int]] = {}
    for core in sorted(free):
        room.setdefault(node_of.get(core, -1), []).append(core)
    fullest_first = sorted(room, key=lambda node: (-len(room[node]), node))
    claimed = [core for node in fullest_first for core in room[node]][:threads]
    if len(claimed) < threads:
        return None
    if pin == "cores":
        return [(core, frozenset({core})) for core in claimed]
    return [(core, nodes.get(node_of.get(core, -1), frozenset({core}))) for core in claimed]


class Claims:
    """Cores that this process has claimed among those of its host that pin too.

    Parameters
    ----------
    folder
        Of the lock files; by default one for the user.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir(), f"swarm-pins-{os.getuid()}")
        self._held: dict[int, int] = {}

    def claim(self, core: int) -> bool:
        """Whether it is this process's now.

        Raises
        ------
        AgentError
            The folder belongs to somebody else.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise AgentError(f"can't pin: {self._folder} belongs to another user; remove it")
        handle = os.open(self._folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._held[core] = handle
        return True

    def release(self, keep: Collection[int] = ()) -> None:
        for core in self._held.keys() - set(keep):
            os.close(self._held.pop(core))


class Pinning:
    """Pins threads, also those that come later, and unpins them.

    Parameters
    ----------
    audit
        Told before each change.

    Raises
    ------
    AgentError
        It would do harm here: a control group limits the CPU time, so that the kernel moves threads to keep to it, or
        there are fewer cores than threads.
    """

    def __init__(
        self,
        pin: Pin,
        threads: int,
        audit: Callable[..., None],
        *,
        root: Path = Path("/"),
        claims: Claims | None = None,
    ) -> None:
        allowed = os.sched_getaffinity(0)
        limit = cpu_limit_cores(root)
        if limit is not None and limit < len(allowed):
            raise AgentError(f'pin="{pin}" is refused: a control group limits this worker to {limit:g} cores of time')
        self.pin: Pin = pin
        self._audit = audit
        self._claims = claims or Claims()
        self._before: dict[int, set[int]] = {}
        self.pinned: dict[int, frozenset[int]] = {}
        """Thread, as the kernel numbers it → its cores."""
        free = {core for core in allowed if self._claims.claim(core)}
        nodes = {node: cores & allowed for node, cores in numa_nodes(root).items()}
        planned = plan(threads, free, nodes, pin)
        if planned is None:
            self._claims.release()
            raise AgentError(
                f'pin="{pin}" is refused: this worker has {threads} threads, and {len(free)} of {len(allowed)} cores '
                "are not claimed by other workers; start it with fewer threads"
            )
        self._claims.release(keep=[core for core, _ in planned])
        self._open = [cores for _, cores in planned]

    def look(self, threads: Iterable[int]) -> None:
        """Pin those of the threads that are not pinned yet; what threads that ended had goes to others."""
        alive = set(threads)
        for gone in self.pinned.keys() - alive:
            self._open.append(self.pinned.pop(gone))
            self._before.pop(gone, None)
        for thread in sorted(alive - self.pinned.keys()):
            if not self._open:
                return
            try:
                before = os.sched_getaffinity(thread)
                self._audit("pin_thread", thread=thread, cores=sorted(self._open[0]), before=sorted(before))
                os.sched_setaffinity(thread, self._open[0])
            except ProcessLookupError:  # it has ended
                continue
            self._before[thread], self.pinned[thread] = before, self._open.pop(0)

    def undo(self) -> None:
        """As it was before. Doing it twice does no harm."""
        for thread, before in self._before.items():
            self._audit("unpin_thread", thread=thread, cores=sorted(before))
            try:
                os.sched_setaffinity(thread, before)
            except ProcessLookupError:
                continue
        self._before.clear()
        self.pinned.clear()
        self._claims.release()

    def told(self) -> dict[str, object]:
        return {"pin": self.pin, "threads": {str(thread): sorted(cores) for thread, cores in self.pinned.items()}}
