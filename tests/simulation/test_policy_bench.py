"""The policy bench through its command line: a tiny matrix, its files, its refusals, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from swarm.errors import DeadlockError, InvariantError, TwinError
from swarm.twin import matrix
from swarm.twin.bench import bench, table
from swarm.twin.matrix import ORACLE, Run, run_matrix


def call(*arguments: str) -> Result:
    return CliRunner().invoke(bench, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Two scenarios, two policies, two seeds: one run for all tests that look at it."""
    folder = tmp_path_factory.mktemp("bench")
    names = ("--scenario", "one-slow", "--scenario", "crash", "--policy", "stock", "--policy", "random")
    paths = ("--json", str(folder / "b.json"), "--picture", str(folder / "b.html"))
    return call(*names, "--seeds", "2", *paths), folder


def test_tables_are_printed(files: tuple[Result, Path]) -> None:
    result, _ = files
    assert result.exit_code == 0, result.output
    for word in ("one-slow", "crash *", "stock", "random", ORACLE, "2 finished", "lower bound", "Of 2 seeds"):
        assert word in result.output


def test_json_has_all_that_is_drawn(files: tuple[Result, Path]) -> None:
    _, folder = files
    told = json.loads((folder / "b.json").read_text())
    assert len(told["runs"]) == 2 * 3 * 2
    assert {run["status"] for run in told["runs"]} == {"finished"}
    assert all(run["ratio"] >= 1 for run in told["runs"])
    assert all(bool(run["faults"]) == (run["scenario"] == "crash") for run in told["runs"])
    stock = [run for run in told["runs"] if (run["scenario"], run["policy"]) == ("one-slow", "stock")]
    oracle = [run for run in told["runs"] if (run["scenario"], run["policy"]) == ("one-slow", ORACLE)]
    assert all(theirs["ratio"] > ours["ratio"] for theirs, ours in zip(stock, oracle, strict=True))
    assert {outcome["policy"] for outcome in told["gantt"]} == {"stock", "random", ORACLE}
    assert "bokeh" in (folder / "b.html").read_text()
    redrawn = call("draw", str(folder / "b.json"), str(folder / "again.html"))
    assert redrawn.exit_code == 0, redrawn.output
    assert (folder / "again.html").stat().st_size == pytest.approx((folder / "b.html").stat().st_size, rel=0.01)


def test_the_same_seeds_give_the_same_traces(files: tuple[Result, Path]) -> None:
    _, folder = files
    before = json.loads((folder / "b.json").read_text())["runs"]
    again = list(run_matrix(["crash"], ["stock"], [1], processes=1, oracle=False))
    (like,) = (run for run in before if (run["scenario"], run["policy"], run["seed"]) == ("crash", "stock", 1))
    assert again[0].trace_hash == like["trace_hash"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeadlockError("nothing moves"), "deadlock"),
        (InvariantError("a rule"), "broken rule"),
        (TwinError("no answer"), "error"),
    ],
)
def test_what_goes_wrong_is_shown(error: TwinError, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(jobs: list[Any], processes: int | None) -> Any:
        yield from [error] * len(jobs)

    monkeypatch.setattr(matrix, "simulate_all", answers)
    result = call("--scenario", "one-slow", "--policy", "stock", "--seeds", "2")
    assert f"2 {status}" in result.output
    assert "never" in result.output
    assert f"one-slow, stock, seed 1: {status}: {error}" in result.output


def test_a_time_limit_is_shown() -> None:
    result = call("--scenario", "one-slow", "--policy", "stock", "--seeds", "1", "--limit", "2")
    assert "1 time limit" in result.output


def test_a_run_that_did_not_finish_counts_as_the_worst() -> None:
    runs = [Run("one-slow", "stock", seed, "finished", 1.0, 1.0 + seed) for seed in range(3)]
    runs.append(Run("one-slow", "stock", 3, "deadlock", 1.0))
    columns = {str(column.header): list(column.cells) for column in table("one-slow", runs).columns}
    assert columns["median s"] == ["2.50"]
    assert columns["worst"] == ["[red]never[/]"]
    assert columns["seed"] == ["3"]
    assert columns["status"] == ["[red]3 finished, 1 deadlock[/]"]


def test_the_oracle_says_when_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "HEFT_LIMIT", 10)
    runs = list(run_matrix(["one-slow"], ["stock"], [0]))
    assert [run.status for run in runs] == ["finished", "left out"]
    assert "too many" in runs[1].message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scenario", "choleski"), "did you mean 'cholesky'?"),
        (("--gantt", "crsh"), "did you mean 'crash'?"),
        (("--policy", "stok"), "did you mean 'stock'?"),
        (("--picture", "x.gif"), "must end in .html or .png"),
        (("--seeds", "0"), "--seeds"),
        (("scal",), "scale"),
        (("--json", "/nowhere/out.json"), "there is no folder /nowhere"),
    ],
)
def test_refusals_take_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("swarm: error: ")
    assert words in line


@pytest.mark.parametrize("text", ['{"format": 1}', '{"format": 1, "kind": "policies", "runs": [{}], "gantt": []}', "["])
def test_figures_that_nobody_can_draw(tmp_path: Path, text: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    result = call("draw", str(file), str(tmp_path / "picture.html"))
    (line,) = result.output.splitlines()
    assert (result.exit_code, line.startswith(f"swarm: error: {file} is ")) == (2, True), line


def test_scale_tells_speed_and_memory(tmp_path: Path) -> None:
    sizes = ("--workers", "2", "--workers", "20", "--tasks", "50")
    paths = ("--json", str(tmp_path / "s.json"), "--picture", str(tmp_path / "s.html"))
    result = call("scale", *sizes, *paths)
    assert result.exit_code == 0, result.output
    points = json.loads((tmp_path / "s.json").read_text())["points"]
    assert [(p["workers"], p["tasks"], p["status"]) for p in points] == [
        (2, 50, "finished"),
        (20, 50, "finished"),
    ]
    assert all(p["tasks_per_cpu_s"] > 0 and p["peak_bytes"] > p["before_bytes"] for p in points)
    assert (tmp_path / "s.html").exists()


def test_scale_stops_a_point_and_leaves_greater_ones_out() -> None:
    result = call("scale", "--workers", "2", "--tasks", "50", "--tasks", "60", "--limit", "0.05")
    assert "stopped after 0.05 s" in " ".join(result.output.replace("│", " ").split())
    assert "left out" in result.output


def test_ctrl_c_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "swarm.twin.bench", "--scenario", "hang", "--scenario", "tiny", "--seeds", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        started = psutil.Process(process.pid)
        deadline_s = time.monotonic() + 30
        while not (children := started.children()) or any(child.cpu_times().user < 0.1 for child in children):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"Aborted!" in output
    assert b"Traceback" not in output
    assert psutil.wait_procs(children, timeout=5)[1] == []
