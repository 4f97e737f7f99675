"""Where local clusters keep their journal, and when they keep none."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.config import Layer, resolve
from swarm.deploy import state

VARIABLE = "DASK_SWARM__STATE_DIRECTORY"


def test_the_state_home_of_the_desktop_standard() -> None:
    assert state.local_directory({"XDG_STATE_HOME": "/state"}) == Path("/state/swarm/local")
    home = Path.home() / ".local/state/swarm/local"
    assert state.local_directory({}) == state.local_directory({"XDG_STATE_HOME": "relative"}) == home


def test_without_a_home_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state.local_directory() is None
    assert VARIABLE not in state.environment(resolve([]))


def test_local_clusters_keep_a_journal_unless_told_otherwise() -> None:
    here = state.local_directory()
    assert here is not None
    assert state.environment(resolve([])) == {VARIABLE: repr(str(here))}
    assert state.journal_directory(resolve([])) == here
    elsewhere = resolve([Layer("file", {"state_directory": "~/there", "max_agents": 3})])
    assert state.environment(elsewhere) == {VARIABLE: "'~/there'", "DASK_SWARM__MAX_AGENTS": "3"}
    assert state.journal_directory(elsewhere) == Path.home() / "there"
    nowhere = resolve([Layer("file", {"state_directory": None})])
    assert state.environment(nowhere) == {VARIABLE: "None"}
    assert state.journal_directory(nowhere) is None
