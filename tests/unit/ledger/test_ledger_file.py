"""The file of the ledger: made private, refused when it is not ours or not a ledger, gone with the last who leaves."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm.errors import LedgerError
from swarm.ledger import budget, shared, table
from swarm.ledger.leases import Ledger
from swarm.ledger.table import Budget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "swarm"


def test_file_and_folder_are_for_us_alone_and_go_with_the_last(folder: Path) -> None:
    with Ledger(folder, "ledger") as first:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
        with Ledger(folder, "ledger") as second:
            assert second.path.samefile(first.path)
        assert first.path.exists()
    assert not folder.exists()


def test_a_folder_with_something_else_in_it_stays(folder: Path) -> None:
    folder.mkdir(0o700)
    (folder / "other").touch()
    Ledger(folder, "ledger").close()
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_the_first_brings_the_budget(folder: Path) -> None:
    with Ledger(folder, "ledger", Budget(8)), Ledger(folder, "ledger", Budget(2)) as second:
        assert second.standing().budget == Budget(8)


def test_what_was_left_by_those_who_were_killed_is_cleaned_by_the_next(folder: Path) -> None:
    dead = Ledger(folder, "ledger", Budget(4))
    dead.lease(3)
    dead.began()
    dead.limit(cores=2, watts=None, for_s=60, said_by="test")
    dead._table.forget()
    dead._is_open = False
    with Ledger(folder, "ledger", Budget(4)) as next_one:
        assert next_one.standing().cores_free == 4
    assert not folder.exists()


def test_one_who_was_killed_while_it_made_the_file_leaves_one_that_can_be_used(folder: Path) -> None:
    folder.mkdir(0o700)
    (folder / "ledger").write_bytes(bytes(table.SIZE_BYTES))  # everything but the words
    (folder / "ledger").chmod(0o600)
    with Ledger(folder, "ledger", Budget(4)) as ledger:
        assert ledger.standing().budget == Budget(4)


def write(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)
        path.chmod(0o600)

    return make


def of_version_2(path: Path) -> None:
    words = list(table.new_header(Budget(2)))
    words[table.VERSION_AT] = 2
    write(table.HEADER.pack(*words).ljust(table.SIZE_BYTES, b"\0"))(path)


def open_to_others(path: Path) -> None:
    path.touch()
    path.chmod(0o640)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (write(b"no ledger"), "/ledger is no ledger; remove the file"),
        (write(b"x" * table.SIZE_BYTES), "/ledger is no ledger; remove the file"),
        (of_version_2, "/ledger is a ledger of version 2, this swarm knows version 1; run one version of swarm"),
        (lambda path: path.symlink_to("elsewhere"), "/ledger is a symbolic link, a ledger is not; remove it"),
        (open_to_others, "/ledger is open to others (mode 0640, must be 0600); chmod 600 it"),
        (lambda path: os.mkfifo(path, 0o600), "/ledger is no ledger; remove it"),
        (Path.mkdir, "/ledger can't be opened: Is a directory"),
        (lambda path: path.parent.chmod(0o755), "is open to others (mode 0755, must be 0700); chmod 700 it"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(folder: Path, make: Callable[[Path], None], said: str) -> None:
    folder.mkdir(0o700)
    make(folder / "ledger")
    files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(LedgerError) as caught:
        Ledger(folder, "ledger")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == files


@pytest.mark.parametrize("make", [Path.touch, lambda folder: folder.symlink_to(folder.parent)])
def test_a_folder_that_is_none_is_refused(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    with pytest.raises(LedgerError, match="is not a folder, the ledger needs one there; remove it"):
        Ledger(folder, "ledger")


def test_no_place_for_the_folder(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no folder"):
        Ledger(tmp_path / "absent" / "swarm", "ledger")


def test_what_belongs_to_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(0o700)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(LedgerError, match=rf"belongs to user {uid}, not to us \({uid + 1}\)"):
        Ledger(folder, "ledger")


def test_a_full_file_system_is_an_error_and_no_bus_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LedgerError, match="can't be made: No space left on device"):
        Ledger(folder, "ledger")


def test_nobody_waits_for_ever_for_one_who_stopped_with_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LOCK_TIMEOUT_S", 0.05)
    with Ledger(folder, "ledger") as ledger:
        other = os.open(ledger.path, os.O_RDWR)
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, shared._LOCK)
        with pytest.raises(LedgerError, match=r"was locked for 0\.05 s; is one of its processes stopped\?"):
            ledger.lease()
        ledger.began()  # what tasks do never waits
        ledger.ended()
        os.close(other)
        ledger.lease().close()


def test_a_table_takes_256_and_no_more(folder: Path) -> None:
    with Ledger(folder, "ledger", Budget(1000)) as ledger:
        held = [ledger.lease(1) for _ in range(table.SLOTS - 1)]
        with pytest.raises(LedgerError, match="is full: 256"):
            ledger.lease(1)
        held[7].close()
        ledger.lease(1)


def test_the_folder_is_in_the_runtime_directory_where_there_is_one_of_ours(tmp_path: Path) -> None:
    fallback = Path(f"/dev/shm/swarm-{os.geteuid()}")
    assert budget.private_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "swarm"
    for wrong in ("", "relative", str(tmp_path / "absent")):
        assert budget.private_folder({"XDG_RUNTIME_DIR": wrong}) == fallback


def test_the_budget_is_what_this_process_may_use() -> None:
    found, name = budget.of_this_host()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert 0 < found.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert name.startswith("ledger-")
