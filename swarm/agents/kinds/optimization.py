"""The optimization agent of a worker: measures what tasks cost, and tunes by experiment what that says is worth it."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from scheduler_plugins.decide.agents import SCHEDULER
from swarm import tunables
from swarm.agents.base import BaseAgent, State
from swarm.agents.kinds.experiments import Book, Experiment, Rules, Verdict, next_values
from swarm.agents.kinds.function_costs import Cost, FunctionCosts
from swarm.agents.kinds.knobs import Knob, Knobs
from swarm.agents.kinds.task_counters import TaskCounters
from swarm.agents.kinds.trimming import Trimmer, malloc_trim
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentDefinitionError, AgentError, nearest
from swarm.telemetry.sources.counters import Counters
from swarm.tunables import Value

SHORTEST_S = 0.001
"""Tasks below are Dask's own time more than theirs."""
LEAST_WORTH = 0.005
"""Share of the worker's time that an experiment must be able to save."""
FEW = 10
"""Tasks that must have been measured before anything is tried with a function."""
IDLE_S = 600.0
"""After so long without a task of the function that a setting is for, it is as it was."""
MOST_FUNCTIONS = 500
SAY_S = 10.0
"""Between two times that the scheduler is told of slow tasks."""
SAID_HOLDS_S = 60.0
"""How long it goes by that, after the last task of the function."""
MESSAGES = ("counters", "experiments")


