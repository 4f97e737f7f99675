"""How fast the twin itself is, and how much memory it takes, over the numbers of workers and tasks.

Each point is a process of its own: memory that one run leaves behind must not count for the next one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from swarm.twin.isolated import end_with

WORKERS = (10, 100, 1_000, 5_000)
TASKS = (1_000, 10_000, 50_000, 200_000)
SHAPES = ("independent", "layered")
Point = dict[str, Any]


def measure(shape: str, workers: int, tasks: int, policy: str = "stock") -> Point:
    """One point, in this process. Memory is what the process had more at its peak than before it made the graph."""
    from swarm.twin.models import LogNormal, uniform
    from swarm.twin.simulation import simulate
    from swarm.twin.work import independent, layered

    before_bytes = psutil.Process().memory_info().rss
    durations = LogNormal(1.0, 0.5)
    width = max(1, min(tasks, 2 * workers))  # two waves a layer: wide enough that no worker is without work for long
    work = independent(tasks, durations) if shape == "independent" else layered(-(-tasks // width), width, durations)
    outcome = simulate(work, uniform(workers), policy=policy)
    return {
        "status": outcome.status,
        "tasks_per_cpu_s": outcome.tasks_per_cpu_s,
        "cpu_s": outcome.cpu_s,
        "makespan_s": outcome.makespan_s,
        "before_bytes": before_bytes,
        "peak_bytes": _peak_bytes(),
        "messages": outcome.messages,
    }


def _peak_bytes() -> int:
    """Most resident memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in ru_maxrss what the process that started this one had
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def curve(
    shape: str, workers: Sequence[int], tasks: Iterable[int], *, limit_s: float, policy: str = "stock"
) -> Iterator[Point]:
    """All points, the small ones first.

    A point that takes more than `limit_s` seconds is stopped, and greater ones with as many workers are left out; both
    say so in their status.
    """
    for count in sorted(set(workers)):
        stopped_at = 0
        for size in sorted(set(tasks)):
            point: Point = {"shape": shape, "workers": count, "tasks": size, "policy": policy}
            if stopped_at:
                point["status"] = f"left out: {stopped_at:,} tasks took more than {limit_s:g} s"
            else:
                point |= _in_a_fresh_process(shape, count, size, policy, limit_s)
                if point["status"].startswith("stopped"):
                    stopped_at = size
            yield point


def _in_a_fresh_process(shape: str, workers: int, tasks: int, policy: str, limit_s: float) -> Point:
    command = [sys.executable, "-m", "swarm.twin.scale", shape, str(workers), str(tasks), policy, str(os.getpid())]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=limit_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {limit_s:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"status": f"ended with code {done.returncode}: {last}"}
    point: Point = json.loads(done.stdout.splitlines()[-1])
    return point


def memory_per(points: Iterable[Point]) -> tuple[float, float] | None:
    """Bytes per worker and per task: least squares over what the points took; None when they are too few."""
    done = [point for point in points if point["status"] == "finished"]
    if len({p["workers"] for p in done}) < 2 or len({p["tasks"] for p in done}) < 2 or len(done) < 3:
        return None
    # Relative to each point's own size, so that the greatest one does not decide alone.
    took = np.array([p["peak_bytes"] - p["before_bytes"] for p in done], float)
    sizes = np.array([(p["workers"], p["tasks"]) for p in done], float)
    (per_worker, per_task), *_ = np.linalg.lstsq(sizes / took[:, None], np.ones(len(done)), rcond=None)
    return float(per_worker), float(per_task)


if __name__ == "__main__":
    _, the_shape, the_workers, the_tasks, the_policy, the_parent = sys.argv
    end_with(int(the_parent))
    sys.stdout.write(json.dumps(measure(the_shape, int(the_workers), int(the_tasks), the_policy)) + "\n")
