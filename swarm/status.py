"""`swarm status`: what a cluster says of itself, without changing anything there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
from distributed import Client

from swarm.agents.host import NAME
from swarm.errors import ConnectError

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT_S = 5.0
MARKS = {"healthy": "[green]✓[/]", "alert": "[red]![/]", "no agent": "[yellow]–[/]", "stale": "[yellow]?[/]"}


def fetch(address: str | None = None) -> dict[str, Any]:
    """Ask the scheduler at `address`, by default Dask's configured one (`DASK_SCHEDULER_ADDRESS`) or port 8786 here.

    Raises
    ------
    ConnectError
        No scheduler answers, or it runs without swarm.
    """
    where = address or dask.config.get("scheduler-address", None) or "tcp://127.0.0.1:8786"
    try:
        client = Client(where, timeout=TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        from swarm.client import no_connection

        raise no_connection(where, error) from None
    with client:
        if client.get_metadata(NAME, default=None) is None:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            raise ConnectError(
                f"the scheduler at {where} is plain Dask with {workers} workers: start them with "
                f'--preload swarm.agents, or run swarm.connect("{where}") once'
            )

        async def ask() -> dict[str, Any]:
            assert client.scheduler is not None
            answer: dict[str, Any] = await client.scheduler.swarm_status()
            return answer

        found: dict[str, Any] = client.sync(ask)
        return found


def render(status: dict[str, Any], console: Console) -> None:
    """Print it for a person."""
    from rich.table import Table
    from rich.text import Text

    totals = status["totals"]
    rate = "–" if totals["tasks_per_s"] is None else f"{totals['tasks_per_s']:.1f}"
    console.print(
        f"[bold]{status['scheduler']}[/]  swarm {status['version']}  {totals['workers']} workers, "
        f"{totals['threads']} threads, {rate} tasks/s, {totals['alerts']} alerts",
        highlight=False,
    )
    console.print(f"dashboard {status['page'] or 'none: ' + status['page_absent']}", style="dim", highlight=False)
    if status["workers"]:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title, side in (
            ("", "left"),
            ("worker", "left"),
            ("CPU", "right"),
            ("memory", "right"),
            ("health", "left"),
        ):
            table.add_column(title, justify=side)  # type: ignore[arg-type]
        for row in status["workers"]:
            cpu = "–" if row["cpu_percent"] is None else f"{row['cpu_percent']:.0f} %"
            memory = "–" if row["memory_percent"] is None else f"{row['memory_percent']:.0f} %"
            health = row["health"] + (f": {row['note']}" if row["note"] else "")
            table.add_row(MARKS[row["health"]], Text(row["name"]), cpu, memory, Text(health))
        console.print(table)
    else:
        console.print(f"no workers yet: dask worker {status['scheduler']} --preload swarm.agents", style="yellow")
    for run in status["runs"][:10]:
        done = f"{run['finished']} of {run['tasks']} tasks"
        console.print(Text(f"run {run['run']}: {run['status']}, {done}, {run['elapsed_s']:.1f} s"))
    for alert in status["alerts"][:10]:
        state = "alert" if alert["is_active"] else "past alert"
        console.print(Text(f"{state}: {alert['sentence']}"), style="red" if alert["is_active"] else "dim")
    for part, reason in status["off"].items():
        console.print(Text(f"switched off: {part}: {reason}"), style="red")
