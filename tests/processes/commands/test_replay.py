"""`swarm run`, and then `swarm replay` of what it left in the journal: other sizes, other policies, and refusals."""

from __future__ import annotations

import json
import re
import shlex
import signal
import stat
from pathlib import Path

import pytest

from tests.support.command_line import Place
from tests.support.processes import descendants, wait_gone, wait_until

TRACE = {
    "name": "pair",
    "schemaVersion": "1.4",
    "workflow": {
        "makespanInSeconds": 9.5,
        "tasks": [
            {"name": "first", "type": "compute", "runtimeInSeconds": 2, "parents": []},
            {"name": "second", "type": "compute", "runtimeInSeconds": 3, "parents": ["first"]},
        ],
    },
}


@pytest.fixture(scope="module")
def place(shared_place: Place) -> Place:
    """Where a workload has been run."""
    said = shared_place.run("swarm", "run", "options", "--workers", "2")
    assert said.code == 0, said.err
    return shared_place


def rows(out: str) -> list[list[str]]:
    """The cells of the table."""
    return [line.split() for line in out.splitlines() if re.match(r" +\S+ +\d+ +\w", line)]


def test_the_journal_of_a_local_cluster_is_in_the_state_home(place: Place) -> None:
    file = Path(place.env["HOME"]) / ".local/state/swarm/local/journal.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_run_is_replayed_on_what_was_there(place: Place) -> None:
    said = place.run("swarm", "replay", "options")
    assert said.code == 0, said.err
    assert re.match(r"options-1-\w{6}: \d+ tasks, [\d.]+ s of work, longest chain [\d.]+ s\n", said.out)
    recorded, simulated = rows(said.out)
    assert recorded[0] == simulated[0] == "2"
    assert (recorded[2], simulated[2]) == ("recorded", "swarm")
    assert max(map(len, said.out.splitlines())) <= 80


def test_other_clusters_and_policies_give_the_same_each_time(place: Place) -> None:
    options = ("--workers", "4", "--workers", "64", "--policy", "stock", "--policy", "no-stealing", "--threads", "2")
    one, two = (
        place.run(*words, "replay", "latest", *options, "--json", f"{words[0]}.json")
        for words in (("swarm",), ("dask", "swarm"))
    )
    assert one.code == two.code == 0, one.err + two.err
    assert one.out == two.out
    assert [row[:3] for row in rows(one.out)[1:]] == [
        ["4", "8", "stock"],
        ["4", "8", "no-stealing"],
        ["64", "128", "stock"],
        ["64", "128", "no-stealing"],
    ]
    told = json.loads((place.folder / "swarm.json").read_text())
    assert told == json.loads((place.folder / "dask.json").read_text())
    assert told["rows"][0]["policy"] == "recorded"
    assert told["rows"][0]["makespan_s"] > told["critical_path_s"] > 0
    for row in told["rows"][1:]:
        bound_s = max(told["work_s"] / row["threads"], told["critical_path_s"])
        assert row["over_bound"] == pytest.approx(row["makespan_s"] / bound_s)
        assert row["over_bound"] >= 1
        assert 0 < row["busy_share"] <= 1


def test_a_trace_in_wfformat_is_replayed_as_well(place: Place) -> None:
    place.write("pair.json", json.dumps(TRACE))
    said = place.run("swarm", "replay", "pair.json", "--policy", "stock", "--workers", "3", "--json", "out.json")
    assert said.code == 0, said.err
    recorded, simulated = json.loads((place.folder / "out.json").read_text())["rows"]
    assert (recorded["makespan_s"], recorded["transfers"], simulated["workers"]) == (9.5, None, 3)
    assert simulated["makespan_s"] == pytest.approx(5.0, rel=0.05)


