"""Made-up processes as the kernel would show them: busy and healthy ones, and such with a fault."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from swarm.agents.kinds.anomaly import Facts

GIB = 2**30
FAULTS = ("leaks files", "leaks threads", "leaks memory", "spins", "swaps", "is blocked")
LEAKS_PER_S = {"leaks files": 2.0, "leaks threads": 1.0, "leaks memory": 0.03 * GIB}


def process(rng: Random, *, fault: str = "", from_s: int = 0, threads: int = 4, until_s: int = 3600) -> Iterator[Facts]:
    """A look per second at a worker with phases of work, of waiting and of shuffling, and a fault from some time on."""
    cpu_s, faults, switches, leaked = 3.0, 200, 5_000, 0.0
    data_bytes, base_bytes = 0.0, 0.15 * GIB
    running, busy, phase_until_s, moves = 0, 0.0, 0, False
    for second in range(until_s):
        if second >= phase_until_s:
            phase_until_s = second + rng.randint(3, 90)
            running = rng.choice((0, 0, 1, threads, threads))
            busy = rng.uniform(0.3, 1.0) * (running and rng.choice((1.0, 1.0, 2.0)))  # some call BLAS
            moves = rng.random() < 0.3
        sick = fault if second >= from_s else ""
        if sick in ("spins", "leaks memory"):
            running = 0
        data_bytes = max(0.0, data_bytes + rng.gauss(0.004 if running else -0.02, 0.03) * GIB)
        if rng.random() < 0.02:
            data_bytes *= rng.random()  # results are freed
        data_bytes = min(data_bytes, 0.7 * GIB)
        cpu_s += max(0.0, rng.gauss(busy * running, 0.05)) + (rng.uniform(0.1, 0.6) if moves else 0.02)
        switches += round(rng.lognormvariate(4.0 + running + 2.0 * moves, 0.7))
        if rng.random() < 0.01:
            faults += rng.randint(1, 60)  # a library is loaded
        files = 24 + rng.randint(0, 8) + (rng.randint(0, 20) if moves else 0)
        pool = 9 + threads + rng.randint(0, 1)
        tick_age_s = rng.uniform(0.0, 0.3) + (rng.expovariate(2.0) if rng.random() < 0.05 else 0.0)
        if sick.startswith("leaks"):
            leaked += rng.uniform(0.5, 1.5) * LEAKS_PER_S[sick]
        cpu_s += 0.97 * (sick == "spins")
        faults += rng.randint(100, 3000) * (sick == "swaps")
        files += round(leaked) * (sick == "leaks files")
        pool += round(leaked) * (sick == "leaks threads")
        if sick == "is blocked":
            tick_age_s = float(second - from_s)
        resident = round(base_bytes + data_bytes + (leaked if sick == "leaks memory" else 0.0))
        yield Facts(float(second), cpu_s, resident, faults, switches, pool, files, tick_age_s, running)
