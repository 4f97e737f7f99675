"""What a simulated cluster is made of: durations, speeds, networks, memory, the scheduler's CPU. PURE

Sizes are bytes, times seconds, speeds factors of a worker that needs one second for one second of work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from swarm.errors import TwinError

if TYPE_CHECKING:
    from random import Random

Key = Any
"""Dask's own: str, bytes, int, float or a tuple of these."""
MIB = 1 << 20
LIMIT_S = 30 * 86_400.0
"""What a simulation takes at most, unless it is allowed more. A month of silence costs minutes of CPU."""
MOST_S = 100 * 365 * 86_400.0
"""What it can be allowed. A float resolves a microsecond of that; far beyond, a clock would no longer move."""


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise TwinError(f"{name} is {value!r}, must be a finite number above 0")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0 or math.isinf(value):
            raise TwinError(f"{name} is {value!r}, must be a finite number, 0 or more")


# -- what tasks cost ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What one execution of a task takes."""

    work_s: float
    """On a worker of speed 1."""
    output_bytes: int = 28
    peak_bytes: int = 0
    """Memory that it needs beside its inputs and its output while it runs."""

    def __post_init__(self) -> None:
        _not_negative(work_s=self.work_s, output_bytes=self.output_bytes, peak_bytes=self.peak_bytes)


class Durations(Protocol):
    """How long tasks take. `arguments` are the numbers among the task's own arguments, in their order."""

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        """Seconds of work. `rng` is seeded by the run and the key, so the answer does not depend on the schedule."""
        ...


@dataclass(frozen=True)
class Constant:
    """Every task takes as long."""

    work_s: float

    def __post_init__(self) -> None:
        _not_negative(work_s=self.work_s)

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        return self.work_s


@dataclass(frozen=True)
class LogNormal:
    """The usual shape of real task durations: many short ones, a few long ones."""

    median_s: float
    sigma: float
    """Of the logarithm; 1.0 means that one task in forty takes more than seven times the median."""

    def __post_init__(self) -> None:
        _positive(median_s=self.median_s)
        _not_negative(sigma=self.sigma)

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        return self.median_s * math.exp(self.sigma * rng.gauss(0.0, 1.0))


@dataclass(frozen=True)
class Pareto:
    """A heavy tail: `least_s` at least, and infinite variance for `alpha` below 2."""

    least_s: float
    alpha: float

    def __post_init__(self) -> None:
        _positive(least_s=self.least_s, alpha=self.alpha)

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        return self.least_s * rng.paretovariate(self.alpha)


@dataclass(frozen=True)
class ByArgument:
    """Proportional to a power of one of the task's numeric arguments: `scale_s * argument ** power`."""

    scale_s: float
    power: float = 1.0
    index: int = 0

    def __post_init__(self) -> None:
        _not_negative(scale_s=self.scale_s)

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        if self.index >= len(arguments):
            raise TwinError(
                f"task {key!r} has {len(arguments)} numeric arguments, ByArgument asks for number {self.index}"
            )
        return self.scale_s * float(arguments[self.index] ** self.power)


@dataclass(frozen=True)
class FromTrace:
    """As measured in a real run: key → seconds."""

    work_s: Mapping[Key, float]

    def __post_init__(self) -> None:
        for key, value in self.work_s.items():
            _not_negative(**{f"the duration of {key!r}": value})

    def __call__(self, key: Key, arguments: Sequence[float], rng: Random) -> float:
        try:
            return self.work_s[key]
        except KeyError:
            raise TwinError(f"the trace has no duration of task {key!r}") from None


# -- how fast workers are ----------------------------------------------------------------------------------------


