"""Any sequence of grants, refreshes, deaths and deadlines on one table: never beyond the budget, and nobody starves.

The members are ledgers in one process. The kernel tells them apart by their open file, so that one that lets go of its
file without a word is as dead as a killed process.
"""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm.ledger import leases, table
from swarm.ledger.leases import Lease, Ledger
from swarm.ledger.table import Budget, Slot

BUDGET = Budget(cores=4, memory_bytes=100)


class Clock:
    """Stands in for the module `time` in `leases`."""

    def __init__(self) -> None:
        self.now_ns = 10**9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9


PICK = st.integers(0, 11)
T = TypeVar("T")


def one_of(some: list[T], pick: int) -> T:
    return some[pick % len(some)]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.patch = patch.object(leases, "time", self.clock)
        self.patch.start()
        self.in_use: dict[Ledger, int] = {}
        self.holders: list[Lease] = []
        self.queue: list[Lease] = []
        self.witness = self.enter()
        """Never dies, and leaves last."""
        self.others = [self.enter(), self.enter()]

    def enter(self) -> Ledger:
        ledger = Ledger(Path(self.folder.name, "shared"), "ledger", BUDGET)
        self.in_use[ledger] = 0
        return ledger

    def slots(self) -> dict[int, Slot]:
        return self.witness._table.slots()

    def forget_those_of(self, ledger: Ledger) -> None:
        del self.in_use[ledger]
        self.others.remove(ledger)
        self.holders = [lease for lease in self.holders if lease._ledger is not ledger]
        self.queue = [lease for lease in self.queue if lease._ledger is not ledger]

    # -- members ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.others) < 4)
    @rule()
    def a_process_comes(self) -> None:
        self.others.append(self.enter())

    @precondition(lambda self: len(self.others) > 1)
    @rule(pick=PICK)
    def a_process_leaves(self, pick: int) -> None:
        ledger = one_of(self.others, pick)
        self.forget_those_of(ledger)
        ledger.close()

    @precondition(lambda self: len(self.others) > 1)
    @rule(pick=PICK)
    def a_process_is_killed(self, pick: int) -> None:
        ledger = one_of(self.others, pick)
        self.forget_those_of(ledger)
        number = ledger._table.member
        ledger._table.forget()
        ledger._is_open = False
        atexit.unregister(ledger.close)
        assert self.witness.look_for_the_dead()
        assert number not in self.slots()

    @rule(pick=PICK)
    def a_task_begins(self, pick: int) -> None:
        ledger = one_of(self.others, pick)
        if self.in_use[ledger] < 3:
            self.in_use[ledger] += 1
            ledger.began()

    @rule(pick=PICK)
    def a_task_ends(self, pick: int) -> None:
        ledger = one_of(self.others, pick)
        if self.in_use[ledger]:
            self.in_use[ledger] -= 1
            ledger.ended()

    # -- leases -------------------------------------------------------------------------------------------------------

    @rule(
        pick=PICK,
        wants=st.integers(1, 6),
        least=st.sampled_from([1, 1, 1, 2, 3, 4]),
        memory=st.sampled_from([0, 0, 30, 60]),
        priority=st.integers(0, 1),
    )
    def somebody_asks(self, pick: int, wants: int, least: int, memory: int, priority: int) -> None:
        ledger = one_of(self.others, pick)
        covered = sum(lease.is_covered for lease in ledger._leases) < self.in_use[ledger]
        request = Slot(
            table.REQUEST,
            member=ledger._table.member,
            wants=max(wants, least),
            at_least=least,
            memory_bytes=memory,
            priority=priority,
            covered=int(covered),
        )
        lease = Lease(ledger, request, for_s=5.0)
        ledger._leases.add(lease)
        self.queue.append(lease)
        self.look(lease)

    @precondition(lambda self: self.queue)
    @rule(pick=PICK)
    def one_who_waits_looks(self, pick: int) -> None:
        self.look(one_of(self.queue, pick))

    def look(self, lease: Lease) -> None:
        if lease._ask():
            self.queue.remove(lease)
            self.holders.append(lease)
            self.check_new(lease, before=0)

    @precondition(lambda self: self.holders)
    @rule(pick=PICK)
    def a_holder_refreshes(self, pick: int) -> None:
        lease = one_of(self.holders, pick)
        before = lease._extra if self.is_valid(lease) else 0
        granted = lease.refresh()
        assert 1 <= granted <= lease._request.wants
        self.check_new(lease, before)

    @precondition(lambda self: self.holders or self.queue)
    @rule(pick=PICK)
    def somebody_gives_it_back_or_up(self, pick: int) -> None:
        lease = one_of(self.holders + self.queue, pick)
        (self.holders if lease in self.holders else self.queue).remove(lease)
        number = lease._number
        lease.close()
        lease.close()
        assert number not in self.slots()

    @rule(ns=st.sampled_from([10**6, 3 * 10**8, 2 * 10**9, 6 * 10**9]))
    def time_goes_by(self, ns: int) -> None:
        self.clock.now_ns += ns

    def is_valid(self, lease: Lease) -> bool:
        assert lease._number is not None
        return self.slots()[lease._number].counts(self.clock.now_ns)

    def check_new(self, lease: Lease, before: int) -> None:
        """What is granted in addition was free."""
        if lease._extra > before:
            assert table.free_cores(BUDGET, self.slots(), self.clock.now_ns) >= 0
        if self.is_valid(lease):
            assert lease.granted >= lease._request.at_least

    # -- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def never_beyond_the_budget(self) -> None:
        slots, now_ns = self.slots(), self.clock.now_ns
        assert 0 <= table.cores_granted(slots, now_ns) <= BUDGET.cores
        memory = sum(s.memory_bytes for s in slots.values() if s.state == table.LEASE and s.counts(now_ns))
        assert memory <= BUDGET.memory_bytes
        assert table.cores_in_use(slots) == sum(self.in_use.values())

    @invariant()
    def nothing_is_there_that_nobody_has(self) -> None:
        slots = self.slots()
        known = {lease._number for lease in self.holders + self.queue}
        assert {n for n, slot in slots.items() if slot.state == table.LEASE} <= known
        assert set(table.members(slots)) == {ledger._table.member for ledger in self.in_use}

    def nobody_starves(self) -> None:
        """Tasks end and holders give back; then all who wait are served, each after a few looks of all."""
        for lease in list(self.holders):
            lease.close()
        self.holders.clear()
        for ledger, tasks in self.in_use.items():
            ledger.ended(tasks)
            self.in_use[ledger] = 0
        for _ in range(len(self.queue)):
            served = [lease for lease in self.queue if lease._ask()]
            for lease in served:
                self.queue.remove(lease)
                lease.close()
            if not self.queue:
                break
            assert served, "all that is there is free, and nobody of those who wait gets it"
        assert not self.queue

    def teardown(self) -> None:
        try:
            self.nobody_starves()
            for ledger in list(self.in_use):
                ledger.close()
            assert not Path(self.folder.name, "shared").exists()
        finally:
            self.patch.stop()
            self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestLedger = Machine.TestCase
