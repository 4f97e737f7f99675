from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from swarm import leftovers
from swarm.cli import cli

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the ledger needs Linux")

USER = """
import sys
from swarm.channels import folder
from swarm.ledger import Ledger
ledger = Ledger(name="ledger-" + sys.argv[1])
sock = folder.listen(folder.station_folder() / (sys.argv[1] + folder.SUFFIX))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "swarm"


@contextmanager
def using(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a station and a ledger; it is killed at the end."""
    command = [sys.executable, "-c", USER, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def found() -> dict[str, tuple[int, list[str]]]:
    return {left.what: (left.used, [path.name for path in left.dead]) for left in leftovers.look()}


def test_nothing_was_left_where_there_is_no_folder(folder: Path) -> None:
    assert found() == {"stations": (0, []), "ledgers": (0, [])}
    assert not folder.exists()


def test_the_dead_are_removed_and_the_living_are_not(folder: Path) -> None:
    with using("alive"), using("stopped") as stopped:
        with using("dead"):
            assert found() == {"stations": (3, []), "ledgers": (3, [])}
        stopped.send_signal(signal.SIGSTOP)  # who is stopped is not dead
        assert found() == {"stations": (2, ["dead.sock"]), "ledgers": (2, ["ledger-dead"])}
        (folder / "ledger-of-another-kind").write_text("not ours to judge")
        said = CliRunner().invoke(cli, ["doctor"])
        assert "2 in use, 1 left behind" in " ".join(said.stdout.split())
        said = CliRunner().invoke(cli, ["doctor", "--clean"])
        assert "removed 1 of the stations and 1 of the ledgers" in said.stderr
        assert "2 in use, none left behind" in " ".join(said.stdout.split())
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["alive.sock", "ledger-alive", "ledger-of-another-kind", "ledger-stopped", "stopped.sock"]
    said = CliRunner().invoke(cli, ["doctor", "--clean"])
    assert "removed 2 of the stations and 2 of the ledgers" in said.stderr
    assert "nothing to remove" in CliRunner().invoke(cli, ["doctor", "--clean"]).stderr


def test_who_joins_between_look_and_removal_keeps_it(folder: Path) -> None:
    with using("shared"):
        pass
    stations, ledgers = leftovers.look()
    with using("shared"):
        assert (stations.remove(), ledgers.remove()) == (0, 0)
        assert found() == {"stations": (1, []), "ledgers": (1, [])}
