from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
COUNT = """
import json
from workloads.kernels.compiling import compiled_here
from workloads.kernels.lloyd import SEED_CENTROIDS, seed_centroids_numba

for dtype in ("float64", "float32"):
    SEED_CENTROIDS.numba(*SEED_CENTROIDS.example(dtype))
print(json.dumps(compiled_here(seed_centroids_numba)))
"""
PATIENT = "from workloads.kernels import compiling; compiling.PATIENCE_S = {patience}"


def start(folder: Path, patience_s: float = 60.0) -> subprocess.Popen[str]:
    code = PATIENT.format(patience=patience_s) + COUNT
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "SWARM_KERNELS": "numba"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Signatures that it compiled, and that it loaded."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    compiled, loaded = json.loads(output)
    return compiled, loaded


def test_of_three_processes_that_start_cold_one_compiles_each_signature(tmp_path: Path) -> None:
    counts = [told(process) for process in [start(tmp_path) for _ in range(3)]]
    assert sum(compiled for compiled, _ in counts) == 2
    assert [compiled + loaded for compiled, loaded in counts] == [2, 2, 2]


def test_who_is_killed_while_it_compiles_keeps_nobody_waiting(tmp_path: Path) -> None:
    first = start(tmp_path)
    try:
        wait_until(lambda: _locks(tmp_path), "it has begun to compile", timeout_s=60)
        second = start(tmp_path)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert sum(told(second)) == 2


def test_who_is_stopped_while_it_compiles_keeps_others_waiting_for_a_while_only(tmp_path: Path) -> None:
    assert told(start(tmp_path)) == (2, 0)
    (lock,) = tmp_path.rglob("*.lock")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert told(start(tmp_path, patience_s=0.2)) == (0, 2)


def _locks(folder: Path) -> list[Path]:
    return [*folder.rglob("*.lock")]
