"""The result store: what was written comes back, or an error that says what is wrong with it; never anything else."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from scheduler_plugins.io import results
from scheduler_plugins.io.results import ResultStore, name_of
from swarm.errors import DamagedResultError, ResultStoreError

KEY = ("x-1234", 0, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """On a server that speaks S3, in this process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem().mkdir("swarm")
        yield "s3://swarm"
    server.stop()


@pytest.fixture(params=["folder", "objects", "s3"])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[ResultStore]:
    """On a local file system, on another one of fsspec, and on S3 where its packages are."""
    match request.param:
        case "folder":
            url = str(folder)
        case "objects":
            url = f"memory://{request.node.name}"
        case _:
            url = f"{request.getfixturevalue('bucket')}/{name_of(request.node.name)}"
    made = ResultStore(url)
    yield made
    for stored in made.runs():
        made.remove(stored.run)


def file_of(folder: Path, key: Any = KEY, run: str = "run") -> Path:
    return folder / run / name_of(key)


VALUES = [
    np.arange(1000.0),
    np.arange(24).reshape(2, 3, 4)[:, ::2],
    {"a": [1, 2.5, None], "b": (b"bytes", "text")},
    b"",
    None,
    np.array([{"an": "object"}], dtype=object),
    np.float64(3.5),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_was_written_comes_back(store: ResultStore, value: Any) -> None:
    written = store.write("run", KEY, value)
    got = store.read("run", KEY)
    assert type(got) is type(value)
    np.testing.assert_equal(got, value)
    assert written.size_bytes > 40
    assert written.took_s > 0
    assert store.names("run") == {name_of(KEY): written.size_bytes}


def test_an_array_can_be_written_to_as_before(store: ResultStore) -> None:
    store.write("run", KEY, np.zeros(1000))
    got = store.read("run", KEY)
    got += 1
    assert got.sum() == 1000


def test_a_file_that_is_cut_off_anywhere_is_found_out(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, np.arange(20))
    file = file_of(folder)
    whole = file.read_bytes()
    assert len(whole) > 200
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedResultError, match=str(file)):
            store.read("run", KEY)
    file.write_bytes(whole + b"\0")
    with pytest.raises(DamagedResultError, match=f"must have {len(whole)}"):
        store.read("run", KEY)
    file.write_bytes(whole)
    assert store.read("run", KEY).tolist() == [*range(20)]


def test_a_bit_that_flips_anywhere_is_found_out(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, np.arange(20))
    file = file_of(folder)
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            with pytest.raises(DamagedResultError):
                results.unpack("result", KEY, broken, "that")
        file.write_bytes(broken)
        with pytest.raises(DamagedResultError, match=str(file)):
            store.read("run", KEY)


def test_bytes_that_are_lost_in_the_middle_are_found_out(folder: Path) -> None:
    """As after a crash of a machine whose disk did not keep its promise: a page of zeros."""
    store = ResultStore(str(folder))
    store.write("run", KEY, np.ones(2000))
    file = file_of(folder)
    whole = bytearray(file.read_bytes())
    whole[4096:8192] = bytes(4096)
    file.write_bytes(whole)
    with pytest.raises(DamagedResultError, match="its checksum differs"):
        store.read("run", KEY)


def test_a_file_of_another_version_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(str(folder))
    monkeypatch.setattr(results, "VERSION", 2)
    store.write("run", KEY, 1)
    monkeypatch.undo()
    with pytest.raises(DamagedResultError, match="has format version 2, this swarm knows 1"):
        store.read("run", KEY)


