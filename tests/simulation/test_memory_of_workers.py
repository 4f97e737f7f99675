"""Memory: results are spilled, workers pause and resume, a nanny or the kernel kills, Dask gives up a task."""

from __future__ import annotations

import pytest

from swarm import twin
from swarm.errors import DeadlockError
from swarm.twin.models import MIB, Constant, Cost, Memory
from tests.support.twin_runs import SOON_S, ends, executions, ideal, of, pinned

GIB = 1024 * MIB
BASELINE = 120 * MIB


def hungry(count: int, peak_bytes: int, work_s: float = 3.0) -> twin.Work:
    return twin.made_up([(f"t{i}", (), Cost(work_s, 1000, peak_bytes)) for i in range(count)])


def test_results_beyond_the_target_go_to_disk() -> None:
    work = twin.independent(30, Constant(0.1), output_bytes=100 * MIB)  # 3 GiB of results in 1 GiB
    outcome = twin.simulate(work, ideal(1, memory=Memory(GIB)))
    assert outcome.status == "finished"
    assert not ends(outcome)
    assert 0.6 * GIB < outcome.peak_bytes["w0"] <= 0.95 * GIB
    assert outcome.makespan_s == pytest.approx(3.0, abs=0.2)


def test_reading_back_what_was_spilled_takes_the_time_of_the_disk() -> None:
    parts = [(f"part-{i}", (), Cost(0.1, 100 * MIB), "") for i in range(10)]
    late = [f"part-{i}" for i in range(10)]
    work = pinned([*parts, ("last", late, Cost(1.0, 28), "")])
    outcome = twin.simulate(work, ideal(1, memory=Memory(2 * GIB, disk_bytes_per_s=100 * MIB)))
    assert outcome.status == "finished"
    last = of(outcome, "last")
    assert last.stop_s - last.start_s == pytest.approx(1.0, abs=SOON_S)  # all of it fits, nothing had been spilled
    less = twin.simulate(work, ideal(1, memory=Memory(int(1.4 * GIB), disk_bytes_per_s=100 * MIB)))
    spilled = 10 - int((0.6 * 1.4 * GIB - BASELINE) / (100 * MIB))
    last = of(less, "last")
    assert last.stop_s - last.start_s == pytest.approx(1.0 + spilled, abs=1.0 + SOON_S)
    assert last.stop_s - last.start_s > 2.0


def test_a_worker_pauses_while_it_is_nearly_full_and_resumes() -> None:
    # Three big ones need 870 of 1,024 MiB: above the pause at 80 %, below the limit.
    big = [(f"big-{i}", (), Cost(3.0, 1000, 250 * MIB)) for i in range(3)]
    small = [("tick", (), Cost(0.5, 0)), *((f"small-{i}", ("tick",), Cost(0.5, 0)) for i in range(4))]
    outcome = twin.simulate(twin.made_up([*big, *small]), ideal(1, 4, memory=Memory(GIB)))
    assert outcome.status == "finished"
    assert not ends(outcome)
    assert outcome.peak_bytes["w0"] == BASELINE + 3 * 250 * MIB
    starts_s = sorted(entry.start_s for entry in outcome.executions)
    assert starts_s[:4] == pytest.approx([0.0] * 4, abs=SOON_S)
    assert starts_s[4:] == pytest.approx([3.0] * 4, abs=0.2)  # from 0.5 s to 3 s a thread is free, and takes nothing


def test_tasks_of_a_paused_worker_are_done_by_others() -> None:
    big = [(f"big-{i}", (), Cost(20.0, 1000, 250 * MIB), "w0") for i in range(3)]
    small = [("tick", (), Cost(0.5, 0), "w0"), *((f"small-{i}", ("tick",), Cost(0.5, 0), "") for i in range(20))]
    outcome = twin.simulate(pinned([*big, *small]), ideal(2, 4, memory=Memory(GIB)))
    assert max(of(outcome, f"small-{i}").stop_s for i in range(20)) < 10.0
    assert {of(outcome, f"small-{i}").worker for i in range(20)} == {"w1"}


def test_a_nanny_kills_at_95_percent_and_the_worker_comes_back() -> None:
    outcome = twin.simulate(hungry(2, 900 * MIB), ideal(1, 1, memory=Memory(GIB), nanny=True), time_limit_s=60.0)
    assert [what for _, what in ends(outcome, "w0")] == ["ended (memory)"] * 4  # each time with both tasks
    assert outcome.status == "failed"


def test_dask_gives_up_a_task_after_four_deaths() -> None:
    outcome = twin.simulate(hungry(1, 900 * MIB), ideal(2, memory=Memory(GIB), nanny=True))
    assert outcome.status == "failed"
    assert len(executions(outcome, "t0")) == 4
    assert {entry.outcome for entry in executions(outcome, "t0")} == {"lost"}
    assert outcome.failed["t0"].startswith("KilledWorker: Attempted to run task 't0' on 4 different workers")


def test_innocent_tasks_are_finished_beside_one_that_kills() -> None:
    innocent = [(f"good-{i}", (), Cost(0.5, 1000)) for i in range(50)]
    work = twin.made_up([("bad", (), Cost(0.5, 1000, 900 * MIB)), *innocent])
    outcome = twin.simulate(work, ideal(4, memory=Memory(GIB), nanny=True))
    assert outcome.status == "failed"
    assert set(outcome.failed) == {"bad"}
    assert len(ends(outcome)) == 4
    assert outcome.makespan_s == pytest.approx(50 * 0.5 / 4, abs=5.0)


def test_without_a_nanny_the_kernel_kills_at_the_limit_and_nobody_comes_back() -> None:
    at_97_percent = int(0.97 * GIB) - BASELINE
    alive = twin.simulate(hungry(1, at_97_percent), ideal(1, memory=Memory(GIB)))
    assert (alive.status, ends(alive)) == ("finished", [])
    with pytest.raises(DeadlockError, match="'t0': there are no workers"):
        twin.simulate(hungry(1, GIB), ideal(1, memory=Memory(GIB)))


def test_without_a_limit_nothing_is_counted() -> None:
    outcome = twin.simulate(hungry(4, 100 * GIB), ideal(1))
    assert outcome.status == "finished"
    assert set(outcome.peak_bytes.values()) <= {0}


def test_four_tasks_that_need_a_third_each_kill_a_worker_again_and_again() -> None:
    """As measured on real workers (4 threads, 1 GiB, 350 MB for a moment): 20 deaths, KilledWorker for nearly all."""
    outcome = twin.simulate(hungry(24, 350 * MIB), ideal(2, 4, memory=Memory(GIB), nanny=True))
    assert outcome.status == "failed"
    assert len(outcome.failed) >= 20
    assert len(ends(outcome)) == pytest.approx(16, abs=8)
