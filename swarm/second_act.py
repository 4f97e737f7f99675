"""The second act of `swarm demo`: the same work on stock Dask and on swarm, while one worker is ten times slower.

Both are real clusters of real processes, one after the other, and get the same graph through the same
`distributed.Client`: what differs is that the processes of one preload swarm. In both all workers have run a smaller
version of the work before, so that nobody has to compile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

import workloads
from swarm import config_sources
from swarm.deploy.local import LocalProcesses
from swarm.deploy.slowed import slowed
from swarm.deploy.spec import ClusterSpec
from swarm.explain import span
from swarm.submission import prepare

if TYPE_CHECKING:
    from rich.console import Console

    from swarm.config import Resolved

WORKLOAD = "heat"
SIZE: Mapping[str, Any] = {"points": 255, "steps": 96}
"""Some seven seconds of computing in 51 steps of blocks that need each other's faces: one slow block holds up all."""
BEFORE: Mapping[str, Any] = {"points": 95, "steps": 64}
WORKERS, LEAST_WORKERS = 3, 2
TIMES = 10.0
"""How much slower one of them is."""
PATIENCE_S = 180.0
"""For one run; a hang is what it is to find."""
PALETTE = ("blue", "dark_orange", "green", "cyan", "red", "magenta", "yellow")
LABEL = 18
"""Characters before each time line."""


@dataclass(frozen=True)
class Bar:
    """One execution of a task. Times count from the submission."""

    key: str
    function: str
    worker: str
    thread: int
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Shown:
    """How one cluster did."""

    title: str
    elapsed_s: float
    bars: Sequence[Bar]
    slow: str
    """Name of the worker that was slowed down."""
    passed: bool
    verdict: str

    def tasks_of_slow(self) -> int:
        return sum(bar.worker == self.slow for bar in self.bars)


def run_second_act(
    out: Console, err: Console, *, config: Path | None = None, workers: int | None = None, picture: Path | None = None
) -> bool:
    """Run it and show both time lines; True when both results are verified.

    Parameters
    ----------
    workers
        Two or more, of one thread each.
    picture
        Also draw the time lines there: .html, or .png, which needs a browser.
    """
    resolved = config_sources.load(config)
    count = max(LEAST_WORKERS, workers or WORKERS)
    err.print(f"one of {count} workers gets a tenth of the time (SIGSTOP and SIGCONT in turns)", style="dim")
    shown = [
        _show(title, is_stock, resolved, count, err) for title, is_stock in (("stock Dask", True), ("swarm", False))
    ]
    out.print()
    for line in chart(shown, out.width):
        out.print(line)
    if picture is not None:
        draw(shown, picture)
        err.print(f"picture in {picture}", style="dim", highlight=False, soft_wrap=True)
    return all(each.passed for each in shown)


