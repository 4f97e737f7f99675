from __future__ import annotations

import dataclasses
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from swarm import protocol
from swarm.errors import SettingsError
from swarm.telemetry import logs


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    logger = logging.getLogger("swarm")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = []
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_per_line_in_reading_order(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    log = logs.get_logger(agent="resource", worker="tcp://h:1")
    log.info("alert_raised", value=91.5, reason="memory at 91.5 %", run="r1")
    log.warning("two\nlines: ü")
    first, second = lines(stream)
    assert list(first) == ["timestamp", "level", "event", "run", "worker", "agent", "value", "reason"]
    assert first["level"] == "info"
    assert first["worker"] == "tcp://h:1"
    assert second["event"] == "two\nlines: ü"
    at = datetime.fromisoformat(first["timestamp"])
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def test_level_is_respected_and_can_be_changed(stream: io.StringIO) -> None:
    log = logs.get_logger()
    logs.configure("warning", stream=stream)
    log.info("quiet")
    log.error("heard")
    logs.configure("DEBUG", stream=stream)
    log.debug("heard too")
    assert [line["event"] for line in lines(stream)] == ["heard", "heard too"]


def test_configuring_twice_does_not_double_the_lines(stream: io.StringIO) -> None:
    for _ in range(3):
        logs.configure(stream=stream)
    logs.get_logger().info("once")
    assert len(lines(stream)) == 1


def test_handlers_of_others_stay_and_the_root_logger_sees_nothing(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.StreamHandler(seen_by_root := io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [root])
    foreign = logging.NullHandler()
    logging.getLogger("swarm").addHandler(foreign)
    logs.configure(stream=stream)
    logs.get_logger().error("ours")
    assert foreign in logging.getLogger("swarm").handlers
    assert seen_by_root.getvalue() == ""
    assert len(lines(stream)) == 1


def test_lines_of_the_standard_logger_look_the_same(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    logging.getLogger("swarm.deploy").warning("%d workers", 3)
    (line,) = lines(stream)
    assert (line["level"], line["event"]) == ("warning", "3 workers")
    assert line["timestamp"].endswith("Z")


def test_exception_is_one_field_and_the_last(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    try:
        int("broken")
    except ValueError:
        logs.get_logger().exception("failed", part="sampler")
    (line,) = lines(stream)
    assert list(line)[-1] == "exception"
    assert line["exception"].endswith("'broken'")


def test_what_json_does_not_know_becomes_text(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    logs.get_logger().info("odd", ratio=float("nan"), inputs={"high": float("inf"), "path": object}, pair=(1, 2))
    (line,) = lines(stream)
    assert (line["ratio"], line["inputs"]["high"], line["pair"]) == ("nan", "inf", [1, 2])


def test_console_rendering_is_for_people(stream: io.StringIO) -> None:
    logs.configure(stream=stream, json=False)
    logs.get_logger(worker="tcp://h:1").info("worker_joined", threads=4)
    text = stream.getvalue()
    assert "worker_joined" in text
    assert "threads=4" in text
    assert "\x1b" not in text  # the stream is no terminal
    assert not text.startswith("{")


def test_wrong_level_says_what_is_allowed() -> None:
    with pytest.raises(SettingsError, match=r"'WARN' is not known: use one of DEBUG, INFO.*did you mean WARNING\?"):
        logs.configure("WARN")


def test_works_unconfigured_and_leaves_structlog_alone() -> None:
    code = (
        "import logging, structlog; from swarm.telemetry.logs import get_logger; log = get_logger(run='r1');"
        "assert not logging.getLogger('swarm').handlers; log.debug('no'); log.info('yes'); log.info('again');"
        "assert not structlog.is_configured()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["yes", "again"]
    assert done.stdout == ""


def test_configuration_of_the_users_structlog_has_no_effect(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    try:
        logs.get_logger().info("ours")
    finally:
        structlog.reset_defaults()
    assert lines(stream)[0]["event"] == "ours"


def test_event_becomes_fields(stream: io.StringIO) -> None:
    event = protocol.AlertRaised(
        at_s=1.0,
        alert="memory tcp://h:1",
        worker="tcp://h:1",
        resource="memory",
        value=91.0,
        threshold=90.0,
        unit="%",
        rule="memory_above_threshold",
        reason="memory is full",
        inputs={"n": 3},
    )
    logs.configure(stream=stream)
    logs.get_logger().warning(**logs.event_fields(event))
    (line,) = lines(stream)
    assert line["event"] == "alert_raised"
    assert (line["alert"], line["threshold"], line["inputs"]) == ("memory tcp://h:1", 90.0, {"n": 3})
    assert "schema" not in line


def test_every_kind_of_event_has_a_name_of_its_own_and_clashes_with_nothing() -> None:
    names = {logs._snake_case(kind) for kind in protocol.KINDS}
    assert len(names) == len(protocol.KINDS)
    assert all(name.islower() for name in names)
    taken = {"event", "timestamp", "level", *logs.LAST}
    assert not any(taken & {field.name for field in dataclasses.fields(kind)} for kind in protocol.KINDS.values())
