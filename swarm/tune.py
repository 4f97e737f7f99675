"""Tuning: strategies of placement are tried on recorded runs in the twin, and the best are kept for the scheduler.

`swarm tune RUN` does it, or a child of a scheduler that is idle (`swarm.tune_idle`).

A strategy survives when it beats the default on the recorded run by more than the noise, on draws that it was not
chosen by, and does no harm to other work. Simulations begin without learned models, and in each draw every task takes
about a tenth more or less than it was recorded to: a run never comes back just as it was.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dask.utils import key_split
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.decide.evolution import ZERO, Member, Worth, offspring, survivors, worth
from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import ANY, MOST_OF_WORK, Strategies, fingerprint
from swarm.errors import SwarmError, TwinError
from swarm.twin.bounds import lower_bound_s
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.models import ClusterModel, Constant, uniform
from swarm.twin.outcome import Outcome
from swarm.twin.policies import POLICIES, Policy
from swarm.twin.replay import Recording
from swarm.twin.scenarios import scenario
from swarm.twin.work import Work, independent

LEAST_TASKS = 20
"""Of fewer, no order and no place makes much of a difference."""
JITTER = 0.1
"""Standard deviation of the log of a task's duration from draw to draw."""
AT_BOUND = 1.01
"""Makespan over the lower bound at which nothing is left to gain."""
HELD_OUT, CONTROL_SEEDS = 7, 3
"""Draws by which a strategy is judged, after it was chosen by others."""
CONTROLS = ("critical", "layers", "cholesky", "half-slow-layers")
"""Scenarios of the bench on which a strategy must not lose."""
PARENTS = 4
EXAMINED = 2
"""Strategies of one generation that are examined: this takes as long as some ten others."""
PATIENCE = 2.0
"""Times the makespan of the default, after which a simulation of another strategy has lost."""
FIRST_HELD_OUT = 1_000
HASH_SEED = 0
LOOK_S = 1.0
"""Virtual time between two looks whether placement is on."""


# -- a strategy in the twin --------------------------------------------------------------------------------------------


class WithStrategy(SchedulerPlugin):
    """Sets the strategy of swarm's placement, before there is any work.

    Where placement has failed and Dask decides, all strategies do equally well: that is no result, and is told.
    """

    name = "swarm-tune"

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._looks = False

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        swarm: Any = scheduler.plugins["swarm"]
        swarm.mind.placing.placement.strategy = self._strategy
        if not self._looks:
            self._looks = True
            self._look(scheduler)

    def _look(self, scheduler: Scheduler) -> None:
        swarm: Any = scheduler.plugins["swarm"]
        if not swarm.mind.is_on:
            raise RuntimeError(f"placement is off ({swarm.guard.off.get('placement', 'the setting load_balancing')})")
        asyncio.get_running_loop().call_later(LOOK_S, self._look, scheduler)


def _plugins(strategy: Strategy, _seed: int) -> Sequence[SchedulerPlugin]:
    return (WithStrategy(strategy),)


def policy(strategy: Strategy) -> Policy:
    """Swarm in the twin, with another strategy of placement."""
    return replace(POLICIES["swarm"], plugins=partial(_plugins, strategy))


@dataclass(frozen=True, eq=False)
class Draw:
    """Work on a cluster that every strategy meets alike."""

    name: str
    work: Work
    cluster: ClusterModel
    seed: int

    def job(self, of: Policy, limit_s: float | None = None) -> Job:
        return Job((self.work, self.cluster), {"policy": of, "seed": self.seed, "time_limit_s": limit_s}, HASH_SEED)

    @property
    def bound_s(self) -> float:
        return lower_bound_s(self.work.total_s, self.work.critical_path_s, self.cluster.workers)


def drawn(work: Work, cluster: ClusterModel, seed: int) -> Draw:
    """The work as it might have been, had it run another day."""
    rng = random.Random(f"{seed} {work.name}")  # noqa: S311 - draws must be repeatable
    costs = {
        key: replace(cost, work_s=cost.work_s * rng.lognormvariate(0.0, JITTER)) for key, cost in work.costs.items()
    }
    return Draw(work.name, replace(work, costs=costs), cluster, seed)


def _controls() -> dict[str, list[Draw]]:
    """Work that no strategy may do worse than the default; the first is equal tasks, where stock Dask does well."""
    equal = independent(320, Constant(0.1))
    draws = {"equal": [Draw("equal", equal, uniform(8), seed) for seed in range(CONTROL_SEEDS)]}
    for name in CONTROLS:
        settings = [(seed, scenario(name).setting(seed)) for seed in range(CONTROL_SEEDS)]
        draws[name] = [Draw(name, work, cluster, seed) for seed, (work, cluster, _) in settings]
    return draws


def kind_of(work: Work) -> str:
    """The fingerprint by which a scheduler will know such work."""
    return fingerprint(Counter(key_split(key) for key in work.costs))


