"""A seat at the table of the host: leases, and the cores on which the tasks of the process run."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import LedgerError, NotGrantedError
from swarm.ledger import budget as host
from swarm.ledger import table
from swarm.ledger.shared import SharedTable
from swarm.ledger.table import UNLIMITED, Budget, Slot

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_LOG = logging.getLogger("swarm.ledger")
LEASE_S = 5.0
"""A lease that is not refreshed for so long counts no more: its holder may be stopped."""
LONGEST_S = 3600.0
POLLS_S = (0.0005, 0.005)
"""Between two looks of one who waits, at first and after a while."""
REQUEST_S = 0.5
"""A request that nobody looks after for so long counts no more."""
LOOK_S = 0.05
"""Between two looks for the dead, by one who waits or could use more cores."""


@dataclass(frozen=True)
class Standing:
    """How a ledger stands at a moment."""

    budget: Budget
    cores_in_use: int
    """By tasks; what they borrow comes on top."""
    cores_granted: int
    memory_granted_bytes: int
    milliwatts_granted: int
    slots: dict[int, Slot]

    @property
    def cores_free(self) -> int:
        """Negative while tasks run on cores that are still lent."""
        return self.budget.cores - self.cores_in_use - self.cores_granted


class Ledger:
    """The seat of this process at the table of its host. Use it from any thread.

    Parameters
    ----------
    folder, name, budget
        For tests and for hosts that are shared on purpose; by default those of `swarm.ledger.budget`.

    Raises
    ------
    LedgerError
        The table can't be used; the message says which file, why, and what to do.
    """

    def __init__(self, folder: Path | None = None, name: str | None = None, budget: Budget | None = None) -> None:
        ours, usual_name = host.of_this_host()
        self._table = SharedTable(folder or host.private_folder(), name or usual_name, budget or ours)
        self._is_open = True
        self._looked_s = time.monotonic()
        self._leases: set[Lease] = set()
        self._books = threading.RLock()
        """Over what this process holds; the one over the table is taken inside it."""
        _OPEN.add(self)
        atexit.register(self.close)

    @property
    def path(self) -> Path:
        return self._table.path

    def close(self) -> None:
        """Give everything back. Doing it twice does no harm."""
        with self._books:
            if not self._is_open:
                return
            self._is_open = False
            self._leases.clear()
        atexit.unregister(self.close)
        self._table.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def standing(self) -> Standing:
        """What is granted to whom, the dead aside."""
        self.look_for_the_dead()
        with self._books:
            self._check_open()
            slots, now_ns = self._table.slots(), time.monotonic_ns()
            leases = [s for s in slots.values() if s.state == table.LEASE and s.counts(now_ns)]
            return Standing(
                budget=self._table.budget(now_ns),
                cores_in_use=table.cores_in_use(slots),
                cores_granted=table.cores_granted(slots, now_ns),
                memory_granted_bytes=sum(s.memory_bytes for s in leases),
                milliwatts_granted=sum(s.milliwatts for s in leases),
                slots=slots,
            )

    # -- the host (`swarm.agents.kinds.thermal.HostBudget`) ------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Private, in memory, and shared by all processes of this user on this host."""
        return self._table.path.parent

    def all_cores(self) -> int:
        """Cores of the host, limits aside."""
        with self._books:
            self._check_open()
            return self._table.budget(UNLIMITED).cores

    def cores_in_use(self) -> int:
        """By tasks and leases."""
        standing = self.standing()
        return standing.cores_in_use + standing.cores_granted

    def limit(self, *, cores: int | None, watts: float | None, for_s: float, said_by: str) -> None:
        """Grant no more than that in sum for so long; None: no limit. The next call replaces it, whoever makes it.

        What is granted already comes back when its holder refreshes it, or at its end: a host that gets too hot has
        fewer cores to lend. The limit ends by itself, so that it does not outlive who set it. Raises ValueError.
        """
        if cores is not None:
            check("cores", cores, 1)
        check_seconds("for_s", for_s)
        milliwatts = UNLIMITED if watts is None else _milliwatts(watts)
        with self._books:
            self._check_open()
            until_ns = time.monotonic_ns() + int(for_s * 1e9)
            if cores is None and watts is None:
                until_ns = 0
            self._table.limit(UNLIMITED if cores is None else cores, milliwatts, until_ns)
        _LOG.debug("%s limits %s to %s cores and %s watts for %g s", said_by, self.path, cores, watts, for_s)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def began(self, cores: int = 1) -> None:
        """A task runs from now on, on so many cores: nobody is asked, others see it and give back what they borrow."""
        with self._books:
            if self._is_open:
                seat = self._table.member
                self._table.set_word(seat, table.GRANTED, self._table.word(seat, table.GRANTED) + cores)

    def ended(self, cores: int = 1) -> None:
        """The opposite of `began`."""
        with self._books:
            if self._is_open:
                seat = self._table.member
                self._table.set_word(seat, table.GRANTED, max(0, self._table.word(seat, table.GRANTED) - cores))

    # -- leases -------------------------------------------------------------------------------------------------------

    def lease(
        self,
        cores: int = 1,
        *,
        at_least: int = 1,
        memory_bytes: int = 0,
        watts: float = 0.0,
        priority: int = 0,
        timeout_s: float = 0.0,
        for_s: float = LEASE_S,
    ) -> Lease:
        """Be granted up to so many cores, as many as are free and at least `at_least`, with memory and watts in full.

        A task that `began` told of has a core: it counts here, and is had at once.

        Parameters
        ----------
        priority
            Of higher ones the requests are served first, and the wish for more cores too.
        timeout_s
            How long to wait for `at_least`, memory and watts, first come, first served.
        for_s
            The lease ends by itself so long after the last `Lease.refresh`.

        Raises
        ------
        NotGrantedError
            What is needed was not free in time, or is more than the host has.
        LedgerError
            The table is full, locked for long, or closed.
        ValueError
            A number that makes no sense.
        """
        check("up_to", cores, 1)
        check("at_least", at_least, 1, cores)
        check("memory_bytes", memory_bytes, 0)
        check("priority", priority, -1000, 1000)
        check_seconds("for_s", for_s)
        if not timeout_s >= 0:
            raise ValueError(f"timeout_s is {timeout_s!r}, must be 0 or more")
        milliwatts = _milliwatts(watts)
        with self._books:
            self._check_open()
            request = Slot(
                state=table.REQUEST,
                pid=os.getpid(),
                member=self._table.member,
                wants=cores,
                at_least=at_least,
                memory_bytes=memory_bytes,
                milliwatts=milliwatts,
                priority=priority,
            )
            self._check_possible(request)
            covered = sum(lease.is_covered for lease in self._leases)
            is_covered = covered < self._table.word(self._table.member, table.GRANTED)
            lease = Lease(self, request._replace(covered=int(is_covered)), for_s)
            self._leases.add(lease)  # so that the next thread sees that this core is taken
        try:
            lease._wait(timeout_s)
        except BaseException:
            lease.close()
            raise
        return lease

    def _check_possible(self, request: Slot) -> None:
        budget = self._table.budget(UNLIMITED)  # a limit that holds now ends some day
        for what, needs, has in (
            ("cores", request.at_least, budget.cores),
            ("bytes of memory", request.memory_bytes, budget.memory_bytes),
            ("milliwatts", request.milliwatts, budget.milliwatts),
        ):
            if needs > has:
                raise NotGrantedError(f"{needs} {what} are asked for at least, this host has {has}; ask for fewer")

    def is_time_to_look(self) -> bool:
        """Whether nobody in this process has looked for the dead for a while."""
        return time.monotonic() - self._looked_s >= LOOK_S

    def look_for_the_dead(self) -> bool:
        """Give back what processes held that are no more; True if there was one."""
        with self._books:
            self._check_open()
            self._looked_s = time.monotonic()
            slots = self._table.slots()
            gone = self._table.gone(slots)
            if gone:
                self._table.reap(gone, slots)
            return bool(gone)

    def _check_open(self) -> None:
        if not self._is_open:
            raise LedgerError(f"the ledger {self._table.path} was closed in this process; open a new one")

    def _after_fork(self) -> None:
        """In a child: the seat and the leases are the parent's."""
        self._books = threading.RLock()
        if self._is_open:
            self._is_open = False
            for lease in self._leases:
                lease._extra = 0
            self._leases.clear()
            atexit.unregister(self.close)
            self._table.forget()


