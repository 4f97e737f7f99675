"""The child of an idle scheduler tunes on the latest run that is new, once."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler_plugins.decide.strategy import Strategy
from scheduler_plugins.io.journal import Journal
from scheduler_plugins.io.strategies import Strategies
from scheduler_plugins.on_dask.idle_tuning import NOTHING_NEW
from swarm import tune_idle
from swarm.errors import TwinError
from swarm.tune import Tuning, kind_of
from swarm.twin.replay import find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal with two runs, and one that failed."""
    journal = Journal(tmp_path)
    worker = SimpleNamespace(address="tcp://a", name="a", host="h", nthreads=2, memory_limit=0)
    for number, status in enumerate(("finished", "finished", "error")):
        run = f"run-{number}"
        journal.run_began(run, "naps", 24, 100.0 + number)
        journal.workers_take_part(run, (worker,))
        for task in range(24):
            span: Any = {"action": "compute", "start": 100.0 + task, "stop": 101.0 + task}
            journal.task_finished(run, {f"nap-{task}"}, f"nap-{task}", "nap", (), "tcp://a", [span], 28, ())
        journal.run_ended(run, status, "", 130.0 + number)
    journal.close()
    return tmp_path


def test_the_latest_that_is_new_comes_first_and_each_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[str] = []

    def steps(self: Tuning) -> Generator[None]:
        tuned.append(self._search[0].name)
        self.ended = "done"
        yield None

    monkeypatch.setattr(Tuning, "steps", steps)
    assert tune_idle.not_tuned_on(folder) == "run-1"
    assert tune_idle.tune_one(folder, 10.0)
    assert tune_idle.not_tuned_on(folder) == "run-0"
    assert tune_idle.tune_one(folder, 10.0)
    assert not tune_idle.tune_one(folder, 10.0)
    assert (tuned, Strategies(folder).read().tuned) == (["naps", "naps"], ["run-1", "run-0"])


def test_one_that_can_not_be_tuned_on_is_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(self: Tuning) -> Generator[None]:
        yield None
        raise TwinError("a deadlock")

    monkeypatch.setattr(Tuning, "steps", steps)
    with pytest.raises(TwinError, match="a deadlock"):
        tune_idle.tune_one(folder, 10.0)
    assert tune_idle.not_tuned_on(folder) == "run-0"


def test_what_was_known_of_such_work_is_begun_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = Strategies(folder), []
    found = file.read()
    found.keep(kind_of(find("run-1", folder / "journal.sqlite").work), "naps", [Strategy(gravity=5.0)])
    file.write(found)

    def steps(self: Tuning) -> Generator[None]:
        seen.extend(self._known)
        yield None

    monkeypatch.setattr(Tuning, "steps", steps)
    tune_idle.tune_one(folder, 10.0)
    assert seen == [Strategy(gravity=5.0)]
    assert file.read().of, "a search that was cut short leaves what was known"


def test_its_exit_code_says_that_nothing_is_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_idle, "end_with", lambda parent: None)
    monkeypatch.setattr(tune_idle.os, "nice", lambda by: by)
    answers = iter([True, False])
    monkeypatch.setattr(tune_idle, "tune_one", lambda *_: next(answers))
    assert tune_idle.main("1", str(folder), "5") == 0
    assert tune_idle.main("1", str(folder), "5") == NOTHING_NEW
