"""The table of a host's resources: its layout, and the rules by which cores, memory and watts are granted.  PURE

The table is a header and slots of 16 words of 64 bits. A slot is free, or holds one of three things:

member
    A process that takes part, and how many cores its tasks use at the moment. That is a fact, not a grant: Dask has
    started the task already. Only the member itself writes it.
request
    Somebody waits for what is not free.
lease
    Cores, memory and watts that were granted, until a deadline.

Every change is one word: a slot is written in full before the word that makes it valid, and a grant shrinks or grows
by one store. So a writer that is killed at any instruction leaves a table that is whole. Sums are not kept but taken
anew from the slots, hence they can't be wrong.

The rules: a holder keeps what it said it needs at least. What is left goes to requests in the order of the queue, and
who can't be served yet reserves what is there, so that no later one overtakes it for ever. What then is left is lent:
to the highest priority first, among equals one core after the other in turn.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from swarm.errors import LedgerError

MAGIC = int.from_bytes(b"SWLEDGER", "little")
VERSION = 1
SLOTS = 256
WORDS = 16
WORD_BYTES = 8
SLOT_BYTES = WORDS * WORD_BYTES
HEADER_BYTES = SLOT_BYTES
SIZE_BYTES = HEADER_BYTES + SLOTS * SLOT_BYTES

UNLIMITED = 2**62
"""As a budget: nobody knows how much there is, so nobody is refused."""
PATIENCE_NS = 1_000_000_000
"""Who has waited that long goes before everybody who has not, whatever their priority."""

FREE, MEMBER, REQUEST, LEASE = range(4)
"""Values of `Slot.state`."""

HEADER = struct.Struct(f"={WORDS}q")
SLOT = struct.Struct(f"={WORDS}q")
MAGIC_AT, VERSION_AT, SLOTS_AT, TOP_AT, CORES_AT, MEMORY_AT, MILLIWATTS_AT, TICKET_AT = range(8)
"""Number of a word in the header. TOP: no slot from there on was ever used; TICKET: the number that comes next."""
LIMIT_CORES_AT, LIMIT_MILLIWATTS_AT, LIMITED_UNTIL_AT = range(8, 11)
"""A limit on the budget; the last word makes it valid, and is when it ends, on the host's monotonic clock."""
STATE, GRANTED, DEADLINE = 0, 4, 9
"""Number of a word in a slot, of those that are written alone."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a host, or the control group that we live in, has."""

    cores: int
    memory_bytes: int = UNLIMITED
    milliwatts: int = UNLIMITED

    def __post_init__(self) -> None:
        for name, low in (("cores", 1), ("memory_bytes", 0), ("milliwatts", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= UNLIMITED:
                raise ValueError(f"{name} of a budget is {value!r}, must be a whole number from {low} to 2**62")


class Slot(NamedTuple):
    """One slot as it stands in the table; the fields are its words, in order."""

    state: int = FREE
    pid: int = 0
    started: int = 0
    """Of the process, in clock ticks since boot (field 22 of proc(5) stat)."""
    member: int = 0
    """Number of the slot of the process that this belongs to."""
    granted: int = 0
    """Cores out of the pool, without the one that is covered; of a member, how many its tasks use."""
    wants: int = 0
    at_least: int = 0
    memory_bytes: int = 0
    milliwatts: int = 0
    deadline_ns: int = 0
    """On the host's monotonic clock; from then on the slot counts no more."""
    priority: int = 0
    ticket: int = 0
    """Place in the queue: the lower the earlier."""
    since_ns: int = 0
    covered: int = 0
    """1: one of the cores is that of the calling thread, and counts as the member's use already."""
    spare_0: int = 0
    spare_1: int = 0

    def counts(self, now_ns: int) -> bool:
        """True for a lease or a request before its deadline."""
        return self.state in (LEASE, REQUEST) and self.deadline_ns > now_ns


Table = Mapping[int, Slot]
"""Number of a slot → what is there, without the free ones."""


def new_header(budget: Budget) -> tuple[int, ...]:
    """Words of the header of an empty table; the magic, which makes it valid, must be written last."""
    words = [MAGIC, VERSION, SLOTS, 0, budget.cores, budget.memory_bytes, budget.milliwatts, 1]
    return (*words, *[0] * (WORDS - len(words)))


def budget_of(words: Sequence[int], now_ns: int) -> Budget:
    """What may be granted now: the budget in the header, within the limit that was put on it."""
    full = Budget(words[CORES_AT], words[MEMORY_AT], words[MILLIWATTS_AT])
    if words[LIMITED_UNTIL_AT] <= now_ns:
        return full
    cores, milliwatts = words[LIMIT_CORES_AT], words[LIMIT_MILLIWATTS_AT]
    return Budget(max(1, min(full.cores, cores)), full.memory_bytes, min(full.milliwatts, milliwatts))


def check_header(words: Sequence[int], where: str) -> None:
    """Raise `LedgerError` where this is the header of something else."""
    if words[MAGIC_AT] != MAGIC:
        raise LedgerError(f"{where} is no ledger; remove the file")
    if words[VERSION_AT] != VERSION:
        raise LedgerError(
            f"{where} is a ledger of version {words[VERSION_AT]}, this swarm knows version {VERSION}; "
            "run one version of swarm on a host, or give each its own XDG_RUNTIME_DIR"
        )
    sound = 1 <= words[CORES_AT] <= UNLIMITED and all(0 <= words[at] <= UNLIMITED for at in (MEMORY_AT, MILLIWATTS_AT))
    if words[SLOTS_AT] != SLOTS or not 0 <= words[TOP_AT] <= SLOTS or not sound:
        raise LedgerError(f"{where} is a damaged ledger; remove the file")


def slots_of(raw: bytes | memoryview) -> dict[int, Slot]:
    """What is in the slots; `raw` is the table without its header, or the front of it."""
    return {n: Slot._make(words) for n, words in enumerate(SLOT.iter_unpack(raw)) if words[0]}


def first_free(table: Table) -> int:
    """Lowest number of a slot that is free. Raises `LedgerError` when none is."""
    for number in range(SLOTS):
        if number not in table:
            return number
    raise LedgerError(f"the ledger of this host is full: {SLOTS} processes and leases; use fewer at a time")


def cores_in_use(table: Table) -> int:
    """Cores on which tasks run, those that they borrow aside."""
    return sum(slot.granted for slot in table.values() if slot.state == MEMBER)


def cores_granted(table: Table, now_ns: int) -> int:
    """Cores out of the pool that are on lease; never more than the budget."""
    return sum(slot.granted for slot in table.values() if slot.state == LEASE and slot.deadline_ns > now_ns)


def free_cores(budget: Budget, table: Table, now_ns: int) -> int:
    """Negative while tasks run on cores that are still lent."""
    return budget.cores - cores_in_use(table) - cores_granted(table, now_ns)


def shares(budget: Budget, table: Table, now_ns: int) -> dict[int, int]:
    """Cores out of the pool that each lease should have, and each request that can be served now or soon.

    "Soon" is when all borrowers have given back what is beyond their own share. A request that is not in the answer
    has to wait for a lease to end.
    """
    claims = {number: slot for number, slot in table.items() if slot.counts(now_ns)}
    left = [budget.cores - cores_in_use(table), budget.memory_bytes, budget.milliwatts]
    found: dict[int, int] = {}
    for number in sorted(claims, key=lambda n: _precedence(claims[n], now_ns)):
        needs = _needs(claims[number])
        if claims[number].state == LEASE or all(need <= have for need, have in zip(needs, left, strict=True) if need):
            found[number] = needs[0]
        # Who is not served reserves what there is: a large request is not starved by many small ones.
        reserve = claims[number].state == REQUEST
        left = [have - (min(need, max(have, 0)) if reserve else need) for need, have in zip(needs, left, strict=True)]
    for _, equals in groupby(sorted(found, key=lambda n: -claims[n].priority), key=lambda n: claims[n].priority):
        left[0] -= _deal(left[0], found, sorted(equals, key=lambda n: claims[n].ticket), claims)
    return found


def grant(budget: Budget, table: Table, number: int, now_ns: int) -> int | None:
    """Cores out of the pool that a request gets now; None: it has to wait."""
    share = shares(budget, table, now_ns).get(number)
    if share is None:
        return None
    least = _needs(table[number])[0]
    cores = min(share, max(free_cores(budget, table, now_ns), 0))
    return cores if cores >= least else None


def after_refresh(budget: Budget, table: Table, number: int, now_ns: int) -> int:
    """Cores out of the pool that a lease has from now on: fewer when others have a right to them, more when free."""
    share, granted = shares(budget, table, now_ns)[number], table[number].granted
    return min(share, granted + max(free_cores(budget, table, now_ns), 0))


def belongings(table: Table, member: int) -> list[int]:
    """Slots to free when a member is gone, itself last: who is killed in between leaves a dead member for the next."""
    return [*(n for n, slot in table.items() if slot.member == member and n != member), member]


def members(table: Table) -> Iterator[int]:
    """Numbers of the slots of processes."""
    return (number for number, slot in table.items() if slot.state == MEMBER)


def _needs(slot: Slot) -> tuple[int, int, int]:
    return slot.at_least - slot.covered, slot.memory_bytes, slot.milliwatts


def _precedence(slot: Slot, now_ns: int) -> tuple[bool, bool, int, int]:
    """Leases first: what was granted is not taken back below what its holder needs."""
    waits = slot.state == REQUEST
    return waits, waits and now_ns - slot.since_ns < PATIENCE_NS, -slot.priority, slot.ticket


def _deal(cores: int, found: dict[int, int], order: Iterable[int], claims: Table) -> int:
    """One core after the other to each in turn that wants more; returns how many went."""
    dealt = 0
    hungry = list(order)
    while hungry and dealt < cores:
        hungry = [n for n in hungry if found[n] < claims[n].wants - claims[n].covered]
        for number in hungry[: cores - dealt]:
            found[number] += 1
            dealt += 1
    return dealt