class Lease:
    """Cores, memory and watts of the host that this process may use, until it closes the lease or its deadline."""

    def __init__(self, ledger: Ledger, request: Slot, for_s: float) -> None:
        self._ledger = ledger
        self._request = request
        self._for_ns = int(for_s * 1e9)
        self._number: int | None = None
        self._extra = 0

    @property
    def is_covered(self) -> bool:
        """The thread's own core counts as that of the task it runs."""
        return bool(self._request.covered)

    @property
    def granted(self) -> int:
        """Cores to use; changes with `refresh` only, and is never below 1, for the thread that asks runs anyway."""
        return max(1, self._extra + self._request.covered)

    def refresh(self) -> int:
        """Call it wherever the number of threads can change: renews the lease, and returns what is granted from now on.

        Fewer when a task has begun on a core that was borrowed or others have the same right to it; more when cores
        have become free. A lease that came too late, after its deadline, takes part again if there is room.
        """
        ledger = self._ledger
        with ledger._books:
            if self._number is None or not ledger._is_open:
                self._extra = 0
                return self.granted
            try:
                if self.granted < self._request.wants and ledger.is_time_to_look():
                    ledger.look_for_the_dead()
                with ledger._table.locked():
                    self._decide(time.monotonic_ns())
            except LedgerError as error:
                # As long as nobody gets at the table, nobody else is granted what we have.
                _LOG.warning("a lease is not renewed: %s", error)
            return self.granted

    def close(self) -> None:
        """Give it back."""
        ledger = self._ledger
        with ledger._books:
            ledger._leases.discard(self)
            if self._number is not None and ledger._is_open:
                ledger._table.free([self._number])
            self._number = None
            self._extra = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _wait(self, timeout_s: float) -> None:
        """Until what is needed at least is granted. Raises `NotGrantedError`."""
        ledger = self._ledger
        began_s = time.monotonic()
        pause_s, longest_s = POLLS_S
        while not self._ask():
            left_s = timeout_s - (time.monotonic() - began_s)
            if (left_s <= 0 or ledger.is_time_to_look()) and ledger.look_for_the_dead():
                continue
            if left_s <= 0:
                raise NotGrantedError(self._why_not(timeout_s))
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, longest_s)
        if self.granted < self._request.wants and ledger.is_time_to_look() and ledger.look_for_the_dead():
            self.refresh()

    def _why_not(self, timeout_s: float) -> str:
        shared, now_ns = self._ledger._table, time.monotonic_ns()
        budget = shared.budget(now_ns)
        free = max(0, table.free_cores(budget, shared.slots(), now_ns))
        return (
            f"{self._request.at_least} cores were not free within {timeout_s:g} s ({free} are, of {budget.cores}); "
            "wait longer with timeout_s, or ask for fewer with at_least"
        )

    def _ask(self) -> bool:
        ledger = self._ledger
        with ledger._books:
            ledger._check_open()
            shared = ledger._table
            with shared.locked():
                now_ns = time.monotonic_ns()
                if self._number is None:
                    request = self._request._replace(deadline_ns=now_ns + int(REQUEST_S * 1e9), since_ns=now_ns)
                    self._number = shared.add(request)
                else:
                    shared.set_word(self._number, table.DEADLINE, now_ns + int(REQUEST_S * 1e9))
                return self._decide(now_ns)

    def _decide(self, now_ns: int) -> bool:
        """Turn the request into a lease, or let the lease grow, if the rules say so; the table is locked."""
        assert self._number is not None
        shared = self._ledger._table
        slots, budget = shared.slots(), shared.budget(now_ns)
        mine = slots[self._number]
        if mine.state == table.LEASE and mine.counts(now_ns):
            self._set(table.after_refresh(budget, slots, self._number, now_ns))
            shared.set_word(self._number, table.DEADLINE, now_ns + self._for_ns)
            return True
        # A lease that has run out is a request again, at its old place in the queue.
        slots[self._number] = mine._replace(state=table.REQUEST, granted=0, deadline_ns=now_ns + 1)
        extra = table.grant(budget, slots, self._number, now_ns)
        if extra is None:
            self._extra = 0
            return False
        shared.set_word(self._number, table.DEADLINE, 0)
        self._set(extra)
        shared.set_word(self._number, table.STATE, table.LEASE)
        shared.set_word(self._number, table.DEADLINE, now_ns + self._for_ns)
        return True

    def _set(self, extra: int) -> None:
        assert self._number is not None
        self._extra = extra
        self._ledger._table.set_word(self._number, table.GRANTED, extra)


_OPEN: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _in_a_child() -> None:
    for ledger in list(_OPEN):
        ledger._after_fork()


os.register_at_fork(after_in_child=_in_a_child)


def check(name: str, value: object, low: int, high: int = UNLIMITED) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bounds = f"{low} or more" if high == UNLIMITED else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}, must be a whole number, {bounds}")


def check_seconds(name: str, value: float) -> None:
    if not 0 < value <= LONGEST_S:
        raise ValueError(f"{name} is {value!r}, must be above 0 and at most {LONGEST_S:g}")


def _milliwatts(watts: float) -> int:
    if not (math.isfinite(watts) and 0 <= watts <= 1e9):
        raise ValueError(f"watts is {watts!r}, must be 0 or more")
    return math.ceil(watts * 1000)
