"""`swarm status` and `swarm top`: what a cluster says of itself, without changing anything there."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dask

from swarm.agents.host import NAME
from swarm.errors import ConnectError, SwarmError
from swarm.explain import span
from swarm.reach import scheduler_at

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

TIMEOUT_S = 5.0
SHOWN = 8
"""Names of agents in a line."""
ADVICE = {
    "threads": "{subject} runs {value} tasks at a time",
    "copies": "{subject} is copied as if {value:.1%} were held up",
    "strategy": "work {subject} tries strategy {value} first",
}
MARKS = {
    "healthy": "[green]✓[/]",
    "alert": "[red]![/]",
    "no agent": "[yellow]–[/]",
    "stale": "[yellow]?[/]",
    "suspected": "[red]?[/]",
}


def fetch(address: str | None = None) -> dict[str, Any]:
    """Ask the scheduler at `address`, by default Dask's configured one (`DASK_SCHEDULER_ADDRESS`) or port 8786 here.

    Raises
    ------
    ConnectError
        No scheduler answers, or it runs without swarm.
    """
    where = address or dask.config.get("scheduler-address", None) or "tcp://127.0.0.1:8786"
    return asyncio.run(_ask(where))


async def _ask(address: str) -> dict[str, Any]:
    # Not a `Client`, which the scheduler would take note of.
    async with scheduler_at(address, timeout_s=TIMEOUT_S) as (scheduler, identity):
        if await scheduler.get_metadata(keys=[NAME], default=None) is None:
            raise ConnectError(
                f"the scheduler at {address} is plain Dask with {_counted(identity['n_workers'], 'worker')}: start "
                f'them with --preload swarm.agents, or run swarm.connect("{address}") once'
            )
        found: dict[str, Any] = await scheduler.swarm_status()
        return found


def render(status: dict[str, Any], console: Console) -> None:
    """Print it for a person."""
    from rich.text import Text

    for part in parts(status):
        console.print(part, soft_wrap=isinstance(part, Text))


def watch(console: Console, address: str | None, every_s: float) -> None:
    """Show it on the whole screen, anew every so many seconds, until Ctrl-C; raises as `fetch`, the first time only.

    A scheduler that is gone for a while is waited for.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    found = fetch(address)
    first = Group(*parts(found))
    with suppress(KeyboardInterrupt), Live(first, console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            lost = ""
            try:
                found = fetch(address)
            except SwarmError as error:
                lost = f"{error}; what you see is old"
            live.update(Group(*([Text(lost, "bold red")] if lost else []), *parts(found)), refresh=True)


def parts(status: dict[str, Any]) -> Iterator[RenderableType]:
    """What there is to show, from top to bottom."""
    from rich.table import Table
    from rich.text import Text

    totals = status["totals"]
    rate = "" if totals["tasks_per_s"] is None else f"{totals['tasks_per_s']:.1f} tasks/s, "
    sizes = f"{_counted(totals['workers'], 'worker')}, {_counted(totals['threads'], 'thread')}"
    alerts = _counted(totals["alerts"], "alert")
    yield Text(f"{status['scheduler']}   swarm {status['version']}   {sizes}, {rate}{alerts}")
    yield Text(f"dashboard {status['page'] or 'none: ' + status['page_absent']}", "dim")
    if status["workers"]:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for title in ("", "worker", "CPU", "memory", "health"):
            table.add_column(title, justify="right" if title in ("CPU", "memory") else "left", overflow="fold")
        for row in sorted(status["workers"], key=lambda row: _in_order(row["name"])):
            cpu, memory = (_percent(row[key]) for key in ("cpu_percent", "memory_percent"))
            table.add_row(MARKS[row["health"]], Text(row["name"]), cpu, memory, row["health"])
        yield table
    else:
        yield Text(f"no workers yet: dask worker {status['scheduler']} --preload swarm.agents", "yellow")
    for text, style in _news(status):
        yield Text(text, style)


def _news(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is worth a line of its own, and its style."""
    for row in status["workers"]:
        if row["health"] in ("no agent", "stale", "suspected"):
            yield f"{row['health']} on {row['name']}: {row['note']}", "yellow"
    for alert in status["alerts"][:10]:
        state = "alert" if alert["is_active"] else "past alert"
        yield f"{state}: {alert['sentence']}", "red" if alert["is_active"] else "dim"
    for death in status.get("deaths", ())[:10]:
        ran = f"; it ran {', '.join(death['running'][:3])}" if death["running"] else ""
        ago = span(max(status["totals"]["now_s"] - death["at_s"], 0.0))
        yield f"lost {death['name']} {ago} ago: {death['cause']}{ran}", "red"
    yield from _agents(status.get("agents", ()))
    for advice in status.get("advice", ())[:10]:
        yield f"advice: {ADVICE[advice['topic']].format(**advice)}; {advice['reason']}", "yellow"
    for run in status["runs"][:10]:
        done = f"{run['finished']} of {run['tasks']} tasks, {run['elapsed_s']:.1f} s"
        yield f"run {run['run']}: {run['status']}, {done}", ""
    for part, reason in status["off"].items():  # "disabled" comes through the view, which may itself be off
        yield f"switched off: {part}: {reason}", "red"


def _agents(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """One line for those that run, those on each worker together, and one for each that does not."""
    running = [row for row in rows if row["state"] == "running"]
    places: dict[str, int] = {}
    for row in running:
        name = row["agent"].removesuffix(f".{row['place']}")
        places[name] = places.get(name, 0) + 1
    if places:
        names = [f"{name} on {number} workers" if number > 1 else name for name, number in sorted(places.items())]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{_counted(len(running), 'agent')}: {', '.join(names[:SHOWN])}{more}", ""
    for row in rows:
        if row["state"] != "running":
            why = f": {row['reason']}" if row["reason"] else ""
            yield f"agent {row['agent']} is {row['state']}{why}", "red" if row["state"] == "failed" else "yellow"


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    """So that worker-10 comes after worker-9.

    >>> sorted(["worker-10", "worker-9", "10", "a"], key=_in_order)
    ['10', 'a', 'worker-9', 'worker-10']
    """
    parts = re.split(r"(\d+)", name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
