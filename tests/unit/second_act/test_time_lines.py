"""The time lines of the demo's second act: what Dask tells of tasks, drawn as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarm.errors import TwinError
from swarm.second_act import Bar, Shown, bars_of, chart, draw

NAMES = {"tcp://a:1": "worker-0", "tcp://b:1": "worker-1"}


def streamed(key: Any, worker: str, thread: int, *spans: tuple[str, float, float]) -> dict[str, Any]:
    told = [{"action": action, "start": start, "stop": stop} for action, start, stop in spans]
    return {"key": key, "worker": worker, "thread": thread, "startstops": told}


def shown(title: str, elapsed_s: float, *bars: Bar, passed: bool = True) -> Shown:
    return Shown(title, elapsed_s, bars, "worker-1", passed, "right" if passed else "wrong")


def bar(worker: str, start_s: float, stop_s: float, function: str = "step") -> Bar:
    return Bar(f"{function}-1", function, worker, 0, start_s, stop_s)


def test_bars_are_what_was_computed_from_the_submission_on() -> None:
    stream = [
        streamed("step-2", "tcp://a:1", 77, ("transfer", 101.0, 101.5), ("compute", 101.5, 103.0)),
        streamed(("x", 1), "tcp://a:1", 78, ("compute", 100.5, 101.0)),
        streamed("step-1", "tcp://gone:1", 5, ("compute", 100.0, 100.25)),
    ]
    assert bars_of(stream, NAMES, 100.0) == [
        Bar("step-1", "step", "tcp://gone:1", 0, 0.0, 0.25),
        Bar("('x', 1)", "x", "worker-0", 1, 0.5, 1.0),
        Bar("step-2", "step", "worker-0", 0, 1.5, 3.0),
    ]


def test_rows_are_on_one_scale_and_fit_the_terminal() -> None:
    stock = shown("stock Dask", 10.0, bar("worker-0", 0, 5), bar("worker-1", 0, 10, "load"))
    ours = shown("swarm", 5.0, bar("worker-0", 0, 5), passed=False)
    lines = [line.plain for line in chart([stock, ours], 80)]
    assert all(len(line) <= 80 for line in lines[:-1])
    title, first, slow, verdict, _, swarm, same, idle, wrong, *_ = lines
    assert (title, swarm) == ("stock Dask   10.0 s", "swarm   5.00 s")
    assert first[18:].split()[0] == same[18:].split()[0]
    assert first.count("█") == pytest.approx(first.count("·"), abs=2)
    assert slow.startswith("worker-1 (slowed) █")
    assert slow.endswith("1 tasks")
    assert set(idle[18:].split()[0]) == {"·"}
    assert (verdict, wrong) == ("✓ right", "✗ wrong")
    assert lines[-1] == "swarm was 2.0 times as fast as stock Dask: the slow worker was given 0 tasks instead of 1"


def test_what_is_slower_is_said_to_be_slower() -> None:
    lines = chart([shown("stock Dask", 5.0, bar("worker-0", 0, 5)), shown("swarm", 10.0, bar("worker-0", 0, 9))], 40)
    assert lines[-1].plain.startswith("swarm was 2.0 times as slow as stock Dask")


def test_the_picture_has_both_and_needs_no_network(tmp_path: Path) -> None:
    both = [shown("stock Dask", 10.0, bar("worker-1", 0, 9)), shown("swarm", 5.0, bar("worker-0", 0, 5))]
    draw(both, tmp_path / "demo.html")
    page = (tmp_path / "demo.html").read_text()
    assert "stock Dask: 10.0 s" in page
    assert "worker-1 (slowed)" in page
    assert "<script src=" not in page
    with pytest.raises(TwinError, match="can't be written"):
        draw(both, tmp_path / "no" / "demo.html")
