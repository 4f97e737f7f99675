"""What each kind of fault does to a run of stock Dask; figures that DASK_FACTS measured on real clusters come back."""

from __future__ import annotations

import pytest

from swarm import twin
from swarm.twin.faults import (
    BlockLoop,
    Crash,
    Hang,
    HoldGil,
    Join,
    Leave,
    LoseHeartbeats,
    Partition,
    Preempt,
    SchedulerLag,
    SlowDown,
)
from swarm.twin.models import Constant, Cost, WorkerModel
from tests.support.twin_runs import SOON_S, ends, executions, ideal, joins, of, on_worker, pinned

HUNDRED = twin.independent(100, Constant(0.25))


# -- crash -------------------------------------------------------------------------------------------------------


def test_after_a_crash_what_ran_and_what_is_lost_is_done_elsewhere() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4), faults=[Crash(worker="w1", at_s=1.1)], gather=True)
    assert outcome.status == "finished"
    assert ends(outcome) == [(pytest.approx(1.1), "ended (killed)")]
    assert max(entry.stop_s for entry in on_worker(outcome, "w1")) == pytest.approx(1.1)
    assert outcome.reruns == 5  # four results that were there, and the task that ran
    assert all(executions(outcome, entry.key)[-1].worker != "w1" for entry in on_worker(outcome, "w1"))


def test_a_nanny_brings_the_worker_back() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4, nanny=True), faults=[Crash(worker="w1", at_s=1.1)])
    assert joins(outcome, "w1") == [pytest.approx(1.1 + 2.0, abs=SOON_S)]
    assert on_worker(outcome, "w1", lambda entry: entry.start_s > 3.0)
    without = twin.simulate(HUNDRED, ideal(4), faults=[Crash(worker="w1", at_s=1.1)])
    assert outcome.makespan_s < without.makespan_s
    assert not on_worker(without, "w1", lambda entry: entry.start_s > 1.2)


def test_a_worker_that_crashes_while_it_sends_a_result_has_it_made_again() -> None:
    slow = twin.Network(twin.Link(0.0, 1e8), request_s=0.0)
    work = twin.made_up(
        [("a", (), Cost(1.0, 300_000_000)), ("b", ("a",), Cost(1.0))],
        annotations={"workers": {"a": ["w0"], "b": ["w1"]}, "allow_other_workers": {"a": True}},
    )
    outcome = twin.simulate(work, ideal(2, network=slow), faults=[Crash(worker="w0", at_s=2.0)])
    first, again = executions(outcome, "a")
    assert (first.worker, again.worker) == ("w0", "w1")
    assert again.start_s == pytest.approx(2.0, abs=SOON_S)
    assert outcome.makespan_s == pytest.approx(4.0, abs=2 * SOON_S)


# -- hang --------------------------------------------------------------------------------------------------------


def test_a_hang_of_ten_seconds_delays_only_what_the_worker_had() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4), faults=[Hang(worker="w1", at_s=1.1, for_s=10.0)])
    assert outcome.reruns == 0
    (caught,) = on_worker(outcome, "w1", lambda entry: entry.start_s < 1.1 < entry.stop_s)
    assert caught.stop_s - caught.start_s == pytest.approx(0.25 + 10.0)  # it goes on where it was
    meanwhile = [entry.stop_s for entry in outcome.executions if entry.worker != "w1" and entry.start_s < 11.1]
    assert max(meanwhile) == pytest.approx(8.25, abs=0.5)
    assert outcome.makespan_s == pytest.approx(11.35, abs=0.3)


@pytest.mark.parametrize("nanny", [False, True])
def test_a_hang_for_ever_is_noticed_by_nothing_but_the_ttl(nanny: bool) -> None:
    outcome = twin.simulate(HUNDRED, ideal(4, nanny=nanny), faults=[Hang(worker="w1", at_s=1.1)])
    assert outcome.status == "finished"
    assert 300.0 < outcome.makespan_s < 606.0
    assert all(entry.worker != "w1" or entry.stop_s < 1.2 for entry in outcome.executions if entry.outcome == "done")
    if nanny:
        ((at_s, what),) = ends(outcome, "w1")
        assert what == "ended (killed by its nanny)"
        assert at_s % 300 == pytest.approx(4.0, abs=0.2)  # it does not hear the nanny, which kills it after 4 s


