"""The learning agent: lives on the scheduler, and knows what runs and tasks were like.

Messages that it answers:

`estimate` {"function", "nbytes": 0, "worker": "", "arguments": {}}
    What a call of a function would take: {"p50_s", "p90_s", "p99_s", "error", "samples", …}, or None.
`strategies`
    What the bandit of strategies has seen: {kind of work: {strategy: {"tries", "reward", "is_retired"}}}.
`which_run_is_this_like` {"run"}
    The recorded run that is nearest, with its distance, whether that is close, and the strategy that it ran by; for a
    run that is under way as well as for one that has ended. None where nothing is recorded.
`runs`
    All that is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.decide.agents import SCHEDULER
from scheduler_plugins.learn.asking import estimate
from scheduler_plugins.learn.fingerprints import Fingerprint, Library, Shape, fingerprint, shape_in_slices
from swarm.agents.base import BaseAgent
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentDefinitionError, AgentError, MessageError

if TYPE_CHECKING:
    from distributed import Scheduler

SLICE_S, BETWEEN_SLICES_S = 0.0005, 0.003
"""Of work on the scheduler's event loop, and how long it then has for others."""
MOST_TASKS = 50_000
"""Of a graph whose shape is measured; that of a larger one is taken from its groups."""
MOST_WATCHED = 64
USUAL = "default"
ADVICE_HOLDS_S = 24 * 3600.0
"""How long the scheduler goes by what other work has shown."""


class _Graphs(SchedulerPlugin):
    """Tells the agent of each graph that comes."""

    name = "swarm-learning"

    def __init__(self, agent: LearningAgent) -> None:
        self._agent = agent

    def update_graph(self, scheduler: Scheduler, *, keys: Collection[Any], **kwargs: Any) -> None:
        self._agent.graph_arrived(keys)


