"""The learning curve: how far predictions are off, against how many tasks of the function were seen before.

    python -m tests.benchmarks.mind.learning_curve [FOLDER] --json curve.json --picture curve.png

Each task is predicted and then learned, in order, by the cost model of the scheduler; beside it stands what stock Dask
goes by, the average of the key's prefix. Tasks are drawn whose true costs are known, and with them the least error that
anybody could make. FOLDER holds WfFormat files, such as those of WfInstances; their recorded run times then come first.
The functions there are the types of tasks, and each workflow has its own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bokeh.layouts import column, row
from bokeh.models import CustomJSTickFormatter, FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Legend, LegendItem, Span
from bokeh.plotting import figure
from dask.utils import key_split
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.learn.protocol import Observation, TaskFeatures
from swarm.errors import SwarmError
from swarm.twin.matrix import versions
from swarm.twin.pictures import INK, LEGEND, OKABE_ITO, plain, save
from swarm.twin.work import Work
from tests.benchmarks.mind.workflow_shapes import in_folder
from tests.support import synthetic_tasks

UNKNOWN_S = 0.5
"""Dask's guess at a task of which it knows nothing (`distributed.scheduler.unknown-task-duration`)."""
SEEDS = 20
SHORTEST_S = 1e-3
"""What took less counts as that: a clock's resolution is no error."""
WINDOW = 1.5
"""A point stands for tasks whose number is within this factor of its own."""
FEWEST = 20
"""Tasks in a window; with fewer, no point is drawn."""
POINTS = [0, *sorted({round(10 ** (step / 8)) for step in range(25)})]
"""Tasks seen before, up to a thousand."""
SHOWN = (0, 1, 3, 10, 32, 100, 316, 1000)
MOST_ERROR = 2.2
"""Where the axis ends; the very first task of a function may be off by any factor."""


class Finished(NamedTuple):
    """A task as the cost model sees it."""

    features: TaskFeatures
    duration_s: float
    true_s: float | None = None
    """Median of all such tasks; None where nobody knows."""


class Predicted(NamedTuple):
    """A task that was predicted before it was learned. Errors are of the logarithm: 0.1 is about 10 %."""

    seen: int
    """Tasks of its function before it."""
    of_dask: float
    of_swarm: float
    least: float | None
    """Error of who knows the true median."""
    is_below_p90: bool


# -- tasks ---------------------------------------------------------------------------------------------------------


def heavy_tail(seed: int) -> Iterator[Finished]:
    """Five functions, Pareto: most tasks are short, one in twenty takes ten times as long as the shortest."""
    rng = random.Random(seed)
    shortest = [10 ** rng.uniform(-2, 0) for _ in range(5)]
    for _ in range(4000):
        which = rng.randrange(5)
        least_s = shortest[which]
        took_s = least_s * rng.paretovariate(1.3)
        yield Finished(TaskFeatures(f"lib.tail{which}"), took_s, least_s * 2 ** (1 / 1.3))


def _drawn(make: Callable[..., Iterable[synthetic_tasks.Task]]) -> Callable[[int], Iterator[Finished]]:
    def tasks(seed: int) -> Iterator[Finished]:
        for features, observation, true_s in make(4000, seed):
            yield Finished(features, observation.duration_s, true_s)

    return tasks


DRAWN: dict[str, Callable[[int], Iterator[Finished]]] = {
    "by an argument (a power of it)": _drawn(synthetic_tasks.by_argument),
    "by the bytes of the inputs": _drawn(synthetic_tasks.by_input_bytes),
    "by cases that no formula tells": _drawn(synthetic_tasks.by_cases),
    "the same for all tasks of a function": _drawn(synthetic_tasks.constant),
    "heavy tail (Pareto)": heavy_tail,
    "rewritten twice meanwhile": _drawn(synthetic_tasks.drifting),
}


def recorded(name: str, work: Work) -> Iterator[Finished]:
    """The tasks of a workflow, each after those that it depends on."""
    for key in work.order:
        needs = work.dependencies[key]
        size = float(sum(work.costs[need].output_bytes for need in needs))
        yield Finished(TaskFeatures(f"{name}.{key_split(key)}", (), (), size, len(needs)), work.costs[key].work_s)


# -- predicting ----------------------------------------------------------------------------------------------------


def predictions(tasks: Iterable[Finished]) -> Iterator[Predicted]:
    """Predict each task, then learn it. What is not known yet is predicted as Dask does, by both."""
    costs, seen, averages = Costs(random.Random(0)), dict[str, int](), dict[str, float]()
    for features, duration_s, true_s in tasks:
        function = features.function
        count, average_s = seen.get(function, 0), averages.get(function, UNKNOWN_S)
        said = costs.predict(features, average_s)
        assert said is not None
        yield Predicted(
            count,
            _error(duration_s, average_s),
            _error(duration_s, said.p50_s),
            None if true_s is None else _error(duration_s, true_s),
            duration_s <= said.p90_s,
        )
        costs.observe(features, Observation(duration_s))
        costs.learn_pending(0.001, _steps())
        seen[function] = count + 1
        averages[function] = 0.5 * duration_s + 0.5 * average_s if count else duration_s  # TaskPrefix.add_duration


def _error(actual_s: float, predicted_s: float) -> float:
    return abs(math.log(max(actual_s, SHORTEST_S) / max(predicted_s, SHORTEST_S)))


def _steps() -> Callable[[], float]:
    """A clock that moves by a tenth of a millisecond whenever it is read: the same tasks give the same curve."""
    now = iter(range(10**9))
    return lambda: 1e-4 * next(now)


