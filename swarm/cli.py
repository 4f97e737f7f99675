"""The command line: `swarm …`, and the same as `dask swarm …`.

Dask's own command imports this module each time it runs, so everything heavy is imported inside the commands.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm import __version__
from swarm.errors import SwarmError
from swarm.terminal import (
    AT_LEAST_ONE,
    POSITIVE,
    SIMULATED,
    OneLine,
    OneLineGroup,
    Refusal,
    Span,
    command,
    printable,
    require_writable,
)

if TYPE_CHECKING:
    from rich.console import Console


@click.group("swarm", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dask-swarm", prog_name="swarm")
def cli() -> None:
    """A Dask cluster that looks after itself."""


class Workloads(OneLineGroup):
    """One command per workload, with the parameters of the workload as its options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        import workloads

        return workloads.names()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them with their whole summary; click would cut it, and fail if one workload can't be loaded."""
        from workloads import catalogue

        rows = []
        for name in self.list_commands(ctx):
            try:
                rows.append((name, catalogue.describe(name)[0]))
            except SwarmError as error:
                rows.append((name, str(error)))
        with formatter.section("Workloads"):
            formatter.write_dl(rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        from workloads import catalogue

        try:
            summary, parameters = catalogue.describe(cmd_name)
        except SwarmError as error:
            raise Refusal(str(error), error.exit_code) from None
        options: list[click.Parameter] = [
            click.Option(
                [f"--{parameter.name.replace('_', '-')}", f"p_{parameter.name}"],
                metavar="VALUE",
                default=None,
                help=_help(parameter),
            )
            for parameter in parameters
        ]

        @command
        def run_workload(
            address: str | None, workers: int | None, timeout: float | None, verify: bool, **given: str | None
        ) -> None:
            values = {key.removeprefix("p_"): value for key, value in given.items() if value is not None}
            _run(cmd_name, values, address=address, workers=workers, timeout=timeout, verify=verify)

        made = OneLine(cmd_name, callback=run_workload, help=summary, params=options)
        for option in (
            click.option("--address", help="Of a running scheduler; without it, a local cluster is started."),
            click.option("--workers", type=AT_LEAST_ONE, metavar="N", help="Worker processes of the local cluster."),
            click.option("--timeout", type=POSITIVE, metavar="SECONDS", help="How long to wait for the result."),
            click.option("--verify/--no-verify", default=True, show_default=True, help="Check the result."),
        ):
            option(made)
        made.params += getattr(run_workload, "__click_params__", [])
        return made


def _help(parameter: Any) -> str:
    default = "" if parameter.default is None else f"  [default: {parameter.default}]"
    return f"{parameter.description or parameter.name}: {parameter.allowed}{default}"


@cli.group("run", cls=Workloads, subcommand_metavar="WORKLOAD [OPTIONS]")
def run_group() -> None:
    """Run a workload, show its progress, and verify its result."""


def _run(
    name: str, values: dict[str, str], *, address: str | None, workers: int | None, timeout: float | None, verify: bool
) -> None:
    import swarm
    import workloads
    from swarm import config_sources
    from swarm.deploy.signals import stopping_on_signals

    out, err = _consoles()
    # Refused before anything is started.
    workload = workloads.create(name, **values)
    config_sources.load()
    code = 0
    with stopping_on_signals() as stop:
        if address is None:
            err.print("starting a local cluster …", style="dim")
        with swarm.connect(address, workers=workers) as cluster:
            where = f"scheduler {cluster.address}   dashboard {cluster.page or 'none'}"
            err.print(where, style="dim", highlight=False, soft_wrap=True)
            run = cluster.submit(workload).progress(err, timeout=timeout)
            if timeout is not None and run.status == "running":
                done = "{finished} of {tasks} tasks were done".format_map(run.info())
                raise TimeoutError(f"run {run.id} is not finished after {timeout:g} s and was stopped: {done}")
            result = run.result()
            summary = workload.summary(result) if hasattr(workload, "summary") else repr(result)
            out.print(summary, markup=False, highlight=False, soft_wrap=True)
            if verify:
                with err.status("verifying …"):
                    verdict = workload.verify(result)
                said = f"{'verified' if verdict.passed else 'WRONG'}: {verdict.summary}"
                out.print(said, markup=False, highlight=False, soft_wrap=True)
                code = 0 if verdict.passed else 1
    _leave(stop, code)


config_option = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="A swarm_config file (JSON or YAML)."
)
workers_option = click.option(
    "--workers", type=AT_LEAST_ONE, metavar="N", help="Worker processes; by default as many as this machine carries."
)


