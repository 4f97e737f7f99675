"""The model is made beside the event loop, grows its trees there, and goes from run to run."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler_plugins.io.models import FILE, Models
from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.learn.protocol import VERSION
from scheduler_plugins.on_dask import estimates as module
from scheduler_plugins.on_dask.estimates import Estimates
from tests.support.scheduler_tasks import Tasks, learn
from tests.support.waiting import eventually

HERE = "tcp://10.0.0.1:1"


def work(*args: Any) -> None:
    """A function that is never called."""


async def ready(estimates: Estimates) -> Costs:
    await eventually(lambda: estimates._costs is not None, "the model is there")
    assert estimates._costs is not None
    return estimates._costs


async def test_what_finished_before_the_model_was_there_is_learned() -> None:
    tasks = Tasks()
    estimates = Estimates(tasks.scheduler)
    for _ in range(500):
        learn(estimates, tasks.task(work), 2.0, HERE)
    estimates.start()
    assert estimates.of(tasks.task(work)).samples == 0
    await ready(estimates)
    await eventually(lambda: not estimates._waiting, "all that waited was learned")
    assert estimates.of(tasks.task(work)).samples == 500
    await estimates.stop()


async def test_it_is_made_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    make = module._make

    def watched(*args: Any) -> Costs:
        threads.append(threading.current_thread())
        return make(*args)

    monkeypatch.setattr(module, "_make", watched)
    estimates = Estimates(Tasks().scheduler)
    estimates.start()
    await ready(estimates)
    assert threads != [threading.main_thread()]
    await estimates.stop()
    await eventually(lambda: not threads[0].is_alive(), "its thread has ended")


async def test_without_river_dask_answers_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> Costs:
        raise ModuleNotFoundError("No module named 'river'")

    monkeypatch.setattr(module, "_make", missing)
    troubles: list[str] = []
    tasks = Tasks()
    estimates = Estimates(tasks.scheduler, on_failure=lambda what, error: troubles.append(f"{what}: {error}"))
    estimates.start()
    await eventually(lambda: troubles, "the trouble is told")
    assert "river" in troubles[0]
    learn(estimates, tasks.task(work), 2.0, HERE)
    estimates.tick(0.0)
    estimates.tick(1.0)
    assert not estimates._waiting
    assert estimates.of(tasks.task(work)).samples == 0
    await estimates.stop()


async def test_what_was_learned_is_there_in_the_next_run(tmp_path: Path) -> None:
    tasks = Tasks()
    first = Estimates(tasks.scheduler, models=Models(tmp_path))
    first.start()
    await ready(first)
    for n in range(1, 100):
        learn(first, tasks.task(work, n), 0.1 * n, HERE)
    await first.stop()
    assert (tmp_path / FILE).exists()
    second = Estimates(tasks.scheduler, models=Models(tmp_path))
    second.start()
    await ready(second)
    said = second.of(tasks.task(work, 70))
    assert said.samples == 99
    assert said.p50_s == pytest.approx(7.0, rel=0.2)
    await second.stop()


async def test_a_damaged_file_is_told_and_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f'{{"format": "swarm models", "version": {VERSION}}}\n{{"cut')
    troubles: list[str] = []
    estimates = Estimates(
        Tasks().scheduler, models=Models(tmp_path), on_failure=lambda what, error: troubles.append(str(error))
    )
    estimates.start()
    await ready(estimates)
    await eventually(lambda: troubles, "it is told")
    assert "cut short" in troubles[0]
    assert not (tmp_path / FILE).exists()
    await estimates.stop()
    assert not (tmp_path / FILE).exists(), "nothing was learned, so nothing is written"


async def test_models_are_saved_now_and_then_without_holding_up_the_loop(tmp_path: Path) -> None:
    tasks = Tasks()
    costs = Costs(random.Random(0))
    estimates = Estimates(tasks.scheduler, costs, models=Models(tmp_path))
    estimates.start()
    rng = random.Random(0)
    for i in range(300):
        for _ in range(8):
            learn(estimates, tasks.task(work, rng.randint(1, 9), prefix=f"p{i}", **{f"a{i}": 1}), 1.0, HERE)
    lags = []
    estimates.tick(0.0)
    estimates.tick(module.SAVE_EVERY_S + 1.0)
    while estimates._saving is None or not estimates._saving.done():
        began_s = time.perf_counter()
        await asyncio.sleep(0)
        lags.append(time.perf_counter() - began_s)
    assert (tmp_path / FILE).exists()
    assert sorted(lags)[int(0.99 * len(lags))] < 0.02, "generous, for a busy machine; the benchmark has the figure"
    written = (tmp_path / FILE).stat().st_mtime_ns
    estimates.tick(3 * module.SAVE_EVERY_S)
    await asyncio.sleep(0.05)
    assert (tmp_path / FILE).stat().st_mtime_ns == written, "nothing new, nothing written"
    await estimates.stop()


async def test_a_folder_that_cannot_be_written_costs_the_models_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    troubles: list[str] = []
    tasks = Tasks()
    estimates = Estimates(
        tasks.scheduler,
        Costs(random.Random(0)),
        models=Models(tmp_path / "file" / "folder"),
        on_failure=lambda what, error: troubles.append(what),
    )
    estimates.start()
    learn(estimates, tasks.task(work), 1.0, HERE)
    await estimates.stop()
    assert troubles == ["the models could not be saved"]


async def test_trees_grow_beside_the_loop() -> None:
    tasks = Tasks()
    costs = Costs(random.Random(0))
    estimates = Estimates(tasks.scheduler, costs)
    estimates.start()
    rng = random.Random(0)
    for _ in range(60):
        learn(estimates, tasks.task(work, rng.random()), 1.0, HERE)
    assert costs.pending
    estimates.tick(0.0)
    estimates.tick(1.0)
    await eventually(lambda: not costs.pending, "all that waited was learned")
    await estimates.stop()
    estimates.close()


async def test_river_is_imported_while_nothing_runs() -> None:
    """Its import takes a second of a core: not from who runs the first tasks, or fetches their results."""
    estimates = Estimates(Tasks().scheduler, Costs(random.Random(0), with_river=False))
    estimates.start()
    for second in range(3):
        estimates.tick(float(second), is_idle=False)
    assert not estimates._imports
    estimates.tick(3.0)
    await eventually(lambda: estimates.costs is not None and estimates.costs.has_river, "river is there")
    await estimates.stop()


async def test_trouble_beside_the_loop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[str] = []
    tasks = Tasks()
    costs = Costs(random.Random(0))
    estimates = Estimates(tasks.scheduler, costs, on_failure=lambda what, error: troubles.append(str(error)))
    estimates.start()
    learn(estimates, tasks.task(work), 1.0, HERE)

    def broken(budget_s: float, clock: object) -> int:
        raise ZeroDivisionError("a tree fell")

    monkeypatch.setattr(costs, "learn_pending", broken)
    estimates.tick(0.0)
    estimates.tick(1.0)
    await eventually(lambda: troubles, "it is told")
    assert troubles == ["a tree fell"]
    await estimates.stop()