def test_what_only_a_hung_worker_has_is_waited_for() -> None:
    work = pinned([("a", (), Cost(0.5), "w0"), ("b", (), Cost(2.0), "w1"), ("both", ("a", "b"), Cost(0.5), "w1")])
    outcome = twin.simulate(work, ideal(2), faults=[Hang(worker="w0", at_s=1.0, for_s=20.0)])
    assert of(outcome, "both").start_s == pytest.approx(21.0, abs=SOON_S)
    assert outcome.reruns == 0


# -- the GIL, the event loop, slowness -----------------------------------------------------------------------------


def test_while_a_task_holds_the_gil_it_goes_on_alone() -> None:
    outcome = twin.simulate(
        twin.independent(2, Constant(10.0)), ideal(1, 2), faults=[HoldGil(worker="w0", at_s=2.0, for_s=5.0)]
    )
    assert sorted(entry.stop_s for entry in outcome.executions) == pytest.approx([10.0, 15.0], abs=SOON_S)


def test_a_task_that_holds_the_gil_is_slowed_down_and_stopped_like_any_other() -> None:
    """Found here: it went on through a hang, and lost the GIL with the end of any other fault."""
    faults = [
        HoldGil(worker="w0", at_s=1.0, for_s=20.0),
        SlowDown(worker="w0", at_s=0.0, factor=0.5, for_s=5.0),
        Hang(worker="w0", at_s=10.0, for_s=4.0),
    ]
    outcome = twin.simulate(twin.independent(2, Constant(10.0)), ideal(1, 2), faults=faults)
    # One: 2.5 s of work until 5 s, 5 s until 10 s, none until 14 s, then 2.5 s; reported when the loop runs, at 21 s.
    # The other: 0.5 s of work until 1 s, none until 21 s, then 9.5 s.
    assert sorted(entry.stop_s for entry in outcome.executions) == pytest.approx([21.0, 30.5], abs=SOON_S)


def test_a_task_that_ends_while_it_holds_the_gil_is_reported_when_the_loop_runs_again() -> None:
    outcome = twin.simulate(
        twin.independent(1, Constant(3.0)), ideal(1), faults=[HoldGil(worker="w0", at_s=2.0, for_s=18.0)]
    )
    assert outcome.makespan_s == pytest.approx(20.0, abs=SOON_S)


def test_tasks_queued_behind_a_held_gil_are_stuck_while_others_are_idle() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4), faults=[HoldGil(worker="w1", at_s=1.1, for_s=20.0)])
    assert outcome.makespan_s == pytest.approx(21.1, abs=0.5)
    assert max(entry.stop_s for entry in outcome.executions if entry.worker != "w1") < 9.0


def test_while_the_event_loop_is_blocked_tasks_end_and_nobody_hears_of_it() -> None:
    outcome = twin.simulate(
        twin.independent(2, Constant(3.0)), ideal(1), faults=[BlockLoop(worker="w0", at_s=1.0, for_s=5.0)]
    )
    first, second = sorted(outcome.executions, key=lambda entry: entry.start_s)
    assert first.stop_s == pytest.approx(6.0, abs=SOON_S)
    assert second.start_s == pytest.approx(6.0, abs=SOON_S)
    assert outcome.makespan_s == pytest.approx(9.0, abs=SOON_S)


def test_a_slow_down_and_its_end_change_the_end_of_running_tasks_exactly() -> None:
    outcome = twin.simulate(
        twin.independent(1, Constant(10.0)),
        ideal(1),
        faults=[SlowDown(worker="w0", at_s=2.0, factor=0.5, for_s=4.0)],
    )
    assert outcome.makespan_s == pytest.approx(2.0 + 4.0 + 6.0, abs=SOON_S)


