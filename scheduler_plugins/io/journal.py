"""The journal: what became of each run, in one SQLite file that outlives the scheduler.

The event loop only appends to a queue; a thread turns what it finds there into rows. So a slow or broken disk costs
the journal and nothing else. Several schedulers may write to one file (SQLite's WAL mode).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from swarm.errors import JournalError
from swarm.story import Entry

FILE = "journal.sqlite"
SCHEMA_VERSION = 3
"""2 has the stories of tasks, 3 what agents have changed."""
APPLICATION_ID = 0x5357524D
"""`SWRM`: what `file` and `PRAGMA application_id` see."""

KEPT_RUNS = 200
KEPT_BYTES = 500_000_000
KEPT_CHANGES = 10_000
MOST_WAITING = 500_000
"""Entries that wait for the thread: 200 MB or so. A disk that is that far behind has failed."""
BATCH_S = 0.25
"""So long the thread collects entries for one transaction."""
BUSY_S = 10.0
"""Patience with another process that writes to the same file."""

_SCHEMA = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, tasks INTEGER NOT NULL,
    submitted_at_s REAL NOT NULL, ended_at_s REAL, version TEXT NOT NULL
);
CREATE INDEX runs_by_time ON runs (submitted_at_s);
CREATE TABLE workers (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, address TEXT NOT NULL, name TEXT NOT NULL,
    host TEXT NOT NULL, threads INTEGER NOT NULL, memory_limit_bytes INTEGER NOT NULL,
    PRIMARY KEY (run, address)
) WITHOUT ROWID;
CREATE TABLE tasks (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, key TEXT NOT NULL, function TEXT NOT NULL,
    dependencies TEXT NOT NULL, is_wanted INTEGER NOT NULL, worker TEXT NOT NULL, start_s REAL, stop_s REAL,
    compute_s REAL NOT NULL, transfer_s REAL NOT NULL, transfers INTEGER NOT NULL, output_bytes INTEGER NOT NULL,
    story TEXT NOT NULL DEFAULT '[]', PRIMARY KEY (run, key)
);
"""
"""Times are Unix seconds. `dependencies` is a JSON list of keys, and a key is its text, as Dask shows it. `story` is a
JSON list of entries (`swarm.story`)."""
_STORIES = "ALTER TABLE tasks ADD COLUMN story TEXT NOT NULL DEFAULT '[]'"
_CHANGES = """
CREATE TABLE changes (
    at_s REAL NOT NULL, place TEXT NOT NULL, agent TEXT NOT NULL, what TEXT NOT NULL, details TEXT NOT NULL
);
CREATE INDEX changes_by_time ON changes (at_s);
"""
"""The audit trail of agents (`swarm.protocol.ChangeAudited`), of which the last are kept, whatever becomes of runs.
`details` is a JSON object."""
_STEPS = (_SCHEMA + _CHANGES, _STORIES + ";" + _CHANGES, _CHANGES)
"""Version → what is missing in it."""

_ALLOW = "let the user who runs this read and write the folder and the file"
_ROOM = "make room"
_ELSEWHERE = "name another folder with the setting state_directory"
_MOVE = "move the file away, a new one is begun"
_TO_DO = {
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _ELSEWHERE,
    errno.ENOENT: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: _ELSEWHERE,
    errno.ENAMETOOLONG: _ELSEWHERE,
    errno.ELOOP: "the file must not be a link; remove the link",
}
_TO_DO_IN_SQLITE = {
    sqlite3.SQLITE_FULL: _ROOM,
    sqlite3.SQLITE_READONLY: _ALLOW,
    sqlite3.SQLITE_PERM: _ALLOW,
    sqlite3.SQLITE_CANTOPEN: _ALLOW,
    sqlite3.SQLITE_CORRUPT: _MOVE,
    sqlite3.SQLITE_NOTADB: _MOVE,
    sqlite3.SQLITE_BUSY: "another process keeps it locked; end it, or try again later",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked; end it, or try again later",
}

Rows = Iterator[tuple[Any, ...]]

_STATEMENTS = {
    # A durable run begins again after a crash; what its tasks have done before stays.
    "run": "INSERT INTO runs VALUES (?, ?, 'running', '', ?, ?, NULL, ?)"
    " ON CONFLICT (run) DO UPDATE SET status = 'running', reason = '', ended_at_s = NULL",
    "workers": "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?, ?, ?)",
    "task": "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "change": "INSERT INTO changes VALUES (?, ?, ?, ?, ?)",
    "end": "UPDATE runs SET status = ?, reason = ?, ended_at_s = ? WHERE run = ?",
}


