"""How our commands behave in a terminal: errors take one line, each has `--log-level`, times and files are checked.

Dask's own command imports this too, so everything heavy is imported inside.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click

from swarm.errors import SwarmError

AT_LEAST_ONE = click.IntRange(1)
SIMULATED = click.IntRange(1, 50_000)
"""Workers, or threads of one; so many workers take a simulation some gigabytes."""
POSITIVE = click.FloatRange(0, min_open=True)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Refusal(click.ClickException):
    """A `SwarmError` on its way to the terminal: one line, and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"swarm: error: {printable(self.message)}", file=file or sys.stderr)


def printable(text: str) -> str:
    """On one line, with control characters escaped: names come from files, and may hold commands for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))


class OneLine(click.Command):
    """A command whose complaints about its own command line take one line, where click takes four."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            path = f"{parent.command_path} {info_name}" if parent else str(info_name)
            raise _one_line(error, path) from None


class OneLineGroup(OneLine, click.Group):
    """A group of such commands."""

    command_class = OneLine

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise _one_line(error, ctx.command_path) from None


def _one_line(error: click.UsageError, command_path: str) -> click.ClickException:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    message = error.format_message().rstrip(".")
    return Refusal(f"{message[:1].lower()}{message[1:]}; see `{command_path} --help`", error.exit_code)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--log-level`, quiet Dask down, and turn errors into one line."""

    @click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        metavar="LEVEL",
        default="WARNING",
        show_default=True,
        envvar="SWARM_LOG_LEVEL",
        help=f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}; DEBUG also shows tracebacks and what Dask says.",
    )
    @functools.wraps(function)
    def wrapped(*args: Any, log_level: str, **options: Any) -> Any:
        _set_up_logs(log_level)
        try:
            return function(*args, **options)
        except (SwarmError, TimeoutError) as error:
            if log_level == "DEBUG":
                traceback.print_exc()
            raise Refusal(str(error), getattr(error, "exit_code", 1)) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 — a person at a terminal wants one line
            if log_level == "DEBUG":
                traceback.print_exc()
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise Refusal(f"{what} (run it again with --log-level DEBUG for the whole story)", 1) from None

    return wrapped


def _set_up_logs(level: str) -> None:
    import logging

    import distributed  # noqa: F401 — sets the levels of its loggers when it is imported

    from swarm.telemetry import logs

    logs.configure(level, json=not sys.stderr.isatty())
    if level != "DEBUG":
        # Each of them has a level and a handler of its own (distributed.config).
        for name in ("distributed", "distributed.client", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


class Span(click.ParamType):  # type: ignore[type-arg]  # generic in recent versions of click only
    """A time as Dask writes it, such as "12h" or "30 days"; a bare number counts seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from dask.utils import parse_timedelta

        from swarm.twin.models import MOST_S

        try:
            seconds = float(parse_timedelta(value))
        except (ValueError, LookupError, OverflowError):
            seconds = 0.0
        if not 0 < seconds <= MOST_S:
            most_days = f"{MOST_S / 86_400:g} days"
            self.fail(f"{value!r} is not a time above 0 and up to {most_days}, such as 90m, 12h or '30 days'", param)
        return seconds


def require_writable(file: Path) -> None:
    """Refuse before minutes of work, not after them."""
    import os

    folder, why = file.parent, ""
    if not folder.is_dir():
        why = f"there is no folder {folder}"
    elif file.is_dir():
        why = "it is a folder"
    elif not os.access(file if file.exists() else folder, os.W_OK):
        why = "permission denied"
    if why:
        raise SwarmError(f"{file} can't be written ({why})")