def _show(title: str, is_stock: bool, resolved: Resolved, workers: int, err: Console) -> Shown:
    from distributed import Client, get_task_stream

    spec = ClusterSpec(
        workers=workers,
        threads_per_worker=1,
        dashboard_port=None,
        env=config_sources.as_env(resolved),
        scheduler_preload=() if is_stock else ClusterSpec.scheduler_preload,
        worker_preload=() if is_stock else ClusterSpec.worker_preload,
    )
    workload = workloads.create(WORKLOAD, **SIZE)
    with (
        err.status(f"{title}: starting {workers} workers …") as status,
        LocalProcesses(spec) as cluster,
        Client(cluster.address, set_as_default=False) as client,
    ):
        status.update(f"{title}: a small run before …")
        futures, _ = _submit(client, workloads.create(WORKLOAD, **BEFORE))
        _wait(client, futures)
        del futures
        names = {a: str(w["name"]) for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
        slow = max(names, key=lambda address: names[address])
        pid = client.run(os.getpid, workers=[slow])[slow]
        status.update(f"{title}: {WORKLOAD} with {names[slow]} slowed down {TIMES:g} times …")
        with get_task_stream(client) as stream, slowed(pid, TIMES):
            began_s, began = time.time(), time.monotonic()
            futures, assemble = _submit(client, workload)
            _wait(client, futures)
            elapsed_s = time.monotonic() - began
        status.update(f"{title}: verifying …")
        verdict = workload.verify(assemble(client.gather(futures)))
    mark = "✓" if verdict.passed else "✗"
    err.print(f"{mark} {title} {span(elapsed_s)}", style="dim" if verdict.passed else "bold red", highlight=False)
    bars = bars_of(stream.data, names, began_s)
    return Shown(title, elapsed_s, bars, names[slow], verdict.passed, verdict.summary)


def _wait(client: Any, futures: list[Any]) -> None:
    from distributed import as_completed

    # `distributed.wait` would ask the default client, who may be another one.
    for _ in as_completed(futures, loop=client.loop, timeout=PATIENCE_S):
        pass


def _submit(client: Any, workload: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    submission = prepare(workload, {}, keys=None, name="")
    keys = list(submission.keys)
    futures = client.get(submission.graph, keys, sync=False)
    return futures, lambda values: submission.assemble(dict(zip(keys, values, strict=True)))


def bars_of(stream: Sequence[Mapping[str, Any]], names: Mapping[str, str], began_s: float) -> list[Bar]:
    """What Dask's task stream tells of the time after `began_s`, as bars."""
    from dask.utils import key_split

    threads: dict[tuple[str, int], int] = {}
    counted: dict[str, int] = {}
    bars = []
    for task in stream:
        worker = task["worker"]
        thread = threads.get((worker, task["thread"]))
        if thread is None:
            thread = threads[worker, task["thread"]] = counted.get(worker, 0)
            counted[worker] = thread + 1
        bars += [
            Bar(
                str(task["key"]),
                str(key_split(task["key"])),
                names.get(worker, worker),
                thread,
                each["start"] - began_s,
                each["stop"] - began_s,
            )
            for each in task["startstops"]
            if each["action"] == "compute"
        ]
    return sorted(bars, key=lambda bar: bar.start_s)


# -- in the terminal ---------------------------------------------------------------------------------------------------


def chart(shown: Sequence[Shown], width: int) -> list[Text]:
    """Time lines below each other on one scale, a row for each worker, and what they tell."""
    scale_s = max(each.elapsed_s for each in shown)
    columns = max(20, width - LABEL - len("  1234 tasks"))
    colours: dict[str, str] = {}
    for each in shown:
        for bar in each.bars:
            colours.setdefault(bar.function, PALETTE[len(colours) % len(PALETTE)])
    lines = []
    for each in shown:
        lines.append(Text(each.title, style="bold").append(f"   {span(each.elapsed_s)}", style="bold green"))
        for worker in sorted({bar.worker for bar in each.bars} | {each.slow}):
            mine = [bar for bar in each.bars if bar.worker == worker]
            is_slow = worker == each.slow
            line = Text(f"{worker}{' (slowed)' if is_slow else ''}"[:LABEL].ljust(LABEL), "yellow" if is_slow else "")
            line.append(_row(mine, colours, scale_s, columns)).append(f" {len(mine):>4} tasks", style="dim")
            lines.append(line)
        lines.append(Text(f"{'✓' if each.passed else '✗'} {each.verdict}", "green" if each.passed else "bold red"))
        lines.append(Text())
    legend = Text()
    for function, colour in colours.items():
        legend.append("█ ", colour).append(f"{function}   ", "dim")
    stock, ours = shown[0], shown[-1]
    ratio = stock.elapsed_s / ours.elapsed_s if ours.elapsed_s else 1.0
    share = f"the slow worker was given {ours.tasks_of_slow()} tasks instead of {stock.tasks_of_slow()}"
    verb = f"{ratio:.1f} times as fast as" if ratio > 1 else f"{1 / ratio:.1f} times as slow as"
    return [*lines, legend, Text(f"{ours.title} was {verb} {stock.title}: {share}", style="bold")]


def _row(bars: Sequence[Bar], colours: Mapping[str, str], scale_s: float, columns: int) -> Text:
    """A character for each slice of the time: which function took most of it, and whether that was half of it."""
    step_s = scale_s / columns
    shares: list[dict[str, float]] = [{} for _ in range(columns)]
    for bar in bars:
        first, last = (min(columns - 1, max(0, int(at_s / step_s))) for at_s in (bar.start_s, bar.stop_s))
        for column in range(first, last + 1):
            inside_s = min(bar.stop_s, (column + 1) * step_s) - max(bar.start_s, column * step_s)
            if inside_s > 0:
                shares[column][bar.function] = shares[column].get(bar.function, 0.0) + inside_s
    line = Text()
    for share in shares:
        if not share:
            line.append("·", style="dim")
        else:
            most = max(share, key=lambda function: share[function])
            line.append("█" if sum(share.values()) > step_s / 2 else "▌", style=colours[most])
    return line


# -- as a picture ------------------------------------------------------------------------------------------------------


def draw(shown: Sequence[Shown], path: Path) -> None:
    """Both time lines as a picture, .html or .png; raises `TwinError` when it can't be written."""
    from bokeh.layouts import column

    from swarm.errors import TwinError
    from swarm.twin.gantt import gantt
    from swarm.twin.pictures import save
    from swarm.twin.record import Executed

    until_s = max(each.elapsed_s for each in shown)
    pictures = []
    for each in shown:
        labels = {bar.worker: bar.worker + (" (slowed)" if bar.worker == each.slow else "") for bar in each.bars}
        executed = [
            Executed(bar.key, labels[bar.worker], bar.thread, bar.start_s, bar.stop_s, "done") for bar in each.bars
        ]
        pictures.append(
            gantt(
                executed,
                makespan_s=each.elapsed_s,
                title=f"{each.title}: {span(each.elapsed_s)}",
                subtitle=f"{WORKLOAD}, {each.slow} slowed down {TIMES:g} times; {each.verdict}",
                until_s=until_s,
            )
        )
    try:
        save(column(*pictures), path, title="swarm demo")
    except OSError as error:
        raise TwinError(f"{path} can't be written ({error.strerror})") from None
