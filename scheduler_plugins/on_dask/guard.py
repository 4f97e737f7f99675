"""Harmless: a part of swarm that fails is counted, logged, switched off and shown, while Dask goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swarm.errors import SwarmError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

STRIKES = 3
"""Failures after which a part is off for good. One may be a race with a worker that leaves; a defect comes back."""


class Guard:
    """Runs the parts of swarm that Dask calls.

    >>> guard = Guard(log, disabled=lambda part, reason, failures: print(part, "is off"))  # doctest: +SKIP
    >>> with guard("alerts"):  # doctest: +SKIP
    ...     1 / 0
    """

    def __init__(self, log: BoundLogger, disabled: Callable[[str, str, int], None]) -> None:
        self._log = log
        self._disabled = disabled
        self.failures: Counter[str] = Counter()
        self.off: dict[str, str] = {}
        """Part → why it was switched off."""

    def is_on(self, part: str) -> bool:
        return part not in self.off

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Keep an exception of `part` from Dask; ask `is_on(part)` first."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 — whatever it is, Dask must go on
            self.failed(part, error)

    def failed(self, part: str, error: Exception) -> None:
        """Count a failure, and log it; the third one switches the part off."""
        self.failures[part] += 1
        reason = str(error) if isinstance(error, SwarmError) else f"{type(error).__name__}: {error}"
        self._log.error("part_failed", part=part, reason=reason, failures=self.failures[part], exc_info=error)
        if self.failures[part] >= STRIKES:
            self.switch_off(part, reason)

    def switch_off(self, part: str, reason: str) -> None:
        """Do without `part` from now on."""
        if part not in self.off:
            self.off[part] = reason
            self._disabled(part, reason, max(1, self.failures[part]))
