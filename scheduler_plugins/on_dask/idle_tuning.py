"""Tuning while the cluster is idle: a child process tries strategies on recorded runs, and ends when work arrives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler_plugins.io.journal import FILE
from swarm.deploy.session import kill_session

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

IDLE_S = 60.0
"""So long the cluster must have been idle."""
LIMIT_S = 300.0
"""Time after which the child is ended, whatever it does."""
GRACE_S = 30.0
"""By which it is to be done before that."""
PATIENCE_S = 5.0
"""With processes that have been killed."""
NOTHING_NEW = 3
"""Exit code of the child when all recorded runs were tuned on."""


class IdleTuning:
    """Runs `python -m swarm.tune_idle` at the lowest priority, one at a time; the child finds out whether a run is new.

    Everything is for the event loop: a start takes about a millisecond, and happens while nothing is to be done.

    Parameters
    ----------
    folder
        With the journal; what is found is kept there.
    """

    def __init__(self, folder: Path, log: BoundLogger) -> None:
        self._folder = folder
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._began_s = -inf
        self._tuned: object = None
        """How the journal was when the last child began that was not interrupted."""
        self._tuning: object = None
        self._burial: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Of the child; None when there is none."""
        return None if self._child is None else self._child.pid

    def look(self, now_s: float, idle_s: float) -> None:
        """To be called now and then while the cluster is idle."""
        if self._child is not None:
            self._look_after(self._child, now_s)
        elif idle_s >= IDLE_S:
            journal = self._journal()
            if journal is not None and journal != self._tuned:
                self._start(now_s, journal)

    def stop(self) -> None:
        """Work arrives: end the child at once, and all that it has started within milliseconds."""
        if (child := self._child) is not None:
            self._child = None
            if child.poll() is None:
                child.kill()
                self._burial = threading.Thread(target=_bury, args=(child,), name="swarm-tuning-ends", daemon=True)
                self._burial.start()

    def close(self) -> None:
        """The scheduler closes: nothing is left behind."""
        self.stop()
        if self._burial is not None:
            self._burial.join(PATIENCE_S)

    def _start(self, now_s: float, journal: object) -> None:
        told = (str(os.getpid()), str(self._folder), f"{LIMIT_S - GRACE_S:g}")
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter, and no shell
            [sys.executable, "-m", "swarm.tune_idle", *told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._began_s, self._tuning = now_s, journal

    def _look_after(self, child: subprocess.Popen[bytes], now_s: float) -> None:
        if now_s - self._began_s > LIMIT_S:
            self._tuned = self._tuning
            self.stop()
            self._log.warning("tuning_stopped", reason=f"it was not done after {LIMIT_S:g} s")
        elif (code := child.poll()) is not None:
            self._child = None
            if code == 0:
                return  # there may be another run that is new
            self._tuned = self._tuning
            if code != NOTHING_NEW:
                self._log.warning("tuning_failed", code=code)

    def _journal(self) -> object:
        """Changes when the journal does."""
        told = []
        for name in (FILE, f"{FILE}-wal"):
            try:
                told.append((self._folder / name).stat().st_mtime_ns)
            except OSError:
                continue
        return tuple(told) or None


def _bury(child: subprocess.Popen[bytes]) -> None:
    """Looking through all processes takes too long for the event loop."""
    kill_session(child.pid)  # nobody else can have this number until we have waited for the child
    child.wait()
