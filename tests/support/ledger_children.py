"""Processes that use a ledger, for tests that kill them: `python -m tests.support.ledger_children FOLDER CORES SEED`.

The program forks a child for each line `LIFE` or `LOG` that it reads, and prints its pid. It does not wait for
children, so that those who are killed stay zombies. A child of `LIFE` asks, refreshes, gives back and begins and ends
tasks as fast as it can, for as long as the program lives. One of `LOG` takes some leases, prints for each when it had
them, and ends.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import NotGrantedError
from swarm.ledger.leases import Ledger
from swarm.ledger.table import Budget

LEASES = 30


class Nursery:
    """Forks the children."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def fork(self, kind: str) -> int:
        self.fork_many(kind, 1)
        return int(self.line())

    def fork_many(self, kind: str, count: int) -> None:
        """Without waiting for their pids, which come between what they print."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}\n" * count)
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def nursery(folder: Path, cores: int, seed: int) -> Iterator[Nursery]:
    """The program, which ends with the block."""
    command = [sys.executable, "-m", "tests.support.ledger_children", str(folder), str(cores), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def _live(folder: Path, budget: Budget, rng: random.Random) -> None:
    ledger, parent = Ledger(folder, "ledger", budget), os.getppid()
    while os.getppid() == parent:
        try:
            with ledger.lease(rng.randint(1, budget.cores), timeout_s=0.005, memory_bytes=rng.randint(0, 1)) as lease:
                ledger.began()
                for _ in range(rng.randint(0, 5)):
                    lease.refresh()
                ledger.ended()
        except NotGrantedError:
            continue


def _log(folder: Path, budget: Budget, rng: random.Random) -> None:
    lines = []
    with Ledger(folder, "ledger", budget) as ledger:
        for _ in range(LEASES):
            most = rng.randint(1, budget.cores)
            with ledger.lease(most, at_least=rng.randint(1, most), timeout_s=30) as lease:
                granted, since_ns = lease.granted, time.monotonic_ns()
                time.sleep(rng.random() * 0.003)
                before_ns = time.monotonic_ns()
                now = lease.refresh()
                after_ns = time.monotonic_ns()
                # While it refreshes it has what is in both.
                lines.append(f"{since_ns} {before_ns} {granted}")
                lines.append(f"{before_ns} {after_ns} {min(now, granted)}")
                time.sleep(rng.random() * 0.001)
                lines.append(f"{after_ns} {time.monotonic_ns()} {now}")
    os.write(1, "".join(f"{line}\n" for line in [*lines, "over"]).encode())


def main() -> None:
    folder, budget, seed = Path(sys.argv[1]), Budget(int(sys.argv[2])), int(sys.argv[3])
    for number, line in enumerate(iter(sys.stdin.readline, "")):
        pid = os.fork()
        if pid:
            os.write(1, f"{pid}\n".encode())
        else:
            rng = random.Random(f"{seed} {number}")
            {"LIFE": _live, "LOG": _log}[line.strip()](folder, budget, rng)
            os._exit(0)


if __name__ == "__main__":
    main()
