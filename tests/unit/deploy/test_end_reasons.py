"""Which line of a process's output is shown as the reason of its end."""

from __future__ import annotations

import textwrap

import pytest

from swarm.reason import outcome, reason

ROUTINE = "2026-11-23 03:54:34,153 - distributed.nanny - INFO - Start Nanny\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    1 / 0\n'
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param("", None, id="silence"),
        pytest.param(ROUTINE * 3, None, id="routine only"),
        pytest.param(
            ROUTINE + "swarm: error: period_s is 0\n" + TRACEBACK + "SystemExit: 2\n", "period_s is 0", id="ours"
        ),
        pytest.param("Usage: dask worker\n\nError: No such option: --x\n", "No such option: --x", id="click's"),
        pytest.param(TRACEBACK + "OSError: disk full\n" + ROUTINE, "OSError: disk full", id="exception"),
        pytest.param(
            TRACEBACK + "KeyError: 'foo'\n" + CAUSE + TRACEBACK + "ValueError: 'foo' is no unit\n",
            "ValueError: 'foo' is no unit",
            id="the last of a chain",
        ),
        pytest.param(
            TRACEBACK + "OSError: disk full\n" + CAUSE + TRACEBACK + "RuntimeError: Nanny failed to start.\n",
            "OSError: disk full",
            id="not Dask's envelope",
        ),
        pytest.param(
            TRACEBACK + "swarm.errors.SettingsError: period_s is 0\n" + CAUSE + TRACEBACK + "RuntimeError: no\n",
            "period_s is 0",
            id="an error of swarm's inside a chain",
        ),
        pytest.param(
            ROUTINE + ROUTINE.replace("INFO - Start Nanny", "ERROR - no route") + ROUTINE, "no route", id="logged"
        ),
        pytest.param(ROUTINE + "Killed\n" + ROUTINE, "Killed", id="a bare line"),
    ],
)
def test_reason(output: str, expected: str | None) -> None:
    assert reason(textwrap.dedent(output)) == expected


@pytest.mark.parametrize(
    ("status", "expected"), [(0, "exit code 0"), (3, "exit code 3"), (-15, "signal SIGTERM"), (-99, "signal 99")]
)
def test_outcome(status: int, expected: str) -> None:
    assert outcome(status) == expected
