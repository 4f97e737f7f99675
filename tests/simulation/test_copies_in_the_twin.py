"""Copies of running tasks on Dask's own scheduler in virtual time: nothing is lost or done twice, stragglers gain."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest

from scheduler_plugins.decide.speculate import Rules
from swarm import twin
from swarm.errors import DeadlockError
from swarm.twin.faults import Crash, Fault, SlowDown
from swarm.twin.models import Constant, Cost, Fixed, Key
from swarm.twin.policies import Policy
from swarm.twin.saved import Case
from tests.simulation.test_validated_random_runs import MAY_BE_LOGGED, _all_may_be_gone
from tests.support.copying import ByChance, ByRule, CopyingPlugin
from tests.support.random_simulations import drawn
from tests.support.twin_runs import ends, ideal, on_worker


def policy(made: list[Any], plugin: CopyingPlugin) -> Policy:
    made.append(plugin)
    return Policy("copies", plugins=lambda _: (plugin,))


def disturbed(seed: int) -> Case:
    """A random simulation in which a worker is so slow that copies win, and one or two more die while they run."""
    case, rng = drawn(seed), random.Random(f"{seed} disturbed")
    names = [worker.name for worker in case.cluster.workers]
    more: list[Fault] = [SlowDown(worker=names[0], at_s=0.0, factor=rng.choice([0.02, 0.2]))]
    if len(names) > 3:
        more += [Crash(worker=name, at_s=rng.uniform(0.1, 3.0)) for name in rng.sample(names, 2)]
    return dataclasses.replace(case, faults=[*case.faults, *more])


def run_with_copies(seed: int, heard: list[str]) -> tuple[ByChance, twin.Outcome | None]:
    case, made = disturbed(seed), list[ByChance]()
    arguments, options = case.arguments()
    options["policy"] = policy(made, ByChance(seed))
    outcome = None
    try:
        outcome = twin.simulate(*arguments, **options)
    except DeadlockError as error:
        if "there are no workers" not in str(error) or not _all_may_be_gone(case):
            raise
    else:
        assert outcome.status in ("finished", "failed")
        for reason in outcome.failed.values():
            assert reason.startswith("KilledWorker"), reason
    (plugin,) = made
    assert not plugin.failures
    assert not [told for told in heard if not any(known in told for known in MAY_BE_LOGGED)]
    return plugin, outcome


SEEDS = range(60)
ENDS: dict[int, list[str]] = {}
"""How the copies of each seed's run ended."""


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_at_random_moments_among_faults(seed: int, heard: list[str]) -> None:
    ENDS[seed] = [end for _, end in run_with_copies(seed, heard)[0].ends]


def test_in_these_runs_copies_end_in_every_way() -> None:
    """Else they would show nothing."""
    for seed in SEEDS:
        if seed not in ENDS:  # this test runs alone
            ENDS[seed] = [end for _, end in run_with_copies(seed, [])[0].ends]
    ends = Counter(end for of_one in ENDS.values() for end in of_one)
    assert all(ends[end] > 5 for end in ("won", "lost", "took over", "worker left", "given up")), ends


def test_copies_are_no_reason_for_another_trace() -> None:
    for seed in (1, 5):
        first, again = (run_with_copies(seed, [])[1] for _ in range(2))
        assert first is not None
        assert again is not None
        assert first.trace_hash == again.trace_hash


# -- what copies gain ----------------------------------------------------------------------------------------------


class StuckAtFirst(dict[Key, Cost]):
    """The first execution of some tasks never ends in the time of the test; any other takes as long as it should."""

    def __init__(self, costs: dict[Key, Cost], stuck: set[Key]) -> None:
        super().__init__(costs)
        self._stuck = stuck

    def __getitem__(self, key: Key) -> Cost:
        cost = super().__getitem__(key)
        if key in self._stuck:
            self._stuck.discard(key)
            return dataclasses.replace(cost, work_s=1000.0)
        return cost


def stuck(work: twin.Work, *keys: Key) -> twin.Work:
    return dataclasses.replace(work, costs=StuckAtFirst(dict(work.costs), set(keys)))


def test_the_one_task_on_a_slow_worker_is_copied() -> None:
    speeds = [Fixed(0.1), *[Fixed()] * 7]
    work, made = twin.independent(8, Constant(1.0)), list[ByRule]()
    without = twin.simulate(work, ideal(8, speeds=speeds))
    outcome = twin.simulate(work, ideal(8, speeds=speeds), policy=policy(made, ByRule()), validate=True)
    assert without.makespan_s == pytest.approx(10.0, abs=0.1)
    assert outcome.makespan_s < 3.0
    assert [end for _, end in made[0].ends] == ["won"]


@pytest.mark.parametrize("is_aware", [True, False])
def test_the_thread_that_is_lost_is_given_no_more_work(is_aware: bool) -> None:
    """Each task that is sent there waits behind it, and would have to be copied as well; the last one for ever."""
    layers = [("make-0", ()), ("make-1", ()), ("take-0", ("make-0", "make-1")), ("take-1", ("make-0", "make-1"))]
    work = stuck(twin.made_up([(key, needs, Cost(2.0)) for key, needs in layers]), "make-1")
    plugin = ByRule(is_aware=is_aware, rules=Rules(most_per_task=1, budget_ratio=1.0))
    outcome = twin.simulate(work, ideal(2), policy=policy([], plugin), validate=True, time_limit_s=100.0)
    assert [(copying.task.key, end) for copying, end in plugin.ends[:1]] == [("make-1", "won")]
    lost = next(entry for entry in outcome.executions if entry.key == "make-1")
    assert on_worker(outcome, lost.worker)[-1] is lost
    if is_aware:
        assert outcome.makespan_s == pytest.approx(5.2 + 3 * 2.0, abs=0.2)  # on the thread that is left
        assert len(plugin.ends) == 1
    else:
        assert outcome.makespan_s > 14.0
        assert len(plugin.ends) == 2


def test_what_takes_the_result_is_not_given_to_the_worker_that_still_makes_it() -> None:
    """It would not fetch the result: it would wait for its own thread."""
    tasks = [(f"make-{i}", (), Cost(0.5)) for i in range(8)] + [
        (f"take-{i}", ("make-3",), Cost(0.5)) for i in range(16)
    ]
    work, made = stuck(twin.made_up(tasks), "make-3"), list[ByRule]()
    outcome = twin.simulate(work, ideal(2, threads=4), policy=policy(made, ByRule()), validate=True, time_limit_s=100)
    assert outcome.makespan_s < 5.0
    lost = next(entry for entry in outcome.executions if entry.key == "make-3")
    assert not on_worker(outcome, lost.worker, lambda entry: str(entry.key).startswith("take"))


def test_the_memory_manager_leaves_the_inputs_of_a_copy_alone() -> None:
    """It looks each 2 s; a worker that shall drop what a running task needs closes."""
    tasks = [
        *((f"make-{i}", (), Cost(1.0, 10**6)) for i in range(4)),
        *((f"take-{i}", (f"make-{i}",), Cost(7.0)) for i in range(4)),
    ]
    work, made = stuck(twin.made_up(tasks), "take-1"), list[ByRule]()
    rules = Rules(floor_s=0.1, budget_ratio=1.0)
    outcome = twin.simulate(work, ideal(5), policy=policy(made, ByRule(rules=rules)), validate=True, time_limit_s=100)
    assert outcome.makespan_s < 25.0
    assert [end for _, end in made[0].ends] == ["won"]
    assert not ends(outcome)
