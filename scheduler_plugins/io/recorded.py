"""What the journal tells of a run, for whoever reads it later."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler_plugins.io.journal import BUSY_S, check_schema, text, why
from swarm.errors import JournalError, UnknownKeyError, nearest
from swarm.story import named

LATEST = "latest"
_COLUMNS = "key, function, dependencies, is_wanted, worker, start_s, compute_s, transfer_s, transfers, output_bytes"
MOST_THREADS = 1 << 16
"""Of a worker, beyond which a journal is not believed."""


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
        run, name, *times_s = _find(database, path, what)
        submitted_at_s, ended_at_s = (_number(value, "time of the run") for value in times_s)
        workers = [
            _worker(*row)
            for row in database.execute(
                "SELECT address, name, host, threads, memory_limit_bytes FROM workers WHERE run = ? ORDER BY name",
                (run,),
            )
        ]
        tasks = [
            _task(*row)
            for row in database.execute(f"SELECT {_COLUMNS} FROM tasks WHERE run = ? ORDER BY rowid", (run,))  # noqa: S608
        ]
    return RecordedRun(run, name, submitted_at_s, max(0.0, ended_at_s - submitted_at_s), workers, tasks)


def explain(path: Path, what: str, key: str) -> dict[str, Any]:
    """The facts about one task of a run, also of one that failed or has not ended; as a scheduler gives them.

    Parameters
    ----------
    what
        As for `read`.
    key
        Of the task, or its beginning.

    Raises
    ------
    JournalError
        As `read`.
    UnknownKeyError
        The run has no such task, or several.
    """
    key = text(key)
    with closing(_open(path)) as database, _telling(path):
        version = check_schema(database, path)
        if version == 0:
            raise JournalError(f"{path} is empty; submit a run first")
        run = _find(database, path, what, is_over=False)[0]
        story = "'[]'" if version == 1 else "story"
        sql = f"SELECT {_COLUMNS}, {story} FROM tasks WHERE run = ? AND"  # noqa: S608 - none of it is the user's
        rows = database.execute(f"{sql} key = ?", (run, key)).fetchall()
        if not rows:
            rows = database.execute(f"{sql} substr(key, 1, ?) = ?", (run, len(key), key)).fetchall()
        if len(rows) != 1:
            raise _no_task(database, run, key, [row[0] for row in rows])
        *columns, told = rows[0]
        task = _task(*columns)
        names = dict(database.execute("SELECT address, name FROM workers WHERE run = ?", (run,)))
        events = [named(entry) for entry in json.loads(told)]
        changes = _changes(database, task.worker, [event["at_s"] for event in events]) if version >= 3 else []
    if not any(event["what"] == "done" for event in events):  # of an older swarm, or of Dask's own placement
        stop_s = None if task.start_s is None else task.start_s + task.compute_s
        end = ("done", stop_s or 0.0, task.worker, task.start_s, stop_s, task.transfer_s)
        events.append(named((*end, task.transfers, task.output_bytes)))
    return {
        "kind": "task",
        "key": task.key,
        "function": task.function,
        "state": "recorded",
        "inputs": len(task.dependencies),
        "events": events,
        "changes": changes,
        "names": names,
        "of_runs": [run],
    }


def _changes(database: sqlite3.Connection, worker: str, times_s: Sequence[float]) -> list[dict[str, Any]]:
    """What agents changed on the host of a worker, from the first of some times to the last."""
    if not times_s:
        return []
    rows = database.execute(
        "SELECT at_s, place, agent, what, details FROM changes WHERE at_s BETWEEN ? AND ? ORDER BY at_s",
        (min(times_s), max(times_s)),
    )
    names = ("at_s", "place", "agent", "what", "details")
    found = [dict(zip(names, (*row, dict(json.loads(details))), strict=True)) for *row, details in rows]
    return [change for change in found if _host_of(change["place"]) == _host_of(worker)]


def _host_of(address: str) -> str:
    """Of a Dask address, without the port."""
    return address.rpartition("://")[2].rpartition(":")[0]


def _no_task(database: sqlite3.Connection, run: str, key: str, found: Sequence[str]) -> UnknownKeyError:
    if found:
        some = ", ".join(found[:3]) + (", …" if found[3:] else "")
        return UnknownKeyError(f"{len(found)} tasks of run {run} begin with {key!r} ({some}): give more of the key")
    similar = database.execute(
        "SELECT key FROM tasks WHERE run = ? AND substr(key, 1, 4) = ? LIMIT 200", (run, key[:4])
    ).fetchall()
    functions = database.execute("SELECT DISTINCT function FROM tasks WHERE run = ? LIMIT 200", (run,)).fetchall()
    where = f" in run {run} of the journal"
    return UnknownKeyError.about(key, [row[0] for row in similar], [row[0] for row in functions], where)


def _worker(address: str, name: str, host: Any, threads: Any, limit_bytes: Any) -> RecordedWorker:
    where = f"of worker {name!r}"
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads {where}: {threads!r}, must be 1 to {MOST_THREADS}")
    if not isinstance(host, str) or not host:
        raise ValueError(f"host {where}: {host!r}, must be a name")
    return RecordedWorker(address, name, host, threads, int(_number(limit_bytes, f"memory_limit_bytes {where}")))


def _task(key: str, function: str, dependencies: str, is_wanted: Any, worker: str, *rest: Any) -> RecordedTask:
    start_s, compute_s, transfer_s, transfers, output_bytes = rest
    where = f"of task {key!r}"
    needs = json.loads(dependencies)
    if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
        raise ValueError(f"dependencies {where}: must be a list of keys")
    return RecordedTask(
        key,
        function,
        tuple(needs),
        bool(is_wanted),
        worker,
        None if start_s is None else _number(start_s, f"start_s {where}"),
        _number(compute_s, f"compute_s {where}"),
        _number(transfer_s, f"transfer_s {where}"),
        int(_number(transfers, f"transfers {where}")),
        int(_number(output_bytes, f"output_bytes {where}")),
    )


def _number(value: Any, what: str) -> float:
    """SQLite keeps what it is given, whatever the type of the column."""
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{what}: {value!r}, must be a number, 0 or more")
    return value


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"{path} can't be read ({why(error)})") from None
    except (ValueError, TypeError, RecursionError) as error:  # swarm wrote none of that
        raise JournalError(f"{path} is damaged ({error}); move it away and submit the run again") from None


def _open(path: Path) -> sqlite3.Connection:
    with _telling(path):
        is_there = path.is_file()
    if not is_there:
        how = "`swarm run` and swarm.connect() without an address keep one, other schedulers with a state_directory"
        raise JournalError(f"there is no journal at {path}: {how}; or name one with --journal")
    # A reader that may not write would leave the files of the WAL behind, and fails where it can't make them.
    alone = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    with _telling(path):
        uri = f"{path.resolve().as_uri()}?{'immutable=1' if alone else 'mode=rw'}"
        database = sqlite3.connect(uri, timeout=BUSY_S, uri=True)
    database.execute("PRAGMA query_only = ON")
    return database


def _find(database: sqlite3.Connection, path: Path, what: str, *, is_over: bool = True) -> tuple[str, str, Any, Any]:
    """A run that finished; or any, if it need not be over."""
    rows = database.execute(
        "SELECT run, name, submitted_at_s, ended_at_s, status, reason FROM runs"
        " ORDER BY submitted_at_s DESC, rowid DESC"
    ).fetchall()
    finished = [row for row in rows if row[4] == "finished" or not is_over]
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
    if status != "finished" and is_over:
        why = f" ({' '.join(reason.split())})" if reason else ""
        state = "has not ended" if status == "running" else f"ended with {status}{why}"
        raise JournalError(f"run {run} {state}; only a run that finished can be replayed")
    return found[0][:4]  # type: ignore[no-any-return]