class Journal:
    """Writes to `journal.sqlite` in a folder, from a thread of its own that starts with the first entry.

    Made for the event loop of a scheduler: each method but `close` takes a microsecond, never waits and never raises.
    Whoever owns it looks at `error` now and then.

    Parameters
    ----------
    folder
        Made when it is missing, for its owner only.
    version
        Of swarm, for whoever reads the journal later.
    """

    def __init__(
        self, folder: Path, *, version: str = "", kept_runs: int = KEPT_RUNS, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.path = folder / FILE
        self.error: JournalError | None = None
        """Why it gave up; from then on entries are dropped."""
        self._version = version
        self._kept_runs = kept_runs
        self._kept_bytes = kept_bytes
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._open: set[str] = set()
        """Runs under way, in the thread: they are not removed to make room."""

    # -- what happens, on the event loop ---------------------------------------------------------------------------

    def run_began(self, run: str, name: str, tasks: int, submitted_at_s: float) -> None:
        self._put("run", (run, name, tasks, submitted_at_s, self._version))

    def workers_take_part(self, run: str, workers: Sequence[Any]) -> None:
        """Workers that a run can use: Dask's own objects (`WorkerState`), which the thread reads."""
        self._put("workers", (run, workers))

    def task_finished(
        self,
        run: str,
        wanted: Collection[Any],
        key: Any,
        function: str,
        dependencies: Sequence[Any],
        worker: str,
        spans: Sequence[Mapping[str, Any]],
        output_bytes: int,
        story: Sequence[Entry] = (),
    ) -> None:
        """A task has a result.

        Parameters
        ----------
        wanted
            Keys that the run is for.
        dependencies
            Dask's own objects, of which the thread reads the attribute `key`.
        spans
            Dask's `startstops`: dicts with action, start, stop.
        story
            Why it went where it went.
        """
        self._put("task", (run, wanted, key, function, dependencies, worker, spans, output_bytes, story))

    def run_ended(self, run: str, status: str, reason: str, at_s: float) -> None:
        self._put("end", (status, reason, at_s, run))

    def change_audited(self, at_s: float, place: str, agent: str, what: str, details: Mapping[str, Any]) -> None:
        """An agent changes something in the system, or a message was refused."""
        self._put("change", (at_s, place, agent, what, details))

    def _put(self, kind: str, entry: tuple[Any, ...]) -> None:
        if self.error is not None:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.error = JournalError(f"{self.path}: {MOST_WAITING} entries wait to be written, the disk is too slow")
            self.stop()
            return
        self._waiting.append((kind, entry))
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="swarm-journal", daemon=True)
                self._thread.start()

    # -- the end ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let the thread write what waits, and end; does not wait for it."""
        self._stop.set()
        self._wake.set()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended, or never began."""
        return self._thread is None or not self._thread.is_alive()

    def close(self, timeout_s: float = BUSY_S) -> None:
        """`stop`, and wait."""
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with closing(_open_for_writing(self.path)) as database:
                self._make_room(database)
                while not self._stop.is_set():
                    self._wake.wait()
                    self._stop.wait(BATCH_S)
                    self._wake.clear()
                    self._write(database)
                self._write(database)
        except JournalError as error:
            self.error = self.error or error
        except (OSError, sqlite3.Error) as error:
            self.error = self.error or JournalError(f"{self.path} can't be written ({why(error)}); runs go on without")
        except Exception as error:  # noqa: BLE001 — whatever it is, it is told by the guard of the plugin
            self.error = self.error or JournalError(f"{self.path}: {type(error).__name__}: {error}")
        finally:
            self._waiting.clear()

    def _write(self, database: sqlite3.Connection) -> None:
        """All that waits, in one transaction."""
        entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
        ended = False
        if not self.path.exists():  # SQLite goes on with a file that has no name any more
            raise JournalError(f"{self.path} was removed while it was written; restart the scheduler to begin another")
        with database:
            for kind, group in itertools.groupby(entries, key=lambda entry: entry[0]):
                rows = [entry for _, entry in group]
                if kind == "run":
                    self._open.update(row[0] for row in rows)
                elif kind == "end":
                    self._open.difference_update(row[3] for row in rows)
                    ended = True
                database.executemany(_STATEMENTS[kind], itertools.chain.from_iterable(map(_ROWS[kind], rows)))
                if kind == "change":
                    oldest = "(SELECT max(rowid) FROM changes) - ?"
                    database.execute(f"DELETE FROM changes WHERE rowid <= {oldest}", (KEPT_CHANGES,))  # noqa: S608 - ours
        if ended:
            self._make_room(database)

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Remove the oldest runs, until no more are left than we keep."""
        runs = [run for (run,) in database.execute("SELECT run FROM runs ORDER BY submitted_at_s, rowid")]
        closed = [run for run in runs if run not in self._open]
        surplus = max(0, len(runs) - self._kept_runs)
        while closed and (surplus > 0 or _used_bytes(database) > self._kept_bytes):
            with database:
                database.execute("DELETE FROM runs WHERE run = ?", (closed.pop(0),))
            surplus -= 1
        database.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def why(error: OSError | sqlite3.Error) -> str:
    """What went wrong with the file, and what to do.

    >>> why(PermissionError(errno.EACCES, "Permission denied"))
    'Permission denied: let the user who runs this read and write the folder and the file'
    >>> why(OSError(errno.ENOSPC, "No space left on device"))
    'No space left on device: make room'
    """
    if isinstance(error, OSError):
        what, todo = error.strerror or type(error).__name__, _TO_DO.get(error.errno or 0, "")
    else:
        # The low byte of an extended code is the code itself.
        what, todo = str(error), _TO_DO_IN_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")
    return f"{what}: {todo}" if todo else f"{what}: look at that disk and folder, or name another one"


