"""Sockets are in a folder that is ours alone; anything else in its place is refused."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from swarm.channels import folder as folders
from swarm.channels.messages import Priority
from swarm.channels.security import new_token
from swarm.channels.station import Station
from swarm.errors import ChannelError


def test_the_folder_of_the_session_is_used_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert folders.station_folder() == tmp_path / "swarm"
    assert stat.S_IMODE((tmp_path / "swarm").stat().st_mode) == 0o700


@pytest.mark.parametrize("runtime", ["", "/nowhere/at/all"])
def test_without_one_it_is_a_temporary_folder_with_our_number(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folders.station_folder() == tmp_path / f"swarm-{os.getuid()}"


def test_a_folder_open_to_others_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        with pytest.raises(ChannelError) as caught:
            folders.private_folder(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


async def test_a_station_starts_only_in_a_safe_folder(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ChannelError, match="not safe"):
        await Station(tmp_path / "open", new_token(), lambda peer, frame, priority: True).start()


async def test_a_path_that_is_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 20)
    folder.parent.mkdir(mode=0o700)
    received: list[bytes] = []
    async with (
        Station(folder, (token := new_token()), lambda peer, frame, priority: True) as near,
        Station(folder, token, lambda peer, frame, priority: bool(received.append(frame)) or True) as far,
    ):
        assert len(str(far.path)) > 200
        assert stat.S_IMODE(far.path.stat().st_mode) == 0o600
        await near.send(far.path, far.id, b"hello", Priority.NORMAL, 5.0)
    assert received == [b"hello"]
    assert not list(folder.iterdir())


async def test_sockets_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folders.private_folder(folder)
    folders.listen(folder / f"{'0' * 16}.sock").close()
    async with Station(folder, new_token(), lambda peer, frame, priority: True) as one:
        assert list(folder.iterdir()) == [one.path]
        async with Station(folder, new_token(), lambda peer, frame, priority: True) as other:
            assert set(folder.iterdir()) == {one.path, other.path}
            assert one.refused == 0
        assert list(folder.iterdir()) == [one.path]


@pytest.mark.parametrize("peer_id", ["", "xyz", "0" * 15, "G" * 16, "0" * 17])
async def test_what_is_no_id_of_a_station_is_refused(peer_id: str, tmp_path: Path) -> None:
    async with Station(tmp_path / "s", new_token(), lambda peer, frame, priority: True) as one:
        with pytest.raises(ChannelError, match="no id of a station"):
            await one.send(tmp_path / "x", peer_id, b"", Priority.NORMAL, 1.0)
