"""A worker whose packets are dropped for 25 s, on real processes: it is removed, and what it has begun is not counted.

    python -m tests.chaos.cut_off --scripts 3

Takes a minute for each script, too long for every day.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from swarm.twin.faults import Partition
from tests.support.chaos_play import on_processes
from tests.support.chaos_script import CUT_OFF_S, drawn

LENGTH_S = 40.0
"""Of the work; the worker is back before it is over."""


def main() -> int:
    """Print what came of each; returns 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    has_failed = False
    for seed in range(options.seed, options.seed + options.scripts):
        cut_off = Partition(at_s=2.0, workers=("w0",), for_s=CUT_OFF_S)
        script = replace(drawn(seed, "moving", length_s=LENGTH_S), faults=(cut_off,))
        with tempfile.TemporaryDirectory() as folder:
            verdict = on_processes(script, Path(folder))
        print(f"{seed}: {verdict}", flush=True)
        has_failed |= bool(verdict.trouble or verdict.wrong or verdict.lost or verdict.evicted)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