@cli.command()
@workers_option
@config_option
@click.option("--act", type=click.Choice(["1", "2"]), help="Only this act.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the time lines of act 2 there too, as .html, or .png if a browser is installed.",
)
@command
def demo(workers: int | None, config: Path | None, act: str | None, picture: Path | None) -> None:
    """Run real work on a local swarm and verify it, in two acts.

    First the three workloads. Then one of them on stock Dask and on swarm, while a worker is ten times slower.
    """
    import swarm
    from swarm import config_sources
    from swarm.demo import run_demo
    from swarm.deploy.signals import stopping_on_signals
    from swarm.second_act import run_second_act

    out, err = _consoles()
    config_sources.load(config)  # refused before anything is started
    if picture is not None:
        _check_picture(picture, act)
    code = 1
    with stopping_on_signals() as stop:
        passed = True
        if act != "2":
            err.print("starting a scheduler and workers …", style="dim")
            with swarm.connect(config=config, workers=workers) as cluster:
                passed = run_demo(cluster, out, err)
        if act != "1":
            passed = run_second_act(out, err, config=config, workers=workers, picture=picture) and passed
        code = 0 if passed else 1
    _leave(stop, code)


def _check_picture(picture: Path, act: str | None) -> None:
    """Refuse before a minute of work, not after it."""
    from swarm.twin.pictures import browser

    if act == "1":
        raise SwarmError("--picture is for act 2")
    if picture.suffix not in (".html", ".png"):
        raise SwarmError(f"a picture can't be written to {picture}: its name must end in .html or .png")
    if picture.suffix == ".png" and browser() is None:
        raise SwarmError(f"{picture} can't be written: a PNG needs a Chromium or Chrome; .html works without")
    require_writable(picture)


@cli.command()
@config_option
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", metavar="N", default=8786, show_default=True, help="Of the scheduler; 0 for any free port.")
@click.option("--dashboard-port", metavar="N", default=8787, show_default=True, help="0 for any free port.")
@workers_option
@click.option("--threads", type=AT_LEAST_ONE, metavar="N", help="Threads of each worker.")
@click.option(
    "--memory-limit", metavar="SIZE", default="auto", show_default=True, help="Of each worker, as for `dask worker`."
)
@click.option(
    "--log-directory",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Everything is logged to files there, instead of what --log-level lets through to standard error.",
)
@click.option("--scheduler-only", is_flag=True, help="No workers: they are started elsewhere.")
@click.option("--tls", is_flag=True, help="Encrypt all connections, with certificates that end with the cluster.")
@click.option("--demo", "with_demo", is_flag=True, help="Run the demo workloads on it.")
@click.option("--monitor-duration", type=POSITIVE, metavar="SECONDS", help="Stop after so many seconds.")
@command
def deploy(**options: Any) -> None:
    """Start a scheduler and workers and keep them running.

    Whatever ends is started again, the scheduler on the same address, so that durable runs go on. Ctrl-C or SIGTERM
    stops them all.
    """
    from swarm.demo import run_deploy

    out, err = _consoles()
    _leave(None, run_deploy(out, err, **options))


@cli.command()
@click.argument("run", required=False)
@click.option("--address", help="Of a running scheduler; without it, a local cluster is started.")
@workers_option
@click.option("--timeout", type=POSITIVE, metavar="SECONDS", help="How long to wait for the result.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Pickle the result there; otherwise it is shown."
)
@click.option("--keep", is_flag=True, help="Keep what is stored of the run.")
@command
def resume(run: str | None, address: str | None, output: Path | None, **options: Any) -> None:
    """Go on with a durable run after everything has ended.

    RUN is the id of a run, or its beginning; without it, those that are stored are listed. What is stored of a run is
    removed once its result is here.
    """
    from swarm import resuming

    out, err = _consoles()
    if output is not None:
        require_writable(output)
    if run is None:
        resuming.show(out, err, address)
    else:
        stop = resuming.resume(out, err, run, address=address, output=output, **options)
        _leave(stop, 0)


@cli.command()
@click.argument("address", required=False)
@click.option("--json", "as_json", is_flag=True, help="For other programs.")
@command
def status(address: str | None, as_json: bool) -> None:
    """Show the workers, alerts and runs of a cluster.

    ADDRESS is that of the scheduler; without it DASK_SCHEDULER_ADDRESS counts, then tcp://127.0.0.1:8786. Changes
    nothing there.
    """
    from swarm.status import fetch, render

    out, _ = _consoles()
    found = fetch(address)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=1))
    else:
        render(found, out)


