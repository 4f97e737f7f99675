"""Pictures of many simulations: policies side by side, the curve of the twin's own speed; and how pictures are saved.

Each function returns a Bokeh figure, to be shown, combined or saved; `save` writes HTML that needs no network, or PNG.
"""

from __future__ import annotations

import html
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Legend, LegendItem, Span, Title
from bokeh.plotting import figure
from bokeh.resources import INLINE

from swarm.errors import TwinError

if TYPE_CHECKING:
    from bokeh.models.ui.ui_element import UIElement


OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")
"""Told apart by colour-blind people too (Okabe and Ito, "Color Universal Design", 2008)."""
INK = "#333333"
WIDTH = 1000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LEGEND: dict[str, Any] = {
    "label_text_font_size": "11px",
    "glyph_width": 16,
    "glyph_height": 14,
    "spacing": 0,
    "padding": 4,
    "border_line_color": None,
}


# -- policies side by side ---------------------------------------------------------------------------------------

SHAPES = ("circle", "square", "triangle", "inverted_triangle", "diamond", "hex", "star")


def comparison(
    runs: Sequence[Mapping[str, Any]], *, title: str = "Makespan over the lower bound", width: int = WIDTH
) -> figure:
    """A dot per run, grouped by scenario, a line at each policy's median; 1 is what nobody can beat.

    Parameters
    ----------
    runs
        As `swarm.twin.bench` writes them to JSON: scenario, policy, seed, status, ratio, makespan_s, faults. A run that
        did not finish stands at the right edge.
    """
    scenarios = list(dict.fromkeys(run["scenario"] for run in runs))
    policies = list(dict.fromkeys(run["policy"] for run in runs))
    ratios = [run["ratio"] for run in runs if run["status"] == "finished"]
    most = 1.12 * max([1.5, *ratios])
    unfinished = [run for run in runs if run["status"] != "finished"]
    edge = most * (1.08 if unfinished else 1.0)
    lane = 0.86 / len(policies)
    picture = figure(
        width=width,
        height=int(max(30, 11 * len(policies) + 6) * len(scenarios)) + 110,
        x_axis_type="log",
        x_range=Range1d(start=0.96, end=edge * (1.03 if unfinished else 1.0)),
        y_range=Range1d(start=len(scenarios) - 0.5, end=-0.5),
        tools="xpan,xwheel_zoom,reset,save",
        active_scroll=None,
        title=title,
        x_axis_label="makespan over the lower bound" + (" (× at the right edge: did not finish)" if unfinished else ""),
    )
    plain(picture)
    ticks = [t * 10**e for e in range(4) for t in (1, 1.2, 1.5, 2, 3, 5, 7)]
    picture.xaxis.ticker = FixedTicker(ticks=[t for t in ticks if t < most])
    picture.xaxis.formatter = NumeralTickFormatter(format="0[.]0")
    marked = {run["scenario"] for run in runs if run.get("faults")}
    picture.yaxis.ticker = FixedTicker(ticks=list(range(len(scenarios))))
    picture.yaxis.major_label_overrides = {i: f"{s} *" if s in marked else s for i, s in enumerate(scenarios)}
    picture.yaxis.major_tick_line_color = None
    picture.ygrid.visible = False
    for i in range(0, len(scenarios), 2):
        picture.quad(left=0.5, right=10 * edge, top=i - 0.5, bottom=i + 0.5, fill_color="#F4F4F4", line_color=None)
    picture.add_layout(Span(location=1.0, dimension="height", line_color=INK, line_width=1.5))
    legend = []
    tips = [("policy", "@policy, seed @seed"), ("makespan", "@makespan"), ("over the bound", "@told"), ("", "@status")]
    for number, policy in enumerate(policies):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        offset = (number - (len(policies) - 1) / 2) * lane
        mine = [run for run in runs if run["policy"] == policy]
        done = [run for run in mine if run["status"] == "finished"]
        dots: Any = picture.scatter(
            "x",
            "y",
            marker=SHAPES[number % len(SHAPES)],
            size=9 if SHAPES[number % len(SHAPES)] == "diamond" else 7,
            fill_color=colour,
            fill_alpha=0.75,
            line_color=INK,
            line_width=0.5,
            source=_dots(done, scenarios, offset, None),
        )
        crosses: Any = picture.scatter(
            "x", "y", marker="x", size=9, line_color=colour, line_width=2.5,
            source=_dots([run for run in mine if run["status"] != "finished"], scenarios, offset, edge),
        )  # fmt: skip
        middles = [
            (statistics.median(run["ratio"] for run in done if run["scenario"] == s), i + offset)
            for i, s in enumerate(scenarios)
            if any(run["scenario"] == s for run in done) and all(r in done for r in mine if r["scenario"] == s)
        ]
        picture.segment(
            x0=[x for x, _ in middles],
            x1=[x for x, _ in middles],
            y0=[y - 0.46 * lane for _, y in middles],
            y1=[y + 0.46 * lane for _, y in middles],
            line_color=colour,
            line_width=4,
        )
        picture.add_tools(HoverTool(renderers=[dots, crosses], tooltips=tips))
        legend.append(LegendItem(label=policy, renderers=[dots]))
    picture.add_layout(Legend(items=legend, **LEGEND), "right")
    if marked:
        picture.add_layout(Title(text=FAULTS_NOTE, text_font_style="normal", text_font_size="11px"), "below")
    return picture


