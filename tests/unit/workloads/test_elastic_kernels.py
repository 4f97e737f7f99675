"""Kernels in pieces: the same result on any number of threads, and cores that are asked back are given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from swarm.errors import SettingsError
from swarm.ledger import budget, leases, lending
from swarm.ledger.lending import CoresInUse
from swarm.ledger.table import Budget
from workloads.kernels import elastic, lloyd, montecarlo
from workloads.kernels.elastic import in_pieces

CORES = 4
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(budget, "of_this_host", lambda: (Budget(CORES), "ledger"))
    monkeypatch.setattr(elastic.os, "cpu_count", lambda: CORES)
    monkeypatch.delenv(elastic.VARIABLE, raising=False)
    elastic.most_cores.cache_clear()
    before = set(threading.enumerate())
    yield tmp_path
    elastic.most_cores.cache_clear()
    assert set(threading.enumerate()) == before
    assert not [path for path in tmp_path.iterdir() if path.name == "swarm"]


def on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(elastic.VARIABLE, "1")
    elastic.most_cores.cache_clear()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_pass_is_the_same_bit_for_bit_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    points, centroids = RNG.random((40_001, 3)).astype(dtype), RNG.random((16, 3)).astype(dtype)
    monkeypatch.setattr(lloyd, "PIECE", 100_000)
    many = lloyd.assign_elastic(points, centroids)
    on_one_core(monkeypatch)
    one = lloyd.assign_elastic(points, centroids)
    for found, expected in zip(many, one, strict=True):
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(many, lloyd.assign_numba(points, centroids), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == "float64" else 2e-5)


def test_a_pass_over_pixels_is_the_same_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(256, size=(30_000, 3)).astype(float)
    monkeypatch.setattr(lloyd, "PIECE", 100_000)
    found, expected = (kernel(pixels, pixels[:8]) for kernel in (lloyd.assign_elastic, lloyd.assign_numba))
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 37, 74, 1000])
def test_paths_are_the_same_bit_for_bit_as_in_one_go(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    terms = np.array([100.0, 0.03, 0.2, 1.0])
    monkeypatch.setattr(montecarlo, "PIECE", 37 * 6)
    found = montecarlo.price_paths_elastic(terms, 7, 3, 2**32 - 5, count, 6)
    np.testing.assert_array_equal(found, montecarlo.price_paths_numba(terms, 7, 3, 2**32 - 5, count, 6))


def test_pieces_run_on_all_cores_at_a_time_and_come_back_in_order() -> None:
    together = threading.Barrier(CORES, timeout=10)

    def piece(number: int) -> int:
        together.wait()
        return number

    assert in_pieces(piece, 3 * CORES) == list(range(3 * CORES))


def test_a_core_that_is_asked_back_is_given_back_after_the_piece() -> None:
    at_once: list[int] = []
    running = 0
    lock = threading.Lock()
    neighbour = CoresInUse()

    def piece(number: int) -> None:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        threading.Event().wait(0.004)
        with lock:
            running -= 1
            if number == 40:
                for _ in range(CORES - 1):
                    neighbour.began()

    in_pieces(piece, 120)
    neighbour.close()
    assert max(at_once[:40]) == CORES
    assert max(at_once[-40:]) == 1


def test_a_core_that_becomes_free_is_taken_on() -> None:
    neighbour = CoresInUse()
    with lending.of_this_process() as ledger:
        ledger.began(CORES)
        threads: set[int] = set()

        def piece(number: int) -> None:
            if number == 3:
                assert len(threads) == 1
                ledger.ended(CORES - 1)
            threads.add(threading.get_ident())
            threading.Event().wait(0.002)

        in_pieces(piece, 60)
        ledger.ended()
    neighbour.close()
    assert len(threads) > 1


@pytest.mark.parametrize("wrong", [0, 5])
def test_an_error_in_a_piece_is_raised_and_ends_the_others(wrong: int) -> None:
    done: list[int] = []

    def piece(number: int) -> None:
        if number == wrong:
            raise ZeroDivisionError
        threading.Event().wait(0.001)
        done.append(number)

    with pytest.raises(ZeroDivisionError):
        in_pieces(piece, 1000)
    assert len(done) < 100


def test_without_a_ledger_kernels_are_serial_and_say_so_once(
    four_cores: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (four_cores / "swarm").touch()
    elastic._warn_once.cache_clear()
    for _ in range(2):
        assert in_pieces(lambda _: threading.get_ident(), 8) == [threading.get_ident()] * 8
    [record] = caplog.records
    assert "kernels run on one core" in record.getMessage()
    assert "is not a folder" in record.getMessage()
    (four_cores / "swarm").unlink()


def test_when_no_core_comes_free_the_task_goes_on_alone() -> None:
    neighbour = leases.Ledger()
    with neighbour.lease(CORES, at_least=CORES):
        assert in_pieces(lambda _: threading.get_ident(), 8) == [threading.get_ident()] * 8
    neighbour.close()


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999"])
def test_a_wrong_number_of_cores_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(elastic.VARIABLE, value)
    elastic.most_cores.cache_clear()
    with pytest.raises(SettingsError, match=f"SWARM_CORES='{value}' is not allowed: a number of cores from 1"):
        in_pieces(lambda _: None, 8)
