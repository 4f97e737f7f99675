"""Live progress of runs in the terminal or a notebook."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from swarm.errors import SwarmError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

    from swarm.run import Run

PERIOD_S = 0.1
LAG_S = 1.0
"""How long the scheduler may be behind: Dask knows that the results are there, the count of tasks is not yet full."""
MARKS = {"finished": "[green]✓[/]", "error": "[red]✗[/]", "cancelled": "[yellow]–[/]", "lost": "[red]✗[/]"}


class _Rate(ProgressColumn):
    """Tasks per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tasks/s" if speed else "", style="progress.data.speed")


def show(runs: Sequence[Run], console: Console | None = None, timeout: float | None = None) -> None:
    """Show one bar per run until all are over, or for `timeout` seconds."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    columns = (
        TextColumn("{task.fields[mark]}"),
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        bars = {run.id: progress.add_task(run.name, total=None, mark=" ", note="sent") for run in runs}
        live = list(runs)
        over_at_s: dict[str, float] = {}
        while live and time.monotonic() < deadline:
            for run in list(live):
                status = run.status
                is_drawn = _update(progress, bars[run.id], run, status)
                if status == "running":
                    continue
                now_s = time.monotonic()
                if is_drawn or now_s - over_at_s.setdefault(run.id, now_s) > LAG_S:
                    live.remove(run)
                    progress.stop_task(bars[run.id])
            if live:
                time.sleep(PERIOD_S)


def _update(progress: Progress, bar: Any, run: Run, status: str) -> bool:
    """Draw one bar; False when it should be asked again, because the scheduler is a moment behind."""
    mark = MARKS.get(status, " ")
    try:
        info = run.info()
    except SwarmError as error:
        progress.update(bar, note=str(error), mark=mark)
        return True
    note = ""
    if info["status"] == "pending":
        note = "waiting for the scheduler"
    elif status == "running" and not info["workers"] and not info["finished"]:
        note = "waiting for a worker"
    elif info["erred"]:
        note = f"{info['erred']} failed"
    done, total = info["finished"], info["tasks"] or None
    progress.update(bar, completed=done, total=total, note=note, mark=mark)
    return status != "finished" or done == total or bool(info["status"] == "finished")
