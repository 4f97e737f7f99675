"""How soon after a SIGKILL a worker is there again: `dask worker` with its nanny, stock and with agents, in turns.

`python -m tests.benchmarks.faults.restart`; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from swarm.agents.starting import FIRST_S

KINDS: dict[str, tuple[list[str], list[str]]] = {"stock": ([], []), "swarm": (["scheduler_plugins"], ["swarm.agents"])}
QUIET_S = 2.0
"""Between two kills, so that all that came with the last start is over."""
LOOK_S = 0.002


def pid_of(dask_worker: Any) -> int:
    return os.getpid()


def measure(kind: str, kills: int) -> dict[str, list[float]]:
    """Seconds from each kill until the next worker has joined, and until it has given its first result."""
    of_scheduler, of_worker = KINDS[kind]
    joined: list[float] = []
    result: list[float] = []
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=None,
            scheduler_kwargs={"preload": of_scheduler},
            preload=of_worker,
        ) as cluster,
        Client(cluster) as client,
    ):
        time.sleep(FIRST_S)  # as long as workers count as those of a new cluster
        workers = cluster.scheduler.workers
        for number in range(kills):
            time.sleep(QUIET_S)
            ((before, pid),) = client.run(pid_of).items()
            began_s = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            while not workers or before in workers:
                time.sleep(LOOK_S)
            joined.append(time.perf_counter() - began_s)
            client.submit(abs, number, pure=False).result()
            result.append(time.perf_counter() - began_s)
    return {"joined_s": joined, "first_result_s": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=7, help="in each round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {kind: {"joined_s": [], "first_result_s": []} for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            for what, times in measure(kind, options.kills).items():
                found[kind][what].append(statistics.median(times))
    for kind, of_kind in found.items():
        told = (
            f"{what[:-2]} {statistics.median(of):.3f} s ({min(of):.3f}-{max(of):.3f})" for what, of in of_kind.items()
        )
        print(f"{kind}: {', '.join(told)}", file=sys.stderr)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
