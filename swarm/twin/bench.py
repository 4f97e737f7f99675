"""The policy bench: scenarios × policies × seeds in the twin, side by side.

`python -m swarm.twin.bench --seeds 5 --json bench.json --picture bench.html`
`python -m swarm.twin.bench --scenario cholesky --policy stock --policy my_package.preload`
`python -m swarm.twin.bench scale --workers 100 --tasks 1000 --tasks 10000`
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from swarm.errors import SwarmError, TwinError
from swarm.terminal import SIMULATED, OneLineGroup, Refusal, Span, require_writable
from swarm.twin import scale as twin_scale
from swarm.twin.matrix import FORMAT, ORACLE, Run, for_gantt, report, run_matrix, versions
from swarm.twin.outcome import Outcome
from swarm.twin.policies import POLICIES, policy
from swarm.twin.scenarios import SCENARIOS, scenario

# -- telling -----------------------------------------------------------------------------------------------------


def table(name: str, runs: Sequence[Run]) -> Table:
    """Of one scenario: a row per policy."""
    mine = [run for run in runs if run.scenario == name]
    mark = " *" if mine[0].faults else ""
    bounds = [run.bound_s for run in mine]
    shown = Table(
        title=f"[bold]{name}[/]{mark}  {SCENARIOS[name].about}",
        title_justify="left",
        title_style="",
        caption=f"lower bound{mark} {_span(bounds)} s",
        caption_justify="left",
    )
    shown.add_column("policy", no_wrap=True)
    for heading in ("median s", f"/ bound{mark}", "worst", "seed", "reruns"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("status")
    for name_of_policy in dict.fromkeys(run.policy for run in mine):
        of_policy = [run for run in mine if run.policy == name_of_policy]
        ratios = [math.inf if run.ratio is None else run.ratio for run in of_policy]
        times = [math.inf if run.ratio is None else run.makespan_s or 0.0 for run in of_policy]
        worst = of_policy[ratios.index(max(ratios))]
        statuses = Counter(run.status for run in of_policy)
        told = ", ".join(f"{n} {status}" for status, n in statuses.items())
        shown.add_row(
            name_of_policy,
            _number(statistics.median(times)),
            _number(statistics.median(ratios)),
            _number(max(ratios)),
            str(worst.seed),
            str(sum(run.reruns for run in of_policy)),
            told if list(statuses) == ["finished"] else f"[red]{told}[/]",
        )
    return shown


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "[red]never[/]"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def draw(told: dict[str, Any], path: Path) -> None:
    """The picture of a report: policies side by side and, below, Gantt charts on one time axis."""
    from bokeh.layouts import column

    from swarm.twin import pictures

    if told["kind"] == "scale":
        pictures.save(pictures.scaling(told["points"]), path, title="swarm twin: scale")
        return
    charts: list[Any] = [pictures.comparison(told["runs"])]
    outcomes = [Outcome.from_json(values) for values in told["gantt"]]
    until_s = max((outcome.makespan_s for outcome in outcomes), default=None)
    charts += [outcome.gantt(until_s=until_s) for outcome in outcomes]
    pictures.save(column(*charts), path, title="swarm twin: policies")


# -- the command line --------------------------------------------------------------------------------------------


def _refusal(error: SwarmError) -> Refusal:
    return Refusal(str(error), error.exit_code)


def _new_file(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuse before minutes of work, not after them."""
    try:
        if path is not None:
            require_writable(path)
    except SwarmError as error:
        raise click.BadParameter(str(error)) from None
    return path


