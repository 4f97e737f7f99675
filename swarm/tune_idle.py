"""Tunes on one recorded run for a scheduler that is idle: `python -m swarm.tune_idle PARENT FOLDER SECONDS`.

Ends with its parent, whatever becomes of that.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from scheduler_plugins.io.journal import FILE
from scheduler_plugins.io.strategies import Strategies
from scheduler_plugins.on_dask.idle_tuning import NOTHING_NEW
from swarm.errors import SwarmError
from swarm.tune import Tuning, known, save
from swarm.twin.isolated import end_with
from swarm.twin.replay import find


def not_tuned_on(folder: Path) -> str | None:
    """The id of the latest run in the journal that was not tuned on yet."""
    tuned = set(Strategies(folder).read().tuned)
    uri = f"{(folder / FILE).resolve().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        database.execute("PRAGMA query_only = ON")
        rows = database.execute("SELECT run FROM runs WHERE status = 'finished' ORDER BY submitted_at_s DESC LIMIT 200")
        return next((run for (run,) in rows if run not in tuned), None)


def tune_one(folder: Path, seconds: float) -> bool:
    """Tune on one run of the journal, if there is one that is new."""
    run = not_tuned_on(folder)
    if run is None:
        return False
    file = Strategies(folder)
    try:
        recordings = [find(run, folder / FILE)]
        tuning = Tuning(recordings, known=known(recordings, folder), seconds=seconds, processes=1)
        for _ in tuning.steps():
            pass
        save(tuning, recordings, folder)
    finally:  # once: what went wrong with it would go wrong again
        found = file.read()
        found.note_tuned(run)
        file.write(found)
    return True


def main(parent: str, folder: str, seconds: str) -> int:
    end_with(int(parent))
    os.nice(19)
    try:
        return 0 if tune_one(Path(folder), float(seconds)) else NOTHING_NEW
    except SwarmError as error:
        sys.stderr.write(f"swarm: error: {error}\n")
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
