"""What the simulations of these tests share: nothing that Dask or swarm would log as an error goes unheard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swarm.twin import simulation

LOUD = ("distributed", "tornado", "asyncio", "swarm")


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.heard.append(f"{record.name}: {record.getMessage()} {error!r}" if error else record.getMessage())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Errors that are logged while simulations run, which are quiet otherwise."""
    ear = _Ear()

    @contextmanager
    def listening() -> Iterator[None]:
        loggers = [logging.getLogger(name) for name in LOUD]
        before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
            logger.propagate = False
            logger.handlers[:] = [ear]
        try:
            yield
        finally:
            for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
                logger.setLevel(level)
                logger.propagate = propagate
                logger.handlers[:] = handlers

    monkeypatch.setattr(simulation, "quiet", listening)
    return ear.heard
