"""The journal as a file: what is written is read again, who may read it, what is kept, and what can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scheduler_plugins.io import journal as journal_module
from scheduler_plugins.io import recorded
from scheduler_plugins.io.journal import FILE, Journal
from scheduler_plugins.io.recorded import LATEST, RecordedTask, RecordedWorker, read
from swarm.errors import JournalError
from swarm.explain import Account
from tests.support.processes import wait_until

Open = Callable[..., Journal]


@dataclass
class Task:
    """What the thread reads of Dask's task."""

    key: Any


@dataclass
class Worker:
    """What the thread reads of Dask's worker."""

    address: str = "tcp://10.0.0.1:1"
    name: Any = "w0"
    host: str = "10.0.0.1"
    nthreads: int = 2
    memory_limit: int | None = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "state"


@pytest.fixture
def journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(journal_module, "BATCH_S", 0.01)
    made: list[Journal] = []

    def open_journal(where: Path = folder, **options: Any) -> Journal:
        made.append(Journal(where, **options))
        return made[-1]

    yield open_journal
    for each in made:
        each.close()
        assert each.is_over


def began(journal: Journal, run: str, at_s: float = 100.0, name: str = "") -> None:
    journal.run_began(run, name or run.partition("-")[0], 2, at_s)
    journal.workers_take_part(run, [Worker()])


def finished(
    journal: Journal, run: str, key: Any, *needs: Any, wanted: Sequence[Any] = (), at_s: float = 100.0
) -> None:
    spans = [
        {"action": "transfer", "start": at_s, "stop": at_s + 0.25, "source": "tcp://10.0.0.2:1"},
        {"action": "transfer", "start": at_s, "stop": at_s + 0.5, "source": "tcp://10.0.0.3:1"},
        {"action": "deserialize", "start": at_s, "stop": at_s + 9.0},
        {"action": "compute", "start": at_s + 1.0, "stop": at_s + 3.0},
    ]
    dependencies = tuple(map(Task, needs))
    journal.task_finished(run, frozenset(wanted), key, "load", dependencies, "tcp://10.0.0.1:1", spans, 42)


def whole(journal: Journal, run: str, at_s: float = 100.0, **ended: Any) -> None:
    began(journal, run, at_s)
    finished(journal, run, "load-1", wanted=["load-1"], at_s=at_s)
    journal.run_ended(run, **{"status": "finished", "reason": "", "at_s": at_s + 7.0, **ended})


def test_what_is_written_is_read_again(journal: Open, folder: Path) -> None:
    written = journal(version="1.2.3")
    began(written, "kmeans-1-abc", at_s=100.0)
    finished(written, "kmeans-1-abc", ("load", 0))
    finished(written, "kmeans-1-abc", "sum-\udc80é", ("load", 0), "scattered", wanted=["sum-\udc80é"], at_s=105.0)
    written.run_ended("kmeans-1-abc", "finished", "", 112.5)
    written.close()
    run = read(folder / FILE, LATEST)
    assert (run.run, run.name, run.submitted_at_s, run.makespan_s) == ("kmeans-1-abc", "kmeans", 100.0, 12.5)
    assert run.workers == [RecordedWorker("tcp://10.0.0.1:1", "w0", "10.0.0.1", 2, 1 << 30)]
    common = {"function": "load", "worker": "tcp://10.0.0.1:1", "compute_s": 2.0, "transfer_s": 0.75, "transfers": 2}
    assert run.tasks == [
        RecordedTask(key="('load', 0)", dependencies=(), is_wanted=False, start_s=101.0, output_bytes=42, **common),
        RecordedTask(
            key="sum-\\udc80é",
            dependencies=("('load', 0)", "scattered"),
            is_wanted=True,
            start_s=106.0,
            output_bytes=42,
            **common,
        ),
    ]
    assert written.error is None


