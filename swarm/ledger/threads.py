"""What a grant of cores does to the thread pools of numba and BLAS."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from swarm.ledger.leases import LEASE_S
from swarm.ledger.lending import Lent, lend


class Cores:
    """What the code in a `cores` block may use. The thread pools follow `granted`."""

    def __init__(self, lent: Lent) -> None:
        self._lent = lent

    @property
    def granted(self) -> int:
        """Cores to use, from 1 to what was asked for."""
        return self._lent.granted

    def refresh(self) -> int:
        """As `Lease.refresh`; between two calls of a kernel in the same block."""
        before, now = self.granted, self._lent.refresh()
        if now != before:
            _set_numba(now)
            _set_openmp(now)
            _BLAS.set(self, now)
        return now


@contextmanager
def cores(
    up_to: int, *, at_least: int = 1, priority: int = 0, timeout_s: float = 0.0, for_s: float = LEASE_S
) -> Iterator[Cores]:
    """Let numba's parallel kernels, BLAS and OpenMP use as many threads in the block as cores are granted.

    The numbers of numba and OpenMP are those of the calling thread; numba's is set where it is loaded already. BLAS has
    one number for all threads of a process: with several blocks at a time it is the smallest of theirs. Afterwards all
    are as before.

    A borrowed core is given back at the end of the block or at `Cores.refresh`, not earlier: until then a task that
    begins on that core shares it. After `for_s` seconds without a refresh the lease counts no more, and others may be
    granted the same cores: choose it longer than the kernel takes.

    Of numba's threading layers `workqueue` ends the process when two threads run parallel kernels at the same time
    (numba's documentation, "The Threading Layers"): where it is in use, these blocks take turns.

    Raises
    ------
    NotGrantedError
        `at_least` cores were not free within `timeout_s`.
    LedgerError
        The ledger can't be used.
    ValueError
        A number that makes no sense.
    """
    with ExitStack() as stack:
        if _takes_turns():
            stack.enter_context(_TURN)
        lent = stack.enter_context(lend(up_to, at_least=at_least, priority=priority, timeout_s=timeout_s, for_s=for_s))
        granted = Cores(lent)
        if (numba := _numba()) is not None:
            before = numba.get_num_threads()
            stack.callback(numba.set_num_threads, before)
            _set_numba(lent.granted)
        for library in _libraries("openmp"):
            stack.callback(library.set_num_threads, library.num_threads)
        _set_openmp(lent.granted)
        stack.callback(_BLAS.forget, granted)
        _BLAS.set(granted, lent.granted)
        yield granted


# -- numba ------------------------------------------------------------------------------------------------------------

_TURN = threading.RLock()


def _numba() -> ModuleType | None:
    """None where it is not loaded, or just being loaded by another thread."""
    numba = sys.modules.get("numba")
    return numba if hasattr(numba, "set_num_threads") else None


def _set_numba(threads: int) -> None:
    numba = _numba()
    if numba is not None:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _takes_turns() -> bool:
    numba = _numba()
    if numba is None:
        return False
    numba.get_num_threads()  # chooses the layer, if that has not happened yet
    return bool(numba.threading_layer() == "workqueue")


# -- BLAS and OpenMP --------------------------------------------------------------------------------------------------


def _set_openmp(threads: int) -> None:
    for library in _libraries("openmp"):
        library.set_num_threads(threads)


class _Blas:
    """The number of threads of all BLAS libraries in the process, for all blocks together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[Cores, int] = {}
        self._before: dict[str, tuple[Any, int]] = {}
        """Path of a library → itself, and what it had before the first block."""

    def set(self, block: Cores, threads: int) -> None:
        with self._lock:
            self._blocks[block] = threads
            for library in _libraries("blas"):
                self._before.setdefault(library.filepath, (library, library.num_threads))
            self._apply()

    def forget(self, block: Cores) -> None:
        with self._lock:
            self._blocks.pop(block, None)
            self._apply()
            if not self._blocks:
                self._before.clear()

    def _apply(self) -> None:
        smallest = min(self._blocks.values(), default=None)
        for library, before in self._before.values():
            # threadpoolctl lets the first thread only set the number of OpenBLAS, so that threads don't fight over it.
            # Here they have agreed.
            let_go = getattr(library, "clear_controlling_thread", lambda **_: None)
            let_go(force=True)
            library.set_num_threads(before if smallest is None else smallest)
            let_go(force=True)


_BLAS = _Blas()


def _libraries(user_api: str) -> list[Any]:
    """Those that are loaded (`threadpoolctl.LibController`). To look takes a millisecond: only after an import."""
    global _FOUND  # noqa: PLW0603 - a memory of one answer
    if _FOUND is None or _FOUND[0] != len(sys.modules):
        from threadpoolctl import ThreadpoolController

        _FOUND = len(sys.modules), ThreadpoolController().lib_controllers
    return [library for library in _FOUND[1] if library.user_api == user_api]


_FOUND: tuple[int, list[Any]] | None = None
