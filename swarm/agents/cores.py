"""Tells the neighbours of a worker on its host how many of its tasks run, so that they see which cores are idle."""

from __future__ import annotations

from dask.typing import Key

from swarm.agents.watch.task_memory import RUNNING
from swarm.errors import LedgerError
from swarm.ledger import CoresInUse
from swarm.telemetry.logs import get_logger


class CoresAgent:
    """Counts the running tasks of a worker in the host's ledger; without a ledger it does nothing, and says so."""

    def __init__(self) -> None:
        self.absent = ""
        """Why there is no ledger."""
        self._in_use: CoresInUse | None = None
        try:
            self._in_use = CoresInUse()
        except LedgerError as error:
            self._give_up(error)

    def transition(self, key: Key, start: str, finish: str) -> None:
        """A task of the worker has entered another state."""
        if (start in RUNNING) == (finish in RUNNING):
            return
        if finish in RUNNING:
            self.began()
        else:
            self.ended()

    def began(self) -> None:
        """A task was given to a thread."""
        if self._in_use is not None:
            try:
                self._in_use.began()
            except LedgerError as error:
                self._give_up(error)

    def ended(self) -> None:
        """A thread is done with it."""
        if self._in_use is not None:
            try:
                self._in_use.ended()
            except LedgerError as error:
                self._give_up(error)

    def close(self) -> None:
        in_use, self._in_use = self._in_use, None
        if in_use is not None:
            in_use.close()

    def _give_up(self, error: LedgerError) -> None:
        self.absent, self._in_use = str(error), None
        get_logger(agent="cores").warning("ledger_absent", reason=self.absent, consequence="no cores are lent here")
