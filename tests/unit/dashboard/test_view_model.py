"""The fold of events into rows."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.dashboard.view_model import SEVERITY, ViewModel
from swarm.protocol import (
    AgentRefused,
    AgentStarted,
    AlertCleared,
    Event,
    PartDisabled,
    Resource,
    RunEnded,
    RunProgressed,
    RunSubmitted,
    Telemetry,
    TelemetryArrived,
    WorkerLeft,
)
from tests.support.made_up_cluster import GIB, address, busy_cluster, joined, memory_alert, sampled, telemetry


def folded(*events: Event, **limits: int) -> ViewModel:
    model = ViewModel(**limits)
    for event in events:
        model.apply(event)
    return model


class TestWorkers:
    def test_a_healthy_worker(self) -> None:
        [row] = folded(joined(0, 10.0), telemetry(0, 12.0)).workers(now_s=13.0)
        assert (row.name, row.address, row.health, row.note) == ("node-00", address(0), "healthy", "")
        assert (row.cpu_percent, row.memory_bytes, row.memory_percent) == (200.0, 2 * GIB, 25.0)
        assert (row.threads, row.telemetry_age_s) == (4, 1.0)

    def test_a_worker_that_has_just_joined_has_no_readings_yet(self) -> None:
        [row] = folded(joined(0, 10.0)).workers(now_s=11.0)
        assert row.health == "healthy"
        assert row.cpu_percent is row.memory_bytes is row.memory_percent is row.telemetry_age_s is None

    @pytest.mark.parametrize(
        ("sampled_every_s", "heard_every_s", "silent_s", "health"),
        [
            (1.0, 1.0, 4.9, "healthy"),
            (1.0, 1.0, 5.1, "stale"),
            (2.0, 2.0, 9.9, "healthy"),
            (2.0, 2.0, 10.1, "stale"),
            (1.0, 3.0, 14.9, "healthy"),  # heartbeats of a large cluster are slower than the sensors
            (1.0, 3.0, 15.1, "stale"),
            (1.0, 300.0, 50.1, "stale"),  # one outage does not hide the next
        ],
    )
    def test_stale_after_five_intervals(
        self, sampled_every_s: float, heard_every_s: float, silent_s: float, health: str
    ) -> None:
        reading = Telemetry(taken_at_s=0.0, interval_s=sampled_every_s)
        times_s = (100.0, 100.0 + heard_every_s)
        model = folded(
            joined(0, 99.0), *(TelemetryArrived(at_s=t, worker=address(0), telemetry=reading) for t in times_s)
        )
        assert model.workers(now_s=times_s[-1] + silent_s)[0].health == health

    def test_no_agent_and_why(self) -> None:
        plain, refused = joined(0, 1.0, has_agents=False), joined(1, 1.0)
        model = folded(plain, refused, AgentRefused(at_s=2.0, worker=address(1), reason="Wrong version."))
        rows = model.workers(now_s=100.0)
        assert [row.health for row in rows] == ["no agent", "no agent"]
        assert "without the agents" in rows[0].note
        assert rows[1].note == "Wrong version."
        assert model.totals(now_s=100.0).workers_without_agents == 2

    def test_agents_may_come_later(self) -> None:
        hello = AgentStarted(at_s=2.0, worker=address(0), agents=("resource",), version="1")
        assert folded(joined(0, 1.0, has_agents=False), hello).workers(now_s=3.0)[0].health == "healthy"

    def test_a_worker_that_left_is_gone_and_late_news_of_it_change_nothing(self) -> None:
        model = folded(joined(0, 1.0), WorkerLeft(at_s=2.0, worker=address(0)), telemetry(0, 3.0), memory_alert(0, 3.0))
        assert model.workers(now_s=3.0) == model.alerts(now_s=3.0) == []

    def test_a_worker_without_memory_limit(self) -> None:
        unlimited = dataclasses.replace(joined(0, 1.0), memory_limit_bytes=0)
        [row] = folded(unlimited, telemetry(0, 2.0)).workers(now_s=2.0)
        assert (row.memory_bytes, row.memory_limit_bytes, row.memory_percent) == (2 * GIB, None, None)


class TestAlerts:
    def test_an_alert_shows_on_the_list_and_on_its_worker(self) -> None:
        model = folded(joined(0, 1.0), telemetry(0, 9.0), memory_alert(0, 9.0))
        [alert] = model.alerts(now_s=12.0)
        assert (alert.is_active, alert.severity, alert.worker_name, alert.lasted_s) == (True, "serious", "node-00", 3.0)
        [row] = model.workers(now_s=12.0)
        assert (row.health, row.note) == ("alert", alert.sentence)

    def test_active_ones_come_first_then_the_last_cleared(self) -> None:
        raised = [memory_alert(i, 10.0 + i) for i in range(4)]
        cleared = [
            AlertCleared(
                at_s=20.0 - i,
                alert=raised[i].alert,
                worker=raised[i].worker,
                resource="memory",
                value=50.0,
                reason="Fine again.",
                lasted_s=5.0,
            )
            for i in (1, 0)
        ]
        model = folded(*(joined(i, 1.0) for i in range(4)), *raised, *cleared)
        rows = model.alerts(now_s=30.0)
        assert [row.worker_name for row in rows] == ["node-03", "node-02", "node-00", "node-01"]
        assert [row.is_active for row in rows] == [True, True, False, False]
        assert (rows[2].sentence, rows[2].lasted_s) == ("Fine again.", 5.0)

    def test_alerts_of_a_worker_end_when_it_leaves(self) -> None:
        left = WorkerLeft(at_s=15.0, worker=address(0), reason="nanny stopped it")
        [row] = folded(joined(0, 1.0), memory_alert(0, 10.0), left).alerts(now_s=99.0)
        assert (row.is_active, row.lasted_s, row.sentence) == (False, 5.0, "The worker left: nanny stopped it")

    def test_every_resource_has_a_severity(self) -> None:
        assert set(SEVERITY) == set(get_args(Resource))


class TestRuns:
    def test_from_pending_to_finished(self) -> None:
        model = folded(RunSubmitted(at_s=10.0, run="r", name="heat", tasks=8))
        [row] = model.runs(now_s=11.0)
        assert (row.status, row.finished, row.tasks, row.elapsed_s) == ("pending", 0, 8, 1.0)
        model.apply(RunProgressed(at_s=12.0, run="r", tasks=9, finished=3, erred=1, processing=2))
        [row] = model.runs(now_s=14.0)
        assert (row.status, row.finished, row.erred, row.tasks, row.elapsed_s) == ("running", 3, 1, 9, 4.0)
        model.apply(RunEnded(at_s=16.0, run="r", status="finished", elapsed_s=5.9))
        [row] = model.runs(now_s=99.0)
        assert (row.status, row.processing, row.elapsed_s) == ("finished", 0, 5.9)

    def test_live_runs_come_first(self) -> None:
        submitted = [RunSubmitted(at_s=float(i), run=f"r{i}", name=f"n{i}", tasks=1) for i in range(4)]
        ended = [RunEnded(at_s=9.0, run=run, status="error") for run in ("r3", "r0")]
        assert [row.run for row in folded(*submitted, *ended).runs(now_s=9.0)] == ["r2", "r1", "r0", "r3"]


class TestRates:
    def test_difference_of_the_counter(self) -> None:
        model = folded(sampled(10.0, 100), sampled(12.0, 150), sampled(13.0, 150))
        assert [(p.at_s, p.tasks_per_s) for p in model.rates()] == [(12.0, 25.0), (13.0, 0.0)]
        assert [p.at_s for p in model.rates(after_s=12.0)] == [13.0]
        assert model.totals(now_s=14.0).tasks_per_s == 0.0

    def test_a_fast_control_cycle_gives_one_point_a_second(self) -> None:
        model = folded(*(sampled(10.0 + i / 8, 3 * i) for i in range(41)))
        assert [p.tasks_per_s for p in model.rates()] == [24.0] * 5

    def test_a_counter_that_began_anew_gives_no_point(self) -> None:
        model = folded(sampled(10.0, 100), sampled(11.0, 7), sampled(12.0, 9))
        assert [p.tasks_per_s for p in model.rates()] == [2.0]

    def test_no_rate_without_fresh_samples(self) -> None:
        model = folded(sampled(10.0, 0), sampled(11.0, 5))
        assert model.totals(now_s=16.0).tasks_per_s == 5.0
        assert model.totals(now_s=16.1).tasks_per_s is None
        assert ViewModel().totals(now_s=0.0).tasks_finished is None


def test_parts_that_were_switched_off() -> None:
    once = PartDisabled(at_s=1.0, part="stealing", reason="KeyError")
    again = PartDisabled(at_s=2.0, part="stealing", reason="TypeError", failures=2)
    [row] = folded(once, again).disabled()
    assert (row.part, row.reason, row.failures) == ("stealing", "TypeError", 2)


# -- any sequence of events ----------------------------------------------------------------------------------------

_times = st.floats(0.0, 2e9)
_texts = st.sampled_from(["", "a", "<b>"])
_workers = st.sampled_from([address(i) for i in range(4)])
_runs = st.sampled_from([f"r{i}" for i in range(9)])


def _any(kind: type[Event]) -> st.SearchStrategy[Event]:
    """Events of a kind, whose workers and runs are few, so that they meet."""
    known = {"at_s": _times, "worker": _workers, "run": _runs, "reason": _texts, "part": st.text(max_size=2)}
    names = {field.name for field in dataclasses.fields(kind)}
    return st.builds(kind, **{name: strategy for name, strategy in known.items() if name in names})


_events = st.deferred(lambda: st.one_of([_any(kind) for kind in Event.__subclasses__()]))


@given(st.lists(_events, max_size=60), _times)
def test_any_events_fold_the_same_way_and_within_bounds(events: list[Event], now_s: float) -> None:
    model = folded(*events, history=5, kept=3)
    rows = model.alerts(now_s)
    active = [row for row in rows if row.is_active]
    assert len(rows) - len(active) <= 3
    assert len(active) <= 3 * len(model.workers(now_s))
    assert len(model.workers(now_s)) <= 4
    assert len(model.rates()) <= 5
    assert len(model.runs(now_s)) <= 9 + 3
    assert len(model.disabled()) <= 3
    state = json.dumps(model.state(now_s))  # as text, for NaN is not equal to itself
    assert json.dumps(folded(*events, history=5, kept=3).state(now_s)) == state


def test_a_busy_cluster_of_a_thousand_workers() -> None:
    model = folded(*busy_cluster(1000, now_s=1e9))
    totals = model.totals(now_s=1e9)
    assert (totals.workers, totals.threads) == (1000, 4000)
    assert totals.alerts == len([row for row in model.alerts(1e9) if row.is_active])
    assert {row.health for row in model.workers(1e9)} == {"healthy", "alert", "stale", "no agent"}
