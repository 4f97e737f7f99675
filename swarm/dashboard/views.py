"""The page `/swarm`: a Bokeh document for each browser session, which draws a `Board`.

Two data sources are updated in place. `board` carries one JSON text per section of the page, and only sections that
changed are sent; `page.js` paints them as text nodes, so that nothing that comes from the cluster is ever read as
HTML. `rates` feeds the chart and only grows at its end.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from bokeh.models import BasicTicker, ColumnDataSource, CustomJS, CustomJSTickFormatter, DataRange1d, HoverTool
from bokeh.plotting import figure
from jinja2 import Environment, Template

if TYPE_CHECKING:
    from bokeh.document import Document

    from swarm.dashboard.board import Board
    from swarm.dashboard.view_model import RatePoint

UPDATE_EVERY_S = 1.0
_SPAN_S = 300.0
_ACCENT = "#3f83f8"
"""Reads on the light and on the dark background: a glyph does not follow the style sheet, as axes do."""


def build(doc: Document, board: Board) -> None:
    """Fill `doc` and keep it up to date until its session ends or the board is closed."""
    sections = ColumnDataSource({name: [text] for name, text in board.sections().items()}, name="board")
    rates = ColumnDataSource(_columns(board.rates()), name="rates")
    doc.add_root(sections)
    doc.add_root(_chart(rates))
    doc.title = "Swarm"
    doc.template = _template()
    doc.template_variables.update(css=_file("page.css"), js=_file("page.js"))
    # The page itself tells about its connection, and comes back by loading anew: a scheduler that was started again
    # does not know the old session.
    doc.config.update(reconnect_session=False, notify_connection_status=False, notifications=None)
    doc.js_on_event("document_ready", CustomJS(args={"board": sections}, code="window.swarmPage(board)"))

    def on_second() -> None:
        context: Any = doc.session_context
        if context and context.session and not context.session.connection_count:
            return
        with board.guard("page"):
            update(board, sections, rates)
        if board.is_closed:
            doc.remove_periodic_callback(callback)

    callback = doc.add_periodic_callback(on_second, int(1000 * UPDATE_EVERY_S))


def update(board: Board, sections: ColumnDataSource, rates: ColumnDataSource) -> None:
    """Bring the sources of one document up to date; what did not change is not touched and not sent."""
    changed = {name: [text] for name, text in board.sections().items() if sections.data.get(name) != [text]}
    if changed:
        sections.data.update(changed)
    shown: Any = rates.data["at_ms"]
    newer = board.rates(after_s=shown[-1] / 1000.0 if len(shown) else 0.0)
    if newer:
        rates.stream(_columns(newer), rollover=int(_SPAN_S))


def _columns(points: list[RatePoint]) -> dict[str, Any]:
    return {
        "at_ms": [1000.0 * point.at_s for point in points],
        "tasks_per_s": [point.tasks_per_s for point in points],
    }


def _chart(rates: ColumnDataSource) -> figure:
    chart = figure(
        name="chart",
        height=150,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        x_range=DataRange1d(follow="end", follow_interval=1000.0 * _SPAN_S, range_padding=0),
        y_range=DataRange1d(start=0, min_interval=1.0, range_padding=0.15),
        toolbar_location=None,
        tools=[HoverTool(mode="vline", tooltips="@tasks_per_s{0.0} tasks/s")],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border=0,
    )
    chart.varea("at_ms", y1=0, y2="tasks_per_s", source=rates, color=_ACCENT, alpha=0.16)
    chart.line("at_ms", "tasks_per_s", source=rates, line_color=_ACCENT, line_width=2)
    # The person's own time zone, which only the browser knows.
    local_time = "return new Date(tick).toLocaleTimeString([], {hour12: false})"
    chart.xaxis.formatter = CustomJSTickFormatter(code=local_time)
    chart.yaxis.ticker = BasicTicker(desired_num_ticks=3)
    chart.xgrid.visible = False
    chart.axis.axis_line_color = None
    chart.axis.major_tick_line_color = None
    chart.axis.minor_tick_line_color = None
    return chart


@cache
def _template() -> Template:
    # No autoescape: nothing from the cluster goes into it, and what Bokeh embeds is HTML.
    return Environment().from_string(_file("page.html"))  # noqa: S701 — as above


@cache
def _file(name: str) -> str:
    return resources.files("swarm.dashboard").joinpath(name).read_text(encoding="utf-8")
