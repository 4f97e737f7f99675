"""The private folder: closed to others, removed, kept on purpose, or swept away after its owner was killed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from swarm.deploy.folder import PREFIX, PrivateFolder


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_kept_are_the_logs_and_they_stay(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    (folder.path / "scratch").mkdir()
    for name in ("scheduler.json", "scratch/spilled", "worker-0.log"):
        (folder.path / name).write_text("x")
    folder.keep()
    PrivateFolder(tmp_path).remove()
    assert [entry.name for entry in folder.path.iterdir()] == ["worker-0.log"]


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    living, dead = PrivateFolder(tmp_path), PrivateFolder(tmp_path)
    os.close(dead._lock)  # what the kernel does when the owner is killed
    being_made = tmp_path / f"{PREFIX}new"
    being_made.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    PrivateFolder(tmp_path).remove()
    assert not dead.path.exists()
    assert living.path.exists()
    assert being_made.exists()
    assert (elsewhere / "lock").exists()
    living.remove()
