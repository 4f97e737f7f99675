"""Who gets how many: the rules of the table, on plain values."""

from __future__ import annotations

import pytest

from swarm.errors import LedgerError
from swarm.ledger import table
from swarm.ledger.table import Budget, Slot, after_refresh, grant, shares

NOW = 10 * table.PATIENCE_NS
LATER = NOW + 1_000_000_000
FOUR = Budget(cores=4, memory_bytes=100, milliwatts=1000)


def member(in_use: int = 0) -> Slot:
    return Slot(table.MEMBER, granted=in_use)


def lease(granted: int, *, wants: int = 9, at_least: int = 1, **more: int) -> Slot:
    return Slot(table.LEASE, granted=granted, wants=wants, at_least=at_least, **{"deadline_ns": LATER, **more})


def request(wants: int = 9, at_least: int = 1, **more: int) -> Slot:
    return Slot(table.REQUEST, wants=wants, at_least=at_least, **{"deadline_ns": LATER, "since_ns": NOW, **more})


def test_who_is_alone_gets_what_it_asks_for() -> None:
    assert grant(FOUR, {0: member(), 1: request(wants=3)}, 1, NOW) == 3


def test_more_than_there_is_becomes_what_there_is() -> None:
    assert grant(FOUR, {0: member(), 1: request(wants=9)}, 1, NOW) == 4


def test_cores_on_which_tasks_run_are_not_granted() -> None:
    assert grant(FOUR, {0: member(1), 1: member(2), 2: request()}, 2, NOW) == 1


def test_a_covered_core_is_not_taken_from_the_pool() -> None:
    slots = {0: member(4), 1: request(wants=3, covered=1)}
    assert grant(FOUR, slots, 1, NOW) == 0  # its own core, and no other
    assert grant(FOUR, {**slots, 0: member(2)}, 1, NOW) == 2


def test_less_than_at_least_is_not_granted() -> None:
    assert grant(FOUR, {0: member(2), 1: request(at_least=3)}, 1, NOW) is None
    assert grant(FOUR, {0: member(1), 1: request(at_least=3)}, 1, NOW) == 3


def test_what_is_lent_comes_back_at_a_refresh_when_a_task_begins() -> None:
    assert after_refresh(FOUR, {0: member(1), 1: lease(3, covered=1)}, 1, NOW) == 3
    assert after_refresh(FOUR, {0: member(1), 1: lease(3, covered=1), 2: member(2)}, 1, NOW) == 1
    assert after_refresh(FOUR, {0: member(1), 1: lease(3, covered=1), 2: member(7)}, 1, NOW) == 0


def test_a_lease_never_falls_below_what_its_holder_needs() -> None:
    assert after_refresh(FOUR, {0: member(4), 1: lease(3, at_least=2)}, 1, NOW) == 2


def test_a_lease_grows_into_what_is_free_up_to_what_it_wants() -> None:
    assert after_refresh(FOUR, {0: member(1), 1: lease(1, wants=2)}, 1, NOW) == 2
    assert after_refresh(FOUR, {0: member(1), 1: lease(1, wants=9)}, 1, NOW) == 3


def test_equals_share_alike_the_older_one_first() -> None:
    slots = {1: lease(4, ticket=1), 2: request(ticket=2), 3: request(ticket=3)}
    assert shares(FOUR, slots, NOW) == {1: 2, 2: 1, 3: 1}
    assert grant(FOUR, slots, 2, NOW) is None  # nothing is free yet
    slots[1] = lease(after_refresh(FOUR, slots, 1, NOW), ticket=1)
    assert grant(FOUR, slots, 2, NOW) == 1


def test_the_higher_priority_has_all_that_is_lent() -> None:
    slots = {1: lease(4, ticket=1), 2: request(ticket=2, priority=5, wants=3)}
    assert shares(FOUR, slots, NOW) == {1: 1, 2: 3}


def test_requests_are_served_in_order_of_priority_and_then_of_arrival() -> None:
    slots = {1: lease(3, at_least=3), 2: request(ticket=1), 3: request(ticket=2), 4: request(ticket=3, priority=1)}
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3, 4)] == [None, None, 1]
    del slots[4]
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3)] == [1, None]


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    slots = {1: lease(2, at_least=2), 2: request(at_least=3, ticket=1), 3: request(ticket=2)}
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3)] == [None, None]  # two cores are reserved
    slots[1] = lease(1)
    assert grant(FOUR, slots, 2, NOW) == 3


def test_who_has_waited_long_goes_before_a_higher_priority() -> None:
    slots = {1: lease(3, at_least=3), 2: request(ticket=1), 3: request(ticket=2, priority=9)}
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3)] == [None, 1]
    slots[2] = request(ticket=1, since_ns=NOW - table.PATIENCE_NS)
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3)] == [1, None]


@pytest.mark.parametrize("what", ["memory_bytes", "milliwatts"])
def test_memory_and_watts_are_granted_in_full_or_not_at_all(what: str) -> None:
    limit = getattr(FOUR, what)
    slots = {1: lease(1, wants=1, **{what: limit // 2}), 2: request(**{what: limit // 2 + 1})}
    assert grant(FOUR, slots, 2, NOW) is None
    slots[2] = request(**{what: limit // 2})
    assert grant(FOUR, slots, 2, NOW) == 3


def test_who_waits_for_memory_only_holds_up_those_who_need_memory_or_its_core() -> None:
    full = lease(1, wants=1, memory_bytes=60)
    slots = {1: full, 2: request(wants=1, memory_bytes=70, ticket=1), 3: request(ticket=2)}
    assert [grant(FOUR, slots, n, NOW) for n in (2, 3)] == [None, 2]
    slots[3] = request(memory_bytes=10, ticket=2)
    assert grant(FOUR, slots, 3, NOW) is None


def test_what_is_past_its_deadline_counts_no_more() -> None:
    over = {1: lease(4, deadline_ns=NOW), 2: request(at_least=4, deadline_ns=NOW, ticket=1), 3: request(ticket=2)}
    assert table.cores_granted(over, NOW) == 0
    assert grant(FOUR, over, 3, NOW) == 4


def test_what_belongs_to_a_member_goes_before_itself() -> None:
    slots = {0: member(), 1: member(), 2: lease(1, member=1), 3: lease(1, member=0), 4: request(member=1)}
    assert table.belongings(slots, 1) == [2, 4, 1]


def test_a_full_table_says_so() -> None:
    assert table.first_free({0: member(), 2: member()}) == 1
    with pytest.raises(LedgerError, match="is full: 256 processes and leases"):
        table.first_free(dict.fromkeys(range(table.SLOTS), member()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cores": 0}, "cores of a budget is 0, must be a whole number from 1"),
        ({"cores": True}, "cores of a budget is True"),
        ({"cores": 2.5}, "cores of a budget is 2.5"),
        ({"cores": 2, "memory_bytes": -1}, "memory_bytes of a budget is -1, must be a whole number from 0"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(**wrong)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (table.MAGIC_AT, 7, "is no ledger; remove the file"),
        (table.VERSION_AT, 9, "version 9, this swarm knows version 1"),
        (table.SLOTS_AT, 5, "damaged"),
        (table.TOP_AT, 257, "damaged"),
        (table.CORES_AT, 0, "damaged"),
        (table.MEMORY_AT, -1, "damaged"),
    ],
)
def test_a_header_of_something_else_is_refused(at: int, value: int, said: str) -> None:
    words = list(table.new_header(FOUR))
    table.check_header(words, "x")
    words[at] = value
    with pytest.raises(LedgerError, match=said):
        table.check_header(words, "x")
