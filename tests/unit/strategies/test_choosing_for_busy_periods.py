"""Busy periods begin and end, one strategy each; what goes wrong leaves the default in place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import ANY, Choices, Found, Strategies, fingerprint
from scheduler_plugins.learn.strategies import BURN_IN, WARM_UP
from scheduler_plugins.on_dask import choosing as module
from scheduler_plugins.on_dask.choosing import REFRESH_S, Choosing, arm_of
from swarm.telemetry.logs import get_logger
from tests.support.waiting import eventually

HEAVY, EARLY = Strategy(gravity=4.0), Strategy(critical=0.2)


class Pool(list[Any]):
    """As `Placement`: what waits, and the strategy."""

    strategy = DEFAULT


class Group:
    """As Dask's `TaskGroup`."""

    prefix: Any
    states: Any


class Stage:
    """A scheduler and a placement as far as Choosing looks at them, and a clock that stands still."""

    def __init__(self, folder: Path | None) -> None:
        self.now_s = 100.0
        self.failures: list[Exception] = []
        prefix = SimpleNamespace(name="work")
        group = Group()
        group.prefix, group.states = prefix, {"released": 64, "memory": 500, "forgotten": 500}
        self.worker = SimpleNamespace(processing={})
        self.scheduler: Any = SimpleNamespace(
            tasks={key: SimpleNamespace(group=group) for key in range(64)},
            total_nthreads=4,
            queued=[],
            unrunnable=[],
            workers={"a": self.worker},
        )
        self.placing: Any = SimpleNamespace(is_installed=True, placement=Pool(), done_s=0.0)
        log = get_logger(agent="test")
        self.told: list[str | None] = []
        self.choosing = Choosing(self.scheduler, self.placing, log, folder, self.failures.append, self.told.append)

    @property
    def strategy(self) -> Strategy:
        used: Strategy = self.placing.placement.strategy
        return used

    async def started(self) -> None:
        self.choosing.start()
        await eventually(lambda: self.choosing.bandit is not None, "strategies are there")

    def busy(self, took_s: float = 10.0, reward: float = 0.8) -> Strategy:
        """A busy period; the strategy by which it ran."""
        self.choosing.update_graph(range(64))
        used = self.strategy
        self.worker.processing["task"] = 1.0
        self.choosing.look()
        assert self.strategy is used, "fixed while it lasts"
        self.now_s += took_s
        self.placing.done_s += took_s * reward * 4
        self.worker.processing.clear()
        self.choosing.look()
        return used


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Found()
    found.keep(fingerprint({"work": 64}), "work", [HEAVY])
    Strategies(tmp_path).write(found)
    return tmp_path


@pytest.fixture
async def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    made = Stage(folder)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    await made.started()
    yield made
    await made.choosing.close()
    assert not made.failures


async def test_each_strategy_has_its_turn_and_the_default_comes_back(stage: Stage) -> None:
    used = []
    for _ in range(WARM_UP + 2 * BURN_IN):
        used.append(stage.busy())
        assert stage.strategy == DEFAULT
    assert used == [DEFAULT] * WARM_UP + [DEFAULT, HEAVY] * BURN_IN
    assert stage.choosing.episodes == len(used)
    assert stage.told == [name for strategy in used for name in (arm_of(strategy), None)]


async def test_what_does_better_is_used_and_what_does_worse_is_not(stage: Stage) -> None:
    for better, worse in ((HEAVY, DEFAULT), (DEFAULT, HEAVY)):
        stage.choosing.bandit._works.clear()  # type: ignore[union-attr]
        used = [DEFAULT]
        for number in range(40):
            stage.choosing.update_graph(range(64))
            used.append(stage.strategy)
            stage.now_s += 10.0
            stage.placing.done_s += (0.9 if stage.strategy == better else 0.7) * (1 + 0.01 * (number % 3)) * 40.0
            stage.choosing.look()
        assert used[-10:].count(better) >= 9, worse


async def test_what_is_short_or_on_a_changing_cluster_teaches_nothing(stage: Stage) -> None:
    stage.busy(took_s=0.9)
    stage.choosing.update_graph(range(64))
    stage.worker.processing["task"] = 1.0
    stage.scheduler.total_nthreads = 8
    stage.choosing.look()
    stage.scheduler.total_nthreads = 4
    stage.worker.processing.clear()
    stage.now_s += 10.0
    stage.placing.done_s += 30.0
    stage.choosing.look()
    assert stage.choosing.episodes == 0