# -- the search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Examined:
    """A strategy that did better in the search, and what else was found out."""

    strategy: Strategy
    worth: Worth
    """On draws of the recorded work that it was not chosen by."""
    median_s: float
    control: Worth
    """Where it does worst of all that it was not made for."""
    control_name: str
    refused: str = ""
    """Why it may not be used."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far the search is."""

    doing: str
    done: int
    of: int


class _OutOfTime(Exception):  # noqa: N818 - nothing is wrong
    """The time limit is reached."""


class Tuning:
    """A search for strategies that do some recorded runs better than the default does.

    Whenever `steps` is left alone, `kept` has what was found until then; all of it was examined.

    Parameters
    ----------
    recordings
        Strategies are wanted that do well on all of them.
    known
        Strategies to begin with.
    workers, threads
        Of the simulated cluster, and of each worker; None: as recorded.
    seconds
        Time after which no further simulation is begun.

    Raises
    ------
    TwinError
        A run has too few tasks to tell.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        *,
        known: Sequence[Strategy] = (),
        workers: int | None = None,
        threads: int | None = None,
        generations: int = 6,
        population: int = 10,
        seeds: int = 5,
        seed: int = 0,
        seconds: float = math.inf,
        processes: int | None = None,
    ) -> None:
        for each in recordings:
            if len(each.work) < LEAST_TASKS:
                raise TwinError(
                    f"{each.name} is too small to tell strategies apart: it has {len(each.work)} tasks, "
                    f"{LEAST_TASKS} is the least"
                )
        self.examined: list[Examined] = []
        self.tried = 0
        self.simulations = 0
        self.ended = "stopped"
        """Or "done", "time is up", "nothing to gain"."""
        self.best_seen: Worth | None = None
        """Of all that were tried, on the draws of the search."""
        self.default_s = math.nan
        """Median makespan of the default."""
        self._rng = random.Random(seed)  # noqa: S311 - draws must be repeatable
        self._known = [each for each in known if each != DEFAULT]
        self._generations, self._population = generations, population
        self._processes = min(processes or math.inf, len(os.sched_getaffinity(0)))
        self._until_s = time.monotonic() + seconds
        clusters = [(each.work, each.cluster(workers, threads)) for each in recordings]
        offset = seed * 100_000
        self._search = [drawn(*each, offset + number) for each in clusters for number in range(seeds)]
        self._held_out = [drawn(*each, offset + FIRST_HELD_OUT + n) for each in clusters for n in range(HELD_OUT)]
        self._controls = _controls()
        self._times_s: dict[tuple[str, Strategy, Draw], float] = {}

    @property
    def kept(self) -> list[Examined]:
        """What may be used, the best first: those that are not surely worse than the best."""
        good = sorted((each for each in self.examined if not each.refused), key=lambda each: each.worth.at_most)
        return [each for each in good if each.worth.ratio <= good[0].worth.at_most][:MOST_OF_WORK]

    def steps(self) -> Generator[Step]:
        """Search; yields after each simulation.

        Raises
        ------
        TwinError
            A simulation of the default failed.
        """
        try:
            yield from self._evolve()
        except _OutOfTime:
            self.ended = "time is up"

    def _evolve(self) -> Generator[Step]:
        yield from self._simulate([DEFAULT], self._search, "the default")
        self.default_s = statistics.median(self._of(DEFAULT, self._search))
        if all(self._time_s(DEFAULT, draw) <= AT_BOUND * draw.bound_s for draw in self._search):
            self.ended = "nothing to gain"
            return
        parents, worths = [ZERO], dict[Strategy, Worth]()
        first = [Member(each) for each in self._known]
        for number in range(self._generations):
            children = [*first, *offspring(parents, max(self._population - len(first), 0), self._rng)]
            first = []
            doing = f"generation {number + 1} of {self._generations}"
            yield from self._simulate([each.strategy for each in children], self._search, doing)
            self.tried += len(children)
            worths |= {each.strategy: self._worth(each.strategy, self._search) for each in children}
            self.best_seen = min(worths.values(), key=lambda each: each.at_most)
            parents = survivors([*parents, *children], worths, 1 + PARENTS)
            known = {each.strategy for each in self.examined}
            promising = [each.strategy for each in parents[1:] if each.strategy not in known]
            promising = [each for each in promising if worths[each].is_better][:EXAMINED]
            if promising:
                yield from self._examine(promising)
                refused = {each.strategy for each in self.examined if each.refused}
                worths = {strategy: each for strategy, each in worths.items() if strategy not in refused}
                parents = [each for each in parents if each.strategy not in refused]
        self.ended = "done"

    # -- what a strategy is worth --------------------------------------------------------------------------------------

    def _examine(self, strategies: Sequence[Strategy]) -> Generator[Step]:
        draws = [*self._held_out, *(draw for draws in self._controls.values() for draw in draws)]
        yield from self._simulate([DEFAULT], [*self._held_out, *self._controls["equal"]], "examining", "stock")
        yield from self._simulate([DEFAULT, *strategies], draws, "examining")
        self.default_s = statistics.median(self._of(DEFAULT, self._held_out))
        self.examined += [self._judged(each) for each in strategies]

    def _judged(self, strategy: Strategy) -> Examined:
        held_out = self._worth(strategy, self._held_out)
        rivals = {name: self._worth(strategy, draws) for name, draws in self._controls.items()}
        equal = self._controls["equal"]
        rivals["equal, beside stock"] = worth(self._of(strategy, equal), self._of(DEFAULT, equal, "stock"))
        by_run = {draw.name: [each for each in self._held_out if each.name == draw.name] for draw in self._held_out}
        if len(by_run) > 1:
            rivals |= {name: self._worth(strategy, draws) for name, draws in by_run.items()}
        name, control = max(rivals.items(), key=lambda item: item[1].ratio)
        refused = ""
        if not held_out.is_better:
            refused = f"not on other draws: {percent(held_out)}"
        elif not control.is_harmless:
            refused = f"{name}: {percent(control)}"
        median_s = statistics.median(self._of(strategy, self._held_out))
        return Examined(strategy, held_out, median_s, control, name, refused)

    def _worth(self, strategy: Strategy, draws: Sequence[Draw]) -> Worth:
        return worth(self._of(strategy, draws), self._of(DEFAULT, draws))

    def _of(self, strategy: Strategy, draws: Sequence[Draw], policy_name: str = "swarm") -> list[float]:
        return [self._times_s[policy_name, strategy, draw] for draw in draws]

    def _time_s(self, strategy: Strategy, draw: Draw) -> float:
        return self._times_s["swarm", strategy, draw]

    def _simulate(
        self, strategies: Iterable[Strategy], draws: Sequence[Draw], doing: str, policy_name: str = "swarm"
    ) -> Generator[Step]:
        """Fill in the makespans that are not known yet; infinite for a strategy that did not get there."""
        cases = [(strategy, draw) for strategy in strategies for draw in draws]
        cases = [case for case in dict.fromkeys(cases) if (policy_name, *case) not in self._times_s]
        jobs = []
        for strategy, draw in cases:
            usual_s = self._times_s.get(("swarm", DEFAULT, draw))
            limit_s = None if usual_s is None or strategy == DEFAULT else PATIENCE * usual_s
            jobs.append(draw.job(POLICIES["stock"] if policy_name == "stock" else policy(strategy), limit_s))
        with closing(simulate_all(jobs, int(self._processes))) as answers:
            for number, ((strategy, draw), answer) in enumerate(zip(cases, answers, strict=True)):
                self.simulations += 1
                self._times_s[policy_name, strategy, draw] = _makespan_s(draw, answer, strategy == DEFAULT)
                yield Step(doing, number + 1, len(cases))
                if time.monotonic() > self._until_s and number + 1 < len(cases):
                    raise _OutOfTime
        if time.monotonic() > self._until_s:
            raise _OutOfTime


def _makespan_s(draw: Draw, answer: Outcome | TwinError, is_default: bool) -> float:
    if isinstance(answer, Outcome) and answer.status == "finished":
        return answer.makespan_s
    if not is_default:
        return math.inf
    if not isinstance(answer, Outcome):
        raise type(answer)(f"{draw.name}, by the default: {answer}")
    raise TwinError(f"{draw.name}, by the default: {answer.status}")


def percent(of: Worth) -> str:
    """A ratio of makespans as people say it."""
    if not math.isfinite(of.ratio):
        return "never ends"
    return f"{100 * abs(1 - of.ratio):.1f} % {'quicker' if of.ratio < 1 else 'slower'}"


# -- what is kept ------------------------------------------------------------------------------------------------------


def save(tuning: Tuning, recordings: Sequence[Recording], folder: Path) -> Path:
    """Keep what was found where schedulers look for it.

    A search that was cut short and found nothing leaves what was known.

    Raises
    ------
    SwarmError
        It can't be written there.
    """
    file = Strategies(folder)
    found = file.read()
    kept = [each.strategy for each in tuning.kept]
    if kept or tuning.ended in ("done", "nothing to gain"):
        for each in recordings:
            found.keep(kind_of(each.work), each.work.name, kept)
        if len(recordings) > 1:
            found.keep(ANY, "any work", kept)
        for each in recordings:
            if each.file is None:
                found.note_tuned(each.name)
        try:
            file.write(found)
        except OSError as error:
            raise SwarmError(f"{file.path} can't be written ({error.strerror})") from None
    return file.path


def known(recordings: Sequence[Recording], folder: Path | None) -> list[Strategy]:
    """What was found for such work before."""
    if folder is None:
        return []
    found = Strategies(folder).read()
    return list(dict.fromkeys(each for recording in recordings for each in found.for_work(kind_of(recording.work))))