@cli.command()
@click.argument("address", required=False)
@click.option("--every", type=POSITIVE, metavar="SECONDS", default=1.0, show_default=True, help="Between two looks.")
@command
def top(address: str | None, every: float) -> None:
    """Show the same on the whole screen, and follow it.

    ADDRESS is as for `swarm status`. Ctrl-C ends it.
    """
    from swarm.status import watch

    out, _ = _consoles()
    if not out.is_terminal:
        raise SwarmError("swarm top needs a terminal; `swarm status` writes to a file or a pipe")
    watch(out, address, every)


@cli.command()
@click.argument("what", metavar="KEY|WORKER")
@click.option("--scheduler", "address", metavar="ADDRESS", help="Of the scheduler; by default as for `swarm status`.")
@click.option("--run", metavar="RUN", help='Ask the journal about a task of this run ("latest", its id, its workload).')
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --run: that of local clusters by default, or the one in state_directory.",
)
@click.option("--json", "as_json", is_flag=True, help="For other programs.")
@command
def explain(what: str, address: str | None, run: str | None, journal: Path | None, as_json: bool) -> None:
    """Tell why a task went where it did, or what a worker has.

    KEY is that of a task, or its beginning; WORKER the name or address of a worker.
    """
    from swarm import explain as explaining

    out, _ = _consoles()
    if run is None and journal is not None:
        raise SwarmError("--journal is for --run: name the run, or give --run latest")
    if run is not None and address is not None:
        raise SwarmError("--run asks the journal, --scheduler a scheduler: give one of them")
    if run is None:
        account = explaining.fetch(what, address)
    else:
        account = explaining.recorded(what, run, journal or _journal_by_default())
    if as_json:
        import json

        click.echo(json.dumps(account.facts, indent=1))
    else:
        out.print(account)


def _journal_by_default() -> Path:
    from scheduler_plugins.io.journal import FILE
    from swarm import config_sources
    from swarm.deploy import state

    folder = state.journal_directory(config_sources.load())
    if folder is None:
        raise SwarmError(
            "no journal is kept here (state_directory is off, or there is no home); name one with --journal"
        )
    return folder / FILE


@cli.command()
@click.argument("run")
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a scheduler; by default that of local clusters, or the one in state_directory.",
)
@click.option("--workers", type=SIMULATED, multiple=True, metavar="N", help="How many; may be given several times.")
@click.option("--threads", type=SIMULATED, metavar="N", help="Of each worker.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    default=("swarm",),
    show_default="swarm",
    help="swarm, stock, no-stealing, random, or a module to preload; may be given several times.",
)
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of what is drawn at random.")
@click.option(
    "--limit",
    "limit_s",
    type=Span(),
    default="30 days",
    show_default=True,
    help="Virtual time that a simulation may take, such as 90m, 12h or '100 days'.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there too.")
@command
def replay(
    run: str,
    journal: Path | None,
    workers: tuple[int, ...],
    threads: int | None,
    policies: tuple[str, ...],
    seed: int,
    limit_s: float,
    json_file: Path | None,
) -> None:
    """Simulate a recorded run on another cluster.

    RUN is the id of a run or its beginning, the name of a workload for its latest run, "latest", or a WfFormat file.
    Without --workers and --threads the cluster is the recorded one. The first row tells what really happened.
    """
    import json
    from contextlib import closing

    from scheduler_plugins.io.journal import FILE
    from swarm import config_sources
    from swarm.deploy import state
    from swarm.deploy.signals import stopping_on_signals
    from swarm.twin import bars
    from swarm.twin import replay as twin

    out, err = _consoles()
    if json_file is not None:
        require_writable(json_file)
    named = journal is not None
    if journal is None:
        folder = state.journal_directory(config_sources.load())
        journal = folder / FILE if folder else None
    with stopping_on_signals() as stop:
        recording = twin.find(run, journal)
        options: Any = {"threads": threads, "policies": policies, "seed": seed, "limit_s": limit_s}
        with bars.shown(err, twin.titles(recording, workers, policies), len(recording.work)) as tell:
            simulated = twin.replay(recording, workers=workers, on_progress=tell, **options)
            with closing(simulated):
                rows = list(simulated)
        twin.render(recording, rows, out, err)
        source = journal if named else None
        again = twin.command_line(recording.file or recording.name, source, workers=workers, **options)
        err.print(printable(f"again: {again}"), style="dim", markup=False, highlight=False, soft_wrap=True)
        if json_file is not None:
            try:
                told = twin.as_json(recording, rows, seed=seed, again=again)
                json_file.write_text(json.dumps(told, indent=1))
            except OSError as error:
                raise SwarmError(f"{json_file} can't be written ({error.strerror})") from None
    _leave(stop, 0)


