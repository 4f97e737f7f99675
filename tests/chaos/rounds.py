"""Chaos for as long as you like: new scripts of faults on real processes, and each of them in the twin as well.

    python -m tests.chaos.rounds --minutes 10
    python -m tests.chaos.rounds --minutes 60 --kind busy
    python -m tests.chaos.rounds --replay build/chaos/mixed-17.json

A script that went wrong is kept as a file, with what went wrong. Exits with 1 when there is any.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from tests.support.chaos_play import Verdict, in_the_twin, on_processes
from tests.support.chaos_script import Kind, Script, drawn
from tests.support.leaks import leaving_nothing_behind

LENGTH_S = {"mixed": 6.0, "busy": 40.0, "moving": 6.0}
"""Of a script, were it not for the faults."""
KINDS: Sequence[Kind] = ("mixed", "busy", "moving")

Round = tuple[Script, Verdict]


def scripts(kinds: Sequence[Kind], seed: int, until_s: float) -> Iterator[Script]:
    """One kind after the other, until the time is over."""
    while time.monotonic() < until_s:
        for kind in kinds:
            yield drawn(seed, kind, length_s=LENGTH_S[kind])
        seed += 1


def play(script: Script, folder: Path) -> Iterator[Verdict]:
    """In the twin, then for real."""
    yield in_the_twin(script)
    try:
        with leaving_nothing_behind(timeout_s=20.0):
            verdict = on_processes(script, folder)
    except AssertionError as error:  # it could not begin, or has left something behind
        yield Verdict("real", 0, len(script.steps), 0, 0, 0, 0, 0, 0.0, 0.0, (str(error),))
    else:
        yield verdict


def table(rounds: Sequence[Round]) -> Table:
    """A line for each kind of script and each place."""
    shown = Table(box=MARKDOWN)
    headings = ("where", "scripts", "faults", "tasks", "wrong", "lost", "evicted falsely", "reruns", "suspicions")
    shown.add_column("faults are", no_wrap=True)
    for heading in (*headings, "worker-hours"):
        shown.add_column(heading, justify="left" if heading == "where" else "right")
    for kind, where in dict.fromkeys((script.kind, verdict.where) for script, verdict in rounds):
        mine = [verdict for script, verdict in rounds if (script.kind, verdict.where) == (kind, where)]
        sums = [
            sum(getattr(verdict, name) for verdict in mine)
            for name in ("played", "tasks", "wrong", "lost", "evicted", "reruns", "suspected")
        ]
        hours = sum(verdict.worker_s for verdict in mine) / 3600.0
        shown.add_row(kind, where, str(len(mine)), *(f"{each:,}" for each in sums), f"{hours:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10); the last script is played out")
    parser.add_argument("--kind", choices=("all", *KINDS), default="all", help="of scripts (all)")
    parser.add_argument("--seed", type=int, help="of the first script (drawn from the clock)")
    parser.add_argument("--out", type=Path, default=Path("build/chaos"), help="for what went wrong (build/chaos)")
    parser.add_argument("--replay", type=Path, action="append", help="a kept script; may be repeated")
    given = parser.parse_args()
    console = Console(width=140)
    logging.disable(logging.WARNING)  # deaths are what this is about
    resource_tracker.ensure_running()
    if given.replay:
        chosen = iter([Script.load(path) for path in given.replay])
    else:
        kinds: Sequence[Kind] = KINDS if given.kind == "all" else (given.kind,)
        seed = int(time.time()) % 1_000_000 if given.seed is None else given.seed
        chosen = scripts(kinds, seed, time.monotonic() + 60.0 * given.minutes)
    rounds: list[Round] = []
    with TemporaryDirectory(prefix="swarm-chaos-") as folder:
        for script in chosen:
            for verdict in play(script, Path(folder)):
                rounds.append((script, verdict))
                tell(console, script, verdict, given.out)
    console.print(table(rounds))
    sys.exit(1 if any(verdict.trouble for _, verdict in rounds) else 0)


def tell(console: Console, script: Script, verdict: Verdict, out: Path) -> None:
    """A line for each; what is wrong is kept."""
    console.print(
        f"{script.kind} {script.seed:6} {verdict.where}: {verdict.played:3} faults, {verdict.tasks:4} tasks, "
        f"{verdict.reruns:3} reruns, {verdict.suspected:3} suspicions, {verdict.took_s:5.1f} s",
        highlight=False,
    )
    if verdict.trouble:
        path = out / f"{script.kind}-{script.seed}.json"
        script.save(path, verdict.trouble)
        for each in verdict.trouble:
            console.print(f"  {each}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"  kept: {path}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
