"""What tasks will cost, on which worker: Dask's tasks and workers on one side, the cost model on the other.

The model is made beside the event loop, and until it is there Dask's own averages answer, and what has finished waits.
River, whose import takes a second, joins it while nothing runs: as a rule before the first work comes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import exp, inf, isfinite, log
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.comm.addressing import get_address_host

from scheduler_plugins.learn.links import Links
from scheduler_plugins.learn.protocol import Observation
from scheduler_plugins.on_dask.late import Late
from scheduler_plugins.on_dask.reading import (
    CALM,
    MOST_INPUTS,
    NAME,
    SMALL_BYTES,
    Kinds,
    Seen,
    features_of_task,
    read,
)
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.io.models import Models
    from scheduler_plugins.learn.costs import Costs, Key

PRIOR_P90, PRIOR_P99 = exp(1.2816), exp(2.3263)
"""Over p50, where only the prior speaks: a standard deviation of a factor of e."""
SHORTEST_S, LONGEST_S = 1e-6, 1e9
MOST_FUNCTIONS = 2_000
"""That are remembered, at some 20 kB each."""
MOST_WAITING = 10_000
"""Finished tasks that wait for the model; beyond, the oldest are forgotten."""
LARGE_BYTES = 1_000_000
"""A fetch of less than `SMALL_BYTES` shows the latency, one of more than this the bandwidth of a link."""

LEAST_NOISE = 0.15
"""Of the log duration of a task that still runs: it may be the task and not the worker."""
HALF_LIFE_S = 60.0
"""Of what is known of a worker on which nothing ends."""

LOG_TWICE = log(2.0)
LEARN_S, PAUSE_S = 0.0005, 0.003
"""Slice of work of the thread beside the event loop, and how long it then lets go of the interpreter."""
MOST_SLICES = 100
SLICE_S, BETWEEN_SLICES_S = 0.0005, 0.005
"""The same for work on the event loop."""
RIVER_BY_S = 30.0
SAVE_EVERY_S = 300.0
SAVE_PATIENCE_S = 5.0
"""For the models to be saved when the scheduler closes."""


class Estimate(NamedTuple):
    """Of a task on a worker of average speed."""

    p50_s: float
    p90_s: float
    p99_s: float
    samples: int
    """Finished tasks of the function that it rests on; 0: on Dask's average or on nothing."""
    error: float
    """Median of |log(actual / predicted)| over the last tasks, and never below 1 / samples: 0.1 is 10 %."""
    output_bytes: float | None
    """Median; None: not known."""
    peak_bytes: float | None
    """Resident memory that it adds while it runs, 90 %; None: not known."""


