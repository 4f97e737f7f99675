"""Commands that start nothing: help, the doctor, and everything that is refused in one line with exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.command_line import Place
from tests.support.processes import marked

COMMANDS = ("demo", "deploy", "doctor", "replay", "resume", "run", "status")


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS), ("run", "kmeans")])
def test_help_is_the_same_as_of_dask_swarm_and_fits_a_terminal(place: Place, arguments: tuple[str, ...]) -> None:
    ours = place.run("swarm", *arguments, "--help")
    theirs = place.run("dask", "swarm", *arguments, "--help")
    assert (ours.code, ours.err) == (theirs.code, theirs.err) == (0, "")
    assert ours.out.replace("Usage: swarm", "Usage: dask swarm") == theirs.out
    assert max(map(len, ours.out.splitlines())) <= 80
    assert "..." not in ours.out.replace("[ARGS]...", ""), "nothing is cut off"


def test_help_names_all_commands_workloads_and_parameters(place: Place) -> None:
    assert set(COMMANDS) <= set(re.findall(r"^  (\w+)  ", place.run("swarm", "--help").out, re.MULTILINE))
    listed = place.run("swarm", "run", "--help").out
    assert all(name in listed for name in ("heat", "kmeans", "options"))
    parameters = " ".join(place.run("swarm", "run", "kmeans", "--help").out.split())
    assert "--clusters VALUE number of colours: a whole number from 2 to 256 [default: " in parameters


def test_the_doctor_says_what_is_absent_and_why(place: Place) -> None:
    said = place.run("swarm", "doctor")
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    ours, theirs = (
        json.loads(place.run(*command, "doctor", "--json").out) for command in (("swarm",), ("dask", "swarm"))
    )
    assert [finding["topic"] for finding in ours] == [finding["topic"] for finding in theirs]
    assert {"memory", "numba", "distributed"} <= {finding["topic"] for finding in ours}


REFUSED = {
    "a command that does not exist": ("swarm bogus", "no such command 'bogus'; see `swarm --help`"),
    "an option that does not exist": (
        "swarm status --jsn",
        "no such option '--jsn'. Did you mean '--json'?; see `swarm status --help`",
    ),
    "an argument too many": ("swarm deploy extra", "got unexpected extra argument (extra); see `swarm deploy --help`"),
    "a port that is none": ("swarm deploy --port 99999", "port is 99999, must be 0 to 65535 (0 means any free port)"),
    "no workers": (
        "swarm deploy --workers 0",
        "invalid value for '--workers': 0 is not in the range x>=1; see `swarm deploy --help`",
    ),
    "a memory limit that is none": (
        "swarm deploy --port 0 --dashboard-port 0 --memory-limit lots",
        """memory_limit is 'lots', must be "auto", a size such as "2GiB", a share such as "0.5", or "0" for no limit""",
    ),
    "a workload that does not exist": (
        "swarm run kmean",
        "there is no workload 'kmean'; did you mean kmeans? known are: heat, kmeans, options",
    ),
    "a parameter that does not exist": (
        "swarm run kmeans --cluster 4",
        "no such option '--cluster'. Did you mean '--clusters'?; see `swarm run kmeans --help`",
    ),
    "a parameter out of range": (
        "swarm run kmeans --clusters 1",
        "kmeans: clusters = '1' is not allowed: a whole number from 2 to 256",
    ),
    "a parameter of the wrong kind": (
        "dask swarm run kmeans --clusters many",
        "kmeans: clusters = 'many' is not allowed: a whole number from 2 to 256",
    ),
    "no time": (
        "swarm run heat --timeout 0",
        "invalid value for '--timeout': 0.0 is not in the range x>0; see `swarm run heat --help`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_starts(place: Place, case: str) -> None:
    command, complaint = REFUSED[case]
    said = place.run(*command.split())
    assert said.complaint == f"swarm: error: {complaint}"
    assert (said.code, said.out) == (2, "")
    assert not marked(place.mark)


def test_an_image_that_cannot_be_read(place: Place) -> None:
    place.write("not_an_image.jpg", "hello")
    for name in ("nowhere.jpg", "not_an_image.jpg"):
        said = place.run("swarm", "run", "kmeans", "--image", name)
        assert said.code == 2
        assert said.complaint.startswith(f"swarm: error: image '{name}' can't be read: ")


CONFIGURATIONS = {
    "a wrong key": (
        '{"max_agent": 5}',
        r"max_agent = 5 \(file wrong\.json\): no such setting; did you mean max_agents\?",
    ),
    "a wrong value": (
        '{"max_agents": 0}',
        r"max_agents = 0 \(file wrong\.json\): must be a whole number from 1 to 4096",
    ),
    "broken JSON": ('{"max_agents": 5', r"file wrong\.json, line 1, column 17: not valid JSON"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_wrong_configuration_starts_nothing(place: Place, case: str) -> None:
    text, complaint = CONFIGURATIONS[case]
    place.write("wrong.json", text)
    for command in ("deploy", "demo"):
        said = place.run("swarm", command, "--config", "wrong.json")
        assert (said.code, said.out) == (2, "")
        assert re.match(f"swarm: error: {complaint}", said.complaint)


def test_a_configuration_that_is_not_there(place: Place) -> None:
    said = place.run("swarm", "deploy", "--config", "nowhere.json")
    assert said.code == 2
    assert said.complaint.startswith("swarm: error: file nowhere.json: can't be read (No such file or directory)")


def test_two_configurations_in_one_folder_that_differ(place: Place) -> None:
    place.write("swarm_config.json", '{"max_agents": 5}')
    place.write("swarm_config.yaml", "max_agents: 6")
    complaint = "file swarm_config.json and file swarm_config.yaml in this folder differ; keep one of them"
    for command in ("swarm run heat", "swarm deploy", "dask scheduler --preload scheduler_plugins"):
        said = place.run(*command.split())
        assert said.code == 2
        assert said.complaint.endswith(complaint)
    place.write("swarm_config.yaml", "swarm: {max-agents: 5}")
    assert "differ" not in place.run("swarm", "deploy", "--port", "99999").complaint


def test_a_traceback_comes_with_debug_only(place: Place, tmp_path: Path) -> None:
    command = ("swarm", "run", "kmeans", "--clusters", "1", "--log-level")
    assert "Traceback" not in place.run(*command, "info").err
    said = place.run(*command, "debug")
    assert said.code == 2
    assert said.err.startswith("Traceback (most recent call last):")
    assert said.err.splitlines()[-1].startswith("swarm: error: kmeans: clusters")
