"""A wrong setting ends `dask scheduler` and `dask worker` while their command line is read, in one line."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from swarm.preloaded import check_settings
from tests.support.clusters import own_settings


@pytest.mark.parametrize("command", [dask_scheduler, dask_worker])
def test_a_wrong_setting_ends_the_command_line(command: click.Command) -> None:
    with own_settings(max_agents=0), click.Context(command), pytest.raises(click.ClickException) as refusal:
        check_settings()
    assert refusal.value.exit_code == 2
    assert refusal.value.message.startswith("max_agents = 0 (dask.config): must be a whole number")
    assert len(refusal.value.message.splitlines()) == 1


@pytest.mark.parametrize("command", [dask_scheduler, dask_worker])
def test_right_settings_pass(command: click.Command) -> None:
    with own_settings(max_agents=3), click.Context(command):
        check_settings()


def test_another_command_line_is_left_alone() -> None:
    with own_settings(max_agents=0):
        with click.Context(click.Command("somebody else's", callback=print)):
            check_settings()
        with click.Context(click.Command("without a callback")):
            check_settings()
        check_settings()


@pytest.mark.parametrize("package", ["swarm.agents", "scheduler_plugins", "swarm"])
def test_an_import_alone_loads_neither_dask_nor_click(package: str) -> None:
    code = (
        f"import {package}, sys; print([m for m in ('dask', 'distributed', 'click', 'pydantic') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
