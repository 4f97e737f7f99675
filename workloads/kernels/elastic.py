"""Kernels on as many cores as the ledger of the host grants: the same compiled code on pieces, in threads.

The kernels release the GIL and run on one core, so threads are all it takes to run several pieces at once. Which
pieces there are depends on the data only, never on the number of threads, and results are put together in order: they
are the same bit for bit whatever was granted. Between two pieces a thread sees whether its core was asked back, or
whether there is room for one more. numba's own `parallel=True` can't do that, needs a second compilation, and ends the
process when two tasks use it at the same time on its threading layer `workqueue`.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

from swarm.errors import LedgerError, NotGrantedError, SettingsError

if TYPE_CHECKING:
    from swarm.ledger.lending import Lent

T = TypeVar("T")

VARIABLE = "SWARM_CORES"
"""Most cores that one kernel takes; 1: kernels are serial, and nobody is asked."""
WAIT_S = 0.05
"""For the first core, where nobody told the ledger that this task runs: a borrower gives it back after a piece."""


@functools.cache
def most_cores() -> int:
    """What `SWARM_CORES` allows, by default all of the host. Raises `SettingsError`."""
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return os.cpu_count() or 1
    if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= 2**16):
        raise SettingsError(f"{VARIABLE}={asked!r} is not allowed: a number of cores from 1, or unset for all")
    return int(asked)


def in_pieces(piece: Callable[[int], T], count: int) -> list[T]:
    """Call `piece` with 0 to count - 1 on as many threads as are granted, and return the results in order.

    The calling thread is one of them. An error in a piece is raised here; no piece begins after it.
    """
    up_to = min(count, most_cores())
    with ExitStack() as stack:
        if up_to > 1 and (lent := _lent(stack, up_to)) is not None:
            return _Crew(piece, count, lent).run()
    return [piece(number) for number in range(count)]


class _Crew(Generic[T]):
    """The threads that work on one kernel."""

    def __init__(self, piece: Callable[[int], T], count: int, lent: Lent) -> None:
        self._piece = piece
        self._lent = lent
        self._todo = iter(range(count))
        self._found: list[T | None] = [None] * count
        self._errors: list[BaseException] = []
        self._wanted = lent.granted
        """Threads that may work now, the caller's among them."""
        self._helpers: dict[int, threading.Thread] = {}
        self._is_over = False
        """No piece is left to begin."""

    def run(self) -> list[T]:
        try:
            self._staff()
            while self._one_more():
                self._wanted = self._lent.refresh()
                self._staff()
        except BaseException as error:
            self._errors.append(error)  # helpers end after their piece
            raise
        finally:
            for helper in self._helpers.values():
                helper.join()
        if self._errors:
            raise self._errors[0]
        return self._found  # type: ignore[return-value]  # all are there: nobody raised

    def _staff(self) -> None:
        """Start a helper for each core that has none; one that is not wanted any more leaves by itself."""
        for seat in range(1, 1 if self._is_over else self._wanted):
            if seat not in self._helpers or not self._helpers[seat].is_alive():
                self._helpers[seat] = helper = threading.Thread(
                    target=self._help, args=(seat,), name=f"swarm-piece-{seat}", daemon=True
                )
                helper.start()

    def _help(self, seat: int) -> None:
        self._lent.adopt()
        try:
            while seat < self._wanted and self._one_more():
                pass
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            self._errors.append(error)

    def _one_more(self) -> bool:
        """Work on the next piece; False when there is none. `next` of a range is one step under the GIL."""
        if self._errors or (number := next(self._todo, None)) is None:
            self._is_over = True
            return False
        self._found[number] = self._piece(number)
        return True


def _lent(stack: ExitStack, up_to: int) -> Lent | None:
    """Cores until the stack ends; None: the caller's thread goes on alone, as it would without a ledger."""
    from swarm.ledger.lending import lend

    try:
        return stack.enter_context(lend(up_to, timeout_s=WAIT_S))
    except NotGrantedError:
        return None
    except LedgerError as error:
        _warn_once(str(error))
        return None


@functools.cache
def _warn_once(reason: str) -> None:
    logging.getLogger("swarm.ledger").warning("kernels run on one core: %s", reason)
