"""What agents find out moves Dask's tasks: heat, slow tasks and strategies, on a real cluster."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scheduler_plugins.decide.strategy import Strategy
from scheduler_plugins.io.strategies import Found, Strategies
from scheduler_plugins.learn.strategies import BURN_IN, WARM_UP
from scheduler_plugins.on_dask.choosing import USUAL, arm_of
from swarm import status
from swarm.agents.kinds import optimization
from swarm.agents.kinds.optimization import OptimizationAgent
from swarm.agents.kinds.thermal import BUDGET, ThermalAgent
from swarm.errors import ForbiddenMessageError, MessageError
from swarm.orchestrator import Orchestrator
from swarm.protocol import AdviceDropped, AdviceTaken
from tests.support.clusters import Cluster, Listener, cluster
from tests.support.some_agents import Counter
from tests.support.thermal_tree import coretemp, write
from tests.support.waiting import eventually

_lock = threading.Lock()
_running: dict[str, int] = {"now": 0, "most": 0}


def counted(number: int, seconds: float = 0.05) -> int:
    with _lock:
        _running["now"] += 1
        _running["most"] = max(_running["most"], _running["now"])
    time.sleep(seconds)
    with _lock:
        _running["now"] -= 1
    return number


class EightCores:
    """A host's budget, whatever this host has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all_cores(self) -> int:
        return 8

    def cores_in_use(self) -> int | None:
        return 8

    def limit(self, **_: Any) -> None:
        pass


class OfEightCores(ThermalAgent):
    interval_s = 0.05

    def __init__(self, agent_id: str, folder: str, **options: Any) -> None:
        super().__init__(agent_id, **options)
        self._folder = Path(folder)

    def setup(self) -> None:
        self.surroundings.extras[BUDGET] = EightCores(self._folder)
        super().setup()


@asynccontextmanager
async def advised(workers: int = 2, **settings: Any) -> AsyncIterator[tuple[Cluster, Orchestrator, Listener]]:
    async with cluster(swarm=True, workers=0, settings=settings) as running:
        for _ in range(workers):
            await running.join(agents=True, nthreads=2)
        swarm = await running.swarm()
        listener = Listener()
        for kind in (AdviceTaken, AdviceDropped):
            swarm.orchestrator.add_event_handler(kind, listener)
        await running.hears(swarm.client)
        yield running, swarm.orchestrator, listener


async def most_at_a_time(running: Cluster, count: int) -> int:
    """Of so many tasks."""
    client = await running.client()
    _running["most"] = 0
    await client.gather(client.map(counted, range(count), pure=False))
    return _running["most"]


async def shown(running: Cluster) -> str:
    console = Console(file=io.StringIO(), width=400)
    status.render(await running.plugin.status(), console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


async def test_a_host_that_is_hot_runs_fewer_of_dasks_tasks(tmp_path: Path) -> None:
    async with advised() as (running, orchestrator, listener):
        assert await most_at_a_time(running, 12) > 2
        sys = write(tmp_path / "tree", coretemp(97.5))  # next to its trip point: one core, at once
        where = running.workers[0].address
        await orchestrator.create_agent(OfEightCores, "warm", root=str(sys), folder=str(tmp_path / "run"), where=where)
        first, second = sorted(worker.address for worker in running.workers)
        assert (await listener.heard(AdviceTaken, subject=first)).value == 1
        taken = await listener.heard(AdviceTaken, subject=second)
        assert (taken.topic, taken.value) == ("threads", 0)
        assert "it may use 1 of 8 cores: temperature 97.5 °C" in taken.reason
        assert await most_at_a_time(running, 12) == 1
        assert "runs 0 tasks at a time; host " in await shown(running)
        assert (await running.plugin.status())["advice_taken"] == {"threads": 2}
        await orchestrator.destroy_agent("warm")
        (host,) = {advice["reason"].split()[1] for advice in (await running.plugin.status())["advice"]}
        await orchestrator.communicator.send_message("scheduler", "host_cool", {"host": host})
        await listener.heard(AdviceDropped, subject=second)
        assert await most_at_a_time(running, 12) > 2
        assert (await running.plugin.status())["advice"] == []


async def test_advice_that_is_not_said_again_ends_by_itself() -> None:
    async with advised(workers=1, monitoring_interval=0.05) as (running, orchestrator, listener):
        place = running.workers[0].address
        hot = {"host": "h", "place": place, "cores": 1, "all_cores": 2, "holds_s": 0.5, "reason": "a test"}
        await orchestrator.communicator.send_message("scheduler", "host_hot", hot)
        await listener.heard(AdviceTaken, subject=place)
        await listener.heard(AdviceDropped, subject=place, reason="nobody has said so again")
        view = running.plugin.mind.placing.placement.views[running.scheduler.workers[place]]
        assert view.load.held == 0


async def test_slow_tasks_reach_the_rule_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "SAY_S", 0.5)

    def now_and_then(number: int) -> int:
        time.sleep(0.2 if number % 5 == 0 else 0.01)
        return number

    async with advised(workers=1) as (running, orchestrator, listener):
        await orchestrator.create_agent(OptimizationAgent, "tuner", experiments=False, where="every-worker")
        client = await running.client()

        async def told() -> bool:
            await client.gather(client.map(now_and_then, range(80), pure=False))
            return bool(listener.of(AdviceTaken))

        await eventually(told, "the scheduler goes by what the agent saw", timeout_s=30.0)
        taken = await listener.heard(AdviceTaken, topic="copies", subject="now_and_then")
        assert taken.value > 0.01
        mind = running.plugin.mind
        assert mind.placing.late_ratio == mind.speculating.late_ratio < 1.0
        assert "now_and_then is copied as if" in await shown(running)
        assert (await running.plugin.status())["by_advice"]["copies"] == mind.speculating.by_advice


