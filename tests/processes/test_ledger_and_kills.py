"""Real processes at one ledger: never more than there is, and what the killed held is back at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from swarm.errors import NotGrantedError
from swarm.ledger import table
from swarm.ledger.leases import Ledger
from swarm.ledger.table import Budget
from tests.support.ledger_children import nursery
from tests.support.processes import wait_until

CORES = 3
KILLS = 150
AT_ONCE = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "swarm"


def seats(ledger: Ledger) -> set[int]:
    slots = ledger.standing().slots
    return {slots[number].pid for number in table.members(slots)} - {os.getpid()}


def test_what_the_killed_held_is_back_within_a_second(folder: Path) -> None:
    rng = random.Random(0)
    slowest_s = 0.0
    held = 0
    with Ledger(folder, "ledger", Budget(CORES)) as ledger, nursery(folder, CORES, seed=1) as children:
        alive = [children.fork("LIFE") for _ in range(AT_ONCE)]
        for _ in range(KILLS):
            wait_until(lambda: seats(ledger) == set(alive), "all sit at the table")
            time.sleep(rng.random() * 0.01)
            victim = alive.pop(rng.randrange(AT_ONCE))
            os.kill(victim, signal.SIGKILL)
            killed_s = time.monotonic()
            # Not by `standing`, which looks for the dead itself: as one who asks for a core finds it.
            wait_until(lambda dead=victim: not _asked(ledger, dead), "its leases are back", 5)  # type: ignore[misc]
            slowest_s = max(slowest_s, time.monotonic() - killed_s)
            with ledger._table.locked():
                slots = ledger._table.slots()
            held += sum(slot.state == table.LEASE for slot in slots.values())
            assert 0 <= table.cores_granted(slots, time.monotonic_ns()) <= CORES
            assert set(table.members(slots)) == {n for n, slot in slots.items() if slot.pid == os.getpid()} | {
                n for n, slot in slots.items() if slot.state == table.MEMBER and slot.pid in alive
            }
            alive.append(children.fork("LIFE"))
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not seats(ledger), "nobody else is there")
        assert ledger.standing().cores_free == CORES
    assert held > KILLS / 10  # they were busy
    assert slowest_s < 1
    assert not folder.exists()


def _asked(ledger: Ledger, pid: int) -> list[table.Slot]:
    """Ask for all cores, once; what the process has after that."""
    with suppress(NotGrantedError):
        ledger.lease(CORES, at_least=CORES).close()
    return [slot for slot in ledger._table.slots().values() if slot.pid == pid]


def test_the_granted_cores_of_all_processes_never_exceed_the_budget(folder: Path) -> None:
    """By the clocks of the processes, not by what the table says."""
    processes = 6
    changes: list[tuple[int, int]] = []
    with Ledger(folder, "ledger", Budget(CORES)), nursery(folder, CORES, seed=2) as children:
        over = 0
        children.fork_many("LOG", processes)
        while over < processes:
            line = children.line()
            assert line, "the children have ended early"
            if line == "over\n":
                over += 1
            if line.count(" ") != 2:  # the pid of a child, or the end of one
                continue
            since_ns, until_ns, cores = map(int, line.split())
            changes += [(since_ns, cores), (until_ns, -cores)]
    changes.sort()  # of equal times the returns come first
    granted = highest = 0
    for _, change in changes:
        granted += change
        highest = max(highest, granted)
    assert granted == 0
    assert highest == CORES


def test_after_all_were_killed_the_next_one_cleans(folder: Path) -> None:
    with nursery(folder, CORES, seed=3) as children:
        alive = [children.fork("LIFE") for _ in range(AT_ONCE)]
        with Ledger(folder, "ledger", Budget(CORES)) as ledger:
            wait_until(lambda: seats(ledger) == set(alive), "all sit at the table")
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(_lives(pid) for pid in alive), "all are dead")
    assert (folder / "ledger").exists()
    with Ledger(folder, "ledger", Budget(CORES)) as ledger:
        assert ledger.standing().cores_free == CORES
    assert not folder.exists()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def test_one_who_is_killed_while_it_sits_down_or_leaves_harms_nobody(folder: Path) -> None:
    rng = random.Random(5)
    with nursery(folder, CORES, seed=5) as children:
        for number in range(60):
            pid = children.fork("LIFE")
            time.sleep(rng.random() * 0.002)  # it takes about one millisecond
            os.kill(pid, signal.SIGKILL)
            if number % 4 == 0:
                with (
                    Ledger(folder, "ledger", Budget(CORES)) as ledger,
                    ledger.lease(CORES, at_least=CORES, timeout_s=1) as lease,
                ):
                    assert lease.granted == CORES
    Ledger(folder, "ledger", Budget(CORES)).close()
    assert not folder.exists()


def test_a_greedy_process_does_not_keep_others_waiting(folder: Path) -> None:
    with Ledger(folder, "ledger", Budget(CORES)) as ledger, nursery(folder, CORES, seed=4) as children:
        children.fork("LIFE")
        children.fork("LIFE")
        wait_until(lambda: len(seats(ledger)) == 2, "both sit at the table")
        longest_s = 0.0
        for _ in range(50):
            began_s = time.monotonic()
            with ledger.lease(CORES, at_least=CORES, timeout_s=10):
                longest_s = max(longest_s, time.monotonic() - began_s)
        assert longest_s < 2


def test_a_process_that_ends_leaves_nothing(folder: Path) -> None:
    code = "import sys, pathlib; from swarm.ledger import Ledger; Ledger(pathlib.Path(sys.argv[1]), 'ledger').lease(1)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert not folder.exists()