class Speed(Protocol):
    """Speed of a worker over time."""

    def changes(self) -> Iterator[tuple[float, float]]:
        """(seconds since the start, factor from then on), the first at 0, in order; ends when nothing changes."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same for ever."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _positive(factor=self.factor)

    def changes(self) -> Iterator[tuple[float, float]]:
        yield 0.0, self.factor


@dataclass(frozen=True)
class Sudden:
    """One speed until `at_s`, another one from then on."""

    before: float
    after: float
    at_s: float

    def __post_init__(self) -> None:
        _positive(before=self.before, after=self.after)
        _not_negative(at_s=self.at_s)

    def changes(self) -> Iterator[tuple[float, float]]:
        yield 0.0, self.before
        yield self.at_s, self.after


@dataclass(frozen=True)
class Drifting:
    """From one speed to another in a straight line, from `from_s` to `until_s`, in steps of a sixty-fourth."""

    first: float
    last: float
    until_s: float
    from_s: float = 0.0
    STEPS = 64

    def __post_init__(self) -> None:
        _positive(first=self.first, last=self.last, until_s=self.until_s)
        _not_negative(from_s=self.from_s)
        if self.until_s <= self.from_s:
            raise TwinError(f"until_s is {self.until_s}, must be above from_s, which is {self.from_s}")

    def changes(self) -> Iterator[tuple[float, float]]:
        yield 0.0, self.first
        for step in range(1, self.STEPS + 1):
            share = step / self.STEPS
            yield self.from_s + share * (self.until_s - self.from_s), self.first + share * (self.last - self.first)


# -- memory, network, the scheduler ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Memory of a worker process and Dask's four thresholds (`distributed.worker.memory`), as shares of the limit."""

    limit_bytes: int = 0
    """0: no limit, as without `--memory-limit`."""
    baseline_bytes: int = 120 * MIB
    """Of the process without data."""
    target: float = 0.60
    spill: float = 0.70
    pause: float = 0.80
    terminate: float = 0.95
    disk_bytes_per_s: float = 5e8

    def __post_init__(self) -> None:
        _not_negative(limit_bytes=self.limit_bytes, baseline_bytes=self.baseline_bytes)
        _positive(disk_bytes_per_s=self.disk_bytes_per_s)
        shares = (self.target, self.spill, self.pause, self.terminate)
        if not all(0 < share <= 1 for share in shares) or list(shares) != sorted(shares):
            raise TwinError(
                f"target, spill, pause, terminate are {shares}, must be shares of the limit in rising order"
            )
        if self.limit_bytes and self.baseline_bytes >= self.limit_bytes:
            raise TwinError(f"baseline_bytes is {self.baseline_bytes}, must be below the limit of {self.limit_bytes}")


@dataclass(frozen=True)
class Link:
    """Between two hosts."""

    latency_s: float = 1e-4
    bytes_per_s: float = 1e9

    def __post_init__(self) -> None:
        _not_negative(latency_s=self.latency_s)
        _positive(bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True)
class Network:
    """Latency and bandwidth between hosts.

    A host sends one payload at a time and receives one at a time (its uplink and downlink have the rate of the
    link), so that many readers of one worker share what it can send. Messages without payload do not queue.
    """

    default: Link = field(default_factory=Link)
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    """(host, host) → link, in both directions."""
    same_host: Link = field(default_factory=lambda: Link(5e-5, 4e9))
    shared_uplink: Link | None = None
    """What all payloads between different hosts squeeze through, one after another."""
    request_s: float = 1e-3
    """What both ends spend on one request for data, beside the time on the wire."""
    break_after_s: float = 30.0
    """Silence after which a connection is given up (`distributed.comm.timeouts.tcp`)."""

    def __post_init__(self) -> None:
        _not_negative(request_s=self.request_s)
        _positive(break_after_s=self.break_after_s)

    def link(self, a: str, b: str) -> Link:
        if a == b:
            return self.same_host
        return self.links.get((a, b)) or self.links.get((b, a)) or self.default


