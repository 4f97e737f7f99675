"""Workers of a host that start cold: what compiling the kernels costs, and how long the first task takes.

    python tests/benchmarks/agents/cold_kernels.py --workers 4

Three ways: every process compiles for itself (as numba does), one process of the host compiles each kernel
(`workloads.kernels.compiling`), and the same ahead of the first task (what the compute agent does at its start).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[3]
WAYS = ("each for itself", "once per host", "once per host, ahead")
WORKER = """
import contextlib, json, sys, time
way = sys.argv[1]
from workloads.kernels import compiling, warm_up
if way == "each for itself":
    compiling._turn = lambda folder, name: contextlib.nullcontext()
if way == "once per host, ahead":
    warm_up()
print("ready", flush=True)
sys.stdin.readline()
began_s = time.perf_counter()
from workloads import kernels
for kernel in kernels.ALL:
    kernel(*kernel.example("float64"))
print(json.dumps(time.perf_counter() - began_s))
"""


def run(way: str, workers: int) -> dict[str, float]:
    """Seconds of the first tasks in each worker, and CPU seconds of all."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "SWARM_KERNELS": "numba"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, way],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(workers)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        first_s = [float(json.loads(process.communicate()[0])) for process in processes]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"first_s": min(first_s), "median_s": median(first_s), "last_s": max(first_s), "cpu_s": cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    workers = parser.parse_args().workers
    print(f"{workers} workers, seconds from the first task to its end\n")
    print(f"{'way':24} {'first':>7} {'median':>7} {'last':>7} {'CPU of all':>11}")
    for way in WAYS:
        got = run(way, workers)
        print(f"{way:24} {got['first_s']:7.2f} {got['median_s']:7.2f} {got['last_s']:7.2f} {got['cpu_s']:11.1f}")


if __name__ == "__main__":
    main()