def test_a_task_that_runs_again_counts_once_and_one_without_times_not_at_all(journal: Open, folder: Path) -> None:
    written = journal()
    began(written, "a-1")
    finished(written, "a-1", "x", at_s=100.0)
    finished(written, "a-1", "x", at_s=200.0)
    written.task_finished("a-1", frozenset(), "y", "y", (), "w", (), 0)
    written.run_ended("a-1", "finished", "", 1.0)
    written.close()
    again, bare = read(folder / FILE, "a-1").tasks
    assert (again.key, again.start_s) == ("x", 201.0)
    assert (bare.start_s, bare.compute_s, bare.transfers) == (None, 0.0, 0)


def test_a_worker_with_a_number_for_a_name_and_no_limit(journal: Open, folder: Path) -> None:
    written = journal()
    whole(written, "a-1")
    written.workers_take_part("a-1", [Worker("tcp://10.0.0.2:1", 7, "10.0.0.2", 4, None)])
    written.close()
    assert read(folder / FILE, "a-1").workers[0] == RecordedWorker("tcp://10.0.0.2:1", "7", "10.0.0.2", 4, 0)


def test_it_is_the_owners_alone(journal: Open, folder: Path) -> None:
    written = journal()
    whole(written, "a-1")
    written.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_a_journal_that_others_could_read_is_closed_to_them(journal: Open, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).touch(0o644)
    written = journal()
    whole(written, "a-1")
    written.close()
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert read(folder / FILE, LATEST).run == "a-1"


def test_nothing_is_made_before_the_first_run(journal: Open, folder: Path) -> None:
    unused = journal()
    unused.close()
    assert not folder.exists()


def test_a_run_can_be_read_while_the_next_is_written(journal: Open, folder: Path) -> None:
    first = journal()
    whole(first, "a-1")
    first.close()
    second = journal()
    began(second, "a-2", at_s=200.0)
    assert read(folder / FILE, LATEST).run == "a-1"
    second.close()
    with pytest.raises(JournalError, match="run a-2 has not ended; only a run that finished can be replayed"):
        read(folder / FILE, "a-2")


def test_two_schedulers_write_to_one_file(journal: Open, folder: Path) -> None:
    both = [journal(), journal()]
    for i in range(20):
        for number, each in enumerate(both):
            whole(each, f"s{number}-{i}", at_s=float(i))
    for each in both:
        each.close()
        assert each.error is None
    assert {read(folder / FILE, f"s{number}-{i}").makespan_s for i in range(20) for number in (0, 1)} == {7.0}


def test_several_make_the_file_at_once(tmp_path: Path) -> None:
    """One of them found tables without the mark of their owner: it had asked before and after another made them."""
    for number in range(30):
        path = tmp_path / str(number) / FILE
        with ThreadPoolExecutor(3) as pool:
            opened = [pool.submit(lambda path=path: journal_module._open_for_writing(path).close()) for _ in range(3)]
        assert [each.exception() for each in opened] == [None] * 3


def names(folder: Path) -> list[str]:
    with sqlite3.connect(folder / FILE) as database:
        found = [run for (run,) in database.execute("SELECT run FROM runs ORDER BY submitted_at_s")]
        orphans = database.execute("SELECT count(*) FROM tasks WHERE run NOT IN (SELECT run FROM runs)").fetchone()
    database.close()
    assert orphans == (0,)
    return found


def test_the_oldest_runs_make_room_but_never_one_under_way(journal: Open, folder: Path) -> None:
    written = journal(kept_runs=3)
    began(written, "slow-1", at_s=0.0)
    for i in range(6):
        whole(written, f"a-{i}", at_s=1.0 + i)
    written.close()
    assert names(folder) == ["slow-1", "a-4", "a-5"]


def test_the_file_stays_below_its_limit(journal: Open, folder: Path) -> None:
    written = journal(kept_bytes=300_000)
    for i in range(8):
        began(written, f"a-{i}", at_s=float(i))
        for task in range(500):
            finished(written, f"a-{i}", f"load-{task}")
        written.run_ended(f"a-{i}", "finished", "", i + 1.0)
    written.close()
    assert (folder / FILE).stat().st_size < 300_000
    assert names(folder)[-1] == "a-7"
    assert len(names(folder)) < 8


# -- which run is meant ----------------------------------------------------------------------------------------------


