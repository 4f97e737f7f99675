"""Scripts of faults on real processes and in the twin; a serial run of the same graph is the oracle.

`make chaos MINUTES=10` plays new ones for as long as you like.
"""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import IOLoop

from swarm.twin.faults import Crash, Hang, HoldGil, Leave, Partition, Preempt
from swarm.twin.policies import POLICIES
from tests.support.chaos_play import Ended, Played, evicted_falsely, in_the_twin, on_processes
from tests.support.chaos_script import Script, drawn


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Python starts it with the first process, and keeps its pipe: that is no leftover of a test."""
    resource_tracker.ensure_running()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "kind"), [(1, "mixed"), (2, "mixed"), (1, "busy"), (1, "moving")])
def test_on_real_processes_nothing_is_wrong_lost_or_evicted(seed: int, kind: Any, tmp_path: Path) -> None:
    script = drawn(seed, kind, length_s=3.0)
    verdict = on_processes(script, tmp_path)
    assert not verdict.trouble
    assert (verdict.wrong, verdict.lost, verdict.evicted) == (0, 0, 0)
    assert verdict.played
    assert verdict.tasks > 20


@pytest.mark.parametrize("kind", ["mixed", "busy", "moving"])
def test_in_the_twin_nothing_is_wrong_lost_or_evicted(kind: Any) -> None:
    for seed in range(8):
        verdict = in_the_twin(drawn(seed, kind))
        assert not verdict.trouble, f"seed {seed}"


def test_a_script_is_the_same_again_from_its_seed_and_from_its_file(tmp_path: Path) -> None:
    script = drawn(7)
    script.save(tmp_path / "script.json", ("step-3 is wrong",))
    assert Script.load(tmp_path / "script.json") == script == drawn(7)
    assert script != drawn(8)


def test_results_depend_on_all_that_led_to_them() -> None:
    script = next(s for s in map(drawn, range(10)) if s.steps[-1].needs)
    first, *others = script.steps
    other = replace(script, steps=(replace(first, nbytes=first.nbytes + 1), *others), wanted=tuple(range(5)))
    same = replace(script, wanted=tuple(range(5)))
    assert other.oracle()["step-0"] != same.oracle()["step-0"]


# -- the judge can see what it looks for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("played", "at_s", "is_false"),
    [
        (Crash(at_s=1.0, worker="w0"), 1.5, False),
        (Crash(at_s=1.0, worker="w1"), 1.5, True),
        (Crash(at_s=2.0, worker="w0"), 1.5, True),
        (Hang(at_s=1.0, worker="w0", for_s=None), 100.0, False),
        (Hang(at_s=1.0, worker="w0", for_s=2.0), 3.0, False),
        (Hang(at_s=1.0, worker="w0", for_s=2.0), 30.0, True),
        (HoldGil(at_s=1.0, worker="w0", for_s=20.0), 3.0, True),
        (Leave(at_s=1.0, worker="w0"), 30.0, False),
        (Preempt(at_s=1.0, worker="w1", notice_s=20.0), 3.0, True),
        (Partition(at_s=1.0, workers=("w0",), for_s=4.0), 3.0, True),
        (Partition(at_s=1.0, workers=("w0",), for_s=25.0), 22.0, False),
    ],
)
def test_an_end_that_no_fault_explains_is_a_false_eviction(played: Any, at_s: float, is_false: bool) -> None:
    assert bool(evicted_falsely([Ended(at_s, "w0")], [Played(played, played.at_s)])) is is_false


class Evicts(SchedulerPlugin):
    """Ends a worker that is well."""

    name = "evicts"

    async def start(self, scheduler: Any) -> None:
        async def evict() -> None:
            await scheduler.retire_workers(names=["w1"], close_workers=True, stimulus_id="for no reason")

        IOLoop.current().call_later(3.0, evict)


def test_a_false_eviction_is_found_in_the_twin() -> None:
    script = drawn(3, "busy")
    policy = replace(POLICIES["swarm"], plugins=lambda seed: (Evicts(),))
    verdict = in_the_twin(script, policy)
    assert verdict.evicted == 1
    assert "w1" in verdict.trouble[0]
