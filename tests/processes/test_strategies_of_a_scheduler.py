"""A real scheduler chooses among strategies, and tunes on what was recorded while nobody wants anything of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest
from dask.delayed import delayed

from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import ANY, Choices, Found, Strategies
from scheduler_plugins.learn.strategies import StrategyBandit
from scheduler_plugins.on_dask import idle_tuning
from tests.support.clusters import cluster
from tests.support.processes import descendants, wait_gone
from tests.support.waiting import eventually

HEAVY = Strategy(gravity=4.0)


@delayed(pure=False)  # type: ignore[untyped-decorator]
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@delayed(pure=False)  # type: ignore[untyped-decorator]
def together(*parts: float) -> float:
    return sum(parts)


async def test_a_busy_period_is_run_by_a_strategy_and_told_to_the_bandit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Found()
    found.keep(ANY, "any", [HEAVY])
    Strategies(tmp_path).write(found)
    monkeypatch.setattr(StrategyBandit, "choose", lambda self, work, arms, advised=None: arms[1])
    async with cluster(workers=2, swarm=True, settings={"state_directory": str(tmp_path)}) as running:
        choosing = running.plugin.mind.choosing
        await eventually(lambda: choosing.bandit is not None, "the strategies are read")
        client = await running.client()
        result = client.compute(together(*(nap(0.11) for _ in range(24))))
        await eventually(lambda: choosing.episode, "it is busy")
        assert choosing.episode is not None
        assert choosing.episode.arm == "gravity=4"
        assert running.plugin.mind.placing.placement.strategy == HEAVY
        assert await result == pytest.approx(24 * 0.11)
        await eventually(lambda: choosing.episode is None, "it is idle again")
        assert running.plugin.mind.placing.placement.strategy == DEFAULT
        assert choosing.episodes == 1
        assert not running.plugin.guard.failures
    [[work, seen, *_]] = Choices(tmp_path).read()
    assert (work.partition(" ")[2], seen) == ("on 2^1 threads", 1)


async def test_it_tunes_while_it_is_idle_and_ends_that_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_tuning, "IDLE_S", 0.3)
    settings = {"state_directory": str(tmp_path), "tune_when_idle": True}
    async with cluster(workers=2, swarm=True, settings=settings) as running:
        tuning = running.plugin.mind.choosing._tuning
        assert tuning is not None
        swarm = await running.swarm()
        looked: list[object] = []
        journal = tuning._journal
        monkeypatch.setattr(tuning, "_journal", lambda: looked.append(journal()) or looked[-1])
        await eventually(lambda: len(looked) > 1, "it looks for something recorded, and there is nothing yet")
        assert looked[0] is None
        assert tuning.pid is None
        run = await swarm.submit(together(*(nap(0.005) for _ in range(40))), name="naps")
        await run.result()
        child = psutil.Process(await eventually(lambda: tuning.pid, "a child tunes"))
        await eventually(lambda: child.nice() == 19, "at the lowest priority")
        simulations = await eventually(lambda: descendants(child.pid), "in processes of its own")
        assert await swarm.client.submit(pow, 2, 3) == 8
        assert tuning.pid is None
        await asyncio.to_thread(wait_gone, [child, *simulations], 3)
        again = psutil.Process(await eventually(lambda: tuning.pid, "it begins again"))
    await asyncio.to_thread(wait_gone, [again], 3)
    assert not running.plugin.guard.failures
