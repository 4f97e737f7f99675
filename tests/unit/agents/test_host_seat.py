"""Who acts for a host: one, always, and another when it is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from swarm.agents.kinds.host_seat import NOTE_BYTES, HostSeat
from swarm.errors import AgentError


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = psutil.Process().num_fds()
    yield tmp_path / "agents" / "thermal"
    assert psutil.Process().num_fds() == before


def test_one_sits_until_it_leaves_and_nothing_stays_behind(path: Path) -> None:
    first, second = HostSeat(path), HostSeat(path)
    assert first.take()
    assert first.take()
    assert not second.take()
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    first.leave()
    first.leave()
    assert second.take()
    assert second.noted() == {}
    second.leave()
    assert not path.parent.exists()


def test_a_folder_with_other_files_stays(path: Path) -> None:
    seat = HostSeat(path)
    seat.take()
    path.with_name("ledger").write_text("")
    seat.leave()
    assert [file.name for file in path.parent.iterdir()] == ["ledger"]


@pytest.mark.parametrize("garbage", [b"", b"\0" * 50, b"[1]", b'{"cores": ', b"\xff" * NOTE_BYTES])
def test_a_garbage_note_is_none(path: Path, garbage: bytes) -> None:
    seat = HostSeat(path)
    seat.take()
    path.write_bytes(garbage)
    assert seat.noted() == {}
    seat.note({"a": 1})
    assert seat.noted() == {"a": 1}
    with pytest.raises(ValueError, match="at most"):
        seat.note({"a": "b" * NOTE_BYTES})
    seat.leave()


def test_a_file_that_was_replaced_is_not_the_seat(path: Path) -> None:
    old = HostSeat(path)
    old.take()
    path.unlink()
    new = HostSeat(path)
    assert new.take()
    old.leave()
    assert path.exists()
    new.leave()


def test_what_is_not_ours_alone_is_refused_with_one_line(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    with pytest.raises(AgentError, match="mode 0700"):
        HostSeat(path).take()
    path.parent.chmod(0o700)
    path.symlink_to("/etc/passwd")
    with pytest.raises(AgentError, match="can't be opened"):
        HostSeat(path).take()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(AgentError, match="is no file"):
        HostSeat(path).take()
    path.unlink()
    path.mkdir()
    with pytest.raises(AgentError, match="can't be opened"):
        HostSeat(path).take()
