"""What `swarm tune` tells: for a person, and for other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.evolution import difference
from scheduler_plugins.decide.strategy import Strategy
from scheduler_plugins.io.strategies import MOST_OF_WORK
from swarm.tune import Examined, Step, Tuning, percent
from swarm.twin.matrix import versions
from swarm.twin.replay import Recording

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def bar(err: Console) -> Iterator[Callable[[Step], None]]:
    """A progress bar on a terminal, nothing anywhere else; yields what is to be told of each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not err.is_terminal or err.is_dumb_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        shown = progress.add_task("simulating", total=None)
        yield lambda step: progress.update(shown, description=step.doing, completed=step.done, total=step.of)


def words(strategy: Strategy) -> str:
    """The numbers in which it differs from the default."""
    return ", ".join(f"{name} {value:g}" for name, value in difference(strategy).items()) or "default"


def verdict(tuning: Tuning) -> str:
    """What came of it, in a line."""
    cut = {"time is up": " (the time was up)", "stopped": " (it was stopped)"}.get(tuning.ended, "")
    if kept := tuning.kept:
        return f"{len(kept)} better than the default{cut}; the best is {percent(kept[0].worth)}"
    if tuning.ended == "nothing to gain":
        return "the default is best here: it is within 1 % of what nobody can beat"
    if tuning.best_seen is None:
        return f"the default is best here, as far as anybody looked{cut}"
    quicker = [each for each in tuning.examined if each.refused]
    why = f"{len(quicker)} that seemed better did not hold" if quicker else "what seemed better was within the noise"
    return f"the default is best here{cut}: of {tuning.tried} others, {why}"


def render(tuning: Tuning, recordings: Sequence[Recording], out: Console) -> None:
    """Print it for a person."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from swarm.terminal import printable

    names = ", ".join(f"{each.name} ({len(each.work)} tasks)" for each in recordings)
    told = f"{names}: {tuning.tried} strategies, {tuning.simulations} simulations"
    out.print(Text(printable(told)), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("makespan", "median\nratio", "worst\nratio", "worst on\nother work"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("strategy: what differs from the default", overflow="fold")
    table.add_row(f"{tuning.default_s:.4g} s" if tuning.default_s > 0 else "–", "1", "1", "1", "default")
    shown = tuning.kept or sorted(tuning.examined, key=lambda each: each.worth.at_most)[:MOST_OF_WORK]
    for each in shown:
        why = Text(f"{words(each.strategy)}\n{'refused: ' + printable(each.refused) if each.refused else ''}".strip())
        ratios = (f"{one:.3f}" for one in (each.worth.ratio, each.worth.worst, each.control.ratio))
        table.add_row(f"{each.median_s:.4g} s", *ratios, why)
    out.print(table)
    out.print(Text(verdict(tuning), style="bold"), soft_wrap=True)


def as_json(tuning: Tuning, recordings: Sequence[Recording], *, seed: int) -> dict[str, Any]:
    """For other programs."""
    return {
        "runs": [each.name for each in recordings],
        "seed": seed,
        "versions": versions(),
        "ended": tuning.ended,
        "tried": tuning.tried,
        "simulations": tuning.simulations,
        "verdict": verdict(tuning),
        "default_s": tuning.default_s if math.isfinite(tuning.default_s) else None,
        "kept": [_plain(each) for each in tuning.kept],
        "refused": [_plain(each) for each in tuning.examined if each.refused],
    }


def _plain(each: Examined) -> dict[str, Any]:
    numbers = {
        "median_s": each.median_s,
        "ratio": each.worth.ratio,
        "worst_ratio": each.worth.worst,
        "error": each.worth.error,
        "control_ratio": each.control.ratio,
    }
    return {
        "strategy": each.strategy.as_dict(),
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "control": each.control_name,
        "refused": each.refused,
    }