@pytest.fixture
def some_runs(journal: Open, folder: Path) -> Path:
    written = journal()
    whole(written, "kmeans-1-aaa111", at_s=1.0)
    whole(written, "heat-1-bbb222", at_s=2.0)
    whole(written, "kmeans-2-ccc333", at_s=3.0)
    whole(written, "kmeans-3-ddd444", at_s=4.0, status="error", reason="ValueError:\nno")
    began(written, "heat-2-eee555", at_s=5.0)
    written.close()
    return folder / FILE


@pytest.mark.parametrize(
    ("what", "run"),
    [
        (LATEST, "kmeans-2-ccc333"),
        ("kmeans", "kmeans-2-ccc333"),
        ("heat", "heat-1-bbb222"),
        ("kmeans-1-aaa111", "kmeans-1-aaa111"),
        ("kmeans-1", "kmeans-1-aaa111"),
    ],
)
def test_a_run_is_found(some_runs: Path, what: str, run: str) -> None:
    assert read(some_runs, what).run == run


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "kmeans-",
            "3 runs begin with 'kmeans-' (kmeans-3-ddd444, kmeans-2-ccc333, kmeans-1-aaa111): give more of the id",
        ),
        ("kmean5", "has no run 'kmean5'; did you mean kmeans? (the latest are kmeans-2-ccc333, heat-1-bbb222, "),
        ("kmeans-3", "run kmeans-3-ddd444 ended with error (ValueError: no); only a run that finished can be replayed"),
        ("heat-2", "run heat-2-eee555 has not ended; only a run that finished can be replayed"),
    ],
)
def test_a_run_that_can_not_be_replayed(some_runs: Path, what: str, said: str) -> None:
    with pytest.raises(JournalError) as error:
        read(some_runs, what)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_journal_and_one_without_a_run_that_finished(journal: Open, folder: Path) -> None:
    with pytest.raises(JournalError, match=rf"^there is no journal at {folder / FILE}: `swarm run` and swarm\.connect"):
        read(folder / FILE, LATEST)
    written = journal()
    whole(written, "a-1", status="cancelled")
    written.close()
    with pytest.raises(JournalError, match="has no run that finished; submit one first"):
        read(folder / FILE, LATEST)


# -- what goes wrong -------------------------------------------------------------------------------------------------


def text(path: Path) -> None:
    path.write_text("this is not a database, and long enough to be read as its header is" * 10)


