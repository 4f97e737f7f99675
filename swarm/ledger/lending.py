"""The ledger that all threads of this process share, and what is used most: `lend`, `using`, `CoresInUse`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from swarm.errors import NotGrantedError
from swarm.ledger.leases import LEASE_S, Lease, Ledger, Standing, check


class _OfThisProcess:
    """The ledger that all threads of the process share: open while somebody uses it, so that nothing stays behind."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ledger: Ledger | None = None
        self.users = 0


_OURS = _OfThisProcess()


def standing() -> Standing | None:
    """How the ledger stands that this process has open; None where it has none."""
    with _OURS.lock:
        return None if _OURS.ledger is None else _OURS.ledger.standing()


@contextmanager
def of_this_process() -> Iterator[Ledger]:
    """The ledger of this process, opened for the first user and closed after the last. Raises `LedgerError`."""
    ours = _OURS
    with ours.lock:
        if ours.ledger is None:
            ours.ledger = Ledger()
        ours.users += 1
        ledger = ours.ledger
    try:
        yield ledger
    finally:
        with ours.lock:
            ours.users -= 1
            if not ours.users and ours.ledger is ledger:
                ours.ledger = None
                ledger.close()


def _in_a_child() -> None:
    global _OURS  # noqa: PLW0603 - the child's own, with a lock that nobody holds
    _OURS = _OfThisProcess()
    _HELD.lend = None


os.register_at_fork(after_in_child=_in_a_child)


# -- what a thread has ------------------------------------------------------------------------------------------------


class Lent:
    """What the code in a `lend` block may use: a lease, or part of the one of the block around it."""

    def __init__(self, lease: Lease, up_to: int) -> None:
        self._lease = lease
        self._up_to = up_to

    @property
    def granted(self) -> int:
        """Cores to use, from 1 to what was asked for."""
        return min(self._lease.granted, self._up_to)

    def refresh(self) -> int:
        """As `Lease.refresh`."""
        return min(self._lease.refresh(), self._up_to)

    def adopt(self, up_to: int = 1) -> None:
        """Have this thread work within the block, on so many of its cores, for as long as the thread lives.

        For the threads of a pool (`initializer=lent.adopt`): what they call does not ask for cores of its own.
        """
        _HELD.lend = Lent(self._lease, min(up_to, self._up_to))


class _Held(threading.local):
    lend: Lent | None = None


_HELD = _Held()


@contextmanager
def lend(
    up_to: int, *, at_least: int = 1, priority: int = 0, timeout_s: float = 0.0, for_s: float = LEASE_S
) -> Iterator[Lent]:
    """Cores for the block, as `Ledger.lease` with the ledger of this process; within another block, of its cores.

    Raises what `Ledger.lease` raises, `NotGrantedError` also when the block around has fewer than `at_least`.
    """
    around = _HELD.lend
    if around is not None:
        check("up_to", up_to, 1)
        check("at_least", at_least, 1, up_to)
        if around.granted < at_least:
            raise NotGrantedError(f"{at_least} cores are asked for inside a block that was granted {around.granted}")
        with _held(Lent(around._lease, min(up_to, around._up_to))) as lent:
            yield lent
        return
    with (
        of_this_process() as ledger,
        ledger.lease(up_to, at_least=at_least, priority=priority, timeout_s=timeout_s, for_s=for_s) as lease,
        _held(Lent(lease, up_to)) as lent,
    ):
        yield lent


@contextmanager
def _held(lent: Lent) -> Iterator[Lent]:
    before, _HELD.lend = _HELD.lend, lent
    try:
        yield lent
    finally:
        _HELD.lend = before


class CoresInUse:
    """The tasks of a worker, one core each, for its neighbours to see. Raises `LedgerError` when there is no ledger."""

    def __init__(self) -> None:
        self._using = of_this_process()
        self._ledger = self._using.__enter__()
        self._running = 0

    def began(self) -> None:
        """A task was given to a thread."""
        self._running += 1
        self._ledger.began()

    def ended(self) -> None:
        """A thread is done with it."""
        if self._running:
            self._running -= 1
            self._ledger.ended()

    def close(self) -> None:
        """Nothing runs here any more. Doing it twice does no harm."""
        while self._running:
            self.ended()
        using, self._using = self._using, None  # type: ignore[assignment]  # closed
        if using is not None:
            using.__exit__(None, None, None)


@contextmanager
def using(cores: int = 1) -> Iterator[None]:
    """Tell the others of the host that the block keeps so many cores busy. Raises `LedgerError`, ValueError."""
    check("cores", cores, 1)
    with of_this_process() as ledger:
        ledger.began(cores)
        try:
            yield
        finally:
            ledger.ended(cores)