@cli.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a scheduler; by default that of local clusters, or the one in state_directory.",
)
@click.option("--workers", type=SIMULATED, metavar="N", help="Of the simulated cluster; by default the recorded one.")
@click.option("--threads", type=SIMULATED, metavar="N", help="Of each worker.")
@click.option("--generations", type=click.IntRange(1, 1000), metavar="N", default=6, show_default=True)
@click.option(
    "--population",
    type=click.IntRange(2, 1000),
    metavar="N",
    default=10,
    show_default=True,
    help="Strategies that are tried in each generation.",
)
@click.option(
    "--seeds", type=click.IntRange(3, 100), metavar="N", default=5, show_default=True, help="Draws of each run."
)
@click.option("--seconds", type=POSITIVE, metavar="LIMIT", default=600.0, show_default=True, help="Most that it takes.")
@click.option("--processes", type=AT_LEAST_ONE, metavar="N", help="At a time; by default as many as there are CPUs.")
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Of what is drawn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there too.")
@click.option("--dry-run", is_flag=True, help="Look, and keep nothing.")
@command
def tune(
    runs: tuple[str, ...], journal: Path | None, json_file: Path | None, dry_run: bool, seed: int, **options: Any
) -> None:
    """Look for a strategy of placement that does recorded runs better.

    RUN is as for `swarm replay`; several runs give a strategy that does well on all. Candidates are tried in the twin;
    those that beat the default by more than the noise, and do no harm elsewhere, are kept beside the journal. A
    scheduler tries them on such work, and stays with what does best there. Ctrl-C keeps the best so far.
    """
    import json

    from scheduler_plugins.io.journal import FILE
    from swarm import config_sources, tune_table
    from swarm import tune as tuning
    from swarm.deploy import state
    from swarm.deploy.signals import StopRequested, stopping_on_signals
    from swarm.twin import replay as twin

    out, err = _consoles()
    if json_file is not None:
        require_writable(json_file)
    folder = state.journal_directory(config_sources.load()) if journal is None else journal.parent
    if folder is None and not dry_run:
        raise SwarmError(
            "there is no place to keep strategies in (state_directory is off, or there is no home); name a journal "
            "with --journal, or give --dry-run"
        )
    with stopping_on_signals() as stop:
        recordings = [twin.find(run, journal or (folder and folder / FILE)) for run in dict.fromkeys(runs)]
        search = tuning.Tuning(recordings, known=tuning.known(recordings, folder), seed=seed, **options)
        try:
            with tune_table.bar(err) as tell:
                for step in search.steps():
                    tell(step)
        except StopRequested:
            err.print("stopped; this is what was found until then", style="dim")
        tune_table.render(search, recordings, out)
        if not dry_run and folder is not None:
            file = tuning.save(search, recordings, folder)
            if search.kept:
                err.print(printable(f"kept in {file}"), style="dim", markup=False, highlight=False, soft_wrap=True)
        if json_file is not None:
            try:
                json_file.write_text(json.dumps(tune_table.as_json(search, recordings, seed=seed), indent=1))
            except OSError as error:
                raise SwarmError(f"{json_file} can't be written ({error.strerror})") from None
    _leave(stop, 0)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For other programs.")
@click.option("--clean", is_flag=True, help="First remove sockets and ledgers that killed processes have left here.")
@command
def doctor(as_json: bool, clean: bool) -> None:
    """Say what this machine offers, and what is missing.

    What is missing comes with the reason, and how to get it.
    """
    from swarm import doctor as examination
    from swarm import leftovers

    if clean:
        removed = [f"{number} of the {left.what}" for left in leftovers.look() if (number := left.remove())]
        _consoles()[1].print(f"removed {' and '.join(removed)}" if removed else "nothing to remove", style="dim")
    findings = examination.examine()
    if as_json:
        click.echo(examination.as_json(findings))
    else:
        examination.render(findings, _consoles()[0])


def _consoles() -> tuple[Console, Console]:
    """For results, and for progress and remarks."""
    from rich.console import Console

    return Console(), Console(stderr=True)


def _leave(stop: Any, code: int) -> None:
    """Exit with the code that shells expect: 128 + signal when one asked us to stop."""
    number = getattr(stop, "signal", None)
    if number is not None:
        click.echo(f"swarm: stopped by {number.name}", err=True)
        sys.exit(128 + number)
    sys.exit(code)


def main() -> None:
    """Entry point of the command `swarm`."""
    cli.main(prog_name="swarm")


if __name__ == "__main__":
    main()
