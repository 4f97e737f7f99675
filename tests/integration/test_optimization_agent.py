"""The optimization agent on a real worker: it measures, tries, keeps what wins, and leaves no trace."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import get_worker

from swarm.agents.kinds.experiments import Rules
from swarm.agents.kinds.optimization import OptimizationAgent
from swarm.agents.kinds.task_counters import ActiveThreads
from swarm.channels.messages import Message, decode, encode
from swarm.config import Settings
from swarm.errors import AgentDefinitionError
from swarm.telemetry.logs import get_logger
from swarm.tunables import TUNABLES, Tunable
from tests.support.agent_alone import FakeVoice
from tests.support.clusters import Cluster, cluster


@pytest.fixture
def pace():
    """A tunable on which the time of a task depends."""
    made = Tunable("test.pace", ("slow", "quick", "hopeless"), "slow")
    yield made
    del TUNABLES["test.pace"]


def busy(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def tuned(number: int) -> int:
    busy({"slow": 0.004, "quick": 0.002, "hopeless": 0.04}[str(TUNABLES["test.pace"].get())])
    return number


def plain(number: int) -> int:
    busy(0.002)
    return number


def broken(number: int) -> int:
    raise ValueError(number)


def whose(number: int) -> str:
    return str(get_worker().get_current_task())


class Host:
    """What a supervisor does, by hand."""

    def __init__(self, running: Cluster, agent: OptimizationAgent) -> None:
        self.cluster, self.agent = running, agent
        self.audited: list[tuple[str, dict[str, Any]]] = []
        agent.surroundings = SimpleNamespace(  # type: ignore[assignment]
            settings=Settings(),
            log=get_logger(agent=agent.agent_id),
            voice=FakeVoice(),
            place=running.workers[0].address,
            dask=running.workers[0],
            audit=lambda what, **about: self.audited.append((what, about)),
        )

    def ask(self, kind: str) -> Any:
        answer = self.agent.handle_message(Message("me", self.agent.agent_id, kind, wants_answer=True))
        return decode(encode(Message(self.agent.agent_id, "me", "answer", answer))).payload

    async def cycle(self) -> None:
        await self.agent.execute_cycle()
        self.agent._rated_s = time.monotonic() - 1.0  # as if a second had passed
        self.agent.optimize_performance()

    async def run(self, client: Any, function: Any, tasks: int) -> list[Any]:
        return await client.gather(client.map(function, range(tasks), pure=False))


@asynccontextmanager
async def agent_on_a_worker(state: Any = None, nthreads: int = 1, **options: Any) -> AsyncIterator[tuple[Host, Any]]:
    async with cluster(workers=0) as running:
        await running.join(nthreads=nthreads)
        client = await running.client()
        agent = OptimizationAgent("optimizer", seed=1, **options)
        host = Host(running, agent)
        if state is not None:
            agent.restore(state)
        await agent.setup()
        try:
            yield host, client
        finally:
            await agent.teardown()


async def test_it_tells_what_tasks_of_each_function_cost() -> None:
    async with agent_on_a_worker(experiments=False) as (host, client):
        await host.run(client, plain, 60)
        told = host.ask("counters")
        [row] = told["functions"]
        assert row["function"] == "plain"
        assert row["measured"] == 50  # of each function in a minute
        assert row["typical_s"] >= 0.002
        assert 0.0 < row["cpu_ratio"] <= 1.01
        for name in ("cycles", "instructions", "cache_misses", "branch_misses", "cache_references"):
            assert (name in told["counting"]) != (f"counter {name}" in told["absent"])
        assert (row["ipc"] is not None) == ({"cycles", "instructions"} <= set(told["counting"]))
        assert host.audited == []


async def test_a_tunable_is_for_the_function_that_reads_it_not_for_what_runs_beside_it(pace: Tunable) -> None:
    async with agent_on_a_worker(nthreads=2, experiments=False) as (host, client):
        mixed = [client.submit(function, n, pure=False) for n in range(30) for function in (tuned, plain)]
        await client.gather(mixed)
        read = {row["function"]: row["tunables"] for row in host.ask("counters")["functions"]}
        assert read == {"tuned": ["test.pace"], "plain": []}


async def test_tasks_know_nothing_of_it() -> None:
    async with agent_on_a_worker() as (host, client):
        worker = host.cluster.workers[0]
        assert isinstance(worker.active_threads, ActiveThreads)
        futures = client.map(whose, range(5), pure=False)
        assert await client.gather(futures) == [future.key for future in futures]
        with pytest.raises(ValueError, match="7"):
            await client.submit(broken, 7)
        assert not worker.active_threads
        assert "broken" not in host.agent.functions


async def test_what_goes_wrong_beside_a_task_does_not_reach_it_and_is_told_by_the_next_cycle(monkeypatch) -> None:
    async with agent_on_a_worker() as (host, client):
        monkeypatch.setattr(host.agent._tasks, "_begin", lambda plan: 1 / 0)
        assert await host.run(client, plain, 5) == list(range(5))
        with pytest.raises(ZeroDivisionError):
            await host.agent.execute_cycle()
        monkeypatch.undo()


async def test_a_setting_that_wins_is_found_kept_told_and_put_back_at_the_end(pace: Tunable) -> None:
    async with agent_on_a_worker(knobs=["test.pace"]) as (host, client):
        for _ in range(40):
            await host.run(client, tuned, 30)
            await host.cycle()
            if len(host.ask("experiments")["trials"]) == 2:
                break
        told = host.ask("experiments")
        won, lost = told["trials"]
        assert (won["before"], won["after"], won["ending"]) == ("slow", "quick", "kept")
        assert won["gain"] == pytest.approx(0.5, abs=0.1)
        assert won["confidence"] >= 0.95
        assert (lost["before"], lost["after"], lost["ending"]) == ("quick", "hopeless", "undone")
        assert lost["tasks"] <= 12
        assert told["settings"] == [{"knob": "test.pace", "function": "tuned", "value": "quick"}]
        assert pace.get() == "quick"
        assert [what for what, _ in host.audited] == [
            *("experiment begins", "experiment kept"),
            *("experiment begins", "experiment undone"),
        ]
        state = host.agent.state()
    assert pace.value == "slow"
    assert host.audited[-1][0] == "setting"

    async with agent_on_a_worker(state, knobs=["test.pace"]) as (host, client):
        await host.run(client, plain, 5)
        assert pace.value == "slow"
        await host.run(client, tuned, 5)
        assert pace.value == "quick"
        assert host.audited[0][1]["after"] == "quick"
        for _ in range(3):
            await host.run(client, tuned, 30)
            await host.cycle()
        assert host.ask("experiments")["running"] is None  # all that there is to try was tried
        host.agent.functions["tuned"].seen_s -= 10_000.0
        await host.cycle()
        assert pace.value == "slow"
    assert pace.value == "slow"


async def test_an_agent_that_ends_in_the_midst_of_an_experiment_leaves_everything_as_it_was(pace: Tunable) -> None:
    threshold = gc.get_threshold()
    async with agent_on_a_worker(nthreads=2, knobs=["test.pace", "gc"]) as (host, client):
        await host.run(client, tuned, 30)
        await host.cycle()
        assert host.agent.experiment is not None
        while pace.value != "quick":
            await host.run(client, tuned, 2)
            assert host.agent.experiment is not None
        threads = host.cluster.workers[0].active_threads
        slow = client.submit(tuned, -1)
        await host.agent.teardown()
        assert await slow == -1
        assert threads.owner is None
        assert not threads
        assert await host.run(client, plain, 5) == list(range(5))
        assert host.agent._plugin not in host.cluster.workers[0].plugins
    assert pace.value == "slow"
    assert gc.get_threshold() == threshold


async def test_a_task_that_hangs_with_the_new_setting_ends_the_experiment(pace: Tunable) -> None:
    async with agent_on_a_worker(knobs=["test.pace"]) as (host, client):
        await host.run(client, tuned, 30)
        await host.cycle()
        trial = host.agent.experiment
        assert trial is not None
        while not trial.is_after:
            await host.run(client, tuned, 1)
        host.agent._tasks.running = lambda function: [60.0]  # type: ignore[method-assign]
        await host.agent.execute_cycle()
        assert trial.verdict is not None
        assert trial.verdict.reason == "a task runs for too long with it"
        assert pace.value == "slow"


async def test_one_agent_tunes_a_process() -> None:
    async with agent_on_a_worker() as (host, _), agent_on_a_worker() as (second, client):
        assert second.ask("experiments")["absent"]["experiments"] == "optimizer tunes this process already"
        assert "experiments" not in host.ask("experiments")["absent"]
        await second.run(client, plain, 3)
        assert second.ask("counters")["functions"][0]["measured"] == 3


async def test_where_it_can_not_live_and_what_it_does_not_understand() -> None:
    async with agent_on_a_worker() as (host, _):
        with pytest.raises(AgentDefinitionError, match="did you mean counters"):
            host.ask("counter")
        host.agent.surroundings.dask, worker = None, host.agent.surroundings.dask
        with pytest.raises(AgentDefinitionError, match="lives on the event loop of a worker"):
            await host.agent.setup()
        host.agent.surroundings.dask = worker
    with pytest.raises(AgentDefinitionError, match=r"confidence=1\.0"):
        OptimizationAgent("optimizer", confidence=1.0)
    assert OptimizationAgent("optimizer", minimal_gain=0.1).rules == Rules(minimal_gain=0.1)
