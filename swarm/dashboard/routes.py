"""Adds the page `/swarm` and `/swarm/state.json` to the dashboard server of a running Dask scheduler.

Source: `distributed.dashboard.scheduler.connect`, which adds Dask's own pages the same way. Where the scheduler has
no dashboard (`--no-dashboard`, Bokeh missing) Bokeh is not imported and there is only the JSON route, because the
HTTP server runs all the same.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from distributed.comm.addressing import get_address_host
from distributed.utils import format_dashboard_link
from tornado import web

import swarm
from swarm.dashboard.board import Board

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Scheduler

    from swarm.dashboard.view_model import ViewModel


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one scheduler: where it is, or why it is not."""

    url: str | None
    """Where a person can open it, made like the link that Dask prints (`distributed.dashboard.link`)."""
    reason: str
    """Why there is no page when `url` is None; else empty."""
    close: Callable[[], None]
    """Takes all routes away; pages that are open say that they are switched off. Once is enough, twice is harmless.
    Call it on the event loop of the scheduler."""


def install(scheduler: Scheduler, view_model: ViewModel) -> Page:
    """Add the routes to a scheduler that runs; call it on the scheduler's event loop.

    The page obeys the prefix of Dask's pages (`--dashboard-prefix`) and their settings
    (`distributed.scheduler.dashboard.bokeh-application`), and appears in their navigation bar.
    """
    undo = ExitStack()
    board = Board(view_model, {"cluster": scheduler.address, "version": swarm.__version__}, time.time)
    undo.callback(board.close)
    # `.*` stands for the prefix, which a scheduler without a dashboard does not tell.
    _add(scheduler, web.Application([(r"(?:/.*)?/swarm/state\.json", _StateHandler, {"board": board})]), undo)

    # Bokeh must not be imported just to learn that it is not in use.
    bokeh = sys.modules.get("bokeh.server.tornado")
    applications = scheduler.http_application.applications
    dask_pages = bokeh and next((app for app in applications if isinstance(app, bokeh.BokehTornado)), None)
    if not dask_pages:
        return Page(None, "the scheduler runs without Dask's dashboard (--no-dashboard, or no Bokeh)", undo.close)

    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables

    from swarm.dashboard.views import build

    pages = {"/swarm": lambda _scheduler, _extra, doc: build(doc, board)}
    application = BokehApplication(pages, scheduler, prefix=dask_pages.prefix)
    application.initialize(scheduler.loop)
    application.start()
    undo.callback(application.stop)
    _add(scheduler, application, undo)
    # The one list that the navigation bars of all Dask pages of this scheduler share.
    navigation = template_variables(scheduler)["pages"]
    navigation.append("swarm")
    undo.callback(navigation.remove, "swarm")
    return Page(_url(scheduler, dask_pages.prefix), "", undo.close)


def _add(scheduler: Scheduler, application: web.Application, undo: ExitStack) -> None:
    scheduler.http_application.add_application(application)
    undo.callback(scheduler.http_application.applications.remove, application)


def _url(scheduler: Scheduler, prefix: str) -> str:
    host, port = get_address_host(scheduler.address), scheduler.service_ports["dashboard"]
    try:
        link: str = format_dashboard_link(host, port)
    except KeyError:  # `distributed.dashboard.link` names an environment variable that is not set; Dask warns of it.
        link = f"http://{host}:{port}/"
    return urljoin(link, f"{prefix}/swarm".lstrip("/"))


class _StateHandler(web.RequestHandler):
    def initialize(self, board: Board) -> None:
        self._board = board

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.write(self._board.state())
