"""A grant sets the threads of numba, OpenMP and BLAS, and puts them back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from swarm.errors import NotGrantedError
from swarm.ledger import budget, cores, lending
from swarm.ledger.table import Budget
from tests.support.processes import wait_until

CORES = 3


@pytest.fixture(autouse=True)
def three_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(budget, "of_this_host", lambda: (Budget(CORES), "ledger"))
    before = blas(), numba.get_num_threads()
    yield
    assert (blas(), numba.get_num_threads()) == before
    assert not list(tmp_path.iterdir())


def blas() -> list[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    found = [library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers]
    assert found
    return found


def set_in_numba(granted: int) -> int:
    return min(granted, numba.config.NUMBA_NUM_THREADS)


def test_a_block_has_the_threads_that_were_granted() -> None:
    for up_to in (1, 2, CORES, 9):
        with cores(up_to=up_to) as block:
            assert block.granted == min(up_to, CORES)
            assert set(blas()) == {block.granted}
            assert numba.get_num_threads() == set_in_numba(block.granted)


def test_threads_follow_when_a_core_goes_and_comes_back() -> None:
    with cores(up_to=CORES) as block:
        with lending.of_this_process() as ledger:
            ledger.began(2)
            assert block.refresh() == CORES - 2
            assert set(blas()) == {CORES - 2}
            assert numba.get_num_threads() == set_in_numba(CORES - 2)
            ledger.ended(2)
        assert block.refresh() == CORES
        assert set(blas()) == {CORES}


def test_a_block_in_a_block_may_use_fewer() -> None:
    with cores(up_to=CORES):
        with cores(up_to=1):
            assert set(blas()) == {1}
        assert set(blas()) == {CORES}


def test_with_two_blocks_at_a_time_blas_has_the_smaller_number() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with cores(up_to=1):
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=other)
    with cores(up_to=2):
        thread.start()
        inside.wait(10)
        assert set(blas()) == {1}
        go_on.set()
        thread.join()
        assert set(blas()) == {2}


def test_an_error_in_the_block_puts_everything_back() -> None:
    with pytest.raises(ZeroDivisionError), cores(up_to=2):
        raise ZeroDivisionError


def test_without_enough_cores_nothing_is_set() -> None:
    with pytest.raises(NotGrantedError):
        cores(up_to=9, at_least=9).__enter__()
    with pytest.raises(ValueError, match="up_to is 0"):
        cores(up_to=0).__enter__()


def test_on_the_layer_workqueue_blocks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    is_inside = threading.Event()

    def other() -> None:
        with cores(up_to=1):
            is_inside.set()

    thread = threading.Thread(target=other)
    with cores(up_to=1), cores(up_to=1):  # the same thread does not wait for itself
        thread.start()
        assert not is_inside.wait(0.05)
    wait_until(is_inside.is_set, "the other has its turn")
    thread.join()


def test_numba_is_not_loaded_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from swarm import ledger\nwith ledger.cores(up_to=2): print(*{'numba', 'numpy'} & {*sys.modules})"
    )
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "\n"


def test_two_threads_may_run_parallel_kernels_on_workqueue() -> None:
    """Without turns numba ends the process here: "Concurrent access has been detected"."""
    code = """
import threading, numba, numpy as np
from swarm import ledger
@numba.njit(parallel=True, nogil=True)
def total(a):
    found = 0.0
    for i in numba.prange(len(a)):
        found += np.sqrt(a[i])
    return found
a = np.ones(1_000_000)
total(a)
start, done = threading.Barrier(2), []
def work():
    start.wait()
    for _ in range(30):
        with ledger.cores(up_to=1, timeout_s=30):
            done.append(total(a))
threads = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
print(numba.threading_layer(), len(done))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2", **os.environ},
    )
    assert (done.returncode, done.stdout) == (0, "workqueue 60\n"), done.stderr