FAULTS_NOTE = "* Something fails there: bound and HEFT are those without the failure, which nobody can reach."


def _dots(
    runs: Sequence[Mapping[str, Any]], scenarios: Sequence[str], offset: float, edge: float | None
) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "x": [run["ratio"] if edge is None else edge for run in runs],
            "y": [scenarios.index(run["scenario"]) + offset for run in runs],
            "policy": [run["policy"] for run in runs],
            "seed": [run["seed"] for run in runs],
            "makespan": ["–" if run["makespan_s"] is None else f"{run['makespan_s']:.3f} s" for run in runs],
            "told": ["–" if run["ratio"] is None else f"{run['ratio']:.3f}" for run in runs],
            "status": [f"{run['status']} {run.get('message') or ''}".strip() for run in runs],
        }
    )


# -- the twin's own speed ----------------------------------------------------------------------------------------


def scaling(points: Sequence[Mapping[str, Any]], *, width: int = WIDTH) -> UIElement:
    """Tasks per CPU second and memory over the number of tasks, a line per number of workers.

    `points` are as `swarm.twin.scale` writes them; only those that finished are drawn.
    """
    from bokeh.layouts import row

    done = [point for point in points if point["status"] == "finished"]
    workers = sorted({point["workers"] for point in done})
    pictures = []
    for column, title, label, scale in (
        ("tasks_per_cpu_s", "Speed", "simulated tasks per CPU second", 1.0),
        ("peak_bytes", "Memory", "memory of the process (peak, MiB)", 2.0**20),
    ):
        picture = figure(
            width=width // 2,
            height=380,
            x_axis_type="log",
            y_axis_type="log" if column == "peak_bytes" else "linear",
            title=title,
            x_axis_label="tasks",
            y_axis_label=label,
            tools="pan,wheel_zoom,reset,save",
            active_scroll=None,
        )
        plain(picture)
        tasks = sorted({point["tasks"] for point in done})
        picture.xaxis.ticker = FixedTicker(ticks=tasks)
        picture.xaxis.formatter = NumeralTickFormatter(format="0,0")
        picture.yaxis.formatter = NumeralTickFormatter(format="0,0")
        if column == "tasks_per_cpu_s":
            picture.y_range = Range1d(start=0, end=1.15 * max((point[column] for point in done), default=1.0))
        legend = []
        for number, count in enumerate(workers):
            mine = sorted((p for p in done if p["workers"] == count), key=lambda p: p["tasks"])
            data = ColumnDataSource(
                {
                    "x": [p["tasks"] for p in mine],
                    "y": [p[column] / scale for p in mine],
                    "cpu": [p["cpu_s"] for p in mine],
                    "workers": [count] * len(mine),
                }
            )
            colour = OKABE_ITO[number % len(OKABE_ITO)]
            line: Any = picture.line("x", "y", source=data, line_color=colour, line_width=2)
            dots: Any = picture.scatter(
                "x", "y", source=data, size=8, marker=SHAPES[number % len(SHAPES)], fill_color=colour, line_color=INK
            )
            tips = [("workers", "@workers"), ("tasks", "@x{0,0}"), (label, "@y{0,0.0}"), ("CPU", "@cpu{0.0} s")]
            picture.add_tools(HoverTool(renderers=[dots], tooltips=tips))
            legend.append(LegendItem(label=f"{count:,} workers", renderers=[line, dots]))
        picture.add_layout(Legend(items=legend, orientation="horizontal", **{**LEGEND, "spacing": 14}), "below")
        pictures.append(picture)
    return row(*pictures)


