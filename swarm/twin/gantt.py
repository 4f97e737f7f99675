"""The Gantt chart of a simulation: a row per thread of each worker, a bar per execution."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.models.annotations import Legend, LegendItem, Span, Title
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from dask.utils import key_split

from swarm.twin.faults import Fault
from swarm.twin.pictures import INK, LEGEND, OKABE_ITO, WIDTH, plain

if TYPE_CHECKING:
    from swarm.twin.record import Executed

NOT_KEPT = {"lost": "/", "erred": "x", "unwanted": ".", "running": " "}
"""Outcomes of which nothing remains → hatch."""
LEGEND_NAMES = 14


def gantt(
    executions: Iterable[Executed],
    *,
    makespan_s: float,
    events: Iterable[tuple[float, str, str]] = (),
    title: str = "",
    subtitle: str = "",
    until_s: float | None = None,
    width: int = WIDTH,
) -> figure:
    """A row per thread of each worker, a bar per execution, a colour per function.

    What was lost, failed or not wanted any more is grey and hatched. Bands show when a worker was not there, and
    when a fault had it; marks show faults, ends and joins.
    """
    executions, events = list(executions), list(events)
    end_s = max([makespan_s, *(e.stop_s for e in executions)]) or 1.0
    rows = _Rows(executions, events)
    colours = _colours(executions)
    picture = figure(
        width=width,
        height=rows.height + 120,
        x_range=Range1d(start=-0.01 * (until_s or end_s), end=1.02 * (until_s or end_s)),
        y_range=Range1d(start=rows.count - 0.4, end=-1.0),
        tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
        active_scroll=None,
        title=title,
        x_axis_label="seconds after the submission",
    )
    plain(picture)
    if subtitle:
        picture.add_layout(Title(text=subtitle, text_font_style="normal", text_color="#666666"), "above")
        picture.above.reverse()
    picture.yaxis.ticker = FixedTicker(ticks=rows.ticks)
    picture.yaxis.major_label_overrides = rows.labels
    picture.yaxis.major_tick_line_color = None
    picture.ygrid.visible = False
    bands = _bands(picture, rows, events, end_s)
    bars = _bars(picture, rows, executions, colours, end_s)
    legend = [*bars, *bands, *_marks(picture, rows, events)]
    picture.add_layout(
        Span(location=makespan_s, dimension="height", line_color=INK, line_dash="dashed", line_width=1.5)
    )
    picture.add_layout(Legend(items=legend, **LEGEND), "right")
    return picture


class _Rows:
    """Which thread of which worker is drawn where, from the top."""

    def __init__(self, executions: Sequence[Executed], events: Sequence[tuple[float, str, str]]) -> None:
        threads: dict[str, int] = {}
        for _, what, workers in events:
            if what == "joined":
                threads.setdefault(workers, 1)
        for each in executions:
            threads[each.worker] = max(threads.get(each.worker, 1), each.lane + 1)
        self.first: dict[str, int] = {}
        self.threads = threads
        self.count = 0
        for worker in sorted(threads, key=_natural):
            self.first[worker] = self.count
            self.count += threads[worker]
        per_row = min(24.0, max(8.0, 400.0 / max(1, self.count)))
        self.height = int(min(1400.0, per_row * (self.count + 1)))
        pixels = self.height / (self.count + 1)
        self.bar = 0.42 if pixels > 12 else 0.48
        self.has_outlines = pixels > 5
        shown_every = max(1, math.ceil(13.0 * len(threads) / self.height))
        shown = list(self.first)[::shown_every]
        self.ticks = [self.first[worker] + (threads[worker] - 1) / 2 for worker in shown]
        self.labels: dict[float | str, Any] = dict(zip(self.ticks, shown, strict=True))

    def span(self, worker: str) -> tuple[float, float]:
        """Top and bottom of all rows of a worker."""
        first = self.first[worker]
        return first - 0.5, first + self.threads[worker] - 0.5


def _natural(name: str) -> list[Any]:
    """w2 before w10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _colours(executions: Sequence[Executed]) -> dict[str, str]:
    """Function → colour: distinct ones while they last, else from dark to light in the order in which they began."""
    names = dict.fromkeys(str(key_split(e.key)) for e in sorted(executions, key=lambda e: e.start_s))
    if len(names) <= len(OKABE_ITO):
        return dict(zip(names, OKABE_ITO, strict=False))
    step = (len(Viridis256) - 1) / (len(names) - 1)
    return {name: Viridis256[round(i * step)] for i, name in enumerate(names)}


