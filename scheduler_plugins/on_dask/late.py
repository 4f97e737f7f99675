"""Running tasks that should have ended: they lift the factor of their worker while they last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

CHANGE_SPREAD = 0.3
"""Standard deviation of what a worker's log factor may have become since its last task ended."""


class Late:
    """What late tasks say of their workers.

    A worker's log factor is where a normal prior around what is known, and the shortest duration that each such task
    can have, balance: one task that varies a lot says little, several or a steady one a lot.
    """

    def __init__(self) -> None:
        self.on: dict[TaskState, str] = {}
        """Late task → address of its worker."""
        self.lift: dict[str, float] = {}
        """Address → what is added to the log factor of the worker."""
        self._of: dict[str, dict[TaskState, tuple[float, float]]] = {}

    def runs(self, ts: TaskState, address: str, beyond: float, noise: float) -> None:
        """A task still runs there, so far beyond what is known; its function spreads by `noise`. Both are in log."""
        if self.on.get(ts, address) != address:
            self.stopped(ts)
        weight = 1.0 / (noise * noise)
        self.on[ts] = address
        self._of.setdefault(address, {})[ts] = (weight, weight * beyond)
        self._balance(address)

    def stopped(self, ts: TaskState) -> None:
        """A task does not run any more where it ran: finished, failed, taken back."""
        address = self.on.pop(ts, None)
        if address is not None and (late := self._of.get(address)) is not None:
            late.pop(ts, None)
            self._balance(address)

    def worker_left(self, address: str) -> None:
        for ts in list(self._of.get(address, ())):
            self.stopped(ts)

    def tidy(self) -> None:
        """Forget tasks that run elsewhere or not at all, though nobody has said so."""
        for ts, address in list(self.on.items()):
            if ts.processing_on is None or ts.processing_on.address != address:
                self.stopped(ts)

    def _balance(self, address: str) -> None:
        late = self._of[address]
        if not late:
            del self._of[address]
            self.lift.pop(address, None)
            return
        weight = sum(weight for weight, _ in late.values())
        self.lift[address] = sum(pull for _, pull in late.values()) / (weight + 1.0 / CHANGE_SPREAD**2)
