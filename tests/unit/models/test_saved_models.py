"""The file of what was learned: it comes back as it was, and whatever else lies there does no harm."""

from __future__ import annotations

import json
import os
import random
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler_plugins.io import kept as files
from scheduler_plugins.io import models as module
from scheduler_plugins.io.models import FILE, Models
from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.learn.protocol import Observation, TaskFeatures, magnitude
from swarm.errors import ModelsError


def features(n: int, function: str = "lib.f", worker: str = "") -> TaskFeatures:
    return TaskFeatures(function, ("n",), (magnitude(n),), 0.0, 0, worker, 1)


@pytest.fixture
def learned() -> Costs:
    costs, rng = Costs(random.Random(0)), random.Random(0)
    for _ in range(300):
        n, worker = rng.randint(1, 50), rng.choice("abc")
        seconds = 0.1 * n * (4.0 if worker == "c" else 1.0)
        costs.observe(features(n, worker=worker), Observation(seconds, 1000.0 * n, 1e6))
        costs.observe(features(n, "lib.g"), Observation(2.0))
    return costs


@pytest.fixture
def kept(tmp_path: Path, learned: Costs) -> Models:
    models = Models(tmp_path / "state")
    models.write(list(learned.function_states()), learned.speeds.to_state())
    return models


def test_what_was_learned_comes_back(kept: Models, learned: Costs) -> None:
    fresh = Costs(random.Random(1))
    assert fresh.merge(kept.read()) == 2
    assert kept.refused is None
    for n in (3, 30):
        before, after = learned.predict(features(n)), fresh.predict(features(n))
        assert before is not None
        assert after is not None
        assert after.p50_s == pytest.approx(before.p50_s, rel=0.15)
    assert fresh.speeds.log_factor("c") > 0.7


def test_it_counts_for_little_once_there_is_news(kept: Models) -> None:
    fresh = Costs(random.Random(1))
    fresh.merge(kept.read())
    for _ in range(15):
        fresh.observe(features(10, "lib.g"), Observation(20.0))
    said = fresh.predict(features(10, "lib.g"))
    assert said is not None
    assert said.p50_s == pytest.approx(20.0, rel=0.3)


def test_nobody_else_may_read_it(kept: Models) -> None:
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700


def test_it_is_replaced_as_a_whole(kept: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of it: the old file stays, and no other one."""
    before = kept.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write([], {})
    assert kept.path.read_bytes() == before
    assert [path.name for path in kept.path.parent.iterdir()] == [FILE]


def test_there_is_none_at_first(tmp_path: Path) -> None:
    models = Models(tmp_path)
    assert models.read() is None
    assert models.refused is None


def _changed(change: Callable[[list[Any]], None]) -> Callable[[Path], None]:
    """The file with other entries, and no checksum that fits."""

    def spoil(path: Path) -> None:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        change(entries)
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))

    return spoil


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _cut_at_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (_cut, "cut short|checksum"),
    "cut at a line": (_cut_at_a_line, "cut short"),
    "empty": (lambda path: path.write_bytes(b""), "cut short"),
    "garbage": (lambda path: path.write_bytes(os.urandom(5000)), ""),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), ""),
    "another version": (_changed(lambda entries: entries[0].update(version=99)), "version 99"),
    "another program's": (lambda path: path.write_text('{"a": 1}\n'), "this swarm reads"),
    "not an object": (lambda path: path.write_text("[1]\n"), "not an object"),
    "NaN": (lambda path: path.write_text(path.read_text().replace("0.", "NaN, 0.", 1)), "NaN"),
    "a number changed": (_changed(lambda entries: entries[1]["duration"].update(samples=10**9)), "checksum"),
    "deep": (lambda path: path.write_text("[" * 100_000 + "\n"), ""),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_makes_no_sense_is_put_aside(kept: Models, name: str) -> None:
    spoil, reason = SPOILT[name]
    spoil(kept.path)
    assert kept.read() is None
    assert isinstance(kept.refused, ModelsError)
    assert "\n" not in str(kept.refused)
    assert re.search(reason, str(kept.refused)), str(kept.refused)
    [aside] = kept.path.parent.iterdir()
    assert aside.name.startswith(f"{FILE}.damaged-")
    assert aside.name in str(kept.refused)


def test_numbers_that_a_model_cannot_have_are_put_aside_too(kept: Models, learned: Costs) -> None:
    """Written by us, with a checksum that fits: the cost model itself refuses it."""
    states = [dict(state) for state in learned.function_states()]
    states[0]["duration"] = {"samples": -5}
    kept.write(states, {})
    fresh = Costs(random.Random(0))
    with pytest.raises(ValueError, match="damaged"):
        fresh.merge(kept.read())
    assert len(fresh) == 0


def test_a_model_with_a_number_that_is_none_is_not_written(kept: Models, learned: Costs) -> None:
    good, bad = (dict(state) for state in learned.function_states())
    bad["duration"] = float("nan")
    kept.write([good, bad], {})
    state = kept.read()
    assert state is not None
    assert len(state["functions"]) == 1


def test_a_file_that_is_too_large_is_not_read(kept: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    assert kept.read() is None
    assert "MiB" in str(kept.refused)


def test_only_the_last_damaged_files_are_kept(kept: Models) -> None:
    for _ in range(6):
        kept.path.write_text("?")
        assert kept.read() is None
    assert len(list(kept.path.parent.iterdir())) == files.KEPT_ASIDE


def test_a_link_or_a_pipe_is_not_followed(kept: Models, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    kept.path.rename(target)
    kept.path.symlink_to(target)
    assert kept.read() is None
    assert target.exists()
    os.mkfifo(kept.path)
    assert kept.read() is None


def test_a_folder_that_everybody_may_write_to_is_refused(kept: Models) -> None:
    kept.path.parent.chmod(0o777)
    with pytest.raises(ModelsError, match="chmod o-w"):
        kept.write([], {})
