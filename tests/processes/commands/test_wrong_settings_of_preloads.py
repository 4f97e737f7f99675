"""A wrong setting ends `dask scheduler` and `dask worker` with one line, an exit code and no traceback."""

from __future__ import annotations

import json

import pytest

from tests.support.command_line import Place

NOBODY = "tcp://127.0.0.1:9"
"""No worker gets far enough to ask for its scheduler."""

COMMANDS = {
    "scheduler": "dask scheduler --port 0 --dashboard-address 127.0.0.1:0 --preload scheduler_plugins",
    "worker": f"dask worker {NOBODY} --preload swarm.agents",
    "worker without nanny": f"dask worker {NOBODY} --preload swarm.agents --no-nanny",
}
KEY = (
    "max_agent = 5 (file wrong.json): no such setting; did you mean max_agents? (allowed: max_agents, channel_size, "
    "shared_memory, channel_encryption, monitoring_interval, optimization_interval, fault_tolerance, load_balancing, "
    "auto_scaling, state_directory, result_store, result_quota, tune_when_idle, task_timeout, task_retries, "
    "task_backoff, suspicion_phi, silence_patience, notice_period, notice_source, performance_thresholds)"
)
VALUE = 'max_agents = "many" (environment variable DASK_SWARM__MAX_AGENTS): must be a whole number from 1 to 4096'


@pytest.fixture
def wrong(place: Place) -> Place:
    place.write("wrong.json", '{"max_agent": 5}')
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_preloaded_on_the_command_line(wrong: Place, command: str) -> None:
    by_file = wrong.run(*COMMANDS[command].split(), SWARM_CONFIG="wrong.json")
    assert (by_file.code, by_file.complaint) == (2, f"Error: {KEY}")
    by_variable = wrong.run(*COMMANDS[command].split(), DASK_SWARM__MAX_AGENTS="many")
    assert (by_variable.code, by_variable.complaint) == (2, f"Error: {VALUE}")


@pytest.mark.parametrize("command", ["scheduler", "worker without nanny"])
def test_preloaded_by_the_configuration(wrong: Place, command: str) -> None:
    plain = [
        word for word in COMMANDS[command].split() if word not in ("--preload", "scheduler_plugins", "swarm.agents")
    ]
    preloads = {
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["scheduler_plugins"]',
        "DASK_DISTRIBUTED__WORKER__PRELOAD": '["swarm.agents"]',
    }
    said = wrong.run(*plain, SWARM_CONFIG="wrong.json", **preloads)
    assert (said.code, said.log) == (2, [f"Error: {KEY}"])


def test_preloaded_by_the_configuration_behind_a_nanny(wrong: Place) -> None:
    with wrong.scheduler() as scheduler:
        preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": '["swarm.agents"]'}
        said = wrong.run("dask", "worker", scheduler.address, SWARM_CONFIG="wrong.json", **preload)
        assert said.code == 2
        (refusal,) = (line for line in said.log if "agents_refused" in line)
        assert "Traceback" not in said.err
        assert json.loads(refusal)["reason"] == KEY