def _as_it_is(entry: tuple[Any, ...]) -> Rows:
    yield entry


def _worker_rows(entry: tuple[Any, ...]) -> Rows:
    run, workers = entry
    for state in workers:
        yield run, state.address, text(state.name), state.host, state.nthreads, state.memory_limit or 0


def _task_rows(entry: tuple[Any, ...]) -> Rows:
    run, wanted, key, function, dependencies, worker, spans, output_bytes, story = entry
    computed = [span for span in spans if span["action"] == "compute"]
    moved = [span for span in spans if span["action"] == "transfer"]
    yield (
        run,
        text(key),
        text(function),
        json.dumps([text(task.key) for task in dependencies]),
        key in wanted,
        worker,
        min((span["start"] for span in computed), default=None),
        max((span["stop"] for span in computed), default=None),
        _sum_s(computed),
        _sum_s(moved),
        len(moved),
        output_bytes,
        _as_json(story),
    )


def _change_rows(entry: tuple[Any, ...]) -> Rows:
    at_s, place, agent, what, details = entry
    yield at_s, text(place), text(agent), text(what), _as_json(dict(details))


_as_json = json.JSONEncoder(default=str).encode
"""As `json.dumps`, which would make an encoder each time; keys may be anything."""


_ROWS: Mapping[str, Callable[[tuple[Any, ...]], Rows]] = {
    "run": _as_it_is,
    "workers": _worker_rows,
    "task": _task_rows,
    "change": _change_rows,
    "end": _as_it_is,
}
"""Kind of entry → what makes rows of it."""


def text(key: Any) -> str:
    """A key as SQLite can keep it."""
    shown = str(key)
    return shown if shown.isascii() else shown.encode("utf-8", "backslashreplace").decode()


def _sum_s(spans: Iterable[Mapping[str, Any]]) -> float:
    """Of wall-clock times; where the clock was set back, a span counts nothing."""
    return float(sum(max(0.0, span["stop"] - span["start"]) for span in spans))


def _used_bytes(database: sqlite3.Connection) -> int:
    def pragma(name: str) -> int:
        return int(database.execute(f"PRAGMA {name}").fetchone()[0])

    return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")


# -- the file --------------------------------------------------------------------------------------------------------


def _open_for_writing(path: Path) -> sqlite3.Connection:
    """The database, made when it is missing; nobody but its owner can read it."""
    _make_folder(path.parent)
    # SQLite gives the files that it puts beside it (-wal, -shm) the same mode.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)
    database = sqlite3.connect(path, timeout=BUSY_S)
    try:
        _set_up(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _make_folder(folder: Path) -> None:
    """A folder that is new is its owner's alone; one that anybody may write to is refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & stat.S_IWOTH:
        raise JournalError(f"{folder} may be written to by everybody, a journal is not safe there: chmod o-w {folder}")


def _set_up(database: sqlite3.Connection, path: Path) -> None:
    if check_schema(database, path) == 0:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, or it has no effect
    _use_wal(database)
    # With a WAL a crash of the machine may cost the last transactions, never the file.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA foreign_keys = ON")
    database.isolation_level = None
    database.execute("BEGIN IMMEDIATE")  # another scheduler may be about to do the same
    version = check_schema(database, path)
    for statement in filter(str.strip, "".join(_STEPS[version : version + 1]).split(";")):
        database.execute(statement)
    if version == 0:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database.execute("COMMIT")
    database.isolation_level = "DEFERRED"


def _use_wal(database: sqlite3.Connection) -> None:
    """Two who do this at once don't wait for each other, whatever the timeout: SQLite fears a deadlock."""
    deadline_s = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return


def check_schema(database: sqlite3.Connection, path: Path) -> int:
    """The version of the tables, 0 for an empty file. Raises `JournalError` when this swarm can't use them."""
    is_ours = not database.in_transaction
    if is_ours:
        database.execute("BEGIN")  # or another scheduler may make the tables between two questions
    try:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        owner = int(database.execute("PRAGMA application_id").fetchone()[0])
        tables = int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise JournalError(f"{path} is not a journal of swarm ({error})") from None
    finally:
        if is_ours and database.in_transaction:
            database.execute("ROLLBACK")
    if (tables or version) and owner != APPLICATION_ID:
        raise JournalError(f"{path} is not a journal of swarm (another program's SQLite file)")
    if not 0 <= version <= SCHEMA_VERSION:
        what_to_do = "use that version of swarm, or move the file away"
        raise JournalError(f"{path} has schema {version}, this swarm knows {SCHEMA_VERSION}: {what_to_do}")
    return version
