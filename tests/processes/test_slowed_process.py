"""A process that is slowed down for real: by about as much as asked for, and let go however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from swarm.deploy import slowed as module
from swarm.deploy.slowed import slowed
from tests.support.processes import wait_until

SPIN = "import sys\nsys.stdout.write('.'); sys.stdout.flush()\nwhile True: pass"


@pytest.fixture
def spinning() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def cpu_ratio(process: psutil.Process, seconds: float = 1.0) -> float:
    """CPU time for each second."""
    before, began = process.cpu_times().user, time.monotonic()
    time.sleep(seconds)
    return float((process.cpu_times().user - before) / (time.monotonic() - began))


def stays_let_go(process: psutil.Process) -> bool:
    return all(process.status() != psutil.STATUS_STOPPED for _ in range(20))


def test_it_gets_a_small_part_of_the_time_and_then_all_of_it(spinning: psutil.Process) -> None:
    children = len(psutil.Process().children())
    with slowed(spinning.pid, 10.0):
        assert 0.01 < cpu_ratio(spinning) < 0.25
    assert len(psutil.Process().children()) == children
    assert stays_let_go(spinning)


def test_it_is_let_go_when_the_block_fails(spinning: psutil.Process) -> None:
    with pytest.raises(KeyboardInterrupt), slowed(spinning.pid, 10.0):
        raise KeyboardInterrupt
    assert stays_let_go(spinning)


def test_it_is_let_go_when_whoever_slowed_it_is_killed(spinning: psutil.Process) -> None:
    code = f"import time\nfrom swarm.deploy.slowed import slowed\nwith slowed({spinning.pid}, 10):\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as owner:
        helpers = wait_until(lambda: psutil.Process(owner.pid).children(), "the helper has started")
        wait_until(lambda: spinning.status() == psutil.STATUS_STOPPED, "it is stopped now and then")
        owner.kill()
    wait_until(lambda: not any(helper.is_running() for helper in helpers), "the helper has ended")
    assert stays_let_go(spinning)


def test_a_helper_that_is_told_to_end_lets_go(spinning: psutil.Process) -> None:
    command = [sys.executable, "-P", module.__file__, str(spinning.pid), "10"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as helper:
        wait_until(lambda: spinning.status() == psutil.STATUS_STOPPED, "it is stopped now and then")
        os.kill(helper.pid, signal.SIGTERM)
        assert helper.wait(10) == 1
    assert stays_let_go(spinning)


def test_a_process_that_ends_meanwhile_is_no_trouble() -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN]) as process, slowed(process.pid, 10.0):
        process.kill()
        process.wait()
