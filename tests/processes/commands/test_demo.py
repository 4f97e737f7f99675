"""`swarm demo`, the main job, in two acts, and the demo on a deployed cluster: in full once, and cut short."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess

import pytest

from tests.support.command_line import Place
from tests.support.processes import marked


@pytest.mark.timeout(300)
def test_the_demo_verifies_all_three_workloads(place: Place) -> None:
    said = place.run("swarm", "demo", "--act", "1", timeout_s=280)
    assert said.code == 0, said.err
    rows = re.findall(r"^ *(\S) +(\w+) +(\d+) +([\d.]+) s +\S", said.out, re.MULTILINE)
    assert [(mark, name) for mark, name, *_ in rows] == [("✓", "kmeans"), ("✓", "heat"), ("✓", "options")]
    assert all(int(tasks) > 0 for *_, tasks, _ in rows)
    assert said.out.count("host CPU up to") == 3
    assert re.search(r"dashboard: http://127\.0\.0\.1:\d+/swarm", said.out)
    assert max(map(len, said.out.splitlines())) <= 80
    starting, scheduler, *bars = said.err.splitlines()
    assert starting == "starting a scheduler and workers …"
    assert scheduler.startswith("scheduler tcp://127.0.0.1:")
    assert [bar.split()[:2] for bar in bars] == [["✓", "kmeans"], ["✓", "heat"], ["✓", "options"]]


@pytest.mark.timeout(300)
def test_the_second_act_shows_both_time_lines(place: Place) -> None:
    said = place.run("swarm", "demo", "--act", "2", "--workers", "2", "--picture", "both.html", timeout_s=280)
    assert said.code == 0, said.err
    titles = re.findall(r"^(stock Dask|swarm)   [\d.]+ s *$", said.out, re.MULTILINE)
    assert titles == ["stock Dask", "swarm"]
    rows = re.findall(r"^(worker-\d)( \(slowed\))? +[█▌·]+ +\d+ tasks", said.out, re.MULTILINE)
    assert rows == [("worker-0", ""), ("worker-1", " (slowed)")] * 2
    assert said.out.count("✓ error ") == 2
    assert re.search(r"^swarm was [\d.]+ times as (fast|slow) as stock Dask", said.out, re.MULTILINE)
    assert max(map(len, said.out.splitlines())) <= 80
    assert said.err.splitlines()[0] == "one of 2 workers gets a tenth of the time (SIGSTOP and SIGCONT in turns)"
    assert "(slowed)" in (place.folder / "both.html").read_text()


def test_a_picture_that_cannot_be_drawn_is_refused_at_once(place: Place) -> None:
    for file, why in (("both.jpg", "its name must end in"), ("no/both.html", "there is no folder no")):
        said = place.run("swarm", "demo", "--act", "2", "--picture", file)
        assert said.code == 1
        assert why in said.complaint
    assert "--picture is for act 2" in place.run("swarm", "demo", "--act", "1", "--picture", "both.html").complaint


@pytest.mark.parametrize("patience_s", [0.5, 12.0])
def test_ctrl_c_in_the_second_act_leaves_nothing_behind(place: Place, patience_s: float) -> None:
    with place.start("swarm", "demo", "--act", "2") as demo:
        demo.waits_for(r"one of 3 workers gets a tenth of the time")
        with contextlib.suppress(subprocess.TimeoutExpired):  # a moment in the middle of it, whichever
            demo.process.wait(patience_s)
        demo.send(signal.SIGINT)
        said = demo.ends()
    assert said.code == 128 + signal.SIGINT
    assert said.err.splitlines()[-1] == "swarm: stopped by SIGINT"
    assert "Traceback" not in said.err
    assert not marked(place.mark)


@pytest.mark.parametrize(
    ("command", "code", "last"),
    [
        (("demo", "--workers", "1"), 128 + signal.SIGINT, "swarm: stopped by SIGINT"),
        (
            ("deploy", "--demo", "--workers", "1", "--port", "0", "--dashboard-port", "0", "--monitor-duration", "300"),
            1,
            "all processes have ended, stopped by SIGINT",
        ),
    ],
)
def test_ctrl_c_in_the_middle(place: Place, command: tuple[str, ...], code: int, last: str) -> None:
    with place.start("swarm", *command) as demo:
        demo.waits_for(r"scheduler tcp://\S+   dashboard http://\S+\n")
        demo.send(signal.SIGINT)
        said = demo.ends()
    assert (said.code, said.out) == (code, "")
    assert said.err.splitlines()[-1] == last
    assert "Traceback" not in said.err
    assert not marked(place.mark)


def test_ctrl_c_ends_a_run_and_its_local_cluster(place: Place) -> None:
    with place.start("swarm", "run", "heat", "--workers", "1") as run:
        run.waits_for(r"scheduler tcp://\S+")
        run.send(signal.SIGINT)
        said = run.ends()
    assert said.code == 128 + signal.SIGINT
    assert said.err.splitlines()[-1] == "swarm: stopped by SIGINT"
    assert not marked(place.mark)


def test_a_workload_on_a_cluster_of_its_own(place: Place) -> None:
    said = place.run("swarm", "run", "heat", "--workers", "1", "--points", "23", "--steps", "16", "--chunks", "1")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1].startswith("verified: ")
    assert not marked(place.mark)