REFUSED = {
    "no such run": (
        ("replay", "optoins"),
        1,
        r".*/journal\.sqlite has no run 'optoins'; did you mean options\? \(the latest are options-1-\w+\)",
    ),
    "no journal": (
        ("replay", "latest", "--journal", "none.sqlite"),
        1,
        r"there is no journal at none\.sqlite: .+; or name one with --journal",
    ),
    "no such policy": (
        ("replay", "latest", "--policy", "stok"),
        2,
        r"policy 'stok' is not known \(stock, .*\), .*; did you mean 'stock'\?",
    ),
    "no workers": (
        ("replay", "latest", "--workers", "0"),
        2,
        r"invalid value for '--workers': 0 is not in the range 1<=x<=50000; see `swarm replay --help`",
    ),
    "no run named": (("replay",), 2, r"missing argument 'RUN'; see `swarm replay --help`"),
    "a run of years": (
        ("replay", "years.json"),
        2,
        r"years takes 34722 days or more on 1 worker \(longest task: 'long', 34722 days\), .* with --limit, .*",
    ),
    "no time": (
        ("replay", "latest", "--limit", "nan"),
        2,
        r"invalid value for '--limit': 'nan' is not a time above 0 and up to 36500 days, .*",
    ),
    "a file that is no trace": (("replay", "empty.json"), 2, r"empty\.json: not valid JSON: .*"),
    "a file that is not there": (("replay", "absent.json"), 2, r"absent\.json: can't be read \(No such file.*\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_take_one_line(place: Place, what: str) -> None:
    command, code, complaint = REFUSED[what]
    place.write("empty.json", "")
    endless(place)
    said = place.run("swarm", *command)
    assert (said.code, said.out) == (code, "")
    assert re.fullmatch(f"swarm: error: {complaint}", said.complaint), said.complaint


def test_nobody_has_to_keep_a_journal(place: Place) -> None:
    said = place.run("swarm", "replay", "latest", DASK_SWARM__STATE_DIRECTORY="null")
    assert said.complaint == (
        "swarm: error: the setting state_directory is null, so there is no journal; name one with --journal"
    )


def endless(place: Place) -> str:
    """A trace whose simulation does not end while somebody looks: 95 years."""
    task = {"name": "long", "runtimeInSeconds": 3e9}
    place.write("years.json", json.dumps({"schemaVersion": "1.4", "workflow": {"tasks": [task]}}))
    return "years.json"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_simulation_ends_with_the_command(place: Place, number: signal.Signals) -> None:
    with place.start("swarm", "replay", endless(place), "--policy", "stock", "--limit", "36500 days") as running:
        children = wait_until(lambda: descendants(running.process.pid), "a simulation runs")
        wait_until(lambda: all(child.cpu_times().user > 1 for child in children), "it is under way")
        running.send(number)
        said = running.ends()
        wait_gone(children, 5)
    if number == signal.SIGKILL:
        assert said.code == -number
    else:
        assert (said.code, said.out) == (128 + number, "")
        assert said.err.splitlines()[-1] == f"swarm: stopped by {number.name}"


def test_the_command_that_gives_the_same_again(place: Place) -> None:
    options = ("--workers", "3", "--policy", "random", "--seed", "5", "--limit", "2h")
    said = place.run("swarm", "replay", "latest", *options)
    assert said.code == 0, said.err
    assert "\x1b" not in said.out + said.err, "no control codes where nobody looks"
    again = said.err.splitlines()[-1].removeprefix("again: ")
    assert re.fullmatch(r"swarm replay options-1-\w+ --workers 3 --policy random --seed 5 --limit '7200.0 s'", again)
    assert place.run(*shlex.split(again)).out == said.out


def test_names_can_not_command_the_terminal(place: Place) -> None:
    place.write("evil.json", json.dumps({**TRACE, "name": "\x1b[2J\x9b2J\u202e\nx"}))
    said = place.run("swarm", "replay", "evil.json", "--policy", "stock")
    assert said.code == 0, said.err
    assert said.out.startswith(r"\x1b[2J\x9b2J\u202e x: 2 tasks")


def test_a_table_that_has_no_place_is_refused_at_once(place: Place) -> None:
    said = place.run("swarm", "replay", "latest", "--json", "nowhere/out.json")
    assert (said.code, said.out) == (1, "")
    assert said.complaint == "swarm: error: nowhere/out.json can't be written (there is no folder nowhere)"
