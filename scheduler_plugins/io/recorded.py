"""What the journal tells of a run, for whoever reads it later."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scheduler_plugins.io.journal import BUSY_S, check_schema
from swarm.errors import JournalError, nearest

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class RecordedWorker:
    """A worker that took part in a run."""

    address: str
    name: str
    host: str
    threads: int
    memory_limit_bytes: int
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """A task that was executed in a run; the last time, if it was executed several times."""

    key: str
    function: str
    """Dask's prefix of the key."""
    dependencies: tuple[str, ...]
    is_wanted: bool
    worker: str
    start_s: float | None
    """Unix time at which it began to compute, by the clock of the scheduler; None where Dask did not say."""
    compute_s: float
    transfer_s: float
    """What its worker spent on fetching its inputs."""
    transfers: int
    """Fetches of inputs from other workers."""
    output_bytes: int


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run from its submission to its end."""

    run: str
    name: str
    """Of the workload."""
    submitted_at_s: float
    """Unix time."""
    makespan_s: float
    workers: Sequence[RecordedWorker]
    tasks: Sequence[RecordedTask]
    """In the order in which they finished."""


def read(path: Path, what: str) -> RecordedRun:
    """A finished run.

    Parameters
    ----------
    path
        Of the journal.
    what
        `latest`, the name of a workload (its latest run), the id of a run, or the beginning of one.

    Raises
    ------
    JournalError
        There is no journal, it can't be read, or it has no such run that finished.
    """
    with closing(_open(path)) as database, _telling(path):
        if check_schema(database, path) == 0:
            raise JournalError(f"{path} is empty; submit a run first")
        run, name, submitted_at_s, ended_at_s = _find(database, path, what)
        workers = [
            RecordedWorker(*row)
            for row in database.execute(
                "SELECT address, name, host, threads, memory_limit_bytes FROM workers WHERE run = ? ORDER BY name",
                (run,),
            )
        ]
        tasks = [
            RecordedTask(key, function, tuple(json.loads(dependencies)), bool(is_wanted), *rest)
            for key, function, dependencies, is_wanted, *rest in database.execute(
                "SELECT key, function, dependencies, is_wanted, worker, start_s, compute_s, transfer_s, transfers,"
                " output_bytes FROM tasks WHERE run = ? ORDER BY rowid",
                (run,),
            )
        ]
    return RecordedRun(run, name, submitted_at_s, ended_at_s - submitted_at_s, workers, tasks)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(f"{path} can't be read ({error})") from None


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        how = "`swarm run` and swarm.connect() without an address keep one, other schedulers with a state_directory"
        raise JournalError(f"there is no journal at {path}: {how}; or name one with --journal")
    with _telling(path):  # read-only, yet able to follow a writer's WAL
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=BUSY_S, uri=True)


def _find(database: sqlite3.Connection, path: Path, what: str) -> tuple[str, str, float, float]:
    rows = database.execute(
        "SELECT run, name, submitted_at_s, ended_at_s, status, reason FROM runs"
        " ORDER BY submitted_at_s DESC, rowid DESC"
    ).fetchall()
    finished = [row for row in rows if row[4] == "finished"]
    if not finished:
        raise JournalError(f"{path} has no run that finished; submit one first")
    if what == LATEST:
        return finished[0][:4]  # type: ignore[no-any-return]
    if named := [row for row in finished if row[1] == what]:
        return named[0][:4]  # type: ignore[no-any-return]
    found = [row for row in rows if row[0] == what] or [row for row in rows if row[0].startswith(what)]
    if not found:
        known = dict.fromkeys([row[0] for row in finished] + [row[1] for row in finished])
        hint = f"; did you mean {near}?" if (near := nearest(what, known)) else ""
        latest = ", ".join(row[0] for row in finished[:3])
        raise JournalError(f"{path} has no run {what!r}{hint} (the latest are {latest})")
    if len(found) > 1:
        some = ", ".join(row[0] for row in found[:3]) + (", …" if found[3:] else "")
        raise JournalError(f"{len(found)} runs begin with {what!r} ({some}): give more of the id")
    run, _, _, _, status, reason = found[0]
    if status != "finished":
        why = f" ({' '.join(reason.split())})" if reason else ""
        state = "has not ended" if status == "running" else f"ended with {status}{why}"
        raise JournalError(f"run {run} {state}; only a run that finished can be replayed")
    return found[0][:4]  # type: ignore[no-any-return]