def plain(picture: figure) -> None:
    """What all pictures have in common."""
    picture.toolbar.logo = None
    picture.toolbar.autohide = True
    picture.outline_line_color = None
    if isinstance(picture.title, Title):
        picture.title.text_font_size = "14px"
    picture.grid.grid_line_color = "#E5E5E5"
    picture.axis.axis_line_color = "#999999"
    picture.axis.minor_tick_line_color = None
    picture.axis.axis_label_text_font_style = "normal"
    picture.axis.major_label_text_font_size = "11px"


# -- files -------------------------------------------------------------------------------------------------------


def save(picture: UIElement, path: str | Path, *, title: str = "swarm twin") -> None:
    """Write a picture: `.html`, which is complete in itself, or `.png`, which needs a Chromium or Chrome.

    Raises
    ------
    TwinError
        The name ends otherwise, or there is no browser.
    """
    path = Path(path)
    page = file_html(picture, INLINE, title=html.escape(title))
    if path.suffix == ".html":
        path.write_text(page, encoding="utf-8")
    elif path.suffix == ".png":
        _photograph(page, path, *_size(picture))
    else:
        raise TwinError(f"a picture can't be written to {path}: its name must end in .html or .png")


def browser() -> str | None:
    """Path of a Chromium or Chrome, if one is there."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def _size(picture: UIElement) -> tuple[int, int]:
    """Width and height in CSS pixels, generously."""
    children: Sequence[Any] = getattr(picture, "children", None) or []
    if not children:
        return int(getattr(picture, "width", None) or WIDTH), int(getattr(picture, "height", None) or 600)
    widths, heights = zip(*map(_size, children), strict=True)
    if type(picture).__name__ == "Row":
        return sum(widths), max(heights)
    return max(widths), sum(heights) + 10 * len(heights)


def _photograph(page: str, path: Path, width: int, height: int) -> None:
    from PIL import Image, ImageChops

    found = browser()
    if found is None:
        raise TwinError(
            f"{path} can't be written: a PNG needs one of {', '.join(BROWSERS[:3])} on PATH (Debian: apt install "
            "chromium), and none is there; .html works without"
        )
    with TemporaryDirectory(prefix="swarm-picture-", ignore_cleanup_errors=True) as folder:
        source, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        source.write_text(page, encoding="utf-8")
        command = [
            found,
            "--headless=new",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-dev-shm-usage",  # containers have a small /dev/shm
            "--force-device-scale-factor=2",
            f"--user-data-dir={folder}/profile",
            f"--window-size={width + 40},{height + 140}",
            "--virtual-time-budget=20000",
            f"--screenshot={shot}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses root otherwise
            source.as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise TwinError(f"{path} can't be written: {found} did not end within 120 s; .html works without") from None
        if not shot.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TwinError(f"{path} can't be written: {found} ended with code {done.returncode} ({last})")
        image = Image.open(shot).convert("RGB")
        box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
        if box is None:
            raise TwinError(f"{path} can't be written: {found} drew nothing")
        margin = 16
        left, top, right, bottom = box
        image.crop((max(0, left - margin), max(0, top - margin), right + margin, bottom + margin)).save(
            path, optimize=True
        )
