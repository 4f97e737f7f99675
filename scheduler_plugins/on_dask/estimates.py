"""What tasks will cost, on which worker: Dask's tasks and workers on one side, the cost model on the other.

The model comes with river, whose import takes a second: that is done beside the event loop, and until it is there
Dask's own averages answer, and what has finished waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from math import exp, inf, isfinite, log, log1p
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.comm.addressing import get_address_host

from scheduler_plugins.learn.features import features_of
from scheduler_plugins.learn.links import Links
from scheduler_plugins.learn.protocol import Observation, TaskFeatures
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.io.models import Models
    from scheduler_plugins.learn.costs import Costs, Function, Key

NAME = "swarm"
"""Of the entry in a task's metadata in which the worker's agents say what memory it took."""

PRIOR_P90, PRIOR_P99 = exp(1.2816), exp(2.3263)
"""Over p50, where only the prior speaks: a standard deviation of a factor of e."""
SHORTEST_S, LONGEST_S = 1e-6, 1e9
MOST_FUNCTIONS = 2_000
"""That are remembered, at some 20 kB each."""
MOST_WAITING = 10_000
"""Finished tasks that wait for the model; beyond, the oldest are forgotten."""
MATURE = 32
"""Tasks after which it is known which model does best."""
SHORT_S = 0.01
MANY = 8
"""Tasks whose keys have a prefix in common, from which on it tells them from others that call the same."""
MOST_INPUTS = 64
"""Inputs of a task that are looked at; of more, these stand for all."""

SMALL_BYTES, LARGE_BYTES = 65_536, 1_000_000
"""A fetch of less shows the latency, one of more the bandwidth of a link."""

CHANGE_SPREAD = 0.3
"""Standard deviation of what a worker's log factor may have become since its last task ended."""
LEAST_NOISE = 0.15
"""Of the log duration of a task that still runs: it may be the task and not the worker."""
HALF_LIFE_S = 60.0
"""Of what is known of a worker on which nothing ends."""

LEARN_S, PAUSE_S = 0.0005, 0.003
"""Slice of work of the thread beside the event loop, and how long it then lets go of the interpreter."""
MOST_SLICES = 100
SLICE_S, BETWEEN_SLICES_S = 0.0005, 0.005
"""The same for work on the event loop."""
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


class _Task:
    """What was read from a task, and what was said of it."""

    __slots__ = ("estimate", "features", "function", "is_alike", "is_open", "key", "version", "x")

    def __init__(self, features: TaskFeatures, x: tuple[float, ...], is_open: bool) -> None:
        self.features = features
        self.key: Key = (features.function, features.names)
        self.x = x
        self.is_open = is_open
        """Whether an input had no size yet."""
        self.is_alike = False
        """Whether it stands for all tasks of its function."""
        self.function: Function | None = None
        self.version = -2
        self.estimate: Estimate | None = None


