"""Pictures of simulations: what is drawn where, without looking at it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bokeh.models import Quad, Scatter, Segment
from bokeh.models.annotations import Legend, Span
from bokeh.plotting import figure

from swarm.errors import TwinError
from swarm.twin import pictures
from swarm.twin.gantt import gantt
from swarm.twin.outcome import Outcome
from swarm.twin.record import Executed

BARS = [
    Executed("load-0", "w2", 0, 0.0, 1.0, "done"),
    Executed("load-1", "w10", 0, 0.0, 2.0, "lost"),
    Executed("load-1", "w2", 1, 2.0, 4.0, "done"),
    Executed("sum-0", "w2", 0, 4.0, -1.0, "running"),
]
EVENTS = [
    (-0.1, "joined", "w2"),
    (-0.1, "joined", "w10"),
    (2.0, "Crash", "w10"),
    (2.0, "ended (killed)", "w10"),
    (3.0, "joined", "w10"),
    (1.0, "Hang", "w2"),
    (1.5, "Hang is over", "w2"),
]


def data_of(picture: figure, kind: type[Any]) -> list[dict[str, list[Any]]]:
    return [
        {name: list(values) for name, values in renderer.data_source.data.items()}
        for renderer in picture.renderers
        if isinstance(renderer.glyph, kind)
    ]


def legend_of(picture: figure) -> list[str]:
    (legend,) = picture.select(Legend)
    return [item.label.value for item in legend.items]


def test_each_thread_has_a_row_and_workers_are_in_their_natural_order() -> None:
    picture = gantt(BARS, makespan_s=5.0, events=EVENTS)
    assert picture.yaxis[0].major_label_overrides == {0.5: "w2", 2.0: "w10"}
    bars = data_of(picture, Quad)[-1]
    assert [(top + bottom) / 2 for top, bottom in zip(bars["top"], bars["bottom"], strict=True)] == [0, 2, 1, 0]
    assert bars["right"] == [1.0, 2.0, 4.0, 5.0], "what still ran ends with the picture"


def test_what_was_not_kept_is_grey_and_hatched() -> None:
    bars = data_of(gantt(BARS, makespan_s=5.0, events=EVENTS), Quad)[-1]
    kept, lost, again, _ = bars["fill"]
    assert kept == again != lost
    assert bars["hatch"][1] == "/"
    assert bars["hatch"][0] == " "


def test_faults_ends_and_joins_are_marked() -> None:
    picture = gantt(BARS, makespan_s=5.0, events=EVENTS)
    assert legend_of(picture) == [
        *("load", "lost", "running", "worker away", "fault lasts", "fault", "worker ends", "worker joins"),
    ]
    away, ill = data_of(picture, Quad)[:2]
    assert (away["left"], away["right"]) == ([2.0], [3.0])
    assert (ill["left"], ill["right"]) == ([1.0], [1.5])
    assert [marks["x"] for marks in data_of(picture, Scatter)] == [[2.0, 1.0], [2.0], [3.0]]


def test_an_idle_worker_has_a_row_of_its_own() -> None:
    picture = gantt(BARS[:1], makespan_s=5.0, events=[*EVENTS[:2], (-0.1, "joined", "idle")])
    assert list(picture.yaxis[0].major_label_overrides.values()) == ["idle", "w2", "w10"]


def test_names_of_many_workers_are_thinned_out() -> None:
    bars = [Executed(f"task-{i}", f"w{i}", 0, 0.0, 1.0, "done") for i in range(400)]
    picture = gantt(bars, makespan_s=1.0)
    assert picture.height < 1600
    assert len(picture.yaxis[0].ticker.ticks) * 12 <= picture.height


def test_colours_differ_while_there_are_enough() -> None:
    few = [Executed(f"{name}-0", "w0", 0, float(i), i + 1.0, "done") for i, name in enumerate("abcdefg")]
    many = [Executed(f"{'x' * i}-0", "w0", 0, float(i), i + 1.0, "done") for i in range(1, 31)]
    assert len(set(data_of(gantt(few, makespan_s=7.0), Quad)[-1]["fill"])) == 7
    picture = gantt(many, makespan_s=31.0)
    assert len(set(data_of(picture, Quad)[-1]["fill"])) == 30
    assert legend_of(picture)[-1] == "… 30 in all"


def run(policy: str, seed: int, ratio: float | None, **more: Any) -> dict[str, Any]:
    status = "finished" if ratio is not None else "deadlock"
    makespan_s = None if ratio is None else 10 * ratio
    values = {"scenario": "a", "policy": policy, "seed": seed, "status": status, "ratio": ratio, "faults": []}
    return {**values, "makespan_s": makespan_s, "message": "", **more}


def test_comparison_draws_all_runs_and_medians_of_those_that_all_finished() -> None:
    runs = [run("stock", 0, 1.5), run("stock", 1, 2.5), run("stock", 2, 1.7), run("odd", 0, 1.2), run("odd", 1, None)]
    picture = pictures.comparison(runs)
    dots, no_crosses, odd, crosses = data_of(picture, Scatter)
    assert dots["x"] == [1.5, 2.5, 1.7]
    assert no_crosses["x"] == []
    assert odd["x"] == [1.2]
    assert crosses["x"][0] > 2.5
    assert crosses["status"] == ["deadlock"]
    assert [median["x0"] for median in data_of(picture, Segment)] == [[1.7], []]
    assert [span.location for span in picture.select(Span)] == [1.0]


def test_scenarios_with_faults_are_marked() -> None:
    picture = pictures.comparison(
        [run("stock", 0, 1.5), run("stock", 0, 2.0, scenario="b", faults=[{"fault": "Hang"}])]
    )
    assert picture.yaxis[0].major_label_overrides == {0: "a", 1: "b *"}
    assert pictures.FAULTS_NOTE in [title.text for title in picture.below if hasattr(title, "text")]


def test_scaling_leaves_out_what_did_not_finish() -> None:
    point = {
        "workers": 10,
        "tasks": 100,
        "status": "finished",
        "tasks_per_cpu_s": 2e3,
        "peak_bytes": 2**20,
        "cpu_s": 1.0,
    }
    both: Any = pictures.scaling([point, {"workers": 10, "tasks": 1000, "status": "stopped after 1 s"}])
    speed, memory = both.children
    assert data_of(speed, Scatter)[0]["y"] == [2000.0]
    assert data_of(memory, Scatter)[0]["y"] == [1.0]


class _Links(HTMLParser):
    """Whatever a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attrs if name in ("src", "href")]


def test_html_is_complete_in_itself(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    pictures.save(gantt(BARS, makespan_s=5.0, title="a & b"), path)
    page = path.read_text()
    assert "load-0" in page
    links = _Links()
    links.feed(page)
    assert links.found == []


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match=r"\.html or \.png"):
        pictures.save(figure(), tmp_path / "run.gif")


def test_without_a_browser_a_png_is_refused_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TwinError, match=r"chromium.*\.html works"):
        pictures.save(figure(), tmp_path / "run.png")


def test_an_outcome_draws_itself() -> None:
    outcome = Outcome(
        work="three tasks", policy="stock", seed=0, status="finished", makespan_s=5.0, tasks=3, workers=2, threads=3,
        executions=BARS, events=EVENTS, failed={}, steals=0, steal_requests=0, transfers=0, transferred_bytes=0,
        scheduler_cpu_s=0.0, messages=0, peak_bytes={}, trace_hash="", hash_seed="0", loop_events=0,
    )  # fmt: skip
    picture = outcome.gantt(until_s=10.0)
    assert picture.title.text == "three tasks on 2 workers, stock"
    assert picture.x_range.end == pytest.approx(10.2)
    assert Outcome.from_json(outcome.to_json()).to_json() == outcome.to_json()
