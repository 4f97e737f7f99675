"""Swarm's own plugin in the twin, as the preload loads it: it works, in virtual time, and nothing of it fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.on_dask.observe import ClusterSampler
from swarm import twin
from swarm.dashboard.view_model import ViewModel
from swarm.errors import InvariantError
from swarm.protocol import AlertCleared, AlertRaised, Event, TelemetryArrived, WorkerJoined, WorkerLeft
from swarm.twin.clock import EPOCH_S
from swarm.twin.faults import Crash, Hang, SchedulerLag, SlowDown
from swarm.twin.models import MIB, Constant, Cost, LogNormal, Memory
from swarm.twin.policies import POLICIES, Policy
from tests.support.twin_runs import ideal


class Probe(SchedulerPlugin):
    """Keeps the scheduler, to look at its plugins when the simulation is over."""

    name = "probe"

    def __init__(self) -> None:
        self.scheduler: Scheduler

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    @property
    def swarm(self) -> Any:
        (plugin,) = [p for name, p in self.scheduler.plugins.items() if type(p).__name__ == "SwarmPlugin"]
        return plugin


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def policy(probe: Probe) -> Policy:
    return replace(POLICIES["swarm"], plugins=lambda seed: (probe,))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """All that the page of the cluster would show."""
    seen: list[Event] = []
    own = ViewModel.apply

    def apply(self: ViewModel, event: Event) -> None:
        seen.append(event)
        own(self, event)

    monkeypatch.setattr(ViewModel, "apply", apply)
    return seen


def test_all_parts_are_on_and_none_fails(policy: Policy, probe: Probe, heard: list[str]) -> None:
    faults = [
        Crash(worker="w1", at_s=1.0),
        Hang(worker="w2", at_s=2.0, for_s=5.0),
        SlowDown(worker="w3", at_s=0.5, factor=0.2),
        SchedulerLag(at_s=3.0, for_s=2.0),
    ]
    work = twin.layered(10, 16, LogNormal(0.3, 1.0), output_bytes=10**6)
    cluster = twin.uniform(8, nanny=True, memory=Memory(1024 * MIB))
    outcome = twin.simulate(work, cluster, policy=policy, faults=faults, gather=True)
    assert outcome.status == "finished"
    guard = probe.swarm.guard
    assert not guard.failures
    assert set(guard.off) <= {"dashboard"}
    assert not heard


def test_what_it_hears_of_the_workers_has_virtual_times(policy: Policy, events: list[Event]) -> None:
    faults = [Crash(worker="w1", at_s=10.0)]
    outcome = twin.simulate(twin.independent(100, Constant(1.0)), ideal(4, nanny=True), policy=policy, faults=faults)
    times_s = [event.at_s for event in events]
    assert times_s == sorted(times_s)
    assert times_s[0] >= EPOCH_S
    assert times_s[-1] == pytest.approx(EPOCH_S + outcome.makespan_s, abs=2.0)
    counts = Counter(type(event) for event in events)
    assert counts[WorkerJoined] == 5  # four, and one of them again
    assert counts[WorkerLeft] == 1
    assert counts[TelemetryArrived] == pytest.approx(4 * 2 * outcome.makespan_s, rel=0.1)  # a heartbeat each 0.5 s


def test_an_alert_is_raised_and_cleared_at_the_virtual_time_at_which_it_should(
    policy: Policy, events: list[Event]
) -> None:
    # Of the limit, 96 % are used from 10 s to 20 s; without a nanny nobody kills below 100 %.
    full = int(1024 * MIB * 0.96) - 120 * MIB
    work = twin.made_up(
        [
            ("quiet", (), Cost(10.0)),
            ("big", ("quiet",), Cost(10.0, 28, full)),
            ("after", ("big",), Cost(10.0)),
        ]
    )
    outcome = twin.simulate(work, ideal(1, memory=Memory(1024 * MIB)), policy=policy)
    raised = [event for event in events if isinstance(event, AlertRaised) and event.resource == "memory"]
    cleared = [event for event in events if isinstance(event, AlertCleared) and event.resource == "memory"]
    began_s = EPOCH_S + min(e.start_s for e in outcome.executions if e.key == "big")
    assert [event.at_s for event in raised] == [pytest.approx(began_s + 0.25, abs=0.4)]  # with the next heartbeat
    assert [event.at_s for event in cleared] == [pytest.approx(began_s + 10.25, abs=0.4)]


def test_it_does_no_harm_on_equal_workers() -> None:
    work, cluster = twin.independent(400, LogNormal(0.2, 0.5)), twin.uniform(8)
    stock, swarm = (twin.simulate(work, cluster, policy=name, seed=1).makespan_s for name in ("stock", "swarm"))
    assert swarm == pytest.approx(stock, rel=0.05)


def test_a_part_that_fails_is_switched_off_and_counted_and_dask_goes_on(
    policy: Policy, probe: Probe, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(ClusterSampler, "sample", fail)
    outcome = twin.simulate(twin.independent(20, Constant(1.0)), ideal(2), policy=policy)
    assert outcome.status == "finished"
    assert probe.swarm.guard.failures["samples"] > 0
    assert any("samples" in told for told in heard)


def test_a_preload_of_ones_own_is_a_policy() -> None:
    outcome = twin.simulate(twin.independent(4, Constant(1.0)), ideal(2), policy="tests.support.all_on_one")
    assert {entry.worker for entry in outcome.executions} == {"w1"}
    assert outcome.policy == "tests.support.all_on_one"
    assert outcome.makespan_s == pytest.approx(4.0, abs=0.2)


def test_a_policy_whose_coroutine_fails_is_found_out() -> None:
    class Fails(SchedulerPlugin):
        name = "fails"

        def update_graph(self, scheduler: Scheduler, **kwargs: Any) -> None:
            self.task = asyncio.get_running_loop().create_task(self.later())
            self.task = None  # type: ignore[assignment]

        async def later(self) -> None:
            await asyncio.sleep(0.5)
            raise ZeroDivisionError("of a policy")

    with pytest.raises(InvariantError, match="ZeroDivisionError: of a policy"):
        twin.simulate(
            twin.independent(4, Constant(1.0)), ideal(2), policy=Policy("fails", plugins=lambda seed: (Fails(),))
        )
