"""Progress bars of simulations, on a terminal; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from swarm.twin.progress import Progress as Seen
from swarm.twin.progress import span

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def shown(err: Console, titles: Sequence[str], tasks: int) -> Iterator[Callable[[int, Seen], None] | None]:
    """One bar per simulation that has begun, and one for all; yields what is to be told of progress.

    Parameters
    ----------
    titles
        Of the simulations, by number.
    tasks
        Of each.
    """
    if not err.is_terminal or err.is_dumb_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, expand=True) as progress:
        whole = progress.add_task("simulating", total=tasks * len(titles), note="tasks")
        bars = {
            number: progress.add_task(title, total=tasks, visible=False, start=False, note="")
            for number, title in enumerate(titles)
        }
        done = dict.fromkeys(bars, 0)

        def tell(number: int, seen: Seen) -> None:
            done[number] = seen.done
            bar = bars[number]
            progress.start_task(bar)
            is_over = seen.done >= seen.tasks
            progress.update(bar, completed=seen.done, note=f"at {span(seen.virtual_s)}", visible=not is_over)
            progress.update(whole, completed=sum(done.values()))

        yield tell