@dataclass(frozen=True)
class SchedulerCpu:
    """What the scheduler's one thread spends. `python -m swarm.twin.calibrate` measures it on a real cluster."""

    message_s: float = 3e-4
    """On each message that comes in, with all that follows from it."""
    graph_task_s: float = 1e-4
    """On each task of a graph that comes in."""
    batch_s: float = 0.0
    """On each batch of messages that goes out, to a worker or to the client."""

    def __post_init__(self) -> None:
        _not_negative(message_s=self.message_s, batch_s=self.batch_s, graph_task_s=self.graph_task_s)


@dataclass(frozen=True)
class WorkerModel:
    """One simulated worker process."""

    name: str
    threads: int = 1
    speed: Speed = field(default_factory=Fixed)
    memory: Memory = field(default_factory=Memory)
    host: str = ""
    """Workers of the same host share its links; by default each has a host of its own."""
    resources: Mapping[str, float] = field(default_factory=dict)
    nanny: bool = False
    """Whether a nanny starts the process again when it is killed or crashes. One that closes itself, because its
    connection broke or the scheduler does not know it any more, does not come back, as in Dask."""
    restart_s: float = 2.0
    """What the nanny needs for that."""
    task_overhead_s: float = 5e-4
    """Between two tasks on a thread: the worker's event loop, deserialisation, the thread pool."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise TwinError(f"worker {self.name} has {self.threads} threads, must have 1 or more")
        _not_negative(restart_s=self.restart_s, task_overhead_s=self.task_overhead_s)


@dataclass(frozen=True)
class ClusterModel:
    """Workers, the network between them, and the scheduler's CPU."""

    workers: Sequence[WorkerModel]
    network: Network = field(default_factory=Network)
    scheduler: SchedulerCpu = field(default_factory=SchedulerCpu)
    heartbeat_s: float | None = None
    """Between two heartbeats of a worker; None: as Dask's scheduler asks for it, 0.5 s and more. A longer one makes
    hours in which nothing else happens cheap to simulate; from the `worker-ttl` of 300 s on workers are removed."""
    heartbeat_jitter: float = 0.0
    """Share of the interval by which heartbeats are late at random."""

    def __post_init__(self) -> None:
        names = [worker.name for worker in self.workers]
        if twice := sorted({name for name in names if names.count(name) > 1} if len(names) < 1000 else _twice(names)):
            raise TwinError(f"worker names {', '.join(twice[:3])} are taken twice, must differ")
        if self.heartbeat_s is not None:
            _positive(heartbeat_s=self.heartbeat_s)
        if not 0 <= self.heartbeat_jitter < 1:
            raise TwinError(f"heartbeat_jitter is {self.heartbeat_jitter}, must be 0 or more and below 1")

    @property
    def threads(self) -> int:
        return sum(worker.threads for worker in self.workers)


def _twice(names: Collection[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def uniform(
    workers: int,
    threads: int = 1,
    *,
    speed: Callable[[int], Speed] | Speed | None = None,
    memory: Memory | None = None,
    network: Network | None = None,
    scheduler: SchedulerCpu | None = None,
    workers_per_host: int = 1,
    nanny: bool = False,
) -> ClusterModel:
    """A cluster of like workers, `w0` to `wN`; `speed` may be a function of a worker's number.

    >>> uniform(2, threads=4).threads
    8
    """
    if workers < 0:
        raise TwinError(f"workers is {workers}, must be 0 or more")
    if workers_per_host < 1:
        raise TwinError(f"workers_per_host is {workers_per_host}, must be 1 or more")

    def speed_of(number: int) -> Speed:
        if speed is None:
            return Fixed()
        return speed(number) if callable(speed) else speed

    models = [
        WorkerModel(
            name=f"w{i}",
            threads=threads,
            speed=speed_of(i),
            memory=memory or Memory(),
            host=f"h{i // workers_per_host}",
            nanny=nanny,
        )
        for i in range(workers)
    ]
    return ClusterModel(models, network or Network(), scheduler or SchedulerCpu())