class _Alike:
    """Functions whose tasks all take about the same, whatever their arguments.

    Where a model without arguments has done best so far, one task in eight is read as any other, lest it be missed when
    arguments begin to matter; the others need not be read. Of those that are short, one in four teaches.
    """

    def __init__(self) -> None:
        self._of: dict[Any, _Task] = {}
        """Function and key prefix → what stands for such tasks."""
        self._count = 0

    def get(self, ts: TaskState) -> _Task | None:
        if ts.dependencies or not self._of:
            return None
        self._count += 1
        if self._count % 8 == 0:
            return None
        try:
            return self._of.get((ts.run_spec.func, ts.prefix.name))  # type: ignore[union-attr]
        except (AttributeError, TypeError):  # it calls nothing, or what can't be hashed
            return None

    def learned(self, ts: TaskState, task: _Task) -> None:
        """A task has taught its function something."""
        function = task.function
        if task.is_alike or ts.dependencies or function is None or function.duration.age < MATURE:
            return
        try:
            kind = (ts.run_spec.func, ts.prefix.name)  # type: ignore[union-attr]
            if function.duration.source not in ("average", "recent"):
                self._of.pop(kind, None)
            elif kind not in self._of:
                if len(self._of) >= MOST_FUNCTIONS:
                    self._of.clear()
                alike = self._of[kind] = _Task(task.features, task.x, False)
                alike.is_alike = True
        except (AttributeError, TypeError):
            return

    def skipped(self, details: Mapping[str, Any]) -> float | None:
        """How long a short task ran that teaches nothing."""
        self._count += 1
        if self._count % 4 == 0:
            return None
        spans = details.get("startstops")
        if not spans or len(spans) != 1 or spans[0].get("action") != "compute":
            return None
        took_s = spans[0]["stop"] - spans[0]["start"]
        return took_s if 0.0 <= took_s < SHORT_S else None


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
        self._tasks: dict[TaskState, _Task] = {}
        self._alike = _Alike()
        self._waiting: deque[tuple[Key, tuple[float, ...], str, Observation]] = deque(maxlen=MOST_WAITING)
        self._hosts: dict[str, str] = {}
        self._at_least: dict[Key, float] = {}
        """Function of which no task has ended → what one is thought to take, as one has run for so long already."""
        self._late: dict[str, dict[TaskState, tuple[float, float]]] = {}
        self._late_on: dict[TaskState, str] = {}
        self._lift: dict[str, float] = {}
        self._beside: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._learning: asyncio.Future[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._has_learned = False
        self._ticked_at_s = self._saved_at_s = -inf

    def __len__(self) -> int:
        return len(self._tasks)

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

    def tick(self, now_s: float) -> None:
        """To be called about once a second, with a clock that only goes forward."""
        costs = self._costs
        passed_s, self._ticked_at_s = now_s - self._ticked_at_s, now_s
        if costs is None or not isfinite(passed_s):
            self._saved_at_s = now_s
            return
        if passed_s > 0.0:
            costs.speeds.fade(0.5 ** (passed_s / HALF_LIFE_S))
        for key in [key for key in self._at_least if costs.function(key) is not None]:
            del self._at_least[key]
        for task, address in list(self._late_on.items()):
            if task.processing_on is None or task.processing_on.address != address:
                self.stopped(task)
        if self._beside is None or self._stop.is_set():
            return
        if costs.pending and (self._learning is None or self._learning.done()):
            loop = asyncio.get_running_loop()
            self._learning = loop.run_in_executor(self._beside, _learn, costs, self._stop)
            self._learning.add_done_callback(self._on_done_beside)
        if now_s - self._saved_at_s > SAVE_EVERY_S:
            self._saved_at_s = now_s
            self._save()

    def _on_done_beside(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._on_failure("learning beside the event loop failed", _as_exception(error))

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
        task = self._tasks.get(ts)
        if task is None:
            task = self._tasks[ts] = self._alike.get(ts) or _read(ts)
        elif task.is_open and not ts.waiting_on:
            task = self._tasks[ts] = _read(ts, task.features)
        function = task.function
        if function is not None and task.version == function.version:
            return task.estimate  # type: ignore[return-value] # there is one where there is a version
        return self._renewed(ts, task)

    def _renewed(self, ts: TaskState, task: _Task) -> Estimate:
        function = None if self._costs is None else self._costs.function(task.key)
        task.function = function
        if function is None:
            return self._of_unknown(ts, task)
        estimate = function.said.get(task.x)
        if estimate is None:
            assert self._costs is not None
            estimate = Estimate(*self._costs.say(function, task.x))
            function.said[task.x] = estimate
        task.version = function.version
        task.estimate = estimate
        return estimate

    def _of_unknown(self, ts: TaskState, task: _Task) -> Estimate:
        p50_s, samples = ts.prefix.duration_average, 0
        if not 0.0 <= p50_s <= LONGEST_S:  # -1 where Dask does not know either
            p50_s = self._scheduler.UNKNOWN_TASK_DURATION
        elif self._costs is None:
            samples = 1  # until the model is there, what Dask has seen is what there is to go by
        p50_s = max(p50_s, SHORTEST_S, self._at_least.get(task.key, 0.0))
        if task.estimate is None or task.estimate.p50_s != p50_s or task.estimate.samples != samples:
            task.estimate = Estimate(p50_s, p50_s * PRIOR_P90, p50_s * PRIOR_P99, samples, 1.0, None, None)
        return task.estimate

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
        task = self._tasks.get(ts)
        if task is not None and (function := task.function) is not None and function.local:
            local = function.local.get(address)
            if local is not None:
                level += local.value
        if self._lift:
            level += self._lift.get(address, 0.0)
        return exp(level)

    def worker_factor(self, ws: WorkerState) -> tuple[float, float]:
        """Durations on this worker, over those on an average one, and the ratio by which that may well be wrong."""
        speeds = None if self._costs is None else self._costs.speeds
        level, doubt = (0.0, 0.0) if speeds is None else (speeds.log_factor(ws.address), speeds.doubt(ws.address))
        return exp(level + self._lift.get(ws.address, 0.0)), exp(doubt)

    def function(self, ts: TaskState) -> str:
        """The qualified name of what a task calls; "data" where it calls nothing."""
        task = self._tasks.get(ts)
        features = _features(ts) if task is None else task.features
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
        task = self._tasks.get(ts)
        if task is None or task.is_open:
            task = self._tasks[ts] = _read(ts, None if task is None else task.features)
        if ts in self._late_on:
            self.stopped(ts)
        if task.is_alike and (took_s := self._alike.skipped(details)) is not None:
            return took_s
        try:
            observation = self._observation(ts, ws_address, details)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            observation = None
        if observation is None:
            self.malformed += 1
            return None
        if self._costs is None:
            self._waiting.append((task.key, task.x, ws_address, observation))
        else:
            self._has_learned = True
            self._costs.learn(task.key, task.x, ws_address, observation)
            self._alike.learned(ts, task)
        return observation.duration_s

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
        """A task still runs there. If it should have ended, its worker may be slower than is known, for now.

        The worker's log factor is where a normal prior around what is known, and the shortest duration that each such
        task can have, balance: one task that varies a lot says little, several or a steady one a lot.
        """
        estimate = self.of(ts)
        if not estimate.samples or not estimate.p90_s < elapsed_s < inf:
            if ts in self._late_on:
                self.stopped(ts)
            return
        noise = max(log(estimate.p90_s / estimate.p50_s) / 1.2816, LEAST_NOISE)
        beyond = log(elapsed_s / estimate.p50_s) - self._known_level(ts, ws_address)
        if beyond < 1.2816 * noise:
            return
        if self._late_on.get(ts, ws_address) != ws_address:
            self.stopped(ts)
        weight = 1.0 / (noise * noise)
        self._late_on[ts] = ws_address
        self._late.setdefault(ws_address, {})[ts] = (weight, weight * beyond)
        self._balance(ws_address)

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
        """A task ran so long there and was not done: its copy was quicker, or it was taken away."""
        if self._costs is None:
            return
        estimate = self.of(ts)
        if estimate.samples and estimate.p50_s < elapsed_s < inf:
            beyond = log(elapsed_s / estimate.p50_s)
            noise = log(estimate.p99_s / estimate.p50_s) / 2.3263
            if beyond > self._costs.speeds.log_factor(ws_address):
                self._costs.speeds.observe(ws_address, beyond, noise)

    def _known_level(self, ts: TaskState, address: str) -> float:
        if self._costs is None:
            return 0.0
        local = None
        if (function := self._tasks[ts].function) is not None:
            local = function.local.get(address)
        return self._costs.speeds.log_factor(address) + (0.0 if local is None else local.value)

    def stopped(self, ts: TaskState) -> None:
        """A task does not run any more where it ran: finished, failed, taken back."""
        address = self._late_on.pop(ts, None)
        if address is not None and (late := self._late.get(address)) is not None:
            late.pop(ts, None)
            self._balance(address)

    def _balance(self, address: str) -> None:
        late = self._late[address]
        if not late:
            del self._late[address]
            self._lift.pop(address, None)
            return
        weight = sum(weight for weight, _ in late.values())
        self._lift[address] = sum(pull for _, pull in late.values()) / (weight + 1.0 / CHANGE_SPREAD**2)

    def forget(self, ts: TaskState) -> None:
        """The scheduler has forgotten a task."""
        self._tasks.pop(ts, None)
        if ts in self._late_on:
            self.stopped(ts)

    def worker_left(self, address: str) -> None:
        if self._costs is not None:
            self._costs.speeds.forget(address)
        for ts in list(self._late.get(address, ())):
            self.stopped(ts)
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


def _read(ts: TaskState, features: TaskFeatures | None = None) -> _Task:
    """What a task calls, with which arguments and inputs."""
    if features is None:
        features = _features(ts)
    dependencies = ts.dependencies
    count = len(dependencies)
    if not count:
        return _Task(features, (*features.terms, 0.0, 0.0, _ALONE), False)
    is_open, size = False, 0.0
    for dependency in dependencies if count <= MOST_INPUTS else islice(dependencies, MOST_INPUTS):
        if dependency.nbytes < 0:
            is_open = True
            size += _usual_bytes(dependency)
        else:
            size += dependency.nbytes
    if count > MOST_INPUTS:
        size *= count / MOST_INPUTS
    return _Task(features, (*features.terms, log1p(size), log1p(count), _ALONE), is_open)


_ALONE = log1p(1)
"""The term for what else runs on the host: nobody knows that before a task is placed."""


def _features(ts: TaskState) -> TaskFeatures:
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


# -- beside the event loop -------------------------------------------------------------------------------------------


def _make(models: Models | None, stop: threading.Event) -> Costs:
    """Import what takes long, make the model, and give it what former runs have learned."""
    from random import Random

    from scheduler_plugins.learn.costs import Costs

    costs = Costs(Random(0), functions=MOST_FUNCTIONS)  # noqa: S311 - which tasks teach what is no secret
    if models is not None and (state := models.read(lambda: stop.wait(PAUSE_S))) is not None:
        try:
            costs.merge(state)
        except ValueError as error:
            models.put_aside(error)
    return costs


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