def test_two_slow_downs_at_a_time_multiply() -> None:
    faults = [
        SlowDown(worker="w0", at_s=0.0, factor=0.5),
        SlowDown(worker="w0", at_s=4.0, factor=0.5, for_s=4.0),
    ]
    outcome = twin.simulate(twin.independent(1, Constant(10.0)), ideal(1), faults=faults)
    assert outcome.makespan_s == pytest.approx(4.0 + 4.0 + (10.0 - 2.0 - 1.0) / 0.5, abs=SOON_S)


def test_stock_dask_leaves_tasks_with_a_slow_worker() -> None:
    """As measured: 8 × 1 s on 8 workers, of which one is ten times slower, take 10 s."""
    outcome = twin.simulate(
        twin.independent(8, Constant(1.0)), ideal(8), faults=[SlowDown(worker="w3", at_s=0.0, factor=0.1)]
    )
    assert outcome.makespan_s == pytest.approx(10.0, abs=0.1)
    assert outcome.reruns == 0


# -- the network -------------------------------------------------------------------------------------------------


def test_a_partition_that_heals_in_time_loses_nothing() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4), faults=[Partition(workers=("w1",), at_s=1.1, for_s=10.0)], gather=True)
    assert outcome.reruns == 0
    assert not ends(outcome)
    assert outcome.makespan_s == pytest.approx(11.1, abs=0.5)


def test_a_partition_that_lasts_breaks_the_connection_and_its_tasks_are_done_again() -> None:
    outcome = twin.simulate(HUNDRED, ideal(4), faults=[Partition(workers=("w1",), at_s=1.1)], gather=True)
    ((at_s, what),) = ends(outcome)
    assert at_s == pytest.approx(31.1)
    assert "connection-broken" in what
    assert outcome.reruns > 0
    assert 31.1 < outcome.makespan_s < 33.0


def test_both_sides_of_a_partition_go_on_with_what_they_have() -> None:
    names = ("w2", "w3")
    work = pinned(
        [
            ("a", (), Cost(0.5, 1000), "w2"),
            ("b", ("a",), Cost(3.0, 1000), "w3"),  # w3 fetches it from w2, on its own side
            ("c", ("b",), Cost(0.5), "w0"),
        ]
    )
    outcome = twin.simulate(work, ideal(4), faults=[Partition(workers=names, at_s=1.0, for_s=9.0)])
    assert of(outcome, "b").stop_s == pytest.approx(3.5, abs=SOON_S)
    assert of(outcome, "c").start_s == pytest.approx(10.0, abs=SOON_S)


def test_a_worker_that_crashes_behind_a_partition_comes_back_when_it_heals() -> None:
    """Found here: the news of its end was held for ever, so that the new process was refused again and again."""
    outcome = twin.simulate(
        HUNDRED,
        ideal(4, nanny=True),
        faults=[Partition(workers=("w1",), at_s=1.1, for_s=6.0), Crash(worker="w1", at_s=2.0)],
    )
    assert joins(outcome, "w1") == [pytest.approx(7.1, abs=SOON_S)]
    assert outcome.makespan_s < 12.0


def test_a_worker_that_crashes_behind_a_partition_for_ever_is_given_up() -> None:
    """Found here: only the ttl noticed, after 600 s."""
    outcome = twin.simulate(
        HUNDRED, ideal(4), faults=[Partition(workers=("w1",), at_s=1.1), Crash(worker="w1", at_s=2.0)]
    )
    assert 31.1 < outcome.makespan_s < 33.0


# -- heartbeats, the scheduler -----------------------------------------------------------------------------------


def test_a_worker_whose_heartbeats_are_lost_is_removed_by_the_ttl_though_it_works() -> None:
    work = twin.independent(8, Constant(400.0))
    outcome = twin.simulate(work, ideal(4), faults=[LoseHeartbeats(worker="w1", at_s=10.0)])
    ((at_s, _),) = ends(outcome, "w1")
    assert 310.0 < at_s <= 601.0
    assert outcome.reruns >= 1