async def test_work_that_is_like_other_work_tries_what_did_best_there(tmp_path: Path) -> None:
    found, heavy = Found(), Strategy(gravity=4.0)
    found.keep("elsewhere-3", "other work", [heavy])
    Strategies(tmp_path).write(found)
    async with advised(workers=1, state_directory=str(tmp_path)) as (running, orchestrator, listener):
        choosing = running.plugin.mind.choosing
        await eventually(lambda: choosing.bandit is not None, "strategies are there")
        bandit: Any = choosing.bandit
        await orchestrator.create_agent("learning", "learner", where="scheduler")
        await _run(orchestrator, 20)
        known = choosing.work
        for _ in range(WARM_UP + BURN_IN):
            bandit.learn(known, arm_of(heavy), 0.9, USUAL)
            bandit.learn(known, USUAL, 0.8, USUAL)
        assert listener.events == []
        await _run(orchestrator, 90)
        new = choosing.work
        assert new != known
        taken = await listener.heard(AdviceTaken, topic="strategy", subject=new)
        assert taken.value == "gravity=4"
        assert "which did best with gravity=4" in await shown(running)
        await _run(orchestrator, 90)
        assert (choosing.work, choosing.by_advice) == (new, 1)


async def _run(orchestrator: Orchestrator, count: int) -> None:
    """A run whose tasks are alike whatever their number; and wait until the agent has recorded it."""
    tag = f"{count}-{time.monotonic_ns()}"
    loads = {f"load-{i}-{tag}": (counted, i, 0.001) for i in range(count)}
    run = await orchestrator.swarm.submit({**loads, f"total-{tag}": (total, *loads)}, name="wide")
    await run

    async def is_recorded() -> bool:
        runs: Any = await orchestrator.communicator.send_message("learner", "runs", wait_for_answer=True)
        return run.id in [each["run"] for each in runs]

    await eventually(is_recorded, "the run is recorded")


def total(*numbers: int) -> int:
    return sum(numbers)


async def test_who_may_advise_and_what() -> None:
    async with advised(workers=1) as (_, orchestrator, listener):
        say = orchestrator.communicator.send_message
        with pytest.raises(MessageError, match="the scheduler takes host_hot, host_cool"):
            await say("scheduler", "count")
        with pytest.raises(MessageError, match="without an answer"):
            await say("scheduler", "host_cool", {"host": "h"}, wait_for_answer=True)
        with pytest.raises(MessageError, match="function of slow_tasks"):
            await say("scheduler", "slow_tasks", {})
        await orchestrator.create_agent(Telling, "teller")
        with pytest.raises(ForbiddenMessageError, match=r"teller \(custom\) may not send host_cool to scheduler"):
            await say("teller", "tell", wait_for_answer=True)
        assert listener.events == []


class Telling(Counter):
    async def handle_message(self, message: Any) -> Any:
        await self.send("scheduler", "host_cool", {"host": "h"})
