from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarm.agents.base import isolation_of
from swarm.agents.kinds.learning import LearningAgent
from swarm.errors import AgentDefinitionError, MessageError
from tests.support.agent_alone import Alone
from tests.support.clusters import cluster
from tests.support.waiting import eventually


def doubled(number: int) -> int:
    return 2 * number


def total(*numbers: int) -> int:
    return sum(numbers)


def wide(count: int, start: int = 0) -> dict[str, Any]:
    loads = {f"load-{start}-{i}": (doubled, start + i) for i in range(count)}
    return {**loads, f"total-{start}": (total, *loads)}


def deep(count: int, start: int = 0) -> dict[str, Any]:
    steps = {f"step-{start}-{i}": (doubled, f"step-{start}-{i - 1}" if i else start) for i in range(count)}
    return {**steps, f"total-{start}": (total, f"step-{start}-{count - 1}")}


async def test_finished_runs_are_recorded_and_the_like_found() -> None:
    assert isolation_of(LearningAgent, None) == "loop"
    async with cluster(workers=2, agents=True, swarm=True) as running:
        swarm = await running.swarm()
        async with Alone(LearningAgent("learner"), dask=running.scheduler) as it:
            for number, (name, graph) in enumerate(
                (name, make(20 + 10 * k, 100 * k)) for name, make in (("wide", wide), ("deep", deep)) for k in range(2)
            ):
                await (await swarm.submit(graph, name=name))
                await _recorded(it, number + 1)
            runs = await it.asks("runs")
            assert [each["name"] for each in runs] == ["wide", "wide", "deep", "deep"]
            assert runs[0]["shape"] == {"tasks": 21, "edges": 20, "depth": 2, "width": 20, "fan_in": 20, "sources": 20}
            assert runs[2]["shape"]["depth"] == 21
            assert runs[0]["functions"]["load"]["mean_s"] > 0.0
            again = await swarm.submit(deep(37, 900), name="?")
            await again
            await _recorded(it, 5)
            like = await it.asks("which_run_is_this_like", {"run": again.id})
            assert like["name"] == "deep"
            assert like["strategy"] == "default"
            assert like["is_close"], like
            await eventually(lambda: running.plugin.mind.estimates.costs is not None, "the cost model is made")
            await eventually(lambda: _knows(it), "the cost model has learned")
            answer = await it.asks("estimate", {"function": "doubled", "worker": running.workers[0].address})
            assert answer["samples"] > 20
            assert 0.0 < answer["p50_s"] <= answer["p99_s"] < 10.0
            assert await it.asks("estimate", {"function": "never_seen"}) is None
            assert await it.asks("strategies") == {}
            kept = it.agent.state()
        later = LearningAgent("learner")
        later.restore(kept)
        assert len(later.library) == 5
        assert not [name for name in running.scheduler.plugins if "learning" in name]


async def _recorded(it: Alone, count: int) -> None:
    async def there() -> bool:
        await it.cycle()
        return len(it.agent.library) == count  # type: ignore[attr-defined]

    await eventually(there, f"{count} runs are recorded")


async def _knows(it: Alone) -> Any:
    await asyncio.sleep(0)
    return await it.asks("estimate", {"function": "doubled"})


async def test_what_is_asked_wrongly_is_refused() -> None:
    wrong: tuple[tuple[str, Any, str], ...] = (
        ("sing", None, "not sing"),
        ("estimate", {"function": 3}, "names no function"),
        ("estimate", {"function": "f", "nbytes": -1}, "must be a number of bytes"),
        ("estimate", {"function": "f", "arguments": {"n": "3"}}, "must map names to numbers"),
        ("estimate", [], "must be a mapping"),
        ("which_run_is_this_like", {}, "names no run"),
        ("which_run_is_this_like", {"run": "x"}, "neither under way nor recorded"),
    )
    async with (
        cluster(workers=0, swarm=True) as running,
        Alone(LearningAgent("learner"), dask=running.scheduler) as it,
    ):
        for kind, payload, said in wrong:
            with pytest.raises(MessageError, match=said):
                await it.asks(kind, payload)


async def test_it_needs_a_scheduler_with_swarm() -> None:
    with pytest.raises(AgentDefinitionError, match="lives on a scheduler with swarm"):
        await Alone(LearningAgent("learner")).__aenter__()
