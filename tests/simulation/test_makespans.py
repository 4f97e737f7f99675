"""Makespans that a person can compute: the twin must get them right."""

from __future__ import annotations

from dataclasses import replace

import dask
import pytest
from dask import delayed

from swarm import twin
from swarm.twin.models import Constant, Cost, Drifting, Fixed, Link, Network, SchedulerCpu, Sudden
from tests.support.twin_runs import SOON_S, executions, ideal, of, pinned

PAYLOAD = 100_000_000
"""Bytes; one second on a link of 1e8 bytes/s."""


def network(**details: Link) -> Network:
    return Network(Link(0.0, 1e8), request_s=0.0, **details)  # type: ignore[arg-type]


def test_one_task_on_one_worker() -> None:
    assert twin.simulate(twin.independent(1, Constant(3.0)), ideal(1)).makespan_s == pytest.approx(3.0, abs=SOON_S)


@pytest.mark.parametrize(
    ("tasks", "workers", "threads", "rounds"), [(10, 5, 1, 2), (12, 2, 3, 2), (7, 2, 3, 2), (9, 1, 4, 3)]
)
def test_equal_tasks_go_in_rounds(tasks: int, workers: int, threads: int, rounds: int) -> None:
    outcome = twin.simulate(twin.independent(tasks, Constant(2.0)), ideal(workers, threads))
    assert outcome.makespan_s == pytest.approx(rounds * 2.0, abs=SOON_S)
    assert {entry.lane for entry in outcome.executions} == set(range(min(threads, tasks)))


def test_a_chain_takes_the_sum() -> None:
    chain = twin.made_up([(i, (i - 1,) if i else (), Cost(0.5 * (i + 1))) for i in range(5)])
    outcome = twin.simulate(chain, ideal(3))
    assert outcome.makespan_s == pytest.approx(7.5, abs=SOON_S * 5)
    assert outcome.transfers == 0


def test_overheads_are_paid_per_task() -> None:
    cluster = twin.ClusterModel([twin.WorkerModel("w0", task_overhead_s=0.1)], Network(), SchedulerCpu(0.0, 0.0))
    outcome = twin.simulate(twin.independent(10, Constant(0.4)), cluster)
    assert outcome.makespan_s == pytest.approx(10 * 0.5, abs=SOON_S * 2)


def test_a_worker_of_half_the_speed_takes_twice_as_long() -> None:
    work = pinned([("fast", (), Cost(4.0), "w0"), ("slow", (), Cost(4.0), "w1")])
    outcome = twin.simulate(work, ideal(2, speeds=[Fixed(1.0), Fixed(0.5)]))
    assert of(outcome, "fast").stop_s == pytest.approx(4.0, abs=SOON_S)
    assert of(outcome, "slow").stop_s == pytest.approx(8.0, abs=SOON_S)


def test_a_speed_that_changes_in_the_middle_of_a_task() -> None:
    outcome = twin.simulate(twin.independent(1, Constant(10.0)), ideal(1, speeds=[Sudden(1.0, 0.5, at_s=4.0)]))
    assert outcome.makespan_s == pytest.approx(4.0 + 6.0 / 0.5, abs=SOON_S)


def test_a_speed_that_drifts() -> None:
    # 10 s at 0.75 on average, then 2.5 s of work are left at 0.5.
    outcome = twin.simulate(twin.independent(1, Constant(10.0)), ideal(1, speeds=[Drifting(1.0, 0.5, until_s=10.0)]))
    assert outcome.makespan_s == pytest.approx(10.0 + 2.5 / 0.5, abs=0.1)


# -- the network -------------------------------------------------------------------------------------------------


def readers(count: int, bytes_each: int = PAYLOAD) -> twin.Work:
    """A result on `w0`, and tasks of 1 s on `w1`… that read it."""
    root = ("root", (), Cost(0.0, bytes_each), "w0")
    return pinned([root, *((f"reader-{i}", ("root",), Cost(1.0), f"w{i}") for i in range(1, count + 1))])


def test_a_payload_takes_its_time_on_the_link() -> None:
    outcome = twin.simulate(readers(1), ideal(2, network=network()))
    assert outcome.makespan_s == pytest.approx(1.0 + 1.0, abs=SOON_S)
    assert (outcome.transfers, outcome.transferred_bytes) == (1, PAYLOAD)


def test_latency_is_paid_on_the_way_there_and_back() -> None:
    slow = Network(Link(0.25, 1e12), request_s=0.0)
    outcome = twin.simulate(readers(1), ideal(2, network=slow))
    # graph → scheduler → w0 → scheduler → w1, question to w0 and answer, w1 → scheduler → client
    assert outcome.makespan_s == pytest.approx(1.0 + 8 * 0.25, abs=SOON_S)


def test_many_readers_share_what_one_worker_can_send() -> None:
    outcome = twin.simulate(readers(3), ideal(4, network=network()))
    starts_s = sorted(of(outcome, f"reader-{i}").start_s for i in (1, 2, 3))
    assert starts_s == pytest.approx([1.0, 2.0, 3.0], abs=SOON_S)


def two_pairs() -> twin.Work:
    return pinned(
        [
            ("a", (), Cost(0.0, PAYLOAD), "w0"),
            ("b", (), Cost(0.0, PAYLOAD), "w1"),
            ("reads a", ("a",), Cost(1.0), "w2"),
            ("reads b", ("b",), Cost(1.0), "w3"),
        ]
    )


