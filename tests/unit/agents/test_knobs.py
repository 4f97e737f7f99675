"""Knobs: each does what it says to the process, and leaves it as it was."""

from __future__ import annotations

import ctypes
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from swarm import tunables
from swarm.agents.kinds.function_costs import Cost, FunctionCosts
from swarm.agents.kinds.knobs import BlasKnob, GcKnob, Knobs, NumbaKnob, TunableKnob
from swarm.agents.kinds.trimming import LONGEST_PAUSE_S, PAUSE_S, Trimmer, malloc_trim
from swarm.tunables import TUNABLES, Tunable


@pytest.fixture
def tunable():
    made = Tunable("test.block", (1, 2, 4), 2)
    yield made
    del TUNABLES["test.block"]


def costs(**fields) -> FunctionCosts:
    known = FunctionCosts("f")
    known.learn(Cost("f", 1.0, 1.0, is_full=True, **fields), 0.0)
    return known


def test_calm_collection_and_back() -> None:
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    knob = GcKnob()
    try:
        knob.apply("calm")
        knob.apply("calm")
        assert gc.get_threshold()[0] == GcKnob.THRESHOLD
        assert gc.get_freeze_count() > frozen
    finally:
        knob.restore()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (threshold, frozen)
    assert knob.plausible_gain(costs(gc_s=0.25)) == 0.25


def test_a_collector_that_is_off_stays_off() -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(0)
    try:
        knob = GcKnob()
        knob.apply("calm")
        assert gc.get_threshold()[0] == 0
        knob.restore()
    finally:
        gc.set_threshold(*threshold)


def test_threads_of_blas_by_halves_and_never_more_than_there_were() -> None:
    library = SimpleNamespace(now=6, set_num_threads=lambda n: setattr(library, "now", n))
    knob = BlasKnob(SimpleNamespace(lib_controllers=[library]), 6)
    assert knob.values == (1, 3, 6)
    knob.apply(3)
    assert library.now == 3
    knob.restore()
    assert library.now == 6
    busy = costs(process_cpu_s=2.0, side_by_side=1)
    assert knob.plausible_gain(busy) == 0.5
    assert knob.plausible_gain(costs(process_cpu_s=1.05, side_by_side=1)) == 0.0


def test_threads_of_numba() -> None:
    fake = SimpleNamespace(now=4, get_num_threads=lambda: fake.now, set_num_threads=lambda n: setattr(fake, "now", n))
    knob = NumbaKnob(fake)
    knob.apply(2)
    assert (knob.values, fake.now, knob.in_thread) == ((1, 2, 4), 2, True)
    knob.restore()
    assert fake.now == 4


def test_a_tunable_is_a_knob_for_the_functions_that_read_it(tunable: Tunable) -> None:
    knob = Knobs().all()["test.block"]
    assert isinstance(knob, TunableKnob)
    assert (knob.values, knob.original, knob.by_cpu) == ((1, 2, 4), 2, True)
    knob.apply(4)
    assert tunable.get() == 4
    knob.restore()
    assert tunable.get() == 2
    assert knob.plausible_gain(costs()) == 0.0
    assert knob.plausible_gain(costs(tunables=("test.block",))) > 0.0
    starved = costs(tunables=("test.block",), counted={"instructions": 1e6, "cache_misses": 2e4})
    assert knob.plausible_gain(starved) > knob.plausible_gain(costs(tunables=("test.block",)))


def test_what_is_not_there_says_why() -> None:
    assert np.ones(1).sum() == 1
    knobs = Knobs()
    assert knobs.wants_look
    knobs.look()
    assert not knobs.wants_look
    found = knobs.all()
    assert ("blas threads" in found) != ("blas threads" in knobs.absent)
    assert "gc" in found


def test_tunables_refuse_what_is_not_allowed(tunable: Tunable) -> None:
    with pytest.raises(ValueError, match=r"tunable test\.block can't be 3, must be one of 1, 2, 4"):
        tunable.set(3)
    with pytest.raises(ValueError, match="is there already, with other values"):
        Tunable("test.block", (1, 2), 2)
    with pytest.raises(ValueError, match="default 5 is not one of 1, 2"):
        Tunable("test.other", (1, 2), 5)


def test_who_reads_a_tunable_is_known_by_its_thread(tunable: Tunable) -> None:
    before = tunables.reads().get("test.block", 0)
    tunable.get()
    assert tunables.reads()["test.block"] == before + 1
    elsewhere: list[dict[str, int]] = []

    def reads_twice() -> None:
        elsewhere.append(tunables.reads())
        tunable.get()
        tunable.get()
        elsewhere.append(tunables.reads())

    thread = threading.Thread(target=reads_twice)
    thread.start()
    thread.join()
    assert elsewhere == [{}, {"test.block": 2}]
    assert tunables.reads()["test.block"] == before + 1


def test_memory_is_given_back_where_that_brings_something_and_left_alone_where_not() -> None:
    sizes = iter((1000, 990, 1000, 1000, 1000, 500))
    trimmer = Trimmer(lambda: next(sizes) << 20, lambda: None)
    assert not trimmer.is_due(200 << 20, 100 << 20, None, 0.0)
    assert not trimmer.is_due(200 << 30, 199 << 30, 64 << 30, 0.0)
    assert trimmer.is_due(1000 << 20, 0, None, 0.0)
    assert not trimmer.run(0.0).was_worth_it
    assert not trimmer.is_due(1000 << 20, 0, None, PAUSE_S)
    assert trimmer.is_due(1000 << 20, 0, None, 2 * PAUSE_S)
    trimmer.run(100.0)
    assert not trimmer.is_due(1000 << 20, 0, None, 100.0 + 3 * PAUSE_S)
    assert trimmer.run(200.0).was_worth_it
    assert trimmer.is_due(1000 << 20, 0, None, 200.0 + PAUSE_S)
    assert (trimmer.runs, trimmer.given_back_bytes) == (3, 510 << 20)
    assert PAUSE_S < LONGEST_PAUSE_S


@pytest.mark.skipif(malloc_trim() is None, reason="the C library has no malloc_trim")
def test_glibc_gives_back_what_it_kept() -> None:
    trim = malloc_trim()
    assert trim is not None
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    blocks = [libc.malloc(ctypes.c_size_t(100_000)) for _ in range(200)]
    for block in blocks[:-1]:  # the last holds the end of the heap, so that the rest is kept
        libc.free(ctypes.c_void_p(block))
    assert trim() in (0, 1)
    libc.free(ctypes.c_void_p(blocks[-1]))
