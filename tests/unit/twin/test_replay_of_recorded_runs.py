"""`swarm.twin.replay`: a recorded run as work for a simulation, and the clusters to try it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scheduler_plugins.io.recorded import RecordedRun, RecordedTask, RecordedWorker
from swarm.errors import TwinError
from swarm.twin import replay, wfformat
from swarm.twin.models import Cost
from swarm.twin.progress import Progress
from swarm.twin.work import made_up

GIB = 1 << 30


def task(key: str, *needs: str, **changes: Any) -> RecordedTask:
    defaults: Mapping[str, Any] = {
        "function": key.partition("-")[0],
        "dependencies": needs,
        "is_wanted": False,
        "worker": "tcp://10.0.0.1:1",
        "start_s": 100.5,
        "compute_s": 2.0,
        "transfer_s": 0.0,
        "transfers": 1,
        "output_bytes": 7,
    }
    return RecordedTask(key=key, **{**defaults, **changes})


def worker(number: int, **changes: Any) -> RecordedWorker:
    defaults: Mapping[str, Any] = {"host": "10.0.0.1", "threads": 2, "memory_limit_bytes": 4 * GIB}
    return RecordedWorker(address=f"tcp://10.0.0.1:{number}", name=f"w{number}", **{**defaults, **changes})


RUN = RecordedRun(
    run="sums-1-abc",
    name="sums",
    submitted_at_s=100.0,
    makespan_s=8.0,
    workers=[worker(1), worker(2)],
    tasks=[task("load-1"), task("load-2"), task("add-1", "load-1", "load-2", is_wanted=True), task("log-1", "add-1")],
)


def test_a_run_of_the_journal_becomes_work() -> None:
    recording = replay.from_journal(RUN)
    work = recording.work
    assert work.costs == dict.fromkeys(("load-1", "load-2", "add-1", "log-1"), Cost(2.0, 7))
    assert work.dependencies["add-1"] == {"load-1", "load-2"}
    assert work.wanted == ("add-1",), "what the run was for, not what came last"
    # 8 s of work on 4 threads, but chains of 6 s.
    assert recording.row == replay.Row(2, 4, "recorded", 8.0, pytest.approx(8 / 6), pytest.approx(0.25), None, 4)


def test_remarks_tell_what_the_simulation_does_not_have() -> None:
    late = [task("a", "scattered-1", "scattered-2", start_s=103.0), task("b", "scattered-1", start_s=104.0)]
    inputs, delay = replay.from_journal(replace(RUN, tasks=late)).remarks
    assert inputs == "2 inputs were there before the run began and cost nothing here"
    assert delay.startswith("of the recorded 8 s, 3 s passed before the first task began")
    assert replay.from_journal(replace(RUN, tasks=[task("a", start_s=100.01)])).remarks == ()


def test_the_cluster_is_the_recorded_one_unless_asked_otherwise() -> None:
    recording = replay.from_journal(RUN)
    recorded = recording.cluster()
    assert [(w.threads, w.host, w.memory.limit_bytes) for w in recorded.workers] == [(2, "10.0.0.1", 4 * GIB)] * 2
    more = recording.cluster(workers=5)
    assert [(w.threads, w.host) for w in more.workers] == [(2, f"host-{i // 2}") for i in range(5)], "two to a host"
    assert {w.memory.limit_bytes for w in more.workers} == {4 * GIB}
    assert [w.threads for w in recording.cluster(threads=8).workers] == [8, 8]


def test_a_run_of_hours_has_fewer_heartbeats() -> None:
    hours = replace(RUN, tasks=[task("long-1", compute_s=7200.0, is_wanted=True)])
    assert replay.from_journal(hours).cluster().heartbeat_s == replay.SELDOM_S
    assert replay.from_journal(hours).cluster(workers=64).heartbeat_s == replay.SELDOM_S
    assert replay.from_journal(RUN).cluster().heartbeat_s is None


@pytest.mark.parametrize(("work_s", "beat_s"), [(3e4, 20.0), (1.8e5, 50.0), (2.5e6, 120.0)])
def test_the_longer_a_run_the_fewer_heartbeats(work_s: float, beat_s: float) -> None:
    long = replace(RUN, tasks=[task("long-1", compute_s=work_s, is_wanted=True)])
    assert replay.from_journal(long).cluster().heartbeat_s == beat_s


def test_a_run_that_would_take_longer_than_the_limit_is_refused() -> None:
    endless = replay.from_journal(replace(RUN, tasks=[task("x-1"), task("long-1", compute_s=1e18)]))
    told = (
        r"sums takes 1\.1574e\+13 days or more on 2 workers \(longest task: 'long-1', 1\.1574e\+13 days\), "
        r"a simulation may take 30 days: mend the costs, or allow more with --limit, up to 36500 days"
    )
    with pytest.raises(TwinError, match=told):
        next(replay.replay(endless))
    with pytest.raises(TwinError, match=r"takes 6 s or more on 2 workers .* may take 5 s"):
        next(replay.replay(replay.from_journal(RUN), limit_s=5.0))
    with pytest.raises(TwinError, match="limit_s is nan, must be above 0"):
        next(replay.replay(replay.from_journal(RUN), limit_s=float("nan")))


def test_a_row_is_of_a_run_that_finished() -> None:
    recording = replay.from_journal(replace(RUN, tasks=[task(f"x-{i}") for i in range(4)]))
    with pytest.raises(TwinError, match=r"1 workers, stock: not finished after 8 s; allow more with --limit"):
        list(replay.replay(recording, workers=[1], threads=1, policies=["stock"], limit_s=8.0001))


def test_progress_is_told_for_each_row() -> None:
    many = [task(f"x-{i}", compute_s=1.0) for i in range(3000)]
    seen: list[tuple[int, Progress]] = []
    recording = replay.from_journal(replace(RUN, tasks=many))
    rows = list(replay.replay(recording, workers=[2, 4], policies=["stock"], on_progress=lambda *s: seen.append(s)))
    assert len(rows) == 2
    for number in (0, 1):
        of_row = [progress for row, progress in seen if row == number]
        assert of_row, "several times a second, and it takes longer"
        assert [p.done for p in of_row] == sorted(p.done for p in of_row)
        assert of_row[-1].virtual_s > 0
        assert {p.tasks for p in of_row} == {3000}


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_a_terminal(width: int) -> None:
    recording = replace(replay.from_journal(RUN), name="r")
    rows = [replay.Row(5000, 40_000, "no-stealing", 123_456.7, 12.345, 0.99, 12_345, 999_999)]
    out = Console(width=width, file=StringIO())
    replay.render(recording, rows, out, Console(file=StringIO()))
    _, *lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert lines[-1].split() == ["5000", "40000", "no-stealing", "34.29", "h", "12.35", "99%", "12345", "999999"]


def test_the_command_line_that_gives_the_same_again() -> None:
    options: Any = {"workers": (2, 4), "threads": 3, "policies": ("stock", "my mod"), "seed": 7}
    assert replay.command_line("run-1", Path("a b"), limit_s=1.5, **options) == (
        "swarm replay run-1 --journal 'a b' --workers 2 --workers 4 --threads 3 --policy stock --policy 'my mod' "
        "--seed 7 --limit '1.5 s'"
    )


def test_a_worker_of_little_or_unlimited_memory() -> None:
    small, free = worker(1, memory_limit_bytes=50 << 20), worker(2, memory_limit_bytes=0)
    models = replay.from_journal(replace(RUN, workers=[small, free])).workers
    assert models[0].memory.baseline_bytes < models[0].memory.limit_bytes == 50 << 20
    assert models[1].memory.limit_bytes == 0


def test_a_run_without_tasks_or_workers() -> None:
    with pytest.raises(TwinError, match="run sums-1-abc executed no tasks: all its results were there already"):
        replay.from_journal(replace(RUN, tasks=[]))
    with pytest.raises(TwinError, match="run sums-1-abc has no workers in the journal"):
        replay.from_journal(replace(RUN, workers=[]))


def test_a_trace_says_less_of_the_recorded_run() -> None:
    work = made_up([("a", (), Cost(3.0))], name="little")
    machines = (wfformat.Machine("m", 4), wfformat.Machine("m", None))
    recording = replay.from_trace(wfformat.Trace(work, 9.0, machines, ("mind",)))
    assert recording.row == replay.Row(2, 5, "recorded", 9.0, None, None, None, None)
    assert [(w.name, w.threads, w.host) for w in recording.workers] == [("m-0", 4, "m"), ("m-1", 1, "m")]
    assert recording.remarks == ("mind",)
    bare = replay.from_trace(wfformat.Trace(work, None, (), ()))
    assert (bare.row.workers, bare.row.makespan_s, len(bare.workers)) == (0, None, 1)


def test_without_a_place_for_a_journal() -> None:
    with pytest.raises(TwinError, match="the setting state_directory is null"):
        replay.find("latest", None)


def test_an_unknown_policy_is_refused_before_anything_runs() -> None:
    with pytest.raises(TwinError, match="policy 'stok' is not known"):
        next(replay.replay(replay.from_journal(RUN), policies=["stok"]))


def test_a_cluster_that_can_not_do_it_is_named() -> None:
    hungry = made_up([("a", (), Cost(1.0, 10, 90 * GIB))], name="hungry")
    recording = replace(replay.from_journal(RUN), work=hungry)
    with pytest.raises(TwinError, match=r"^2 workers, stock: "):
        list(replay.replay(recording, policies=["stock"]))


def test_a_file_is_a_trace(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match="can't be read"):
        replay.find(str(tmp_path / "none.json"), tmp_path / "journal.sqlite")
