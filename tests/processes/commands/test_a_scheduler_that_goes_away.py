"""The scheduler is killed, or hangs, while `swarm run` waits: one line, soon."""

from __future__ import annotations

import re
import signal
import time

import pytest

import swarm
from swarm.errors import ConnectError, SchedulerLostError
from swarm.status import fetch
from tests.support.command_line import Place
from tests.support.processes import wait_until


def test_killed_in_the_middle_of_a_run(place: Place) -> None:
    with place.scheduler("--preload", "scheduler_plugins") as scheduler:
        with place.start("swarm", "run", "heat", "--address", scheduler.address) as run:
            # There are no workers, so the run waits.
            wait_until(lambda: fetch(scheduler.address)["runs"], "the run has reached the scheduler")
            scheduler.running.send(signal.SIGKILL)
            killed_s = time.monotonic()
            said = run.ends()
        assert time.monotonic() - killed_s < 30
    assert said.code == 1
    assert re.match(rf"swarm: error: the scheduler at {scheduler.address} went away during run heat-1-", said.log[-1])
    assert "Traceback" not in said.err
    assert "distributed" not in said.err, "Dask's own messages are for --log-level DEBUG"


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_a_scheduler_that_hangs_is_not_waited_for_for_ever(place: Place) -> None:
    with (
        place.scheduler("--preload", "scheduler_plugins") as scheduler,
        swarm.connect(scheduler.address, timeout=1) as connected,
    ):
        scheduler.running.send(signal.SIGSTOP)
        try:
            with pytest.raises(
                SchedulerLostError, match=rf"^the scheduler at {scheduler.address} has not answered for 1 s"
            ):
                connected.status()
            with pytest.raises(
                ConnectError, match=rf"^no Dask scheduler answers at {scheduler.address} \(something listens"
            ):
                swarm.connect(scheduler.address, timeout=1)
        finally:
            scheduler.running.send(signal.SIGCONT)
