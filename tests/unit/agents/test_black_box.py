"""The flight recorder: what is in it survives a SIGKILL at any moment, whole."""

from __future__ import annotations

import logging
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.agents.watch.black_box import KEY_BYTES, NAME, RUNNING, BlackBox, BlackBoxReader, shown

LOG = logging.getLogger("tests.black_box")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[BlackBox]:
    box = BlackBox(tmp_path)
    LOG.addHandler(box)
    LOG.setLevel(logging.INFO)
    yield box
    LOG.removeHandler(box)
    box.close()


@pytest.fixture
def reader(box: BlackBox) -> Iterator[BlackBoxReader]:
    reader = BlackBoxReader(box.path)
    yield reader
    reader.close()


def test_an_empty_one_says_nothing(reader: BlackBoxReader) -> None:
    assert reader.last_lines() == []
    assert reader.running() == []


def test_only_its_owner_may_read_it(box: BlackBox) -> None:
    assert stat.S_IMODE(box.path.stat().st_mode) == 0o600


def test_the_last_lines_are_kept_and_the_first_go(box: BlackBox, reader: BlackBoxReader) -> None:
    for number in range(1000):
        LOG.info("line %d", number)
    lines = reader.last_lines()
    assert lines[-1].endswith("tests.black_box: line 999")
    assert 50 < len(lines) < 1000


def test_a_line_beyond_all_measure_does_not_push_out_the_others(box: BlackBox, reader: BlackBoxReader) -> None:
    LOG.info("before")
    LOG.error("x" * 10**6)
    assert reader.last_lines()[0].endswith("before")


def test_running_tasks_come_and_go(box: BlackBox, reader: BlackBoxReader) -> None:
    box.began("a")
    box.began(("b", 1))
    assert sorted(reader.running()) == ["('b', 1)", "a"]
    box.ended("a")
    box.ended("never began")
    assert reader.running() == ["('b', 1)"]


async def test_what_was_before_it_is_in_it_too(box: BlackBox, reader: BlackBoxReader) -> None:
    earlier = logging.LogRecord("distributed.worker", logging.INFO, __file__, 1, "Registered to %s", ("tcp://x",), None)
    unimportant = logging.LogRecord("distributed.worker", logging.DEBUG, __file__, 1, "Heartbeat", (), None)
    box.start([earlier, unimportant], running=["a"])
    (line,) = reader.last_lines()
    assert line.endswith("INFO distributed.worker: Registered to tcp://x")
    assert reader.running() == ["a"]
    box.ended("a")
    assert reader.running() == []


def test_more_tasks_than_there_is_room_for_are_left_out(box: BlackBox, reader: BlackBoxReader) -> None:
    keys = [f"key-{number}" for number in range(RUNNING + 10)]
    for key in keys:
        box.began(key)
    assert len(reader.running()) == RUNNING
    for key in keys:
        box.ended(key)
    assert reader.running() == []


def test_long_and_strange_keys_are_shown_as_whoever_compares_them_shows_them(
    box: BlackBox, reader: BlackBoxReader
) -> None:
    for key in ("ä" * 500, "\ud800 lone", ("x", "y" * 200)):
        box.began(key)
        assert reader.running() == [shown(key)]
        assert len(shown(key).encode()) <= KEY_BYTES
        box.ended(key)


def test_what_is_no_black_box_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"not a box" * 10_000)
    with pytest.raises(ValueError, match="no black box"):
        BlackBoxReader(tmp_path / NAME)
    with pytest.raises(OSError, match="No such file"):
        BlackBoxReader(tmp_path / "absent")


def test_a_process_that_is_killed_while_it_writes_leaves_whole_lines(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import logging
        from swarm.agents.watch.black_box import BlackBox
        box = BlackBox({str(tmp_path)!r})
        log = logging.getLogger("w"); log.setLevel(logging.INFO); log.addHandler(box)
        box.began("task-1")
        print("ready", flush=True)
        number = 0
        while True:
            log.info("line %d of many, all of them whole", number)
            number += 1
    """)
    for delay_s in (0.0, 0.003, 0.011, 0.05):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            reader = BlackBoxReader(tmp_path / NAME)
            time.sleep(delay_s)  # when it is killed is what varies
            process.kill()
            process.wait()
        lines = reader.last_lines()
        numbers = [int(line.split("line ")[1].split(" ")[0]) for line in lines]
        assert all(line.endswith("all of them whole") for line in lines)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        assert reader.running() == ["task-1"]
        reader.close()


def test_the_stacks_of_a_crash_are_kept(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio, os, signal
        from swarm.agents.watch.black_box import BlackBox
        async def main():
            box = BlackBox({str(tmp_path)!r})
            box.start()
            print("ready", flush=True)
            input()
            os.kill(os.getpid(), signal.SIGSEGV)
        asyncio.run(main())
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        reader = BlackBoxReader(tmp_path / NAME)
        assert reader.tick_age_s(time.monotonic()) < 5.0
        process.communicate(b"\n")
    assert process.returncode == -signal.SIGSEGV
    for file in tmp_path.iterdir():
        file.unlink()  # as the nanny does with the worker's folder; what is mapped stays
    assert any("main" in line for line in reader.stacks())
    reader.close()