def test_a_file_in_the_place_of_another_is_found_out(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", "a", 1)
    store.write("run", "b", 2)
    file_of(folder, "a").replace(file_of(folder, "b"))
    with pytest.raises(DamagedResultError, match="holds something else than the result of 'b'"):
        store.read("run", "b")


def test_a_type_that_has_changed_since_is_an_error_of_the_file(store: ResultStore) -> None:
    store.write("run", KEY, _Gone())
    try:
        _Gone.is_gone = True
        with pytest.raises(DamagedResultError, match="can't be read by this version of its type"):
            store.read("run", KEY)
    finally:
        _Gone.is_gone = False


class _Gone:
    is_gone = False

    def __setstate__(self, state: object) -> None:
        if self.is_gone:
            raise AttributeError("that was another version")

    def __getstate__(self) -> object:
        return {"some": "state"}


def test_what_was_never_stored_is_not_there(store: ResultStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("run", KEY)
    with pytest.raises(FileNotFoundError):
        store.read_graphs("run")
    assert store.names("run") == {}
    assert store.runs() == []
    store.remove("run")
    store.put_aside("run", KEY)


def test_a_damaged_file_is_put_aside_and_no_longer_counted(store: ResultStore) -> None:
    store.write("run", KEY, 1)
    store.put_aside("run", KEY)
    assert store.names("run") == {}
    store.write("run", KEY, 2)
    assert store.read("run", KEY) == 2


def test_graphs_come_back_in_order(store: ResultStore) -> None:
    for number in (1, 0, 11, 2):
        store.write_graph("run", number, f"graph {number}".encode())
    store.write("run", KEY, 1)
    assert store.read_graphs("run") == [b"graph 0", b"graph 1", b"graph 2", b"graph 11"]


def test_a_result_is_not_taken_for_a_graph(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write_graph("run", 0, b"graph")
    (folder / "run" / "graph-000000").rename(file_of(folder, ("run", 0)))
    with pytest.raises(DamagedResultError):
        store.read("run", ("run", 0))


def test_equal_keys_have_equal_names_and_others_have_others() -> None:
    same = [("x", 1), ("x", 1.0), ("x", True)]
    assert len({*map(name_of, same)}) == 1
    different = [
        "x",
        b"x",
        ("x",),
        ("x", 1),
        ("x", "1"),
        ("x", (1,)),
        1,
        1.5,
        -1,
        "1",
        "('x',)",
        ("x,", ""),
        ("x", ","),
    ]
    assert len({*map(name_of, different)}) == len(different)
    script = "from scheduler_plugins.io.results import name_of; print(name_of(('x-1234', 0, 3)))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == name_of(KEY)


# -- room ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)
    real, left = os.write, 30

    def nearly_full(file: int, part: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = min(left, len(part))
        left -= count
        return real(file, part[:count])

    monkeypatch.setattr(results.os, "write", nearly_full)
    with pytest.raises(ResultStoreError, match="No space left on device: make room"):
        store.write("run", KEY, 2)
    monkeypatch.undo()
    assert store.read("run", KEY) == 1
    assert [file.name for file in (folder / "run").iterdir()] == [name_of(KEY)]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_late_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(results.os, call, fails)
    with pytest.raises(ResultStoreError, match="Input/output error: look at that disk"):
        store.write("run", KEY, 2)
    monkeypatch.undo()
    assert store.read("run", KEY) == 1
    assert len([*(folder / "run").iterdir()]) == 1


def test_a_real_limit_of_the_kernel_is_told(folder: Path) -> None:
    """`RLIMIT_FSIZE` makes `write` itself short, then fail, as a quota does."""
    script = f"""
        import resource, signal
        from scheduler_plugins.io.results import ResultStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, {resource.RLIM_INFINITY}))
        ResultStore({str(folder)!r}).write("run", "x", bytes(range(256)) * 100)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "ResultStoreError" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert [*(folder / "run").iterdir()] == []


def test_a_store_that_can_not_be_reached_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ResultStore(str(tmp_path / "file" / "results"))
    with pytest.raises(ResultStoreError, match="Not a directory: name another folder"):
        store.write("run", KEY, 1)
    with pytest.raises(ResultStoreError, match="can't be used"):
        ResultStore("nonsense://bucket")


def test_the_oldest_runs_make_room(folder: Path) -> None:
    store = ResultStore(str(folder))
    for number, run in enumerate(("b", "a", "d", "c")):
        store.write(run, KEY, bytes(10_000))
        for path in (folder / run, file_of(folder, run=run)):
            os.utime(path, (1e9 + number, 1e9 + number))
    size = store.runs()[0].size_bytes
    assert [stored.run for stored in store.runs()] == ["b", "a", "d", "c"]
    assert store.make_room(4 * size, ()) == ([], 4 * size)
    assert store.make_room(2 * size, ("a",)) == (["b", "d"], 2 * size)
    assert store.make_room(0, ("a",)) == (["c"], size)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_a_killed_writer_has_left_is_not_seen_and_goes_in_the_end(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)
    (folder / "run" / ".new-fresh").write_bytes(b"half")
    (folder / "run" / ".new-stale").write_bytes(b"half")
    os.utime(folder / "run" / ".new-stale", (1e9, 1e9))
    assert [*store.names("run")] == [name_of(KEY)]
    assert {path.name for path in (folder / "run").iterdir()} == {name_of(KEY), ".new-fresh"}


# -- safety --------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_their_owners_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        ResultStore(str(folder)).write("run", KEY, 1)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "run", file_of(folder))] == [
        0o700,
        0o700,
        0o600,
    ]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("which", [".", "run"])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int, which: str) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)
    (folder / which).chmod(mode)
    for do in (lambda: store.read("run", KEY), lambda: store.write("run", KEY, 2), lambda: store.names("run")):
        with pytest.raises(
            ResultStoreError, match="may be written to by others, results are not safe there: chmod go-w"
        ):
            do()


def test_a_file_that_others_may_write_to_is_refused(folder: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)
    file_of(folder).chmod(0o622)
    with pytest.raises(ResultStoreError, match="may be written to by others"):
        store.read("run", KEY)


def test_no_link_is_followed_and_no_pipe_is_waited_for(folder: Path, tmp_path: Path) -> None:
    store = ResultStore(str(folder))
    store.write("run", KEY, 1)
    file = file_of(folder)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultStoreError):
        store.read("run", KEY)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(ResultStoreError, match="it is not a file"):
        store.read("run", KEY)


@pytest.mark.parametrize("run", ["../escape", "a/b", ".hidden", "new\nline", "*", "Äpfel & Birnen", "%2E", ".."])
def test_the_name_of_a_run_can_not_lead_elsewhere(store: ResultStore, folder: Path, run: str) -> None:
    store.write("other", KEY, 1)
    store.write(run, KEY, 2)
    assert store.read(run, KEY) == 2
    assert sorted(stored.run for stored in store.runs()) == sorted(["other", run])
    store.remove(run)
    assert [stored.run for stored in store.runs()] == ["other"]
    assert [path.name for path in folder.parent.iterdir()] in ([], ["results"])


# -- at the same time ----------------------------------------------------------------------------------------------


def test_who_reads_while_others_write_sees_whole_results(folder: Path) -> None:
    """Eight threads write the same two keys over and over, and each read is one of what was written."""
    stop = threading.Event()
    store = ResultStore(str(folder))
    for key in "ab":
        store.write("run", key, np.full(5000, -1))

    def write(number: int) -> None:
        while not stop.is_set():
            ResultStore(str(folder)).write("run", "ab"[number % 2], np.full(5000, number))

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, number) for number in range(6)]
        try:
            for _ in range(200):
                for key, numbers in (("a", {-1, 0, 2, 4}), ("b", {-1, 1, 3, 5})):
                    got = store.read("run", key)
                    assert len(set(got.tolist())) == 1
                    assert set(got.tolist()) <= numbers
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    assert {path.name for path in (folder / "run").iterdir()} == {name_of("a"), name_of("b")}


def test_who_writes_while_the_run_is_removed_is_told_or_begins_anew(folder: Path) -> None:
    stop = threading.Event()
    store = ResultStore(str(folder))

    def write() -> None:
        while not stop.is_set():
            try:
                store.write("run", KEY, np.ones(100))
            except (FileNotFoundError, ResultStoreError):
                continue

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            for _ in range(100):
                store.remove("run")
                try:
                    assert store.read("run", KEY).sum() == 100
                except FileNotFoundError:
                    continue
        finally:
            stop.set()
        for writer in writers:
            writer.result()
