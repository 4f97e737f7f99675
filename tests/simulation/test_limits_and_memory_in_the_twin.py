"""Limits and memory admission on Dask's own scheduler in virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from scheduler_plugins.on_dask.estimates import Estimates
from swarm import twin
from swarm.twin.faults import Hang
from swarm.twin.models import MIB, Cost, Key, Memory
from swarm.twin.scenarios import scenario
from tests.support.twin_runs import ends, executions, ideal, joins

BIG = 350 * 10**6
WORKERS = 2


class StuckAtFirst(dict[Key, Cost]):
    """The first executions of some tasks never end in the time of the test; any other takes as long as it should."""

    def __init__(self, costs: dict[Key, Cost], stuck: Sequence[Key]) -> None:
        super().__init__(costs)
        self._stuck = list(stuck)

    def __getitem__(self, key: Key) -> Cost:
        cost = super().__getitem__(key)
        if key in self._stuck:
            self._stuck.remove(key)
            return dataclasses.replace(cost, work_s=100_000.0)
        return cost


def limited(count: int, stuck: Sequence[Key], **limits: Any) -> twin.Work:
    """Tasks of 0.5 s with the same limits."""
    keys = [f"t{i}" for i in range(count)]
    annotations = {name: dict.fromkeys(keys, value) for name, value in limits.items()}
    work = twin.made_up([(key, (), Cost(0.5)) for key in keys], annotations=annotations)
    return dataclasses.replace(work, costs=StuckAtFirst(dict(work.costs), stuck))


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was learned in one simulation is known in the next."""
    made: list[Estimates] = []
    own = Estimates.__init__

    def init(self: Estimates, scheduler: Any, costs: Any = None, **options: Any) -> None:
        own(self, scheduler, made[-1]._costs if made else costs, **options)
        made.append(self)

    monkeypatch.setattr(Estimates, "__init__", init)
    yield
    made.clear()


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_task_that_hangs_is_finished_elsewhere_and_nothing_waits_behind_it(heard: list[str]) -> None:
    work = limited(40, ["t3"], swarm_timeout="2s", swarm_backoff="1s")
    outcome = twin.simulate(work, ideal(4), policy="swarm", validate=True, time_limit_s=200.0)
    assert outcome.status == "finished"
    assert outcome.makespan_s < 12.0
    first, *again = executions(outcome, "t3")
    assert again
    assert all(entry.worker != first.worker for entry in again)
    assert not [entry for entry in outcome.executions if entry.worker == first.worker and entry.start_s > first.start_s]
    assert not heard


def test_a_task_that_hangs_wherever_it_runs_fails_and_says_so(heard: list[str]) -> None:
    work = limited(1, ["t0"] * 20, swarm_timeout=1, swarm_retries=2, swarm_backoff=0)
    outcome = twin.simulate(work, ideal(4), policy="swarm", time_limit_s=200.0)
    assert outcome.failed["t0"].startswith("TaskTimeoutError: task 't0' ran longer than 1 s on each of 3 tries (1.")
    assert outcome.makespan_s < 10.0
    assert not heard


def test_a_worker_that_stands_still_is_a_task_that_hangs(heard: list[str]) -> None:
    """It sends no heartbeats, so that nobody says what runs there."""
    work = limited(8, [], swarm_timeout="2s", swarm_backoff=0)
    faults = [Hang(worker="w1", at_s=0.1)]
    outcome = twin.simulate(work, ideal(4), policy="swarm", faults=faults, time_limit_s=200.0)
    assert outcome.status == "finished"
    assert outcome.makespan_s < 10.0
    assert not heard


