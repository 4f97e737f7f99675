"""Fans: only ever faster, only those that let us, and always given back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from swarm.agents.kinds.fans import Fans
from tests.support.thermal_tree import fan, hwmon, write

CHIP = "sys/class/hwmon/hwmon0"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Two fans of the board, one that a person set by hand, one without a switch."""
    return write(
        tmp_path, hwmon(0, "nct6775", {**fan(1, 2, 90), **fan(2, 5, 255), **fan(3, 1, 40), "pwm4": 70, "pwm1_mode": 1})
    )


def modes(host: Path) -> list[tuple[int, int]]:
    return [
        (int((host / CHIP / f"pwm{n}_enable").read_text()), int((host / CHIP / f"pwm{n}").read_text()))
        for n in (1, 2, 3)
    ]


def test_fans_of_the_board_turn_full_and_are_given_back(host: Path) -> None:
    fans, notes = Fans(host), []
    assert fans.raise_all(lambda automatic: notes.append((dict(automatic), modes(host)))) == [
        f"{CHIP}/pwm1",
        f"{CHIP}/pwm2",
    ]
    assert notes == [({f"{CHIP}/pwm1": 2, f"{CHIP}/pwm2": 5}, [(2, 90), (5, 255), (1, 40)])]  # before any change
    assert modes(host) == [(1, 255), (1, 255), (1, 40)]
    assert fans.raise_all(notes.append) == []
    assert len(fans.give_back(lambda automatic: notes.append(dict(automatic)))) == 2
    assert [mode for mode, _ in modes(host)] == [2, 5, 1]
    assert notes[-1] == {}
    assert fans.give_back(notes.append) == []


def test_the_next_gives_back_what_a_killed_one_had_taken_and_nothing_else(host: Path) -> None:
    killed = Fans(host)
    killed.raise_all(lambda _: None)
    fans = Fans(host)
    fans.remember({**killed.automatic, "etc/passwd": 2, f"{CHIP}/pwm3": 1, f"{CHIP}/pwm9": 2})
    assert fans.automatic == killed.automatic
    fans.remember({f"{CHIP}/pwm3": "2"})
    fans.give_back(lambda _: None)
    assert [mode for mode, _ in modes(host)] == [2, 5, 1]


@pytest.mark.parametrize("answer", [OSError(5, "Input/output error"), "0"])
def test_a_fan_that_does_not_obey_goes_back_to_the_board_at_once(
    host: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    real = Path.write_text

    def write_text(path: Path, text: str) -> int:
        if path.name == "pwm1":
            if isinstance(answer, OSError):
                raise answer
            text = answer
        return real(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    fans = Fans(host)
    assert fans.raise_all(lambda _: None) == [f"{CHIP}/pwm2"]
    assert modes(host)[0][0] == 2
    assert list(fans.failures) == [f"{CHIP}/pwm1"]
    assert fans.names == [f"{CHIP}/pwm2", f"{CHIP}/pwm3"]


def test_a_fan_that_can_not_be_given_back_stays_in_the_note(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fans = Fans(host)
    fans.raise_all(lambda _: None)
    with monkeypatch.context() as patch:

        def refuse(path: Path, text: str) -> int:
            raise OSError(5, "Input/output error")

        patch.setattr(Path, "write_text", refuse)
        assert fans.give_back(lambda _: None) == []
    assert len(fans.automatic) == 2
    assert len(fans.give_back(lambda _: None)) == 2


def test_fans_that_can_not_be_written_are_left_alone(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert Fans(host).names == []
