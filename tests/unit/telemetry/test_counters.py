"""Counters of the CPU: what is said where they are not there, silent or shared, and real ones of the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.telemetry.sources import counters
from swarm.telemetry.sources.counters import HARDWARE, Counters, Linux, Reading

SOFTWARE = {"task_clock": (1, 1), "cpu_clock": (1, 0)}
"""The kernel counts these itself, wherever perf_event_open is there at all."""


class FakeKernel:
    """A CPU with so many counters: what is beyond reads 0, as on real ones."""

    def __init__(self, places: int = 8, known: frozenset[int] = frozenset(range(6)), running: float = 1.0) -> None:
        self.places, self.known, self.running = places, known, running
        self.groups: dict[int, list[int]] = {}
        self.refusal = 0
        self.now = 0

    def open(self, kind: int, config: int, leader: int) -> int:
        if self.refusal or config not in self.known:
            raise OSError(self.refusal or errno.ENOENT, "no")
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if leader < 0:
            self.groups[fd] = [config]
        else:
            self.groups[leader].append(config)
        return fd

    def read(self, fd: int, nbytes: int) -> bytes:
        self.now += 1000
        configs = self.groups[fd]
        values = [self.now * (config + 1) if at < self.places else 0 for at, config in enumerate(configs)]
        return struct.pack(f"={3 + len(configs)}Q", len(configs), self.now, int(self.now * self.running), *values)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def _no_file_stays_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def test_all_five_count_as_one_group() -> None:
    kernel = FakeKernel()
    with contextlib.closing(Counters.of_this_machine(kernel)) as found:
        assert (list(found.events), found.absent, found.is_scaled) == (list(HARDWARE), {}, False)
        begin = found.read()
        counted = found.between(begin, found.read())
    assert counted == {name: 1000.0 * (config + 1) for name, (_, config) in HARDWARE.items()}
    assert kernel.groups[max(kernel.groups)] == [config for _, config in HARDWARE.values()]


def test_a_counter_that_reads_0_beside_the_others_is_left_out_and_said() -> None:
    with contextlib.closing(Counters.of_this_machine(FakeKernel(places=3))) as found:
        assert list(found.events) == ["cycles", "instructions", "cache_misses"]
        assert found.absent == dict.fromkeys(("cache_references", "branch_misses"), "reads 0 beside the others")


def test_no_more_than_five_at_once() -> None:
    wanted = {f"c{config}": (0, config) for config in range(6)}
    with contextlib.closing(Counters.of_this_machine(FakeKernel(), wanted)) as found:
        assert list(found.events) == ["c0", "c1", "c2", "c3", "c4"]
        assert found.absent == {"c5": "the CPU counts no more than 5 things at once"}


def test_one_that_this_cpu_does_not_know_leaves_the_others() -> None:
    with contextlib.closing(Counters.of_this_machine(FakeKernel(known=frozenset((0, 1))))) as found:
        assert list(found.events) == ["cycles", "instructions"]
        assert "virtual PMU" in found.absent["cache_misses"]


def test_counters_that_take_turns_are_scaled_and_said() -> None:
    with contextlib.closing(Counters.of_this_machine(FakeKernel(running=0.5))) as found:
        assert found.is_scaled
        begin = found.read()
        assert found.between(begin, found.read())["cycles"] == 2000.0


def test_what_never_ran_is_absent_and_no_number_is_made_up() -> None:
    with contextlib.closing(Counters.of_this_machine(FakeKernel(running=0.0))) as found:
        assert found.events == {}
        assert set(found.absent) == set(HARDWARE)
        assert found.read() is None
    assert found.between(Reading(5, 1, (1,)), Reading(9, 1, (3,))) == {}


@pytest.mark.parametrize(
    ("code", "level", "said"),
    [
        (errno.EACCES, "3\n", "kernel.perf_event_paranoid is 3; it takes 2 or less"),
        (errno.EPERM, "2\n", "forbidden here (a container?)"),
        (errno.ENOSYS, "2\n", "perf_event_open is not known"),
        (errno.EMFILE, "2\n", "perf_event_open: Too many open files"),
    ],
)
def test_a_refusal_says_what_to_do(tmp_path, monkeypatch, code: int, level: str, said: str) -> None:
    (tmp_path / "paranoid").write_text(level)
    monkeypatch.setattr(counters, "PARANOID", tmp_path / "paranoid")
    kernel = FakeKernel()
    kernel.refusal = code
    monkeypatch.setattr(FakeKernel, "open", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    found = Counters.of_this_machine(kernel)
    assert set(found.absent) == set(HARDWARE)
    assert said in found.absent["cycles"]


def test_a_thread_that_gets_no_files_has_no_reading_and_that_is_said() -> None:
    kernel = FakeKernel()
    with contextlib.closing(Counters.of_this_machine(kernel)) as found:
        kernel.refusal = errno.EMFILE
        assert found.read() is None
        assert "cycles" in found.absent


def test_threads_have_groups_of_their_own_which_go_with_them() -> None:
    before = open_files()
    kernel = FakeKernel()
    with contextlib.closing(Counters.of_this_machine(kernel)) as found:
        found.read()
        held = open_files() - before
        thread = threading.Thread(target=found.read)
        thread.start()
        thread.join()
        assert (held, open_files() - before) == (5, 5)
    assert found.read() is None


@pytest.mark.skipif(sys.platform != "linux", reason="perf_event_open is Linux's")
def test_the_real_kernel_counts_for_the_thread_that_works() -> None:
    with contextlib.closing(Counters.of_this_machine(Linux(), SOFTWARE)) as found:
        if not found.events:
            pytest.skip(str(found.absent))
        begin, cpu_s, until_s = found.read(), time.thread_time(), time.perf_counter() + 0.02
        while time.perf_counter() < until_s:
            pass
        counted, cpu_s = found.between(begin, found.read()), time.thread_time() - cpu_s
        assert counted["task_clock"] == pytest.approx(1e9 * cpu_s, rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="perf_event_open is Linux's")
def test_on_this_machine_each_counter_counts_or_says_why_not() -> None:
    with contextlib.closing(Counters.of_this_machine()) as found:
        assert {*found.events, *found.absent} == set(HARDWARE)
        begin = found.read()
        sum(range(100_000))
        counted = found.between(begin, found.read())
        assert set(counted) == set(found.events)
        assert all(counted[name] > 0 for name in {"cycles", "instructions"} & set(counted))
