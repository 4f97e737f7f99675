"""Three failures and a part is off: counted, logged, told, and never in Dask's way."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from scheduler_plugins.on_dask.guard import STRIKES, Guard
from swarm.errors import SettingsError
from swarm.telemetry import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The log of swarm, as text."""
    level, propagate, handlers = logs.LOGGER.level, logs.LOGGER.propagate, logs.LOGGER.handlers[:]
    written = io.StringIO()
    logs.configure(stream=written)
    yield written
    logs.LOGGER.handlers[:] = handlers
    logs.LOGGER.setLevel(level)
    logs.LOGGER.propagate = propagate


class Told:
    def __init__(self) -> None:
        self.parts: list[tuple[str, str, int]] = []

    def __call__(self, part: str, reason: str, failures: int) -> None:
        self.parts.append((part, reason, failures))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def guard(stream: io.StringIO, told: Told) -> Guard:
    return Guard(logs.get_logger(agent="scheduler"), told)


def fail(guard: Guard, part: str, error: BaseException | None = None) -> None:
    with guard(part):
        raise error or ZeroDivisionError("division by zero")


def test_what_works_is_left_alone(guard: Guard, told: Told, stream: io.StringIO) -> None:
    with guard("alerts"):
        pass
    assert guard.is_on("alerts")
    assert not guard.failures
    assert not told.parts
    assert stream.getvalue() == ""


def test_the_third_failure_switches_off(guard: Guard, told: Told) -> None:
    for strike in range(1, STRIKES):
        fail(guard, "alerts")
        assert guard.failures["alerts"] == strike
        assert guard.is_on("alerts")
    assert not told.parts
    fail(guard, "alerts")
    assert STRIKES == 3
    assert not guard.is_on("alerts")
    assert guard.off == {"alerts": "ZeroDivisionError: division by zero"}
    assert told.parts == [("alerts", "ZeroDivisionError: division by zero", 3)]


def test_it_is_told_once(guard: Guard, told: Told) -> None:
    for _ in range(STRIKES + 2):
        fail(guard, "alerts")
    guard.switch_off("alerts", "again")
    assert len(told.parts) == 1
    assert guard.off["alerts"] == "ZeroDivisionError: division by zero"


def test_parts_fail_apart(guard: Guard) -> None:
    fail(guard, "alerts")
    fail(guard, "view")
    fail(guard, "alerts")
    assert guard.failures == {"alerts": 2, "view": 1}
    assert guard.is_on("alerts")


def test_every_failure_is_logged_with_its_traceback(guard: Guard, stream: io.StringIO) -> None:
    for _ in range(STRIKES):
        fail(guard, "alerts")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["failures"] for line in lines] == [1, 2, 3]
    assert {line["event"] for line in lines} == {"part_failed"}
    assert {line["level"] for line in lines} == {"error"}
    assert "ZeroDivisionError: division by zero" in lines[0]["exception"]
    assert "test_guard.py" in lines[0]["exception"]


def test_our_own_errors_speak_for_themselves(guard: Guard) -> None:
    for _ in range(STRIKES):
        fail(guard, "settings", SettingsError("max_agents is 0, must be a whole number from 1 to 4096"))
    assert guard.off["settings"] == "max_agents is 0, must be a whole number from 1 to 4096"


def test_a_part_that_is_missing_is_switched_off_without_a_failure(guard: Guard, told: Told) -> None:
    guard.switch_off("dashboard", "this version of distributed lacks it")
    assert not guard.is_on("dashboard")
    assert not guard.failures
    assert told.parts == [("dashboard", "this version of distributed lacks it", 1)]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_kept_back(guard: Guard, end: type[BaseException]) -> None:
    with pytest.raises(end):
        fail(guard, "alerts", end())
    assert not guard.failures