class OptimizationAgent(BaseAgent):
    """Measures a sample of the tasks of its worker, and tries settings on them, one at a time.

    The scheduler is told which tasks are slow, and why: for its copies. What wins stays, for as long as tasks of the
    function come; everything is as it was after `teardown`. Asked for `counters` it tells what each function's tasks
    cost, for `experiments` what was tried and what came of it.

    Parameters
    ----------
    experiments
        Whether to try anything; otherwise only to measure.
    knobs
        Names of what may be set: "gc", "blas threads", "numba threads", "trim", names of tunables; all by default.
    confidence, minimal_gain
        Of an experiment that is kept: how sure that it saves time, and at least which share of it.
    seed
        Of the coin that orders experiments.
    """

    kind = "optimization"
    interval_s = 1.0
    _tuned_by: ClassVar[str] = ""
    """The agent that sets things in this process, where several workers live in one."""

    def __init__(
        self,
        agent_id: str,
        experiments: bool = True,
        knobs: Sequence[str] | None = None,
        confidence: float = Rules.confidence,
        minimal_gain: float = Rules.minimal_gain,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(agent_id, **options)
        if not (0.5 <= confidence < 1.0 and 0.0 <= minimal_gain < 1.0):
            said = f"confidence={confidence!r}, minimal_gain={minimal_gain!r}"
            raise AgentDefinitionError(f"{said}: must be from 0.5 to below 1, and from 0 to below 1")
        self.rules = Rules(confidence=confidence, minimal_gain=minimal_gain)
        self.allowed = None if knobs is None else frozenset(knobs)
        self.book = Book(cpu_model(), self.rules)
        self.functions: dict[str, FunctionCosts] = {}
        self.experiment: Experiment | None = None
        self.settings: dict[str, tuple[str, Value]] = {}
        """Knob → the function that it is set for, and to what."""
        self.absent: dict[str, str] = {}
        self._wants_experiments = experiments
        self._rng = random.Random(seed)  # noqa: S311 - a coin, no secret
        self._in_thread: dict[Knob, dict[str, Value]] = {}
        self._touched: set[str] = set()
        self._rates: dict[str, tuple[int, float]] = {}
        self._rated_s = 0.0
        self._said_s = 0.0
        self._is_on = False

    # -- life ------------------------------------------------------------------------------------------------------

    async def setup(self) -> None:
        worker = self.surroundings.dask
        if not isinstance(worker, Worker):
            raise AgentDefinitionError("an optimization agent lives on the event loop of a worker, nowhere else")
        self._worker = worker
        counters = await asyncio.to_thread(Counters.of_this_machine)
        self.absent = {f"counter {name}": reason for name, reason in counters.absent.items()}
        self._tasks = TaskCounters(counters, self._on_cost, tunables.reads)
        if reason := self._tasks.start(worker):
            self._tasks.stop()
            self.absent["tasks"] = reason
            return
        self._is_on = True
        if OptimizationAgent._tuned_by and self._wants_experiments:
            self.absent["experiments"] = f"{OptimizationAgent._tuned_by} tunes this process already"
            self._wants_experiments = False
        elif self._wants_experiments:
            OptimizationAgent._tuned_by = self.agent_id
        self._knobs = Knobs()
        trim = malloc_trim()
        if trim is None:
            self.absent["trim"] = "the C library has no malloc_trim"
        self._trimmer = None if trim is None else Trimmer(_resident_bytes, trim)
        self.experiment, self.settings, self.functions = None, {}, {}
        self._rated_s = time.monotonic()
        await worker.plugin_add(_Transitions(self._tasks), name=self._plugin)

    async def teardown(self) -> None:
        if not self._is_on:
            return
        self._is_on = False
        if self._plugin in self._worker.plugins:
            await self._worker.plugin_remove(name=self._plugin)
        self.experiment = None
        for name in sorted({*self._touched, *self.settings}):
            self._put_back(name, "the agent ends")
        self._tasks.stop()
        if OptimizationAgent._tuned_by == self.agent_id:
            OptimizationAgent._tuned_by = ""

    @property
    def _plugin(self) -> str:
        return f"swarm-{self.agent_id}"

    def state(self) -> State:
        return {"trials": self.book.rows()}

    def restore(self, state: State) -> None:
        self.book.take(state["trials"])

    # -- in turn -----------------------------------------------------------------------------------------------------

    async def execute_cycle(self) -> None:
        if not self._is_on:
            return
        if (failure := self._tasks.failure) is not None:
            raise failure
        now_s = time.time()
        if now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            await self._tell_of_slow_tasks(now_s)
        if (trial := self.experiment) is not None:
            trial.passed(now_s)
            for seconds in self._tasks.running(trial.function):
                trial.running(seconds)
            self._after_step()
            return
        for name, (function, _) in list(self.settings.items()):
            if now_s - self.functions[function].seen_s > IDLE_S:
                self._put_back(name, f"no task of {function} came for {IDLE_S:.0f} s")
        if self._wants_experiments and self._knobs.wants_look:
            await asyncio.to_thread(self._knobs.look)
        await self._trim()

    def _agent_specific_optimization(self) -> None:
        """Begin the experiment that is worth most, if any is."""
        if self._is_on:
            self._rate(time.monotonic())
            if self._wants_experiments and self.experiment is None:
                self._begin()

    async def _tell_of_slow_tasks(self, now_s: float) -> None:
        """The scheduler copies tasks that are late: whether that helps depends on why they are."""
        for costs in list(self.functions.values()):
            if now_s - costs.seen_s > SAID_HOLDS_S:
                continue
            tasks, held_up, by_themselves = costs.slow()
            if not held_up + by_themselves:
                continue
            seen: dict[str, Payload] = {"tasks": tasks, "held_up": held_up, "by_themselves": by_themselves}
            try:
                await self.send(
                    SCHEDULER,
                    "slow_tasks",
                    {"function": costs.function, **seen, "holds_s": SAID_HOLDS_S},
                    timeout_s=1.0,
                )
            except AgentError as error:  # it is said again
                self.surroundings.log.warning("slow_tasks_unheard", function=costs.function, reason=str(error))
                return

    def handle_message(self, message: Message) -> Payload:
        if message.kind == "counters":
            rows = [costs.row() for costs in self.functions.values() if costs.measured]
            counting = list(self._tasks.counters.events) if self._is_on else []
            return {"cpu": self.book.cpu, "counting": counting, "absent": self.absent, "functions": rows}
        if message.kind == "experiments":
            return self._told()
        if not message.wants_answer:  # news, for others
            return None
        hint = f"; did you mean {near}?" if (near := nearest(message.kind, MESSAGES)) else ""
        raise AgentDefinitionError(f"{self.agent_id} answers {' and '.join(MESSAGES)}, not {message.kind}{hint}")

    def _told(self) -> Payload:
        trial = self.experiment
        absent = {**self.absent, **(self._knobs.absent if self._is_on else {})}
        running = trial and {"knob": trial.knob, "function": trial.function, "before": trial.before} | {
            "after": trial.after,
            "seconds": time.time() - trial.began_s,
        }
        trims = None
        if self._is_on and (trimmer := self._trimmer) is not None:
            trims = {"runs": trimmer.runs, "seconds": trimmer.seconds, "given_back_bytes": trimmer.given_back_bytes}
        settings = [{"knob": name, "function": f, "value": value} for name, (f, value) in self.settings.items()]
        return {
            "running": running,
            "trials": self.book.rows(),
            "settings": settings,
            "trims": trims,
            "absent": absent,
        }

    # -- a task has ended --------------------------------------------------------------------------------------------

    def _on_cost(self, cost: Cost) -> None:
        costs = self.functions.get(cost.function)
        if costs is None:
            if len(self.functions) >= MOST_FUNCTIONS:
                self._forget_oldest()
            self.functions[cost.function] = costs = FunctionCosts(cost.function)
        costs.learn(cost, time.time())
        trial = self.experiment
        if trial is None:
            if costs.measured == 3:
                self._set_what_won(costs)
        elif trial.function == cost.function and cost.setting == self._tasks.setting:
            trial.saw(cost.size, cost.cpu_s if self._knobs.all()[trial.knob].by_cpu else cost.wall_s)
            self._after_step()

    def _forget_oldest(self) -> None:
        held = {function for function, _ in self.settings.values()} | {self._tasks.follow}
        oldest = min((c for c in self.functions.values() if c.function not in held), key=lambda c: c.seen_s)
        del self.functions[oldest.function]

    # -- experiments -------------------------------------------------------------------------------------------------

    def _rate(self, now_s: float) -> None:
        """Tasks of each function per second, since the last time."""
        passed_s = now_s - self._rated_s
        if passed_s < 0.5:
            return
        for function, count in self._tasks.finished.items():
            before, _ = self._rates.get(function, (0, 0.0))
            self._rates[function] = count, (count - before) / passed_s
        self._rated_s = now_s
        if len(self._rates) > 10 * MOST_FUNCTIONS:
            self._tasks.finished.clear()
            self._rates.clear()

    def _begin(self) -> None:
        now_s, found = time.time(), []
        knobs = self._knobs.all()
        for costs in self.functions.values():
            rate = self._rates.get(costs.function, (0, 0.0))[1]
            typical_s = costs.typical_s
            is_enough = rate * self.rules.patience_s >= 4 * self.rules.block_tasks * self.rules.looks[0]
            if costs.timed < FEW or typical_s < SHORTEST_S or not is_enough:
                continue
            share = min(1.0, rate * typical_s / self._worker.state.nthreads)
            for knob in knobs.values():
                gain = knob.plausible_gain(costs)
                if gain < self.rules.minimal_gain or share * gain < LEAST_WORTH or not self._is_free(knob, costs):
                    continue
                best = self._value(knob, costs.function)
                after = next_values(knob.values, best, self._may(costs, knob, best, now_s))
                if after is not None:
                    found.append((share * gain, costs.function, knob, best, after))
        followed = self.functions.get(self._tasks.follow)
        if followed is None or followed.timed >= FEW:
            self._tasks.follow = ""
        if not found:
            return
        worth, function, knob, before, after = max(found, key=lambda entry: entry[0])
        self.surroundings.audit(
            "experiment begins", knob=knob.name, function=function, before=before, after=after, worth=round(worth, 4)
        )
        self.experiment = Experiment(knob.name, function, before, after, self._rng, self.rules, now_s)
        self._tasks.follow = function
        self._apply(knob, function, before)

    def _may(self, costs: FunctionCosts, knob: Knob, best: Value, now_s: float) -> Any:
        typical_s = costs.typical_cpu_s if knob.by_cpu else costs.typical_s
        return lambda value: self.book.may_try(costs.function, knob.name, best, value, typical_s, now_s)

    def _is_free(self, knob: Knob, costs: FunctionCosts) -> bool:
        if self.allowed is not None and knob.name not in self.allowed:
            return False
        holder, _ = self.settings.get(knob.name, (costs.function, None))
        return knob.in_thread or holder == costs.function

    def _value(self, knob: Knob, function: str) -> Value:
        if knob.in_thread:
            return self._in_thread.get(knob, {}).get(function, knob.original)
        return self.settings.get(knob.name, ("", knob.original))[1]

    def _after_step(self) -> None:
        """The experiment may want the other setting now, or be over."""
        trial = self.experiment
        assert trial is not None
        knob = self._knobs.all()[trial.knob]
        if (verdict := trial.verdict) is None:
            if trial.value != self._applied:
                self._apply(knob, trial.function, trial.value)
            return
        self.experiment = None  # its function is followed on until enough is known for the next one
        self.book.note(trial, time.time())
        value = trial.after if verdict.ending == "kept" else trial.before
        self._apply(knob, trial.function, value)
        self._hold(knob, trial.function, value)
        self.functions[trial.function].changed()
        self._tell(trial, verdict)

    def _tell(self, trial: Experiment, verdict: Verdict) -> None:
        told = {"knob": trial.knob, "function": trial.function, "before": trial.before, "after": trial.after}
        told |= {"reason": verdict.reason, "gain": round(verdict.gain, 4), "confidence": round(verdict.confidence, 4)}
        self.surroundings.audit(f"experiment {verdict.ending}", **told, tasks=verdict.tasks)
        self.surroundings.log.info("experiment_ended", ending=verdict.ending, **told, tasks=verdict.tasks)

    def _set_what_won(self, costs: FunctionCosts) -> None:
        """A function that is known from before: its settings at once."""
        if not self._wants_experiments:
            return
        for knob in self._knobs.all().values():
            value = self.book.best(costs.function, knob.name, knob.original)
            present = self._value(knob, costs.function)
            if value != present and value in knob.values and self._is_free(knob, costs):
                self.surroundings.audit("setting", knob=knob.name, function=costs.function, before=present, after=value)
                self._apply(knob, costs.function, value)
                self._hold(knob, costs.function, value)

    # -- settings ----------------------------------------------------------------------------------------------------

    def _apply(self, knob: Knob, function: str, value: Value) -> None:
        self._applied = value
        self._tasks.setting += 1
        if knob.in_thread:
            self._in_thread.setdefault(knob, {})[function] = value
            self._tasks.in_thread = self._set_in_thread
        else:
            self._touched.add(knob.name)
            knob.apply(value)

    def _hold(self, knob: Knob, function: str, value: Value) -> None:
        if value != knob.original:
            self.settings[knob.name] = function, value
        else:
            self.settings.pop(knob.name, None)
            self._in_thread.get(knob, {}).pop(function, None)

    def _set_in_thread(self, function: str) -> Callable[[], None] | None:
        undo = None
        for knob, values in list(self._in_thread.items()):
            if function in values:
                knob.apply(values[function])
                undo = knob.restore
        return undo

    def _put_back(self, name: str, reason: str) -> None:
        knob = self._knobs.all()[name]
        self.surroundings.audit("setting", knob=name, after=knob.original, reason=reason)
        self.settings.pop(name, None)
        self._touched.discard(name)
        if knob.in_thread:
            self._in_thread.pop(knob, None)
        else:
            knob.restore()
        self._tasks.setting += 1

    # -- memory ------------------------------------------------------------------------------------------------------

    async def _trim(self) -> None:
        trimmer, is_allowed = self._trimmer, self.allowed is None or "trim" in self.allowed
        if trimmer is None or not is_allowed or not self._wants_experiments:
            return
        limit = self._worker.memory_manager.memory_limit
        now_s = time.monotonic()
        if trimmer.is_due(_resident_bytes(), self._worker.state.nbytes, limit, now_s):
            self.surroundings.audit("memory trim", runs=trimmer.runs)
            done = await asyncio.to_thread(trimmer.run, now_s)
            self.surroundings.log.info(
                "memory_trimmed",
                before_bytes=done.before_bytes,
                after_bytes=done.after_bytes,
                seconds=round(done.seconds, 4),
            )


class _Transitions(WorkerPlugin):
    def __init__(self, tasks: TaskCounters) -> None:
        self._tasks = tasks

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        self._tasks.transition(key, start, finish)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def cpu_model() -> str:
    """Of this host, with the number of its cores: settings that win on one need not win on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = named[0] if named else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count() or 1} cores"
