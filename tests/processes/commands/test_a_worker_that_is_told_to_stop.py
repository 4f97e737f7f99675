"""SIGTERM to `dask worker`, as Kubernetes and batch systems send it: nothing that was finished is computed again."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from distributed import Client

from tests.support.command_line import Place
from tests.support.processes import wait_until

AGENTS = ("--preload", "swarm.agents", "--no-dashboard")


def test_results_move_and_what_runs_ends_before_the_worker_goes(place: Place, tmp_path: Path) -> None:
    marker = tmp_path / "runs"

    # Functions within a function travel by value: a `dask scheduler` can't import this module.
    def nap(number: int, seconds: float, marker: str) -> int:
        time.sleep(seconds)
        with Path(marker).open("a") as file:
            file.write("x")
        return number

    def watched(dask_scheduler: Any) -> int:
        """Workers whose nanny has a witness, and so knows what to do at a signal."""
        has_witness = dask_scheduler.plugins["swarm"].members.has_witness
        return sum(map(has_witness, dask_scheduler.workers))

    with (
        place.scheduler("--preload", "scheduler_plugins") as scheduler,
        place.worker(scheduler.address, *AGENTS, "--name", "doomed") as doomed,
        place.worker(scheduler.address, *AGENTS, "--name", "other"),
        Client(scheduler.address, set_as_default=False) as client,
    ):
        wait_until(lambda: client.run_on_scheduler(watched) == 2, "both have a witness", 60)
        there = {"workers": ["doomed"], "allow_other_workers": True, "pure": False}
        results = client.map(nap, range(10), seconds=0.02, marker=str(marker), **there)
        assert client.gather(results) == list(range(10))
        last = client.submit(nap, 99, 2.0, str(marker), **there)
        wait_until(lambda: any(client.processing().values()), "it runs")
        doomed.send(signal.SIGTERM)
        assert doomed.ends(60).code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert client.gather(results) == list(range(10))
        assert last.result() == 99
        assert marker.read_text() == "x" * 11, "each ran once"
        assert "worker_leaving" in scheduler.running.err