def test_two_pairs_of_workers_do_not_disturb_each_other() -> None:
    assert twin.simulate(two_pairs(), ideal(4, network=network())).makespan_s == pytest.approx(2.0, abs=SOON_S)


def test_a_shared_uplink_takes_one_payload_at_a_time() -> None:
    outcome = twin.simulate(two_pairs(), ideal(4, network=network(shared_uplink=Link(0.0, 0.5e8))))
    assert outcome.makespan_s == pytest.approx(2.0 + 2.0 + 1.0, abs=SOON_S)


def test_one_worker_receives_one_payload_at_a_time() -> None:
    work = pinned(
        [
            ("a", (), Cost(0.0, PAYLOAD), "w0"),
            ("b", (), Cost(0.0, PAYLOAD), "w1"),
            ("both", ("a", "b"), Cost(1.0), "w2"),
        ]
    )
    assert twin.simulate(work, ideal(3, network=network())).makespan_s == pytest.approx(3.0, abs=SOON_S)


def test_a_link_of_its_own() -> None:
    cluster = ideal(3, network=Network(Link(0.0, 1e8), {("h0", "h2"): Link(0.0, 0.25e8)}, request_s=0.0))
    outcome = twin.simulate(readers(2), cluster)
    first, last = sorted((of(outcome, "reader-1").start_s, of(outcome, "reader-2").start_s))
    assert last == pytest.approx(1.0 + 4.0, abs=SOON_S)
    assert first in (pytest.approx(1.0, abs=SOON_S), pytest.approx(4.0, abs=SOON_S))


# -- the scheduler -----------------------------------------------------------------------------------------------


def test_a_slow_scheduler_is_the_bottleneck() -> None:
    outcome = twin.simulate(twin.independent(200, Constant(0.0)), ideal(2, 4, scheduler=SchedulerCpu(0.05, 0.0)))
    assert outcome.scheduler_cpu_s == pytest.approx(outcome.messages * 0.05)
    assert outcome.makespan_s > 200 * 0.05
    assert outcome.scheduler_cpu_s / outcome.makespan_s > 0.95


def test_a_batch_costs_the_scheduler_once_however_many_messages_it_has() -> None:
    cpu = SchedulerCpu(0.0, 0.0, batch_s=0.05)
    alone, together = (
        twin.simulate(twin.independent(200, Constant(0.1)), ideal(*size, scheduler=cpu)) for size in ((20, 1), (1, 20))
    )
    assert alone.scheduler_cpu_s > 2 * together.scheduler_cpu_s
    assert alone.makespan_s > 100 * 0.05, "the scheduler is the bottleneck, of as many threads"
    assert together.makespan_s < 0.5 * alone.makespan_s


def test_a_graph_costs_the_scheduler_time_before_its_first_task_starts() -> None:
    outcome = twin.simulate(twin.independent(100, Constant(0.1)), ideal(100, scheduler=SchedulerCpu(0.0, 0.01)))
    assert min(entry.start_s for entry in outcome.executions) == pytest.approx(1.0, abs=SOON_S)


# -- what tasks ask for ------------------------------------------------------------------------------------------


def test_a_task_runs_where_its_resource_is_and_waits_for_it() -> None:
    with dask.annotate(resources={"GPU": 1}):
        asking = [delayed(abs)(i, dask_key_name=f"gpu-{i}") for i in range(3)]
    work = twin.from_graph(delayed(sum)(asking, dask_key_name="all"), Constant(1.0))
    outcome = twin.simulate(work, ideal(3, 2, resources={"w1": {"GPU": 1.0}}))
    asked = [of(outcome, f"gpu-{i}") for i in range(3)]
    assert {entry.worker for entry in asked} == {"w1"}
    assert sorted(entry.stop_s for entry in asked) == pytest.approx([1.0, 2.0, 3.0], abs=2 * SOON_S)
    assert outcome.makespan_s == pytest.approx(outcome.tasks - 3 + 3.0, abs=4 * SOON_S)


def test_a_task_runs_on_the_worker_that_it_names() -> None:
    outcome = twin.simulate(pinned([(f"t{i}", (), Cost(1.0), "w2") for i in range(3)]), ideal(4))
    assert {entry.worker for entry in outcome.executions} == {"w2"}
    assert outcome.makespan_s == pytest.approx(3.0, abs=3 * SOON_S)


def test_gathering_the_results_takes_time_too() -> None:
    work = pinned([("a", (), Cost(1.0, PAYLOAD), "w0")])
    assert twin.simulate(work, ideal(1, network=network())).makespan_s == pytest.approx(1.0, abs=SOON_S)
    gathered = twin.simulate(work, ideal(1, network=network()), gather=True)
    assert gathered.makespan_s > 2.0 - SOON_S  # through the scheduler, on one link after the other
    assert len(executions(gathered, "a")) == 1


def test_fewer_heartbeats_make_hours_cheap() -> None:
    hour = twin.independent(2, Constant(3600.0))
    often = twin.simulate(hour, ideal(2))
    seldom = twin.simulate(hour, replace(ideal(2), heartbeat_s=20.0))
    assert seldom.makespan_s == pytest.approx(often.makespan_s, abs=SOON_S)
    assert often.messages > 2 * 3600 / 0.5
    assert seldom.messages < often.messages / 5


def test_a_time_limit_ends_a_run_that_is_not_over() -> None:
    outcome = twin.simulate(twin.independent(1, Constant(100.0)), ideal(1), time_limit_s=7.0)
    assert (outcome.status, outcome.makespan_s) == ("time limit", 7.0)
