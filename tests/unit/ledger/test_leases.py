"""Leases of one process, and of the threads in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swarm.errors import LedgerError, NotGrantedError
from swarm.ledger import budget, lending, table
from swarm.ledger.leases import Ledger
from swarm.ledger.lending import CoresInUse, lend, using
from swarm.ledger.table import Budget
from tests.support.processes import wait_until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "swarm", "ledger", Budget(4, memory_bytes=100)) as opened:
        yield opened


@pytest.fixture
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The ledger of this process has four cores, in a folder of its own; nothing is left there."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(budget, "of_this_host", lambda: (Budget(4), "ledger"))
    yield tmp_path / "swarm" / "ledger"
    assert not list(tmp_path.iterdir())


def test_what_is_granted_comes_back(ledger: Ledger) -> None:
    with ledger.lease(3) as one, ledger.lease(3) as other:
        assert (one.granted, other.granted) == (3, 1)
        assert ledger.standing().cores_free == 0
    assert ledger.standing().cores_free == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cores": 0}, "up_to is 0, must be a whole number, 1 or more"),
        ({"cores": -2}, "up_to is -2,"),
        ({"cores": 1.5}, "up_to is 1.5,"),
        ({"cores": True}, "up_to is True,"),
        ({"cores": 2, "at_least": 3}, "at_least is 3, must be a whole number, from 1 to 2"),
        ({"at_least": 0}, "at_least is 0,"),
        ({"memory_bytes": -1}, "memory_bytes is -1,"),
        ({"watts": float("inf")}, "watts is inf, must be 0 or more"),
        ({"priority": 10**9}, "priority is 1000000000, must be a whole number, from -1000 to 1000"),
        ({"timeout_s": -1}, "timeout_s is -1, must be 0 or more"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"for_s": 0}, "for_s is 0, must be above 0 and at most 3600"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(ledger: Ledger, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(")):
        ledger.lease(**wrong)


def test_more_than_the_host_has_is_refused_at_once(ledger: Ledger) -> None:
    with pytest.raises(NotGrantedError, match="5 cores are asked for at least, this host has 4; ask for fewer"):
        ledger.lease(5, at_least=5, timeout_s=60)
    with pytest.raises(NotGrantedError, match="101 bytes of memory are asked for"):
        ledger.lease(memory_bytes=101)


def test_one_who_waits_is_served_when_another_gives_back(ledger: Ledger) -> None:
    held = ledger.lease(4)
    threading.Timer(0.05, held.close).start()
    with ledger.lease(2, at_least=2, timeout_s=10) as lease:
        assert lease.granted == 2


def test_one_who_waits_makes_a_borrower_shrink(ledger: Ledger) -> None:
    held = ledger.lease(4)
    waits = threading.Thread(target=lambda: ledger.lease(2, timeout_s=10))
    waits.start()
    wait_until(lambda: held.refresh() == 2, "the borrower gives back half")
    waits.join()
    assert ledger.standing().cores_granted == 4


def test_one_who_gives_up_leaves_nothing_in_the_queue(ledger: Ledger) -> None:
    held = ledger.lease(4, at_least=4)
    with pytest.raises(NotGrantedError, match=r"1 cores were not free within 0\.02 s"):
        ledger.lease(timeout_s=0.02)
    assert [slot.state for slot in ledger.standing().slots.values()] == [table.MEMBER, table.LEASE]
    held.close()


def test_a_task_has_its_core_without_asking(ledger: Ledger) -> None:
    for _ in range(6):
        ledger.began()
    with ledger.lease(4) as lease:
        assert (lease.granted, lease.is_covered) == (1, True)
        for _ in range(4):
            ledger.ended()
        assert lease.refresh() == 3  # its own, and the two that are idle
    ledger.ended(2)


def test_of_two_leases_in_a_process_with_one_task_one_is_covered(ledger: Ledger) -> None:
    ledger.began()
    with ledger.lease(1) as one, ledger.lease(1) as other:
        assert (one.is_covered, other.is_covered) == (True, False)
        assert ledger.standing().cores_free == 2


def test_a_lease_that_is_not_renewed_ends(ledger: Ledger) -> None:
    lapsed = ledger.lease(4, for_s=0.01)
    time.sleep(0.02)
    with ledger.lease(3) as other:
        assert other.granted == 3
        assert lapsed.refresh() == 1  # what was left
        assert ledger.standing().cores_free == 0
    assert lapsed.refresh() == 4
    lapsed.close()


def test_a_limit_holds_for_all_and_makes_borrowers_give_back(tmp_path: Path, ledger: Ledger) -> None:
    lease = ledger.lease(4)
    with Ledger(tmp_path / "swarm", "ledger") as hot:
        hot.limit(cores=3, watts=12.5, for_s=60, said_by="test")
        assert (hot.all_cores(), ledger.all_cores(), hot.cores_in_use()) == (4, 4, 4)
        assert ledger.standing().budget == Budget(3, memory_bytes=100, milliwatts=12_500)
        assert lease.refresh() == 3
        hot.limit(cores=None, watts=None, for_s=60, said_by="test")
        assert lease.refresh() == 4
    assert ledger.folder == tmp_path / "swarm"


def test_a_limit_ends_by_itself(ledger: Ledger) -> None:
    ledger.limit(cores=1, watts=None, for_s=0.01, said_by="test")
    time.sleep(0.02)
    with ledger.lease(4) as lease:
        assert lease.granted == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"cores": 0}, "cores is 0"), ({"watts": float("nan")}, "watts is nan"), ({"for_s": 0}, "for_s is 0")],
)
def test_a_limit_that_makes_no_sense_is_refused(ledger: Ledger, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ledger.limit(**{"cores": 2, "watts": None, "for_s": 1, "said_by": "test", **wrong})


def test_threads_of_a_pool_work_within_the_block(four_cores: Path) -> None:
    def nested() -> int:
        with lend(4) as inner:
            return inner.granted

    with lend(3) as lent, ThreadPoolExecutor(2, initializer=lent.adopt) as pool:
        assert [found.result() for found in [pool.submit(nested) for _ in range(4)]] == [1] * 4
        with lending.of_this_process() as ledger:
            assert ledger.standing().cores_granted == 3


def test_a_closed_ledger_says_so_and_its_leases_do_no_harm(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "swarm", "ledger", Budget(4))
    lease = ledger.lease(3)
    ledger.close()
    ledger.close()
    ledger.began()
    ledger.ended()
    assert lease.refresh() == 1
    lease.close()
    with pytest.raises(LedgerError, match="was closed in this process; open a new one"):
        ledger.lease()


def test_the_ledger_of_the_process_is_open_only_while_it_is_used(four_cores: Path) -> None:
    with lend(3) as outer:
        assert outer.granted == 3
        assert four_cores.exists()
    assert not four_cores.exists()


def test_a_block_in_a_block_uses_the_cores_of_the_outer_one(four_cores: Path) -> None:
    with lend(3) as outer, lend(2) as inner, lend(9) as innermost:
        assert (outer.granted, inner.granted, innermost.granted) == (3, 2, 2)
        assert innermost.refresh() == 2
        with pytest.raises(NotGrantedError, match="3 cores are asked for inside a block that was granted 2"):
            lend(3, at_least=3).__enter__()
    assert lending._HELD.lend is None


def test_blocks_in_other_threads_have_leases_of_their_own(four_cores: Path) -> None:
    found: list[int] = []

    def other() -> None:
        with lend(3) as lent:
            found.append(lent.granted)

    with lend(3):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [1]


def test_using_counts_and_the_tasks_of_a_worker_too(four_cores: Path) -> None:
    tasks = CoresInUse()
    tasks.began()
    tasks.began()
    tasks.ended()
    with using(2), lending.of_this_process() as ledger:
        assert ledger.standing().cores_in_use == 3
    tasks.ended()
    tasks.ended()  # one too many does no harm
    with lending.of_this_process() as ledger:
        assert ledger.standing().cores_in_use == 0
    tasks.began()
    tasks.close()
    tasks.close()


def test_a_forked_child_has_a_seat_of_its_own(four_cores: Path) -> None:
    with lend(3) as lent:
        child = os.fork()
        if not child:
            try:
                with lend(4) as other:
                    os._exit(0 if (other.granted, lent.refresh()) == (1, 1) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with lending.of_this_process() as ledger:  # nothing of ours went with the child
            assert ledger.standing().cores_granted == 3


def test_the_ledger_is_light() -> None:
    heavy = ("dask", "distributed", "numba", "numpy", "pydantic", "threadpoolctl", "psutil")
    code = (
        f"import sys; from swarm.ledger import CoresInUse, cores, lend;print(*(m for m in {heavy} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