def of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA application_id = {journal_module.APPLICATION_ID}")
        database.execute("PRAGMA user_version = 9")
        database.execute("CREATE TABLE runs (run)")
    database.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (text, "is not a journal of swarm (file is not a database)"),
        (of_another_program, "is not a journal of swarm (another program's SQLite file)"),
        (newer, "has schema 9, this swarm knows 3: use that version of swarm, or move the file away"),
    ],
)
def test_a_file_that_is_no_journal_of_ours_stays_as_it_is(
    journal: Open, folder: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder.mkdir(parents=True)
    spoil(folder / FILE)
    before = (folder / FILE).read_bytes()
    written = journal()
    whole(written, "a-1")
    written.close()
    assert str(written.error) == f"{folder / FILE} {said}"
    assert (folder / FILE).read_bytes() == before
    with pytest.raises(JournalError) as error:
        read(folder / FILE, LATEST)
    assert str(error.value) == str(written.error)


def test_a_folder_that_is_a_file(journal: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    written = journal(tmp_path / "file" / "state")
    whole(written, "a-1")
    written.close()
    what_to_do = "(Not a directory: name another folder with the setting state_directory); runs go on without"
    assert str(written.error) == f"{tmp_path / 'file' / 'state' / FILE} can't be written {what_to_do}"
    whole(written, "a-2")
    assert not written._waiting, "nothing is kept for a journal that failed"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied: let the user who runs this read and"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: make room"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error: look at that disk and folder, or name another"),
    ],
)
def test_a_disk_that_fails_says_what_to_do(
    journal: Open, folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        written = journal()
        whole(written, "a-1")
        written.close()
    assert str(written.error).startswith(f"{folder / FILE} can't be written ({said}")


def test_a_full_disk_in_the_words_of_sqlite(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "full.sqlite")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as full:
            database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert journal_module.why(full.value) == "database or disk is full: make room"


def test_a_folder_that_everybody_may_write_to(journal: Open, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    written = journal(tmp_path)
    whole(written, "a-1")
    written.close()
    assert str(written.error).startswith(f"{tmp_path} may be written to by everybody")
    assert not (tmp_path / FILE).exists()


def test_a_disk_that_hangs_does_not_fill_the_memory(journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(journal_module, "MOST_WAITING", 10)
    monkeypatch.setattr(journal_module, "_open_for_writing", lambda path: hanging.wait(30) and None)
    written = journal()
    try:
        for i in range(20):
            whole(written, f"a-{i}")
        assert len(written._waiting) == 10
        assert "10 entries wait to be written, the disk is too slow" in str(written.error)
    finally:
        hanging.set()
    written.close()
    assert "too slow" in str(written.error), "the first reason stays"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE tasks SET dependencies = '[1'", "Expecting"),
        ("UPDATE tasks SET dependencies = '[[1]]'", "dependencies of task .*: must be a list of keys"),
        ("UPDATE tasks SET dependencies = replace(hex(zeroblob(50000)), '0', '[')", "recursion"),
        ("UPDATE tasks SET compute_s = 'nan'", "compute_s of task .*: 'nan', must be a number, 0 or more"),
        ("UPDATE tasks SET output_bytes = -1", "output_bytes of task .*: -1, must"),
        ("UPDATE tasks SET start_s = 9e999", "start_s of task .*: inf, must"),
        ("UPDATE runs SET ended_at_s = NULL", "time of the run: None, must"),
        ("UPDATE workers SET threads = 1000000000", "threads of worker 'w0': 1000000000, must be 1 to 65536"),
        ("UPDATE workers SET host = ''", "host of worker 'w0': '', must be a name"),
    ],
)
def test_values_that_swarm_never_wrote_are_refused(journal: Open, folder: Path, change: str, said: str) -> None:
    opened = journal()
    whole(opened, "a-1")
    opened.close()
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute(change)
    with pytest.raises(JournalError, match=rf"journal\.sqlite is damaged \(.*{said}.*\); move it away"):
        read(folder / FILE, LATEST)


def test_a_clock_that_was_set_back_costs_nothing(journal: Open, folder: Path) -> None:
    opened = journal()
    began(opened, "a-1", 100.0)
    spans = [{"action": "compute", "start": 100.0, "stop": 90.0}]
    opened.task_finished("a-1", frozenset(), "x", "x", (), "tcp://10.0.0.1:1", spans, 1)
    opened.run_ended("a-1", "finished", "", 95.0)
    opened.close()
    run = read(folder / FILE, LATEST)
    assert (run.makespan_s, run.tasks[0].compute_s) == (0.0, 0.0)


def test_reading_leaves_no_files_behind(journal: Open, folder: Path) -> None:
    opened = journal()
    whole(opened, "a-1")
    opened.close()
    read(folder / FILE, LATEST)
    assert [file.name for file in folder.iterdir()] == [FILE]


def test_a_journal_in_a_folder_that_can_not_be_written_to(
    journal: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = journal()
    whole(opened, "a-1")
    opened.close()
    folder.chmod(0o500)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    try:
        assert read(folder / FILE, LATEST).run == "a-1"
    finally:
        folder.chmod(0o700)
    assert [file.name for file in folder.iterdir()] == [FILE]


def is_written(path: Path) -> bool:
    try:
        return bool(read(path, LATEST))
    except JournalError:
        return False


def test_a_folder_that_vanishes_is_told(journal: Open, folder: Path) -> None:
    opened = journal()
    whole(opened, "a-1")
    wait_until(lambda: is_written(folder / FILE), "the run is written")
    shutil.rmtree(folder)
    began(opened, "a-2")
    opened.close()
    assert opened.error is not None
    assert "journal.sqlite was removed while it was written" in str(opened.error)


# -- why tasks went where they went ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_journal_is_read_as_it_is_and_upgraded_when_it_is_written_to(version: int, tmp_path: Path) -> None:
    path = tmp_path / FILE
    with closing(sqlite3.connect(path)) as database:
        story = "story TEXT NOT NULL DEFAULT '[]', "
        schema = journal_module._SCHEMA if version == 2 else journal_module._SCHEMA.replace(story, "")
        database.executescript(schema)
        database.execute("INSERT INTO runs VALUES ('r-1', 'old', 'finished', '', 1, 1.0, 9.0, '')")
        row = ("r-1", "a-1", "a", "[]", 1, "tcp://a:1", 2.0, 5.0, 3.0, 0.5, 1, 8, *(["[]"] if version == 2 else []))
        database.execute(f"INSERT INTO tasks VALUES ({', '.join('?' * len(row))})", row)
        database.execute(f"PRAGMA application_id = {journal_module.APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    (done,) = recorded.explain(path, "old", "a")["events"]
    assert (done["what"], done["start_s"], done["stop_s"], done["transfer_s"]) == ("done", 2.0, 5.0, 0.5)
    journal = Journal(tmp_path)
    story = [("ready", 1.0, ("x", 1)), ("given by Dask", 2.0, "tcp://a:1")]
    journal.run_began("r-2", "new", 1, 10.0)
    journal.task_finished("r-2", ("b",), "b", "b", (), "tcp://a:1", (), 8, story)
    journal.run_ended("r-2", "finished", "", 11.0)
    journal.change_audited(1.5, "tcp://a:7", "mine", "turned", {"by": 2})
    journal.close()
    assert journal.error is None
    (change,) = recorded.explain(path, "new", "b")["changes"]
    assert change["what"] == "turned"
    ready, given, _ = recorded.explain(path, "new", "b")["events"]
    assert ready == {"what": "ready", "at_s": 1.0, "last_input": "('x', 1)"}
    assert given["what"] == "given by Dask"
    assert recorded.explain(path, "old", "a-1")["events"] == [done]


def test_what_agents_changed_meanwhile_is_told_with_a_task_of_their_host(journal: Open, folder: Path) -> None:
    written = journal()
    began(written, "r-1", 10.0)
    worker = "tcp://10.0.0.1:1"
    done = ("done", 20.0, worker, 11.0, 19.0, 0.0, 0, 8)
    story = [("ready", 10.0, None), ("given by Dask", 11.0, worker), done]
    written.task_finished("r-1", ("b",), "b", "b", (), worker, (), 8, story)
    for at_s, place in ((9.0, "1:7"), (12.0, "1:7"), (13.0, "2:7"), (21.0, "1:7")):
        written.change_audited(at_s, f"tcp://10.0.0.{place}", "cool.h1", "cores_lent", {"cores": 1})
    written.run_ended("r-1", "finished", "", 20.0)
    written.close()
    account = Account(recorded.explain(written.path, "r-1", "b"))
    (change,) = account.facts["changes"]
    about = {"at_s": 12.0, "place": "tcp://10.0.0.1:7", "agent": "cool.h1"}
    assert change == {**about, "what": "cores_lent", "details": {"cores": 1}}
    assert [each.what for each in account.happened()] == ["ready", "given by Dask", "changed", "done"]
    assert "cores_lent by cool.h1 on tcp://10.0.0.1:7: cores 1" in str(account)


def test_of_changes_the_last_are_kept(journal: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "KEPT_CHANGES", 10)
    written = journal()
    for n in range(100):
        written.change_audited(float(n), "tcp://10.0.0.1:7", "mine", "turned", {})
    written.close()
    with closing(sqlite3.connect(written.path)) as database:
        assert database.execute("SELECT at_s FROM changes").fetchall() == [(float(n),) for n in range(90, 100)]


def test_a_story_that_swarm_did_not_write_is_a_damaged_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.run_began("r-1", "new", 1, 10.0)
    journal.task_finished("r-1", ("b",), "b", "b", (), "tcp://a:1", (), 8)
    journal.run_ended("r-1", "finished", "", 11.0)
    journal.close()
    for damage in ('[["unheard of", 1]]', "{", "[5]", "5"):
        with closing(sqlite3.connect(journal.path)) as database:
            database.execute("UPDATE tasks SET story = ?", (damage,))
            database.commit()
        with pytest.raises(JournalError, match="is damaged"):
            recorded.explain(journal.path, "new", "b")