@dataclass(frozen=True)
class Point:
    """All tasks of which about so many of their function were seen before."""

    seen: int
    tasks: int
    dask: float
    swarm: float
    least: float | None
    below_p90: float


def curve(found: Iterable[Predicted]) -> list[Point]:
    """Medians over a window that slides along the number of tasks seen."""
    order = sorted(found, key=lambda each: each.seen)
    numbers = [each.seen for each in order]
    points = []
    for at in POINTS:
        inside = order[bisect_left(numbers, at / WINDOW) : bisect_right(numbers, at * WINDOW)]
        if len(inside) >= FEWEST:
            least = [each.least for each in inside if each.least is not None]
            points.append(
                Point(
                    at,
                    len(inside),
                    statistics.median(each.of_dask for each in inside),
                    statistics.median(each.of_swarm for each in inside),
                    statistics.median(least) if least else None,
                    sum(each.is_below_p90 for each in inside) / len(inside),
                )
            )
    return points


def curves(folder: Path | None) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    if folder is not None:
        works = in_folder(folder)
        tasks = [each for name, work in works.items() for each in predictions(recorded(name, work))]
        found[f"recorded: {len(works)} workflows, {len(tasks):,} tasks"] = curve(tasks)
    for name, make in DRAWN.items():
        found[name] = curve(each for seed in range(SEEDS) for each in predictions(make(seed)))
    return found


# -- telling -------------------------------------------------------------------------------------------------------

LINES = (("dask", "Dask's average", OKABE_ITO[1]), ("swarm", "swarm", OKABE_ITO[0]), ("least", "true median", INK))


def table(found: dict[str, list[Point]]) -> Table:
    shown = Table(
        title="median of |log(actual / predicted)|, and share of tasks below p90", title_justify="left", box=MARKDOWN
    )
    for heading in ("", "seen", "tasks", "Dask's average", "swarm", "true median", "below p90"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, points in found.items():
        for point in points:
            if point.seen in SHOWN:
                least = "–" if point.least is None else f"{point.least:.2f}"
                shown.add_row(
                    name if point is points[0] else "", str(point.seen), f"{point.tasks:,}",
                    f"{point.dask:.2f}", f"{point.swarm:.2f}", least, f"{point.below_p90:.0%}",
                )  # fmt: skip
    return shown


def _panel(title: str, width: int, height: int, last: int, **more: Any) -> figure:
    panel = figure(
        width=width, height=height, title=title, tools="", toolbar_location=None, min_border_left=64,
        x_range=Range1d(start=-0.05, end=math.log10(last + 1) * 1.02), **more,
    )  # fmt: skip
    plain(panel)
    # log(1 + n), so that the first task, of which nothing is known, has its place
    ticks = [n for n in (0, 1, 3, 10, 30, 100, 300, 1000) if n <= last]
    panel.xaxis.ticker = FixedTicker(ticks=[math.log10(n + 1) for n in ticks])
    panel.xaxis.formatter = CustomJSTickFormatter(code="return Math.round(Math.pow(10, tick) - 1).toString()")
    return panel


def draw(found: dict[str, list[Point]]) -> Any:
    """Two rows of panels for every three kinds of tasks: the error, and the share below p90."""
    width, rows = 360, []
    kinds = list(found.items())
    for begin in range(0, len(kinds), 3):
        errors: list[figure] = []
        shares: list[figure] = []
        for name, points in kinds[begin : begin + 3]:
            last = max(point.seen for point in points)
            x = [math.log10(point.seen + 1) for point in points]
            panel = _panel(name, width, 250, last, y_range=Range1d(start=0, end=MOST_ERROR))
            panel.yaxis.ticker = FixedTicker(ticks=[0, 0.5, 1, 1.5, 2])
            legend = []
            for field, label, colour in LINES:
                y = [getattr(point, field) for point in points]
                if None in y:
                    continue
                dash = "dashed" if field == "least" else "solid"
                line: Any = panel.line(x, y, line_color=colour, line_width=2.5, line_dash=dash)
                legend.append(LegendItem(label=label, renderers=[line]))
            panel.add_layout(Legend(items=legend, location="top_right", **LEGEND))
            share = _panel("", width, 130, last, y_range=Range1d(start=0, end=1.03))
            share.add_layout(Span(location=0.9, dimension="width", line_color=INK, line_dash="dashed", line_width=1.5))
            share.line(x, [point.below_p90 for point in points], line_color=OKABE_ITO[2], line_width=2.5)
            share.yaxis.ticker = FixedTicker(ticks=[0, 0.5, 0.9])
            share.yaxis.formatter = NumeralTickFormatter(format="0%")
            share.xaxis.axis_label = "tasks of the function seen before"
            if not errors:
                panel.yaxis.axis_label = "error: |log(actual / predicted)|"
                share.yaxis.axis_label = "below p90"
            errors.append(panel)
            shares.append(share)
        rows += [row(*errors), row(*shares)]
    return column(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mind.learning_curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of WfFormat files")
    parser.add_argument("--json", type=Path, help="write the points there")
    parser.add_argument("--picture", type=Path, help="draw there: .html or .png")
    given = parser.parse_args()
    try:
        found = curves(given.folder)
        Console(width=130).print(table(found))
        if given.json is not None:
            told = {
                "versions": versions(),
                "curves": {name: [asdict(point) for point in points] for name, points in found.items()},
            }
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(told), encoding="utf-8")
        if given.picture is not None:
            given.picture.parent.mkdir(parents=True, exist_ok=True)
            save(draw(found), given.picture, title="swarm: learning curve")
    except SwarmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