def test_heartbeats_that_are_lost_for_a_while_do_no_harm() -> None:
    work = twin.independent(8, Constant(400.0))
    outcome = twin.simulate(work, ideal(4), faults=[LoseHeartbeats(worker="w1", at_s=10.0, for_s=200.0)])
    assert not ends(outcome)
    assert outcome.makespan_s == pytest.approx(800.0, abs=1.0)


def test_while_the_scheduler_stands_still_workers_go_on_with_what_they_have() -> None:
    outcome = twin.simulate(twin.independent(10, Constant(1.0)), ideal(1), faults=[SchedulerLag(at_s=0.5, for_s=5.0)])
    # Two tasks are with the worker, eight wait for the scheduler.
    assert [entry.start_s for entry in outcome.executions][1:3] == pytest.approx([1.0, 5.5], abs=2 * SOON_S)
    assert outcome.makespan_s == pytest.approx(5.5 + 8.0, abs=4 * SOON_S)


# -- workers come and go -----------------------------------------------------------------------------------------


KEPT = pinned(
    [
        *((f"a-{i}", (), Cost(0.1, 1000), "") for i in range(8)),
        ("long", (), Cost(10.0), "w0"),
        ("end", (*(f"a-{i}" for i in range(8)), "long"), Cost(0.5), ""),
    ]
)
"""Results that are needed long after they were made."""


def test_a_worker_that_leaves_takes_nothing_with_it() -> None:
    outcome = twin.simulate(KEPT, ideal(4), faults=[Leave(worker="w1", at_s=3.0)], gather=True)
    assert ends(outcome, "w1")[0][0] == pytest.approx(3.0, abs=4.5)  # the results are copied within two periods of 2 s
    assert on_worker(outcome, "w1")
    assert outcome.reruns == 0
    assert outcome.makespan_s == pytest.approx(10.6, abs=2 * SOON_S)


def test_a_worker_that_crashes_instead_costs_reruns() -> None:
    outcome = twin.simulate(KEPT, ideal(4), faults=[Crash(worker="w1", at_s=3.0)])
    assert outcome.reruns == len(on_worker(outcome, "w1")) > 0


def test_a_notice_that_is_passed_on_saves_the_results() -> None:
    outcome = twin.simulate(KEPT, ideal(4), faults=[Preempt(worker="w1", at_s=3.0, notice_s=6.0, retire=True)])
    assert outcome.reruns == 0
    assert ends(outcome, "w1")[0][0] < 9.0


def test_a_notice_that_nobody_hears_costs_reruns() -> None:
    outcome = twin.simulate(KEPT, ideal(4, nanny=True), faults=[Preempt(worker="w1", at_s=3.0, notice_s=2.0)])
    assert ends(outcome, "w1") == [(pytest.approx(5.0), "ended (retired: preempted)")]
    assert outcome.reruns > 0
    assert not joins(outcome, "w1")  # the machine is gone, and the nanny with it


def test_a_worker_that_joins_takes_work() -> None:
    outcome = twin.simulate(
        HUNDRED, ideal(2), faults=[Join(model=WorkerModel("new", threads=4, task_overhead_s=0.0), at_s=1.0)]
    )
    assert min(entry.start_s for entry in on_worker(outcome, "new")) == pytest.approx(1.0, abs=SOON_S)
    assert outcome.makespan_s == pytest.approx(1.0 + (25.0 - 2.0) / 6, abs=0.5)


def test_a_cluster_may_start_empty() -> None:
    outcome = twin.simulate(
        twin.independent(1, Constant(1.0)), ideal(0), faults=[Join(model=WorkerModel("first"), at_s=5.0)]
    )
    assert outcome.makespan_s == pytest.approx(6.0, abs=SOON_S)


def test_faults_of_workers_that_are_gone_do_nothing() -> None:
    faults = [Crash(worker="w1", at_s=1.1), Hang(worker="w1", at_s=2.0), Leave(worker="w1", at_s=2.5)]
    assert twin.simulate(HUNDRED, ideal(4), faults=faults).makespan_s < 10.0