def _picture_path(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    path = _new_file(context, parameter, path)
    if path is not None and path.suffix not in (".html", ".png"):
        raise click.BadParameter(f"{path} must end in .html or .png")
    if path is not None and path.suffix == ".png":
        from swarm.twin.pictures import browser

        if browser() is None:
            raise click.BadParameter("a PNG needs chromium or Chrome on PATH, and none is there; .html works without")
    return path


FILE = click.Path(path_type=Path, dir_okay=False, writable=True)
json_option = click.option("--json", "json_path", type=FILE, callback=_new_file, help="Write the figures there.")
picture_option = click.option(
    "--picture", type=FILE, callback=_picture_path, help="Write the picture there: .html or .png."
)


@click.group(cls=OneLineGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scenario", "scenarios", multiple=True, help="One of them, several times; by default all.")
@click.option("--policy", "policies", multiple=True, help="stock, no-stealing, random, swarm, or any preload module.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option("--processes", type=click.IntRange(1), help="At a time; by default as many as there are CPUs.")
@click.option("--limit", "limit_s", type=Span(), help="Virtual time for one run, such as 10m or 300 (seconds).")
@click.option("--quick", is_flag=True, help="One seed; stock and swarm only, if no policy is named.")
@click.option("--gantt", help="Scenario whose Gantt charts are drawn; by default where policies differ most.")
@click.option("--list", "only_list", is_flag=True, help="Show the scenarios and end.")
@json_option
@picture_option
@click.pass_context
def bench(
    context: click.Context,
    scenarios: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: int,
    processes: int | None,
    limit_s: float | None,
    quick: bool,
    gantt: str | None,
    only_list: bool,
    json_path: Path | None,
    picture: Path | None,
) -> None:
    """Compare policies in the twin: makespan over what nobody can beat, and what an oracle would reach."""
    if context.invoked_subcommand is not None:
        return
    console = Console()
    if only_list:
        for each in SCENARIOS.values():
            console.print(f"[bold]{each.name:20}[/] {each.about}")
        return
    names = list(dict.fromkeys(scenarios or SCENARIOS))
    deciders = list(dict.fromkeys(policies or (("stock", "swarm") if quick else POLICIES)))
    numbers = range(1 if quick else seeds)
    try:
        if gantt is not None and scenario(gantt).name not in names:
            names.append(gantt)
        runs = _run_with_bar(names, deciders, numbers, processes, limit_s)
        for name in names:
            console.print(table(name, runs), "")
        console.print(f"Of {len(numbers)} seeds. {ORACLE}: offline, knows all costs; nothing fails, messages are free.")
        if any(run.faults for run in runs):
            from swarm.twin.pictures import FAULTS_NOTE

            console.print(FAULTS_NOTE)
        for run in runs:
            if run.status not in ("finished", "left out"):
                console.print(
                    f"{run.scenario}, {run.policy}, seed {run.seed}: {run.status}: {run.message}",
                    style="red", markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip
        _write(report(runs, for_gantt(runs, gantt)), json_path, picture, console)
    except SwarmError as error:
        raise _refusal(error) from None


def _run_with_bar(
    names: Sequence[str], deciders: Sequence[str], seeds: Sequence[int], processes: int | None, limit_s: float | None
) -> list[Run]:
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    matrix = run_matrix(names, deciders, seeds, processes=processes, limit_s=limit_s)
    with closing(matrix), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("simulating", total=len(names) * (len(deciders) + 1) * len(seeds))
        for run in matrix:
            runs.append(run)
            progress.update(bar, advance=1, description=f"{run.scenario}, seed {run.seed}")
    order = [*deciders, ORACLE]
    return sorted(runs, key=lambda run: (names.index(run.scenario), order.index(run.policy), run.seed))


def _write(told: dict[str, Any], json_path: Path | None, picture: Path | None, console: Console) -> None:
    try:
        if json_path is not None:
            json_path.write_text(json.dumps(told, allow_nan=False), encoding="utf-8")
            console.print(f"figures: {json_path}", highlight=False)
        if picture is not None:
            draw(told, picture)
            console.print(f"picture: {picture}", highlight=False)
    except OSError as error:
        raise TwinError(f"{error.filename or json_path or picture} can't be written ({error.strerror})") from None


@bench.command("draw")
@click.argument("figures", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("picture", type=FILE, callback=_picture_path)
def redraw(figures: Path, picture: Path) -> None:
    """Draw the picture again from what --json wrote."""
    try:
        told = json.loads(figures.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise TwinError(f"{figures} is not what --json of this version writes (format {FORMAT})")
        try:
            _write(told, None, picture, Console(quiet=True))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise TwinError(f"{figures} is damaged ({what}); write it again with --json") from None
    except (ValueError, RecursionError) as error:
        raise _refusal(TwinError(f"{figures} is no JSON: {error}")) from None
    except OSError as error:
        raise _refusal(TwinError(f"{figures} can't be read ({error.strerror})")) from None
    except SwarmError as error:
        raise _refusal(error) from None


@bench.command("scale")
@click.option("--workers", type=SIMULATED, multiple=True, default=twin_scale.WORKERS, show_default=True)
@click.option("--tasks", type=click.IntRange(1, 10_000_000), multiple=True, default=twin_scale.TASKS, show_default=True)
@click.option("--shape", type=click.Choice(twin_scale.SHAPES), default="independent", show_default=True)
@click.option("--policy", "decider", default="stock", show_default=True)
@click.option(
    "--limit", "limit_s", type=Span(), default="300 s", show_default=True,
    help="Time after which a point is stopped.",
)  # fmt: skip
@json_option
@picture_option
def scale(
    workers: tuple[int, ...],
    tasks: tuple[int, ...],
    shape: str,
    decider: str,
    limit_s: float,
    json_path: Path | None,
    picture: Path | None,
) -> None:
    """How fast the twin is: tasks per CPU second and memory, each point in a process of its own."""
    console = Console()
    try:
        chosen = policy(decider).name
        points = []
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                      console=Console(stderr=True), transient=True) as progress:  # fmt: skip
            bar = progress.add_task("simulating", total=len(set(workers)) * len(set(tasks)))
            for point in twin_scale.curve(shape, workers, tasks, limit_s=limit_s, policy=chosen):
                points.append(point)
                progress.update(bar, advance=1, description=f"{point['workers']:,} workers")
        console.print(_scale_table(points))
        per = twin_scale.memory_per(points)
        if per is not None:
            console.print(f"Memory, fitted: {per[0] / 1024:.1f} KiB per worker and {per[1] / 1024:.1f} KiB per task.")
        told = {"format": FORMAT, "kind": "scale", "versions": versions(), "points": points, "memory_per": per}
        _write(told, json_path, picture, console)
    except SwarmError as error:
        raise _refusal(error) from None


def _scale_table(points: Sequence[twin_scale.Point]) -> Table:
    shown = Table(title=f"{points[0]['shape']} tasks, {points[0]['policy']}", title_justify="left", title_style="bold")
    for heading in ("workers", "tasks", "tasks / CPU s", "CPU s", "peak MiB", "of which the run"):
        shown.add_column(heading, justify="right")
    shown.add_column("status")
    for point in points:
        sizes = (f"{point['workers']:,}", f"{point['tasks']:,}")
        if point["status"] != "finished":
            shown.add_row(*sizes, "–", "–", "–", "–", point["status"])
            continue
        peak, before = point["peak_bytes"], point["before_bytes"]
        shown.add_row(
            *sizes,
            f"{point['tasks_per_cpu_s']:,.0f}",
            f"{point['cpu_s']:.2f}",
            f"{peak / 2**20:,.0f}",
            f"{(peak - before) / 2**20:,.0f}",
            point["status"],
        )
    return shown


if __name__ == "__main__":
    bench(prog_name="python -m swarm.twin.bench")
