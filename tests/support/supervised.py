"""A local cluster that is supervised as `swarm deploy` does it, for tests that kill its processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from dask.delayed import delayed

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec


class Supervised:
    """Processes with somebody who looks after them."""

    def __init__(self, cluster: LocalProcesses) -> None:
        self.cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor")
        self._thread.start()

    @property
    def address(self) -> str:
        return self.cluster.address

    def kill_scheduler(self) -> None:
        os.kill(self.cluster.processes["scheduler"], signal.SIGKILL)

    def kill_everything(self) -> None:
        """The scheduler, the nannies and the workers, all at once."""
        roots = [psutil.Process(pid) for pid in self.cluster.processes.values()]
        for process in [each for root in roots for each in (root, *root.children(recursive=True))]:
            process.kill()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _supervise(self) -> None:
        while not self._stop.wait(0.1):
            self.cluster.poll()


@contextmanager
def supervised(
    state: Path, *, workers: int = 2, threads: int = 1, env: Mapping[str, str] | None = None
) -> Iterator[Supervised]:
    """A supervised cluster whose scheduler keeps its state in a folder."""
    settings = {"DASK_SWARM__STATE_DIRECTORY": repr(str(state)), **(env or {})}
    spec = ClusterSpec(workers=workers, threads_per_worker=threads, dashboard_port=None, env=settings)
    with LocalProcesses(spec) as cluster:
        watched = Supervised(cluster)
        try:
            yield watched
        finally:
            watched.stop()


def marked(marks: str, number: int, seconds: float, size_bytes: int = 8) -> bytes:
    """A task that leaves a line in a file when it ends; its result says which task it was."""
    time.sleep(seconds)
    with open(marks, "a") as file:  # noqa: PTH123 - one write of a line is atomic
        file.write(f"{number}\n")
    return number.to_bytes(8, "little") + os.urandom(max(0, size_bytes - 8))


def number_of(*results: bytes) -> list[int]:
    return [int.from_bytes(result[:8], "little") for result in results]


def marked_graph(marks: Path, tasks: int, seconds: float, size_bytes: int = 8) -> object:
    """So many tasks, and one that puts their numbers together."""
    task = delayed(marked, pure=False)
    return delayed(number_of, pure=False)(*(task(str(marks), n, seconds, size_bytes) for n in range(tasks)))


def times_run(marks: Path) -> dict[int, int]:
    """Task → how often it has ended."""
    counts: dict[int, int] = {}
    for line in marks.read_text().split() if marks.exists() else ():
        counts[int(line)] = counts.get(int(line), 0) + 1
    return counts
