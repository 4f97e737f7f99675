"""The files of strategies: they come back as they were, and whatever else lies there does no harm."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import ANY, MOST_OF_WORK, MOST_WORKS, Choices, Found, Strategies, fingerprint
from swarm.errors import ModelsError

WORK = fingerprint({"load": 100, "sum": 20})
HEAVY, LIGHT = Strategy(gravity=4.0), Strategy(gravity=1.0)


@pytest.fixture
def kept(tmp_path: Path) -> Strategies:
    file, found = Strategies(tmp_path / "state"), Found()
    found.keep(WORK, "my work", [HEAVY, LIGHT])
    found.keep(ANY, "any work", [LIGHT, Strategy(critical=1.0)])
    found.note_tuned("run-1")
    file.write(found)
    return file


def test_they_come_back(kept: Strategies) -> None:
    found = kept.read()
    assert found.for_work(WORK) == [HEAVY, LIGHT, Strategy(critical=1.0)]
    assert found.names[WORK] == "my work"
    assert found.tuned == ["run-1"]
    assert kept.refused is None


def test_work_of_another_kind_gets_what_is_good_for_any(kept: Strategies) -> None:
    assert kept.read().for_work(fingerprint({"other": 5})) == [LIGHT, Strategy(critical=1.0)]


def test_nobody_else_may_read_them(kept: Strategies) -> None:
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700


def test_they_are_replaced_as_a_whole(kept: Strategies, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write(Found())
    assert kept.path.read_bytes() == before
    assert list(kept.path.parent.iterdir()) == [kept.path]


def test_there_are_none_at_first(tmp_path: Path) -> None:
    file = Strategies(tmp_path)
    assert file.read() == Found()
    assert (file.stamp(), file.refused) == (None, None)


def test_a_new_file_is_noticed(kept: Strategies) -> None:
    before = kept.stamp()
    kept.write(Found())
    assert kept.stamp() != before


def _version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))


def _far(path: Path) -> None:
    path.write_text(path.read_text().replace('"gravity": 4.0', '"gravity": 4e9'))


SPOILT: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "another version": _version,
    "no object": lambda path: path.write_text("[1]"),
    "NaN": lambda path: path.write_text(path.read_text().replace("4.0", "NaN")),
    "out of bounds": _far,
    "a key is missing": lambda path: path.write_text(path.read_text().replace('"tuned"', '"other"')),
    "deep": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_makes_no_sense_is_put_aside(kept: Strategies, name: str) -> None:
    SPOILT[name](kept.path)
    assert kept.read() == Found()
    assert isinstance(kept.refused, ModelsError)
    assert "\n" not in str(kept.refused)
    [aside] = kept.path.parent.iterdir()
    assert aside.name.startswith("strategies.json.damaged-")
    assert aside.name in str(kept.refused)


def test_a_link_is_not_followed(kept: Strategies, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    kept.path.rename(target)
    kept.path.symlink_to(target)
    assert kept.read() == Found()
    assert target.exists()


def test_a_folder_that_everybody_may_write_to_is_refused(kept: Strategies) -> None:
    kept.path.parent.chmod(0o777)
    with pytest.raises(ModelsError, match="chmod o-w"):
        kept.write(Found())


def test_numbers_that_this_swarm_does_not_know_are_left_out(kept: Strategies) -> None:
    kept.path.write_text(kept.path.read_text().replace('"gravity": 4.0', '"gravity": 4.0, "levity": 3.0'))
    assert kept.read().for_work(WORK)[0] == HEAVY


def test_what_is_kept_is_bounded() -> None:
    found = Found()
    for number in range(MOST_WORKS + 50):
        found.keep(f"work-{number}", "w", [Strategy(gravity=1.0 + i / 100) for i in range(9)])
        found.note_tuned(f"run-{number % 3}")
    assert len(found.of) == len(found.names) == MOST_WORKS
    assert {len(each) for each in found.of.values()} == {MOST_OF_WORK}
    assert sorted(found.tuned) == ["run-0", "run-1", "run-2"]


def test_the_default_is_no_candidate_and_nothing_found_is_nothing_kept() -> None:
    found = Found()
    found.keep(WORK, "w", [DEFAULT, HEAVY])
    assert found.of == {WORK: [HEAVY]}
    found.keep(WORK, "w", [DEFAULT])
    assert found == Found()


def test_the_same_work_has_the_same_fingerprint_whatever_its_size_exactly() -> None:
    assert fingerprint({"load": 105, "sum": 22, "finalize": 1}) == WORK
    assert fingerprint({"load": 105, "product": 22}) != WORK
    assert fingerprint({"load": 1000, "sum": 200}) != WORK
    assert fingerprint({}) == fingerprint({})


def test_work_just_beside_a_boundary_of_sizes_is_still_found() -> None:
    """724 and 725 tasks round to different powers of two."""
    found = Found()
    found.keep(fingerprint({"load": 724}), "w", [HEAVY])
    assert fingerprint({"load": 724}) != fingerprint({"load": 725})
    assert found.for_work(fingerprint({"load": 725})) == [HEAVY]


def test_choices_come_back_and_damaged_ones_do_not(tmp_path: Path) -> None:
    choices = Choices(tmp_path)
    assert choices.read() is None
    choices.write([["w", 3, {"default": [0.1]}, []]])
    assert choices.read() == [["w", 3, {"default": [0.1]}, []]]
    assert stat.S_IMODE(choices.path.stat().st_mode) == 0o600
    choices.path.write_text("{")
    assert choices.read() is None
    assert choices.refused is not None