class Estimates:
    """Predicts, and learns from what happens. All methods are for the event loop; `of` and `factor` for its hot path.

    Parameters
    ----------
    scheduler
        Dask's; nothing of it is changed.
    costs
        The model, where somebody has it already. Without it `start` makes one.
    models
        Where the model is kept from run to run.
    on_failure
        Told what went wrong beside the event loop, in a few words, with the exception. Estimates go on without.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        costs: Costs | None = None,
        *,
        models: Models | None = None,
        on_failure: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.links = Links()
        self.malformed = 0
        """Tasks of which Dask or the worker said something that makes no sense; they taught nothing."""
        self._scheduler = scheduler
        self._costs = costs
        self._models = models
        self._on_failure = on_failure or _log
        self._tasks: dict[TaskState, Seen] = {}
        self._kinds = Kinds(self._is_known)
        self._waiting: deque[tuple[Key, tuple[float, ...], str, Observation]] = deque(maxlen=MOST_WAITING)
        self._hosts: dict[str, str] = {}
        self._at_least: dict[Key, float] = {}
        """Function of which no task has ended → what one is thought to take, as one has run for so long already."""
        self._late = Late()
        self._beside: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._learning: asyncio.Future[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._has_learned = False
        self._imports = False
        self._began_s = inf
        self._ticked_at_s = self._saved_at_s = -inf

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def costs(self) -> Costs | None:
        """The model; None until it is made."""
        return self._costs

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the model, beside the running event loop."""
        loop = asyncio.get_running_loop()
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swarm-learning")
        if self._costs is None:
            made = loop.run_in_executor(self._beside, _make, self._models, self._stop)
            made.add_done_callback(self._on_made)

    def _on_made(self, made: asyncio.Future[Costs]) -> None:
        if made.cancelled() or self._stop.is_set():
            return
        if (error := made.exception()) is not None:
            self._waiting = deque(maxlen=0)
            self._on_failure("the cost model could not be made", _as_exception(error))
            return
        self._costs = made.result()
        if self._models is not None and self._models.refused is not None:
            self._on_failure("the saved models were put aside", self._models.refused)
        self._learn_waiting()

    def _learn_waiting(self) -> None:
        """What finished while the model was made, a slice at a time."""
        costs, waiting = self._costs, self._waiting
        assert costs is not None
        until_s = time.perf_counter() + SLICE_S
        while waiting:
            costs.learn(*waiting.popleft())
            self._has_learned = True
            if time.perf_counter() > until_s:
                asyncio.get_running_loop().call_later(BETWEEN_SLICES_S, self._learn_waiting)
                return

    def tick(self, now_s: float, *, is_idle: bool = True) -> None:
        """To be called about once a second, with a clock that only goes forward.

        River is imported when the cluster is idle, as it is before the first tasks, or half a minute after the start:
        that takes a second of a core, and the first tasks can do without.
        """
        costs = self._costs
        passed_s, self._ticked_at_s = now_s - self._ticked_at_s, now_s
        if costs is None or not isfinite(passed_s):
            self._saved_at_s = now_s
            return
        if passed_s > 0.0:
            costs.speeds.fade(0.5 ** (passed_s / HALF_LIFE_S))
        for key in [key for key in self._at_least if costs.function(key) is not None]:
            del self._at_least[key]
        self._late.tidy()
        if self._beside is None or self._stop.is_set():
            return
        if not costs.has_river:
            self._began_s = min(self._began_s, now_s)
            if not self._imports and (is_idle or now_s - self._began_s > RIVER_BY_S):
                self._imports = True
                asyncio.get_running_loop().run_in_executor(self._beside, _import_river).add_done_callback(
                    self._on_river
                )
        elif costs.pending and (self._learning is None or self._learning.done()):
            loop = asyncio.get_running_loop()
            self._learning = loop.run_in_executor(self._beside, _learn, costs, self._stop)
            self._learning.add_done_callback(self._on_done_beside)
        if now_s - self._saved_at_s > SAVE_EVERY_S:
            self._saved_at_s = now_s
            self._save()

    def _on_done_beside(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._on_failure("learning beside the event loop failed", _as_exception(error))

    def _on_river(self, done: asyncio.Future[Any]) -> None:
        self._on_done_beside(done)
        if not done.cancelled() and done.exception() is None and self._costs is not None:
            self._costs.take(done.result())

    async def stop(self) -> None:
        """Save the models, and end."""
        if self._beside is None:
            return
        self._stop.set()  # from here on nothing pauses
        if (saving := self._save()) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(saving, SAVE_PATIENCE_S)
        self.close()

    def close(self) -> None:
        """End without saving; may be called again."""
        self._stop.set()
        if self._beside is not None:
            self._beside.shutdown(wait=False, cancel_futures=True)
            self._beside = None

    # -- what tasks will cost --------------------------------------------------------------------------------------

    def of(self, ts: TaskState) -> Estimate:
        """What a task will take on a worker of average speed."""
        seen = self._tasks.get(ts)
        if seen is None:
            seen = self._tasks[ts] = self._kinds.seen(ts)
        elif seen.is_open and (seen.stands or not ts.waiting_on):
            seen = self._tasks[ts] = self._kinds.seen(ts) if seen.stands else read(ts, seen.features)
        function = seen.function
        if function is not None and seen.version == function.version:
            return seen.estimate  # type: ignore[return-value] # there is one where there is a version
        return self._renewed(ts, seen)

    def _renewed(self, ts: TaskState, seen: Seen) -> Estimate:
        if not seen.stands and (kind := seen.kind) is not None and kind.is_alike and kind.stand is not None:
            seen = self._tasks[ts] = kind.stand  # it was read before arguments were known not to matter
            if seen.function is not None and seen.version == seen.function.version:
                return seen.estimate  # type: ignore[return-value] # there is one where there is a version
        function = None if self._costs is None else self._costs.function(seen.key)
        if function is not None and seen.stands and not seen.kind.is_alike:  # type: ignore[union-attr] # it has one
            seen.kind.dissolve()  # type: ignore[union-attr] # it stood for all as long as nothing was known
            seen = self._tasks[ts] = self._kinds.seen(ts)
            function = self._costs.function(seen.key)  # type: ignore[union-attr] # nor has the model gone
        seen.function = function
        if function is None:
            return self._of_unknown(ts, seen)
        estimate = function.said.get(seen.x)
        if estimate is None:
            assert self._costs is not None
            estimate = Estimate(*self._costs.say(function, seen.x))
            function.said[seen.x] = estimate
        seen.version = function.version
        seen.estimate = estimate
        return estimate

    def _is_known(self, key: Key) -> bool:
        return self._costs is not None and self._costs.function(key) is not None

    def is_light(self, ts: TaskState) -> bool:
        """Whether a task is one of many, short and small as all of them have been for long."""
        seen = self._tasks.get(ts)
        return seen is not None and seen.stands and seen.kind.calm >= CALM  # type: ignore[union-attr] # it has one

    def _of_unknown(self, ts: TaskState, seen: Seen) -> Estimate:
        p50_s, samples = ts.prefix.duration_average, 0
        if not 0.0 <= p50_s <= LONGEST_S:  # -1 where Dask does not know either
            p50_s = self._scheduler.UNKNOWN_TASK_DURATION
        elif self._costs is None:
            samples = 1  # until the model is there, what Dask has seen is what there is to go by
        p50_s = max(p50_s, SHORTEST_S, self._at_least.get(seen.key, 0.0))
        if seen.estimate is None or seen.estimate.p50_s != p50_s or seen.estimate.samples != samples:
            seen.estimate = Estimate(p50_s, p50_s * PRIOR_P90, p50_s * PRIOR_P99, samples, 1.0, None, None)
        return seen.estimate

    def peak_bytes(self, ts: TaskState) -> float | None:
        """`Estimate.peak_bytes`, if it was ever seen; None where nothing but bounds are known."""
        estimate = self.of(ts)
        if estimate.peak_bytes is None:
            return None
        function = self._tasks[ts].function
        return None if function is None or function.peak_is_bound else estimate.peak_bytes

    def factor(self, ts: TaskState, ws: WorkerState) -> float:
        """Duration on this worker, over that on an average one."""
        address = ws.address
        level = 0.0 if self._costs is None else self._costs.speeds.log_factor(address)
        seen = self._tasks.get(ts)
        if seen is not None and (function := seen.function) is not None and function.local:
            local = function.local.get(address)
            if local is not None:
                level += local.value
        if self._late.lift:
            level += self._late.lift.get(address, 0.0)
        return exp(level)

    def worker_factor(self, ws: WorkerState) -> tuple[float, float]:
        """Durations on this worker, over those on an average one, and the ratio by which that may well be wrong."""
        speeds = None if self._costs is None else self._costs.speeds
        level, doubt = (0.0, 0.0) if speeds is None else (speeds.log_factor(ws.address), speeds.doubt(ws.address))
        return exp(level + self._late.lift.get(ws.address, 0.0)), exp(doubt)

    def function(self, ts: TaskState) -> str:
        """The qualified name of what a task calls; "data" where it calls nothing."""
        seen = self._tasks.get(ts)
        features = features_of_task(ts) if seen is None else seen.features
        return features.function.partition("#")[0]

    def told(self, ts: TaskState, ws: WorkerState) -> tuple[float, float, int, str]:
        """For those who ask later: p50 and p99 on this worker, how many tasks they rest on, and which model leads."""
        known, factor = self.of(ts), self.factor(ts, ws)
        function = self._tasks[ts].function
        source = "" if function is None else function.duration.source
        return known.p50_s * factor, known.p99_s * factor, known.samples, source

    # -- what data will take ---------------------------------------------------------------------------------------

    def transfer_s(self, nbytes: float, source: str, target: str) -> float:
        """One fetch of so many bytes from worker to worker; 0 where they are there."""
        if source == target:
            return 0.0
        source_host, target_host = self._host(source), self._host(target)
        bandwidth = self.links.bandwidth(source_host, target_host) or self._scheduler.bandwidth
        return self.links.latency_s(source_host, target_host) + nbytes / bandwidth

    def bandwidth(self, source: str, target: str) -> float:
        """Bytes per second from worker to worker."""
        return self.links.bandwidth(self._host(source), self._host(target)) or self._scheduler.bandwidth

    def _host(self, address: str) -> str:
        host = self._hosts.get(address)
        if host is None:
            try:
                host = get_address_host(address)
            except (ValueError, NotImplementedError):  # a kind of address that names no host
                host = address
            self._hosts[address] = host
        return host

    # -- what tasks have cost --------------------------------------------------------------------------------------

    def finished(self, ts: TaskState, ws_address: str, details: Mapping[str, Any]) -> float | None:
        """A task has a result, before anybody releases its inputs; the seconds that it ran, where it is known.

        Parameters
        ----------
        details
            What `SchedulerPlugin.transition` is given for processing → memory: startstops, nbytes, metadata.
        """
        seen = self._tasks.get(ts)
        if self._late.on and ts in self._late.on:
            self._late.stopped(ts)
        observation = None
        try:
            if seen is None:
                seen = self._kinds.seen(ts)
            if seen.kind is not None and (took_s := seen.kind.saw(details)) is not None:
                return took_s
            if seen.stands:
                seen = self._kinds.own(ts, seen)
            elif seen.is_open:
                seen = read(ts, seen.features)
            observation = self._observation(ts, ws_address, details)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            pass
        if observation is None:
            self.malformed += 1
            return None
        assert seen is not None
        self._tasks[ts] = seen
        if self._costs is None:
            self._waiting.append((seen.key, seen.x, ws_address, observation))
        else:
            self._has_learned = True
            self._costs.learn(seen.key, seen.x, ws_address, observation)
            if seen.kind is not None:
                self._learned(seen)
        return observation.duration_s

    def _learned(self, seen: Seen) -> None:
        """A task without inputs has taught its function something."""
        assert self._costs is not None
        assert seen.kind is not None
        seen.function = self._costs.function(seen.key)
        if seen.function is not None:
            seen.kind.learned(seen)

    def _observation(self, ts: TaskState, address: str, details: Mapping[str, Any]) -> Observation | None:
        """What it took, or None when nobody said so."""
        duration_s: float | None = None
        for span in details["startstops"]:
            action = span["action"]
            if action == "compute":
                # A worker keeps what former executions took; the last one has led to the result.
                duration_s = span["stop"] - span["start"]
            elif action == "transfer":
                self._fetched(ts, span.get("source", ""), address, span["stop"] - span["start"])
        if duration_s is None:
            return None
        output_bytes = float(details["nbytes"])
        metadata = details.get("metadata")
        said = metadata.get(NAME) if metadata else None
        if not said:
            return Observation(duration_s, output_bytes)
        peak, bound = said.get("peak_bytes"), said.get("peak_at_most_bytes")
        return Observation(
            duration_s,
            output_bytes,
            None if peak is None else float(peak),
            peak_at_most_bytes=None if bound is None else float(bound),
        )

    def _fetched(self, ts: TaskState, source: str, target: str, seconds: float) -> None:
        """Learn how fast a link is, where it can be told what came over it: Dask says only from where, and how long."""
        if not source:
            return
        here, there = self._host(source), self._host(target)
        if (known := self._scheduler.bandwidth_workers.get((target, source))) is not None:
            self.links.saw_bandwidth(here, there, known)
        size = float("nan")
        holder = self._scheduler.workers.get(source)
        for count, dependency in enumerate(ts.dependencies):
            if count == MOST_INPUTS:
                return
            if dependency.who_has and holder in dependency.who_has:
                if size == size:  # noqa: PLR0124 - a second one; not NaN any more
                    return
                size = dependency.nbytes
        if size < SMALL_BYTES:
            self.links.saw_latency(here, there, seconds)
        elif size > LARGE_BYTES:
            self.links.saw_bandwidth(here, there, size / max(seconds - self.links.latency_s(here, there), 1e-3))

    def running_for(self, ts: TaskState, ws_address: str, elapsed_s: float) -> None:
        """A task still runs there. If it should have ended, its worker may be slower than is known, for now."""
        estimate = self.of(ts)
        if not estimate.samples or not estimate.p90_s < elapsed_s < inf:
            self._late.stopped(ts)
            return
        noise = max(log(estimate.p90_s / estimate.p50_s) / 1.2816, LEAST_NOISE)
        beyond = log(elapsed_s / estimate.p50_s) - self._known_level(ts, ws_address)
        if beyond >= 1.2816 * noise:
            self._late.runs(ts, ws_address, beyond, noise)

    def is_longer(self, ts: TaskState, elapsed_s: float) -> bool:
        """A task still runs of whose function none has ended; whether all such are now thought to take longer.

        What has lasted so long, and may be of any length, as likely as not lasts as long again (Gott: "Implications of
        the Copernican principle for our future prospects", Nature 363, 1993).
        """
        estimate = self.of(ts)
        if estimate.samples or not estimate.p50_s < elapsed_s < inf or len(self._at_least) >= MOST_FUNCTIONS:
            return False
        self._at_least[self._tasks[ts].key] = 2.0 * elapsed_s
        return True

    def ran_at_least(self, ts: TaskState, ws_address: str, elapsed_s: float) -> None:
        """A task ran so long there and was not done: its copy was quicker, or it was taken away.

        What it would have taken is not known; as likely as not, as long again (as in `is_longer`).
        """
        if self._costs is None:
            return
        estimate = self.of(ts)
        if estimate.samples and estimate.p50_s < elapsed_s < inf:
            beyond = log(elapsed_s / estimate.p50_s)
            noise = log(estimate.p99_s / estimate.p50_s) / 2.3263
            if beyond > self._costs.speeds.log_factor(ws_address):
                self._costs.speeds.observe(ws_address, beyond + LOG_TWICE, noise)

    def _known_level(self, ts: TaskState, address: str) -> float:
        if self._costs is None:
            return 0.0
        local = None
        if (function := self._tasks[ts].function) is not None:
            local = function.local.get(address)
        return self._costs.speeds.log_factor(address) + (0.0 if local is None else local.value)

    def stopped(self, ts: TaskState) -> None:
        """A task does not run any more where it ran: finished, failed, taken back."""
        self._late.stopped(ts)

    def forget(self, ts: TaskState) -> None:
        """The scheduler has forgotten a task."""
        self._tasks.pop(ts, None)
        if self._late.on:
            self._late.stopped(ts)

    def worker_left(self, address: str) -> None:
        if self._costs is not None:
            self._costs.speeds.forget(address)
        self._late.worker_left(address)
        self._hosts.pop(address, None)

    # -- from run to run -------------------------------------------------------------------------------------------

    def _save(self) -> asyncio.Task[None] | None:
        """Save the models unless nothing is new; what does it, if anything."""
        if self._models is None or self._costs is None or self._beside is None or not self._has_learned:
            return self._saving
        if self._saving is None or self._saving.done():
            self._has_learned = False
            self._saving = asyncio.get_running_loop().create_task(self._write(self._costs, self._models))
        return self._saving

    async def _write(self, costs: Costs, models: Models) -> None:
        """The states are taken on the event loop, in slices; they are written beside it."""
        states: deque[Mapping[str, Any]] = deque()
        until_s = time.perf_counter() + SLICE_S
        for state in costs.function_states():
            states.append(state)
            if time.perf_counter() > until_s:
                await asyncio.sleep(0 if self._stop.is_set() else BETWEEN_SLICES_S)
                until_s = time.perf_counter() + SLICE_S
        try:
            workers = costs.speeds.to_state()
            await asyncio.get_running_loop().run_in_executor(
                self._beside, models.write, _drained(states), workers, self._pause
            )
        except Exception as error:  # noqa: BLE001 - a disk that is full costs the models, nothing else
            self._on_failure("the models could not be saved", error)

    def _pause(self) -> None:
        """Called by the thread that writes, after each slice: the event loop comes first."""
        if not self._stop.is_set():
            self._stop.wait(PAUSE_S)


# -- beside the event loop -------------------------------------------------------------------------------------------


def _make(models: Models | None, stop: threading.Event) -> Costs:
    """Import what takes long, make the model, and give it what former runs have learned."""
    from random import Random

    from scheduler_plugins.learn.costs import Costs

    costs = Costs(Random(0), functions=MOST_FUNCTIONS, with_river=False)  # noqa: S311 - which tasks teach what is no secret
    if models is not None and (state := models.read(lambda: stop.wait(PAUSE_S))) is not None:
        try:
            costs.merge(state)
        except ValueError as error:
            models.put_aside(error)
    return costs


def _import_river() -> Any:
    from scheduler_plugins.learn.costs import import_river

    return import_river()


def _drained(states: deque[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each goes as soon as it is written: to free thousands at once would take the event loop milliseconds."""
    while states:
        yield states.popleft()


def _learn(costs: Costs, stop: threading.Event) -> None:
    """Grow trees, in slices: while this thread runs, the event loop does not."""
    for _ in range(MOST_SLICES):
        costs.learn_pending(LEARN_S, time.perf_counter)
        if not costs.pending or stop.wait(PAUSE_S):
            return


def _log(what: str, error: Exception) -> None:
    get_logger(agent="scheduler").warning("estimates_failed", what=what, reason=str(error))


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
