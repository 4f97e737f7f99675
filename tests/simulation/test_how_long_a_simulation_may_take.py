"""A simulation ends: what takes too long is refused or stopped, and what is silent for weeks is cheap."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest

from swarm import twin
from swarm.errors import TwinError
from swarm.twin import Constant, Cost, Fixed, faults
from swarm.twin.isolated import Job, simulate_all, simulate_isolated
from swarm.twin.models import LIMIT_S, MOST_S
from swarm.twin.progress import Progress
from tests.support.twin_runs import ideal

DAY_S = 86_400.0
ENDLESS = twin.made_up([("short", (), Cost(1.0)), ("long", (), Cost(1e18))], name="endless")


def test_work_of_ages_is_refused_before_it_starts() -> None:
    with pytest.raises(
        TwinError, match=r"endless takes .* on 2 workers \(longest task: 'long', .* time_limit_s, up to"
    ):
        twin.simulate(ENDLESS, ideal(2))
    slow = ideal(1, speeds=[Fixed(1e-9)])
    with pytest.raises(TwinError, match="takes 11574 days or more on 1 worker "):
        twin.simulate(twin.independent(1, Constant(1.0)), slow)


def test_workers_that_join_count_for_what_is_possible() -> None:
    many = twin.independent(4, Constant(LIMIT_S * 0.6))
    joining = [faults.Join(at_s=1.0, model=model) for model in ideal(4).workers[1:]]
    with pytest.raises(TwinError, match="on 1 worker "):
        twin.simulate(many, ideal(1))
    late = replace(ideal(1), heartbeat_s=120.0)
    assert twin.simulate(many, late, faults=joining, time_limit_s=10.0).status == "time limit"


@pytest.mark.parametrize("limit_s", [0.0, -1.0, math.nan, math.inf, 2 * MOST_S])
def test_a_limit_that_is_none(limit_s: float) -> None:
    with pytest.raises(TwinError, match=r"time_limit_s is .*, must be above 0 and at most"):
        twin.simulate(twin.independent(1), ideal(1), time_limit_s=limit_s)


def test_whoever_sets_a_limit_may_look_at_the_beginning_of_anything() -> None:
    outcome = twin.simulate(ENDLESS, ideal(2), time_limit_s=50.0)
    assert (outcome.status, outcome.makespan_s) == ("time limit", 50.0)


def test_silent_hours_are_cheap_with_few_heartbeats() -> None:
    work = twin.independent(1, Constant(DAY_S / 24))
    seldom = twin.simulate(work, replace(ideal(2), heartbeat_s=120.0))
    often = twin.simulate(work, ideal(2))
    assert seldom.status == often.status == "finished"
    assert seldom.makespan_s == pytest.approx(often.makespan_s, abs=0.01)
    assert seldom.loop_events < often.loop_events / 5


def test_progress_is_told_while_it_lasts_and_changes_nothing() -> None:
    seen: list[Progress] = []
    work, cluster = twin.independent(3_000, Constant(0.1)), ideal(4)
    told = twin.simulate(work, cluster, on_progress=seen.append)
    assert told.trace_hash == twin.simulate(work, cluster).trace_hash
    assert seen
    assert all(0 <= p.done <= p.tasks == 3_000 and p.virtual_s <= told.makespan_s for p in seen)
    assert not [thread for thread in threading.enumerate() if thread.name == "twin-progress"]


def test_progress_comes_out_of_a_process_of_its_own() -> None:
    seen: list[Progress] = []
    work, cluster = twin.independent(3_000, Constant(0.1)), ideal(4)
    isolated = simulate_isolated(work, cluster, on_progress=seen.append)
    assert isolated.status == "finished"
    assert {p.tasks for p in seen} == {3_000}


def test_what_can_not_be_sent_is_an_answer_too() -> None:
    (answer,) = simulate_all([Job((twin.independent(1), ideal(1)), {"policy": threading.Lock()})])
    assert isinstance(answer, TwinError)
    assert "the simulation can't be sent: TypeError" in str(answer)