@pytest.mark.parametrize("where", ["pool", "queued", "unrunnable", "processing"])
async def test_a_busy_period_lasts_while_anything_waits(stage: Stage, where: str) -> None:
    stage.choosing.update_graph(range(64))
    if where == "pool":
        stage.placing.placement.append("task")
    elif where == "processing":
        stage.worker.processing["task"] = 1.0
    else:
        getattr(stage.scheduler, where).append("task")
    stage.choosing.look()
    assert stage.choosing.episode is not None
    stage.choosing.update_graph(range(64))  # more work comes: it belongs to the same period
    assert stage.choosing.episode is not None


async def test_what_was_seen_is_kept(stage: Stage, folder: Path) -> None:
    for _ in range(WARM_UP + 2):
        stage.busy()
    await stage.choosing.close()
    [[work, seen, rewards, retired]] = Choices(folder).read()
    assert work.endswith("on 2^2 threads")
    assert (seen, list(rewards), retired) == (WARM_UP + 2, ["default", arm_of(HEAVY)], [])
    again = Stage(folder)
    await again.started()
    assert again.choosing.bandit.tries(work) == {"default": 1, arm_of(HEAVY): 1}  # type: ignore[union-attr]
    await again.choosing.close()


async def test_strategies_that_are_found_meanwhile_are_used(stage: Stage, folder: Path) -> None:
    found = Strategies(folder).read()
    found.keep(ANY, "any", [EARLY])
    Strategies(folder).write(found)
    stage.now_s += REFRESH_S
    stage.choosing.look()
    await eventually(lambda: ANY in stage.choosing.found.of, "the new file is read")
    assert {stage.busy() for _ in range(WARM_UP + 3)} == {DEFAULT, HEAVY, EARLY}


async def test_no_candidates_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (None, tmp_path):
        stage = Stage(folder)
        stage.choosing.start()
        await asyncio.sleep(0)
        monkeypatch.setattr(stage.choosing, "_begin", lambda *_: pytest.fail("nothing is to be chosen"))
        stage.choosing.update_graph(range(64))
        stage.choosing.look()
        assert (stage.strategy, stage.choosing.bandit) == (DEFAULT, None)
        await stage.choosing.close()


async def test_whatever_is_raised_leaves_the_default(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(WARM_UP + 1):
        stage.busy()
    stage.choosing.update_graph(range(64))
    assert stage.strategy == HEAVY
    monkeypatch.setattr(stage.choosing.bandit, "learn", lambda *_: 1 / 0)
    stage.now_s += 10.0
    stage.placing.done_s += 30.0
    with pytest.raises(ZeroDivisionError):
        stage.choosing.look()
    assert stage.strategy == DEFAULT
    monkeypatch.setattr(stage.choosing.bandit, "choose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.choosing.update_graph(range(64))
    assert (stage.strategy, stage.choosing.episode) == (DEFAULT, None)


async def test_a_file_that_makes_no_sense_is_put_aside_and_the_default_used(folder: Path) -> None:
    Strategies(folder).path.write_text("{")
    stage = Stage(folder)
    stage.choosing.start()
    await eventually(lambda: list(folder.glob("strategies.json.damaged-*")), "it is put aside")
    assert stage.busy() == DEFAULT
    await stage.choosing.close()
    assert not stage.failures


async def test_a_disk_that_is_full_is_counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Choices, "write", full)
    stage.busy()
    await eventually(lambda: stage.failures, "it is told")
    assert isinstance(stage.failures.pop(), OSError)


async def test_a_strategy_of_other_work_is_tried_where_an_agent_advises_it(stage: Stage) -> None:
    choosing = stage.choosing
    choosing.found.keep("other-6", "other", [EARLY])
    stage.busy()
    work = choosing.work
    assert choosing.advise(work, "slack=0.9") == "strategy slack=0.9 is not known (any more)"
    assert choosing.advise(work, arm_of(EARLY)) == ""
    used = [stage.busy() for _ in range(WARM_UP - 1 + 2 * BURN_IN)]
    assert used == [DEFAULT] * (WARM_UP - 1) + [DEFAULT, EARLY] * BURN_IN
    assert choosing.by_advice == len(used)
    assert choosing.advise(work, None) == ""
    assert choosing.advise(work, None) == "nothing was advised"
    assert EARLY not in [stage.busy() for _ in range(5)]
