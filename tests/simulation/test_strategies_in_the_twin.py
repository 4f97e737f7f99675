"""Strategies in the twin: they reach the placement, and what fails in the choice of one changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import ANY, Found, Strategies
from scheduler_plugins.learn.strategies import StrategyBandit
from scheduler_plugins.on_dask.placing import Placing
from swarm import tune, twin
from swarm.errors import InvariantError
from swarm.twin.models import Constant
from swarm.twin.outcome import Outcome
from swarm.twin.policies import POLICIES
from swarm.twin.scenarios import scenario

HEAVY = Strategy(gravity=4.0)


class Probe(SchedulerPlugin):
    name = "probe"

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    @property
    def swarm(self) -> Any:
        return self.scheduler.plugins["swarm"]


def test_a_strategy_decides_over_the_makespan() -> None:
    """A chain that is to go first only when it is twice all the rest is started too late."""
    work, cluster, _ = scenario("critical").setting(0)
    usual, late = (
        twin.simulate(work, cluster, policy=tune.policy(strategy)).makespan_s
        for strategy in (DEFAULT, Strategy(critical=2.0))
    )
    assert late > 1.1 * usual


def test_the_default_is_what_swarm_does_anyway() -> None:
    work, cluster = twin.independent(40, Constant(0.2)), twin.uniform(4)
    one, two = (twin.simulate(work, cluster, policy=policy) for policy in ("swarm", tune.policy(DEFAULT)))
    assert one.trace_hash == two.trace_hash


def test_a_strategy_is_not_blamed_when_placement_itself_has_failed(
    heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All strategies were equally good once: Dask had placed the tasks."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Placing, "_ready", fail)
    with pytest.raises(InvariantError, match="placement is off"):
        twin.simulate(twin.independent(40, Constant(0.5)), twin.uniform(4), policy=tune.policy(HEAVY))


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[[], tuple[Outcome, Any]]:
    """A run of swarm with strategies to choose from."""
    found = Found()
    found.keep(ANY, "any", [HEAVY])
    Strategies(tmp_path).write(found)

    def run() -> tuple[Outcome, Any]:
        probe = Probe()

        def plugins(_: int) -> Sequence[SchedulerPlugin]:
            return (probe,)

        config = {"swarm.state-directory": str(tmp_path)}
        policy = replace(POLICIES["swarm"], plugins=plugins, config=config)
        outcome = twin.simulate(twin.independent(40, Constant(0.2)), twin.uniform(4), policy=policy)
        return outcome, probe.swarm

    return run


def test_a_busy_period_runs_by_what_the_bandit_says(
    simulate: Callable[[], tuple[Outcome, Any]], monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    monkeypatch.setattr(StrategyBandit, "choose", lambda self, work, arms, advised=None: arms[1])
    outcome, swarm = simulate()
    assert outcome.status == "finished"
    assert swarm.mind.choosing.episode.arm == "gravity=4"
    assert swarm.mind.placing.placement.strategy == HEAVY
    assert swarm.mind.placing.done_s == pytest.approx(40 * 0.2, rel=0.1)
    assert not swarm.guard.failures
    assert not heard


def test_a_bandit_that_raises_changes_nothing(
    simulate: Callable[[], tuple[Outcome, Any]], monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    usual, _ = simulate()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(StrategyBandit, "choose", fail)
    outcome, swarm = simulate()
    assert outcome.trace_hash == usual.trace_hash
    assert swarm.guard.failures == {"strategy": 1}
    assert swarm.mind.placing.placement.strategy == DEFAULT
    assert swarm.mind.is_on
    assert any("strategy" in told for told in heard)