def _bars(
    picture: figure, rows: _Rows, executions: Sequence[Executed], colours: Mapping[str, str], end_s: float
) -> list[LegendItem]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("left", "right", "top", "bottom", "fill", "hatch", "key", "worker", "outcome", "took")
    }
    shown: dict[str, int] = {}
    """Entry of the legend → a bar that looks like it."""
    for number, each in enumerate(executions):
        stop_s = each.stop_s if each.stop_s >= 0 else end_s
        function, kept = str(key_split(each.key)), each.outcome == "done"
        row = rows.first[each.worker] + max(0, each.lane)
        shown.setdefault(function if kept else each.outcome, number)
        values = (each.start_s, stop_s, row - rows.bar, row + rows.bar)
        looks = (colours[function], " ") if kept else ("#D9D9D9", NOT_KEPT[each.outcome])
        told = (str(each.key), each.worker, each.outcome, f"{stop_s - each.start_s:.3f} s")
        for column, value in zip(columns.values(), (*values, *looks, *told), strict=True):
            column.append(value)
    bars: Any = picture.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        fill_color="fill",
        hatch_pattern="hatch",
        hatch_color=INK,
        hatch_alpha=0.6,
        hatch_scale=6,
        line_color="white" if rows.has_outlines else None,
        line_width=0.5,
        source=ColumnDataSource(columns),
    )
    tips = [("task", "@key"), ("took", "@took"), ("from", "@left{0.000} s"), ("on", "@worker"), ("outcome", "@outcome")]
    picture.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    functions = [name for name in colours if name in shown]
    step = math.ceil(len(functions) / LEGEND_NAMES)
    names = functions[::step]
    items = [LegendItem(label=_short(name), renderers=[bars], index=shown[name]) for name in names]
    if step > 1:
        items.append(LegendItem(label=f"… {len(functions)} in all"))
    items += [LegendItem(label=name, renderers=[bars], index=shown[name]) for name in NOT_KEPT if name in shown]
    return items


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _lasts(what: str) -> bool:
    kind = Fault.KINDS.get(what)
    return kind is not None and any(field.name == "for_s" for field in dataclasses.fields(kind))


def _bands(picture: figure, rows: _Rows, events: Sequence[tuple[float, str, str]], end_s: float) -> list[LegendItem]:
    """When workers were away, and when faults had them."""
    away: list[tuple[float, float, float, float, str]] = []
    ill: list[tuple[float, float, float, float, str]] = []
    for at_s, what, names in events:
        for name in names.split(","):
            top, bottom = rows.span(name) if name in rows.first else (-0.5, rows.count - 0.5)
            if what.startswith("ended") and name in rows.first:
                back = [t for t, w, n in events if n == name and w == "joined" and t > at_s]
                away.append((at_s, min(back, default=end_s), top, bottom, what))
            elif what == "joined" and at_s > 0 and not _was_there(events, name, at_s):
                away.append((0.0, at_s, top, bottom, "not there yet"))
            elif _lasts(what):
                over = [t for t, w, n in events if n == names and w == f"{what} is over" and t > at_s]
                over += [t for t, w, n in events if n == name and w.startswith("ended") and t >= at_s]
                ill.append((at_s, min(over, default=end_s), top, bottom, what))
    items = []
    names_of_columns = ("left", "right", "top", "bottom", "what")
    for label, bands, colour, alpha in (("worker away", away, "#BBBBBB", 0.45), ("fault lasts", ill, "#D55E00", 0.18)):
        if bands:
            data = ColumnDataSource(
                {n: list(c) for n, c in zip(names_of_columns, zip(*bands, strict=True), strict=True)}
            )
            glyph: Any = picture.quad(
                left="left",
                right="right",
                top="top",
                bottom="bottom",
                line_color=None,
                fill_color=colour,
                fill_alpha=alpha,
                source=data,
            )
            picture.add_tools(HoverTool(renderers=[glyph], tooltips=[("", "@what"), ("from", "@left{0.000} s")]))
            items.append(LegendItem(label=label, renderers=[glyph]))
    return items


def _was_there(events: Sequence[tuple[float, str, str]], name: str, before_s: float) -> bool:
    return any(n == name and w == "joined" and t < before_s for t, w, n in events)


def _marks(picture: figure, rows: _Rows, events: Sequence[tuple[float, str, str]]) -> list[LegendItem]:
    kinds: dict[str, list[tuple[float, float, str, str]]] = {"fault": [], "worker ends": [], "worker joins": []}
    for at_s, what, names in events:
        if at_s < 0 or what.endswith(" is over"):
            continue
        kind = "worker joins" if what == "joined" else "worker ends" if what.startswith("ended") else "fault"
        for name in names.split(","):
            top, bottom = rows.span(name) if name in rows.first else (-1.0, -0.5)
            y = bottom - 0.25 if kind == "worker ends" else top + 0.25  # a crash is both, at the same time
            kinds[kind].append((at_s, y, what, name))
    looks = {
        "fault": ("inverted_triangle", "#D55E00"),
        "worker ends": ("x", "black"),
        "worker joins": ("triangle", "#009E73"),
    }
    items = []
    for kind, found in kinds.items():
        if found:
            marker, colour = looks[kind]
            columns = zip(("x", "y", "what", "name"), zip(*found, strict=True), strict=True)
            data = ColumnDataSource({name: list(column) for name, column in columns})
            glyph: Any = picture.scatter(
                "x", "y", marker=marker, size=10, fill_color=colour, line_color="black", line_width=1.5, source=data
            )
            tips = [("", "@what"), ("worker", "@name"), ("at", "@x{0.000} s")]
            picture.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
            items.append(LegendItem(label=kind, renderers=[glyph]))
    return items