def test_a_worker_that_has_lost_all_threads_is_restarted_by_its_nanny(heard: list[str]) -> None:
    """And what it holds is not lost with it."""
    tasks: list[tuple[Key, Sequence[Key], Cost]] = [
        ("kept", (), Cost(0.5, 10**6)),
        *((f"t{i}", (), Cost(0.5)) for i in range(2)),
    ]
    tasks += [("late", ("kept", "slow"), Cost(0.1)), ("slow", (), Cost(60.0))]
    limits = {"swarm_timeout": {"t0": 1.0, "t1": 1.0}, "swarm_backoff": {"t0": 0.0, "t1": 0.0}}
    work = twin.made_up(tasks, wanted=["late", "t0", "t1"], annotations=limits)
    work = dataclasses.replace(work, costs=StuckAtFirst(dict(work.costs), ["t0", "t1"]))
    outcome = twin.simulate(work, ideal(3, nanny=True), policy="swarm", validate=True, time_limit_s=400.0)
    assert outcome.status == "finished"
    lost = {entry.worker for key in ("t0", "t1") for entry in executions(outcome, key)[:1]}
    assert {name for _, what, name in outcome.events if what == "ended (killed by its nanny)"} == lost
    assert all(joins(outcome, worker) for worker in lost)
    assert len(executions(outcome, "kept")) == 1
    assert not heard


# -- memory --------------------------------------------------------------------------------------------------------


def transient() -> twin.Work:
    return twin.made_up([(f"t-{i}", (), Cost(0.5, 1000, BIG)) for i in range(24)])


def limited_workers(threads: int = 4) -> twin.ClusterModel:
    return twin.uniform(WORKERS, threads=threads, memory=Memory(1024 * MIB), nanny=True)


@pytest.mark.usefixtures("warm")
def test_tasks_that_kill_their_workers_four_at_a_time_run_two_at_a_time(heard: list[str]) -> None:
    """On stock Dask, all fail after some twenty deaths."""
    cold = twin.simulate(transient(), limited_workers(), policy="swarm", validate=True)
    assert (cold.status, cold.failed) == ("finished", {})
    assert len(ends(cold)) <= WORKERS
    again = twin.simulate(transient(), limited_workers(), policy="swarm")
    assert (again.status, ends(again)) == ("finished", [])
    assert again.makespan_s == pytest.approx(3.0, rel=0.1)  # the bound: two at once on each worker
    assert not heard


@pytest.mark.usefixtures("warm")
def test_the_small_ones_among_them_go_on_meanwhile(heard: list[str]) -> None:
    big = [(f"big-{i}", (), Cost(0.5, 1000, BIG)) for i in range(12)]
    work = twin.made_up([*big, *((f"small-{i}", (), Cost(0.1)) for i in range(200))])
    cold, again = (twin.simulate(work, limited_workers(), policy="swarm") for _ in range(2))
    assert (cold.status, cold.failed, again.status) == ("finished", {}, "finished")
    assert len(ends(cold)) <= WORKERS
    assert not ends(again)
    assert again.makespan_s < 6.0  # 12 × 0.5 s on four threads, and 200 × 0.1 s on the others
    assert not heard


def test_innocent_tasks_are_finished_and_the_one_that_never_fits_says_what_it_needs(heard: list[str]) -> None:
    small = [(f"small-{i}", (), Cost(0.3)) for i in range(100)]
    work = twin.made_up([("huge", (), Cost(0.5, 1000, 1000 * MIB)), *small])
    outcome = twin.simulate(work, limited_workers(), policy="swarm", validate=True)
    assert list(outcome.failed) == ["huge"]
    assert outcome.failed["huge"].startswith("TaskMemoryError: task 'huge' needs more than 8")
    assert "the largest has a limit of 1.00 GiB" in outcome.failed["huge"]
    assert len(ends(outcome)) <= 3
    assert not heard


@pytest.mark.parametrize("seed", range(2))
def test_the_scenario_of_the_bench_that_is_about_peaks(seed: int, heard: list[str]) -> None:
    work, cluster, faults = scenario("memory").setting(seed)
    outcome = twin.simulate(work, cluster, policy="swarm", faults=faults, seed=seed)
    assert (outcome.status, outcome.failed) == ("finished", {})
    assert len(ends(outcome)) <= len(cluster.workers)
    assert not heard


@pytest.mark.parametrize("seed", range(2))
def test_results_that_pile_up_end_no_task(seed: int, heard: list[str]) -> None:
    """Whether a worker dies of them is a matter of the order; nobody is blamed for it."""
    work, cluster, faults = scenario("piling-up").setting(seed)
    outcome = twin.simulate(work, cluster, policy="swarm", faults=faults, seed=seed)
    assert (outcome.status, outcome.failed) == ("finished", {})
    assert not heard
