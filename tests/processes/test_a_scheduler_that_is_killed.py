"""SIGKILL of the scheduler, or of everything, in the middle of durable runs: same futures, all results."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask.array
import pytest
from distributed import CancelledError

import swarm
from swarm.client import Swarm
from tests.support.processes import wait_until
from tests.support.supervised import Supervised, marked_graph, supervised, times_run
from tests.support.waiting import eventually

TASKS, SECONDS = 40, 0.1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Supervised]:
    with supervised(tmp_path / "state") as running:
        yield running


@pytest.fixture
def connected(cluster: Supervised) -> Iterator[Swarm]:
    with swarm.connect(cluster.address) as s:
        yield s


def done(marks: Path) -> int:
    return sum(times_run(marks).values())


def redone_s(marks: Path) -> float:
    return SECONDS * sum(times - 1 for times in times_run(marks).values())


def is_back(connected: Swarm, reconnects: int) -> bool:
    """The client has found the new scheduler, and it has its workers."""
    return connected.keeper.reconnects > reconnects and len(connected.client.scheduler_info()["workers"]) == 2


@pytest.mark.parametrize(("percent", "everything"), [(10, False), (50, True), (90, False)])
def test_all_results_come_by_the_same_futures(
    cluster: Supervised, connected: Swarm, tmp_path: Path, percent: int, everything: bool
) -> None:
    marks = tmp_path / "marks"
    run = connected.submit(marked_graph(marks, TASKS, SECONDS, 100_000), durable=True)
    [future] = run.futures.values()
    wait_until(lambda: done(marks) >= TASKS * percent // 100, "so much is done", timeout_s=30)
    before, killed_at_s = connected.keeper.reconnects, time.monotonic()
    (cluster.kill_everything if everything else cluster.kill_scheduler)()
    wait_until(lambda: is_back(connected, before), "all are back", timeout_s=30)
    ready_s = time.monotonic() - killed_at_s
    assert run.status in ("running", "finished")
    assert run.result(timeout=60) == [*range(TASKS)]
    assert [*run.futures.values()] == [future]
    assert future.result() == [*range(TASKS)]
    assert ready_s <= 10
    assert redone_s(marks) <= 5
    # What ran when the processes died, and what was not yet on the disk: not all that had been done.
    assert redone_s(marks) <= 1
    wait_until(lambda: not connected.durable_runs()["runs"], "nothing is kept of what was fetched")


def test_who_waits_for_a_result_waits_on_and_others_are_told(
    cluster: Supervised, connected: Swarm, tmp_path: Path
) -> None:
    """A thread that blocks in `compute` of plain Dask code hears nothing; work that is not durable is cancelled."""
    array = dask.array.random.default_rng(1).random((4000, 500), chunks=(500, 500))
    expected = array.mean().compute(scheduler="sync")
    other = connected.client.submit(time.sleep, 60, pure=False)

    async def main() -> float:
        def compute() -> float:
            with swarm.durable(connected):
                return float(array.map_blocks(slowly, marks=str(tmp_path / "marks")).mean().compute())

        computing = asyncio.create_task(asyncio.to_thread(compute))
        await eventually(lambda: done(tmp_path / "marks") >= 3, "some of it is done")
        cluster.kill_scheduler()
        return await computing

    assert asyncio.run(asyncio.wait_for(main(), 60)) == pytest.approx(expected)
    with pytest.raises(CancelledError, match="not of a durable run"):
        other.result()


def slowly(block: object, marks: str) -> object:
    time.sleep(0.2)
    with open(marks, "a") as file:  # noqa: PTH123
        file.write("0\n")
    return block


def test_a_run_is_resumed_from_the_command_line_after_its_client_was_killed_too(
    cluster: Supervised, connected: Swarm, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    script = (
        "import sys, swarm; from pathlib import Path; from tests.support.supervised import marked_graph;"
        f"s = swarm.connect({cluster.address!r});"
        f"run = s.submit(marked_graph(Path({str(marks)!r}), {TASKS}, {SECONDS}, 100_000), name='job', durable=True);"
        "print(run.id, flush=True); run.result()"
    )
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    try:
        run = client.stdout.readline().strip()
        wait_until(lambda: done(marks) >= TASKS // 2, "half is done", timeout_s=30)
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        client.stdout.close()
    cluster.kill_everything()

    def resumed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "swarm.cli", "resume", *arguments, "--address", cluster.address]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    wait_until(lambda: resumed().returncode == 0, "the scheduler is back", timeout_s=30)
    assert run in resumed().stdout
    told = resumed(run[:5], "--output", str(tmp_path / "result"))
    assert told.returncode == 0, told.stderr
    assert pickle.loads((tmp_path / "result").read_bytes()) == [*range(TASKS)]
    assert redone_s(marks) <= 1
    assert "has no durable runs" in resumed().stdout
    again = resumed("job-that-never-was")
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("swarm: error: ")
    assert "has no run 'job-that-never-was'" in again.stderr
