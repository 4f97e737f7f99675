"""The regret of the cold start: what it costs that nothing is known when work comes for the first time.

    python -m tests.benchmarks.mind.regret --seeds 5 --json regret.json --picture regret.png

Each scenario of the twin is run by stock Dask, and three times by swarm, which keeps what it has learned; beside them
is HEFT, an oracle. The regret is what the first pass takes longer than the second, in units of the lower bound.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.models import FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Legend, LegendItem, Span, Title
from bokeh.plotting import figure
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swarm.errors import SwarmError
from swarm.twin.matrix import versions
from swarm.twin.pictures import INK, LEGEND, OKABE_ITO, plain, save
from swarm.twin.scenarios import SCENARIOS, scenario
from tests.benchmarks.mind.passes import in_children, of_scenario

PASSES = 3
WHAT = ("stock", "cold", "second", "third", "HEFT")
LOOK = {
    "stock": ("square", OKABE_ITO[1]),
    "cold": ("circle", OKABE_ITO[3]),
    "second": ("circle", OKABE_ITO[0]),
    "third": ("diamond", OKABE_ITO[2]),
    "HEFT": ("dash", INK),
}
LABELS = {
    "stock": "stock Dask",
    "cold": "swarm, nothing learned",
    "second": "swarm, second pass",
    "third": "swarm, third pass",
    "HEFT": "HEFT, an oracle",
}
EDGE = 12.0
"""Makespan over bound at which the picture ends; more is drawn there."""


Run = Mapping[str, Any]
"""Of a scenario and a seed, what `Passes` has."""


def over_bound(run: Run) -> dict[str, float]:
    """What → makespan over lower bound; infinite where it never finished."""
    times = (run["stock_s"], *run["swarm_s"], run["oracle_s"])
    return {what: math.inf if s is None else s / run["bound_s"] for what, s in zip(WHAT, times, strict=True)}


def medians(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Scenario → what → median over seeds; "regret" and "to HEFT" are medians of differences."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(run["scenario"] for run in runs):
        ratios = [over_bound(run) for run in runs if run["scenario"] == name]
        found[name] = {what: statistics.median(each[what] for each in ratios) for what in WHAT}
        found[name]["regret"] = statistics.median(each["cold"] - each["second"] for each in ratios)
        found[name]["to HEFT"] = statistics.median(each["cold"] - each["HEFT"] for each in ratios)
    return found


def run_all(names: Sequence[str], seeds: int) -> Iterator[Run]:
    batches = [(seed, [(name, seed, PASSES)]) for seed in range(seeds) for name in names]
    runs = in_children(of_scenario, batches)
    yield from track(runs, "simulating", len(batches), console=Console(stderr=True), transient=True)


def table(runs: Sequence[Run]) -> Table:
    shown = Table(title="makespan over bound, medians over seeds", title_justify="left", box=MARKDOWN)
    for heading in ("scenario", *WHAT, "regret: cold - second", "cold - HEFT"):
        shown.add_column(heading, justify="left" if heading == "scenario" else "right", no_wrap=True)
    for name, found in medians(runs).items():
        shown.add_row(name, *(f"{found[what]:.2f}" for what in (*WHAT, "regret", "to HEFT")))
    return shown


def draw(runs: Sequence[Run]) -> figure:
    """A row per scenario: a dot for each median, a line through the three passes of swarm."""
    found = medians(runs)
    names = list(found)
    faults = {run["scenario"] for run in runs if run["faults"]}
    picture = figure(
        width=1000,
        height=27 * len(names) + 130,
        x_axis_type="log",
        x_range=Range1d(start=0.97, end=EDGE * 1.06),
        y_range=Range1d(start=len(names) - 0.5, end=-0.5),
        tools="",
        toolbar_location=None,
        title="What learning gains: the first, second and third pass over the same work",
        x_axis_label="makespan over the lower bound (medians; at the right edge: more than 12, or never)",
    )
    plain(picture)
    ticks = [1, 1.2, 1.5, 2, 3, 5, 7, 10]
    picture.xaxis.ticker = FixedTicker(ticks=ticks)
    picture.xaxis.formatter = NumeralTickFormatter(format="0[.]0")
    picture.yaxis.ticker = FixedTicker(ticks=list(range(len(names))))
    picture.yaxis.major_label_overrides = {i: f"{n} *" if n in faults else n for i, n in enumerate(names)}
    picture.yaxis.major_tick_line_color = None
    picture.ygrid.visible = False
    for i in range(0, len(names), 2):
        picture.quad(left=0.5, right=2 * EDGE, top=i - 0.5, bottom=i + 0.5, fill_color="#F4F4F4", line_color=None)
    picture.add_layout(Span(location=1.0, dimension="height", line_color=INK, line_width=1.5))
    for i, name in enumerate(names):
        x = [min(found[name][what], EDGE) for what in ("cold", "second", "third")]
        picture.line(x, [i] * 3, line_color=OKABE_ITO[0], line_width=3, line_alpha=0.5)
    legend = {}
    for what in ("HEFT", "stock", "third", "second", "cold"):
        marker, colour = LOOK[what]
        dots: Any = picture.scatter(
            [min(found[name][what], EDGE) for name in names],
            list(range(len(names))),
            marker=marker,
            angle=math.pi / 2 if what == "HEFT" else 0.0,
            size={"HEFT": 17, "third": 12, "stock": 8, "cold": 9}.get(what, 9),
            fill_color="white" if what == "cold" else colour,
            line_color=colour,
            line_width=2.5,
        )
        legend[what] = LegendItem(label=LABELS[what], renderers=[dots])
    items = [legend[what] for what in WHAT]
    picture.add_layout(Legend(items=items, orientation="horizontal", **{**LEGEND, "spacing": 18}), "above")
    if faults:
        note = "* Something fails there: bound and HEFT are those without the failure."
        picture.add_layout(Title(text=note, text_font_style="normal", text_font_size="11px"), "below")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mind.regret",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", action="append", help="one of the twin's; may be repeated (all)")
    parser.add_argument("--seeds", type=int, default=5, help="how many (5)")
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--picture", type=Path, help="draw there: .html or .png")
    given = parser.parse_args()
    console = Console(width=130)
    try:
        names = [scenario(name).name for name in given.scenario or SCENARIOS]
        runs = sorted(run_all(names, given.seeds), key=lambda run: (names.index(run["scenario"]), run["seed"]))
        console.print(table(runs))
        for run in runs:
            if run["trouble"]:
                console.print(f"{run['scenario']}, seed {run['seed']}: {run['trouble']}", markup=False, soft_wrap=True)
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            told = {"versions": versions(), "runs": runs}
            given.json.write_text(json.dumps(told), encoding="utf-8")
        if given.picture is not None:
            given.picture.parent.mkdir(parents=True, exist_ok=True)
            save(draw(runs), given.picture, title="swarm: regret of the cold start")
    except SwarmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
