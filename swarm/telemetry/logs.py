"""The log of swarm: one JSON object per line on standard error, through a logger that nobody else uses.

It goes through the standard library's logger "swarm" with a handler of its own and without propagation, so that the
`logging` section of Dask's configuration stays as it is and no line appears twice. structlog is used without its
global configuration: a program that has one keeps it.

Examples
--------
>>> log = get_logger(worker="tcp://10.0.0.5:4000")
>>> log.warning("source_absent", source="temperature")  # doctest: +SKIP
{"timestamp": "2026-01-31T12:00:00.000000Z", "level": "warning", "event": "source_absent",
 "worker": "tcp://10.0.0.5:4000", "source": "temperature"}
"""

from __future__ import annotations

import json as json_format
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from swarm.errors import SettingsError, nearest
from swarm.protocol import Action, Event, to_wire

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FIRST = ("timestamp", "level", "event", "run", "worker", "agent")
"""What a person looks for comes first; the rest keeps the order in which it was given, the exception comes last."""
LAST = ("exception", "stack")

LEVEL_VARIABLE = "SWARM_LOG_LEVEL"
"""Environment variable with the level for processes that nobody configures; `swarm deploy --log-level` sets it."""

LOGGER = logging.getLogger("swarm")


def configure(level: str = "INFO", *, stream: TextIO | None = None, json: bool = True) -> None:
    """Set what is logged from now on, and where; may be called again at any time.

    Parameters
    ----------
    level
        One of `LEVELS`, upper or lower case.
    stream
        Where the lines go, by default standard error.
    json
        False gives lines for a person at a terminal, in colour where the stream is one.

    Raises
    ------
    SettingsError
        The level is none of `LEVELS`.
    """
    name = _level(level)
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_formatter(json, in_colour=handler.stream.isatty()))
    for old in LOGGER.handlers[:]:
        if isinstance(old, _Handler):
            LOGGER.removeHandler(old)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(name)
    LOGGER.propagate = False


def get_logger(**bound: object) -> BoundLogger:
    """A logger whose lines all carry `bound`, for instance `run`, `worker` or `agent`.

    It may be made when a module is imported: the first line that is logged before anybody called `configure`
    configures the defaults.
    """
    logger = structlog.wrap_logger(
        LOGGER,
        processors=[
            _configure_if_nobody_did,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *STAMPED,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("BoundLogger", logger.bind(**bound))


def event_fields(message: Event | Action) -> dict[str, Any]:
    """An event or action of `swarm.protocol` as the fields of a log line: `log.info(**event_fields(event))`.

    >>> from swarm.protocol import WorkerLeft
    >>> event_fields(WorkerLeft(at_s=5.0, worker="tcp://10.0.0.5:4000", reason="closed"))
    {'event': 'worker_left', 'at_s': 5.0, 'worker': 'tcp://10.0.0.5:4000', 'reason': 'closed'}
    """
    fields = to_wire(message)
    del fields["schema"]
    return {"event": _snake_case(fields.pop("type")), **fields}


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, as opposed to one that Dask's configuration or the user gave the logger "swarm"."""


def _level(level: str) -> str:
    name = level.upper()
    if name in LEVELS:
        return name
    meant = nearest(level, LEVELS)
    hint = f"; did you mean {meant}?" if meant else ""
    raise SettingsError(f"log level {level!r} is not known: use one of {', '.join(LEVELS)}{hint}")


Fields = MutableMapping[str, Any]


def _configure_if_nobody_did(_: object, __: str, fields: Fields) -> Fields:
    if not LOGGER.handlers:
        configure(os.environ.get(LEVEL_VARIABLE, "INFO"))
    return fields


def _in_reading_order(_: object, __: str, fields: Fields) -> Fields:
    middle = [name for name in fields if name not in FIRST and name not in LAST]
    return {name: _plain(fields[name]) for name in (*FIRST, *middle, *LAST) if name in fields}


def _plain(value: object) -> object:
    """JSON knows no infinity and no nan; other readers than Python's stumble over them."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def _dumps(fields: object, **_: object) -> str:
    return json_format.dumps(fields, default=str, ensure_ascii=False, allow_nan=False)


STAMPED: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]
"""What every line gets, also one that was logged with the standard library alone."""


def _formatter(json: bool, *, in_colour: bool) -> logging.Formatter:
    render: list[structlog.typing.Processor]
    if json:
        render = [
            structlog.processors.format_exc_info,
            _in_reading_order,
            structlog.processors.JSONRenderer(_dumps),
        ]
    else:
        # The plain traceback: the pretty one prints local variables, which may hold what is not for a log.
        console = structlog.dev.ConsoleRenderer(
            colors=in_colour, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
        render = [_in_reading_order, console]
    return ProcessorFormatter(
        foreign_pre_chain=STAMPED, processors=[ProcessorFormatter.remove_processors_meta, *render]
    )


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