class LearningAgent(BaseAgent):
    """One per swarm; its cycle notes which runs are over."""

    kind = "learning"
    interval_s = 1.0

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self.library = Library()
        self._watched: dict[str, _Watched] = {}
        self._measuring: set[asyncio.Task[None]] = set()

    # -- life -------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        scheduler = self.surroundings.dask
        plugin = None if scheduler is None else getattr(scheduler, "plugins", {}).get("swarm")
        if plugin is None:
            raise AgentDefinitionError("a learning agent lives on a scheduler with swarm: place it there")
        self._plugin: Any = plugin
        self._graphs = _Graphs(self)
        scheduler.add_plugin(self._graphs, name=self._name)

    def teardown(self) -> None:
        self.surroundings.dask.remove_plugin(name=self._name)
        for task in self._measuring:
            task.cancel()

    @property
    def _name(self) -> str:
        return f"{_Graphs.name} {self.agent_id}"

    def state(self) -> dict[str, Payload]:
        return {"runs": self.library.to_state()}

    def restore(self, state: dict[str, Payload]) -> None:
        self.library.restore(state["runs"])

    # -- runs -------------------------------------------------------------------------------------------------------

    def graph_arrived(self, keys: Collection[Any]) -> None:
        """Dask's plugins hear of it in the order in which they came, so the run is known by now."""
        mine = [run for key in keys for run in self._plugin.runs.by_key.get(key, ())]
        if not mine or mine[-1].run in self._watched or len(self._watched) >= MOST_WATCHED:
            return
        run = mine[-1]
        watched = self._watched[run.run] = _Watched(run, self._strategy(), self._plugin.mind.choosing.work)
        if len(run.tasks) > MOST_TASKS:
            watched.shape = self._shape_of_groups(run.tasks)
            return
        needs = _Needs(self.surroundings.dask.tasks, run.tasks)
        slices = shape_in_slices(needs)
        if not watched.measure(slices, needs):  # a short run is over before anybody looks again
            task = asyncio.get_running_loop().create_task(self._measure(watched, slices, needs))
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)

    @staticmethod
    async def _measure(watched: _Watched, slices: Iterator[Shape | None], needs: _Needs) -> None:
        is_done = False
        while not is_done:
            await asyncio.sleep(BETWEEN_SLICES_S)
            is_done = watched.measure(slices, needs)

    def _shape_of_groups(self, tasks: Collection[Any]) -> Shape:
        """Roughly: all tasks of a group count as equally far from the beginning."""
        known = self.surroundings.dask.tasks
        sample = list(tasks)[:: len(tasks) // 512 + 1]
        groups = {known[key].group for key in sample if key in known}
        count = {group: sum(group.states.values()) for group in groups}
        level: dict[Any, int] = {}
        for group in sorted(groups, key=lambda each: each.start):
            level[group] = 1 + max((level.get(need, 0) for need in group.dependencies if need is not group), default=0)
        widths: dict[int, int] = {}
        for group, at in level.items():
            widths[at] = widths.get(at, 0) + count[group]
        fan_in = max((len(known[key].dependencies) for key in sample if key in known), default=0)
        edges = sum(len(known[key].dependencies) for key in sample if key in known)
        first = [group for group in groups if not group.dependencies]
        return Shape(
            len(tasks),
            round(edges * len(tasks) / max(len(sample), 1)),
            max(level.values(), default=0),
            max(widths.values(), default=0),
            fan_in,
            sum(count[group] for group in first),
        )

    def _strategy(self) -> str:
        episode = self._plugin.mind.choosing.episode
        return USUAL if episode is None else str(episode.arm)

    async def execute_cycle(self) -> None:
        for name, watched in list(self._watched.items()):
            run = watched.run
            if run.is_over:
                del self._watched[name]
                if run.status == "finished" and watched.shape is not None:
                    this = watched.fingerprint()
                    self.library.add(this)
                    await self._advise(this)

    async def _advise(self, this: Fingerprint) -> None:
        """Tell the scheduler what does best with work that is like this, where it can't know that itself yet."""
        bandit = self._plugin.mind.choosing.bandit
        if bandit is None or not this.work or bandit.best(this.work) is not None:
            return
        for like in self.library.alike(this):
            work = like.known.work
            if work and work != this.work and (strategy := bandit.best(work)) is not None:
                about = {"work": this.work, "strategy": strategy, "run": this.run, "like": like.known.run}
                advice: dict[str, Payload] = {**about, "distance": like.distance, "holds_s": ADVICE_HOLDS_S}
                try:
                    await self.send(SCHEDULER, "strategy_advised", advice)
                except AgentError as error:  # the next run that is like it says so again
                    self.surroundings.log.warning("advice_unheard", reason=str(error))
                return

    # -- messages ---------------------------------------------------------------------------------------------------

    def handle_message(self, message: Message) -> Payload:
        asked = {} if message.payload is None else message.payload
        if not isinstance(asked, Mapping):
            raise MessageError(f"payload of {message.kind} is a {type(asked).__name__}, must be a mapping")
        match message.kind:
            case "estimate":
                return self._estimate(asked)
            case "strategies":
                return self._strategies()
            case "which_run_is_this_like":
                return self._like(asked)
            case "runs":
                return [_shown(Fingerprint.from_state(each)) for each in self.library.to_state()]
        if not message.wants_answer:  # news, for others
            return None
        raise MessageError(
            f"a learning agent takes estimate, strategies, which_run_is_this_like and runs, not {message.kind}"
        )

    def _estimate(self, asked: Mapping[str, Any]) -> Payload:
        function, nbytes, worker = (asked.get(name, default) for name, default in _ESTIMATE.items())
        arguments = asked.get("arguments", {})
        if not isinstance(function, str) or not function or not isinstance(worker, str):
            raise MessageError("estimate names no function, or a worker that is no address")
        if not _is_number(nbytes) or nbytes < 0:
            raise MessageError(f"nbytes of estimate is {nbytes!r}, must be a number of bytes")
        if not isinstance(arguments, Mapping) or not all(map(_is_number, arguments.values())):
            raise MessageError(f"arguments of estimate is {arguments!r}, must map names to numbers")
        costs = self._plugin.mind.estimates.costs
        if costs is None:
            raise AgentError("the cost model is not made yet; ask again in a second")
        answer = estimate(costs, function, float(nbytes), worker, arguments)
        return None if answer is None else {**answer._asdict(), "assumed": list(answer.assumed)}

    def _strategies(self) -> Payload:
        bandit = self._plugin.mind.choosing.bandit
        if bandit is None:
            return {}
        return {
            work: {
                arm: {
                    "tries": len(rewards),
                    "reward": exp(fmean(rewards)) if rewards else None,
                    "is_retired": arm in retired,
                }
                for arm, rewards in arms.items()
            }
            for work, _, arms, retired in bandit.to_state()
        }

    def _like(self, asked: Mapping[str, Any]) -> Payload:
        name = asked.get("run")
        if not isinstance(name, str):
            raise MessageError("which_run_is_this_like names no run")
        watched = self._watched.get(name)
        if watched is not None and watched.shape is None:
            raise AgentError(f"the graph of run {name} is not measured yet; ask again in a second")
        this = self.library.get(name) if watched is None else watched.fingerprint()
        if this is None:
            raise MessageError(
                f"run {name!r} is neither under way nor recorded; a run is recorded when it has finished"
            )
        like = self.library.nearest(this)
        if like is None:
            return None
        about = {"distance": like.distance, "threshold": self.library.threshold, "is_close": like.is_close}
        return {**_shown(like.known), **about}


_ESTIMATE: dict[str, Any] = {"function": "", "nbytes": 0, "worker": ""}


class _Watched:
    """A run under way."""

    def __init__(self, run: Any, strategy: str, work: str) -> None:
        self.run = run
        self.strategy = strategy
        self.work = work
        self.shape: Shape | None = None
        self._expected = _prefixes(run.tasks)

    def measure(self, slices: Iterator[Shape | None], needs: _Needs) -> bool:
        """Go on for a moment; whether that was all."""
        until_s = time.perf_counter() + SLICE_S
        for shape in slices:
            if shape is not None and not needs.gone:
                self.shape = shape
            if time.perf_counter() > until_s:
                return shape is not None
        return True

    def fingerprint(self) -> Fingerprint:
        assert self.shape is not None
        run = self.run
        functions = {name: (count, 0.0, 0.0) for name, count in self._expected.items()}
        for name, tally in run.by_function.items():
            functions[name] = max(tally.tasks, functions.get(name, (0,))[0]), tally.total_s, float(tally.output_bytes)
        elapsed_s = (run.ended_at_s or run.submitted_at_s) - run.submitted_at_s
        return fingerprint(run.run, run.name, functions, self.shape, self.strategy, elapsed_s, self.work)


class _Needs(Mapping[Any, Collection[Any]]):
    """Task → what it needs, read from Dask as it is asked for."""

    def __init__(self, known: Mapping[Any, Any], tasks: Collection[Any]) -> None:
        self._known = known
        self._tasks = tasks
        self.gone = 0
        """Tasks that Dask forgot before they were read."""

    def __getitem__(self, key: Any) -> Collection[Any]:
        task = self._known.get(key)
        if task is None:
            self.gone += 1
            return ()
        return [need.key for need in task.dependencies]

    def __contains__(self, key: object) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def _prefixes(tasks: Collection[Any]) -> dict[str, int]:
    """Key prefix → about how many tasks."""
    from dask.utils import key_split

    step = len(tasks) // 2048 + 1
    counts: dict[str, int] = {}
    for key in list(tasks)[::step]:
        prefix = key_split(key)
        counts[prefix] = counts.get(prefix, 0) + step
    return counts


def _shown(of: Fingerprint) -> dict[str, Any]:
    return {
        "run": of.run,
        "name": of.name,
        "strategy": of.strategy,
        "elapsed_s": of.elapsed_s,
        "shape": of.shape._asdict(),
        "functions": {part.function: {"tasks": part.tasks, "mean_s": part.mean_s} for part in of.parts},
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
