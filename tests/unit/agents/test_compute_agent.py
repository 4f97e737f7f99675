from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from swarm.agents.base import isolation_of
from swarm.agents.kinds import compute, jobs
from swarm.agents.kinds.compute import ComputeAgent
from swarm.channels.messages import Message
from swarm.errors import (
    AgentDefinitionError,
    AgentFailedError,
    ConnectError,
    MessageError,
    UnknownWorkloadError,
    WorkloadParameterError,
)
from tests.support.agent_alone import Alone, awaited
from tests.support.waiting import eventually

SMALL = {"batches": 8, "batches_per_task": 2}


def alone(**options: Any) -> Alone:
    return Alone(ComputeAgent("computer", **{"warm_up": False, **options}))


def test_it_runs_in_a_thread() -> None:
    assert isolation_of(ComputeAgent, None) == "thread"


async def test_a_workload_is_computed_here_and_verified() -> None:
    async with alone(cores=2) as it:
        answer = await it.asks("execute_workload", {"workload": "options", "parameters": SMALL, "wait_s": 25.0})
        assert answer["state"] == "finished", answer
        assert answer["verified"], answer["verification"]
        assert answer["summary"]
        assert answer["seconds"] > 0.0
        assert answer["cores"] >= 1
        assert answer["done"] == answer["tasks"] > 1
        assert await it.asks("workload_status", {"job": answer["job"]}) == answer
        assert [each["state"] for each in await it.asks("workload_status")] == ["finished"]


@pytest.mark.parametrize(
    ("payload", "error", "said"),
    [
        ({"workload": "optoins"}, UnknownWorkloadError, "did you mean options?"),
        ({"workload": "options", "parameters": {"batchs": 3}}, WorkloadParameterError, "did you mean batches?"),
        ({"workload": "options", "parameters": {"batches": -1}}, WorkloadParameterError, "batches = -1 is not allowed"),
        ({"workload": 3}, MessageError, "workload of execute_workload is a int, not a str"),
        ({"workload": "options", "were": "here"}, MessageError, "has no field 'were'"),
        ({"workload": "options", "where": "there"}, MessageError, 'must be "here" or "cluster"'),
        ({"workload": "options", "wait_s": 99}, MessageError, "must be 0 to 25 seconds"),
        ({}, MessageError, "names no workload"),
        ([], MessageError, "is a list, must be a mapping"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_in_one_line(payload: Any, error: type[Exception], said: str) -> None:
    async with alone() as it:
        with pytest.raises(error) as caught:
            await it.asks("execute_workload", payload)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert await it.asks("workload_status") == []


async def test_other_messages_are_refused() -> None:
    async with alone() as it:
        with pytest.raises(MessageError, match="not make_coffee"):
            await it.asks("make_coffee")
        with pytest.raises(MessageError, match="there is no job 'computer-7'"):
            await it.asks("workload_status", {"job": "computer-7"})


@pytest.mark.parametrize(("options", "said"), [({"pin": "sockets"}, '"cores" or "numa"'), ({"cores": 0}, "from 1 to")])
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AgentDefinitionError, match=said):
        ComputeAgent("computer", **options)


async def test_the_cluster_needs_a_scheduler() -> None:
    async with alone() as it:
        with pytest.raises(ConnectError, match="address of the scheduler is not known"):
            await it.asks("execute_workload", {"workload": "options", "parameters": SMALL, "where": "cluster"})


async def test_a_job_that_takes_longer_is_told_of_and_given_up_when_the_agent_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        began.set()
        assert go_on.wait(20)

    monkeypatch.setattr(jobs.ledger, "lend", _one_core_after(hold))
    async with alone() as it:
        asked = {"workload": "options", "parameters": SMALL, "wait_s": 0.0}
        first = await it.asks("execute_workload", asked)
        await eventually(began.is_set, "the first job runs")
        second = await it.asks("execute_workload", asked)
        assert (await it.asks("workload_status", {"job": first["job"]}))["state"] == "running"
        assert (await it.asks("workload_status", {"job": second["job"]}))["state"] == "waiting"
        assert (await it.asks("status"))["jobs"] == {"running": 1, "waiting": 1}
        held = it.agent._jobs[first["job"]]  # type: ignore[attr-defined]
    go_on.set()
    with pytest.raises(AgentFailedError, match="its agent ends"):
        await asyncio.wait_for(asyncio.wrap_future(held.future), 20)


async def test_no_more_jobs_are_taken_than_can_be_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(jobs.ledger, "lend", _one_core_after(lambda: go_on.wait(20)))
    monkeypatch.setattr(compute, "MOST_OPEN", 2)
    async with alone() as it:
        asked = {"workload": "options", "parameters": SMALL, "wait_s": 0.0}
        for _ in range(2):
            await it.asks("execute_workload", asked)
        with pytest.raises(compute.AgentError, match="as many as a compute agent takes"):
            await it.asks("execute_workload", asked)
        go_on.set()


async def test_kernels_are_made_ready_by_the_entry_points_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, function: Any) -> None:
            self.name, self.load = name, lambda: function

    def broken() -> str:
        raise OSError("no compiler")

    found = [Entry("mine", lambda: "numba"), Entry("theirs", broken)]
    monkeypatch.setattr(compute, "entry_points", lambda group: found if group == "swarm.kernels" else [])
    async with alone(warm_up=True) as it:
        it.agent.kernels.wait(10)  # type: ignore[attr-defined]
        told = (await it.asks("status"))["kernels"]
    assert told["state"] == "failed"
    assert told["backends"] == {"mine": "numba"}
    assert told["failed"] == {"theirs": "OSError: no compiler"}


async def test_without_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "entry_points", lambda group: [])
    async with alone(warm_up=True) as it:
        assert it.agent.kernels.wait(10)  # type: ignore[attr-defined]
        told = (await it.asks("status"))["kernels"]
    assert (told["state"], told["reason"]) == (
        "none", "no package offers an entry point of the group swarm.kernels",
    )  # fmt: skip


async def test_pinning_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from swarm.agents.kinds import pinning

    monkeypatch.setattr(pinning, "cpu_limit_cores", lambda root: 0.5)
    monkeypatch.setattr(pinning.tempfile, "gettempdir", lambda: str(tmp_path))
    async with alone(pin="cores") as it:
        told = (await it.asks("status"))["pinning"]
    assert told["pin"] is False
    assert "limits this worker to 0.5 cores" in told["reason"]
    assert it.audited == []
    assert list(tmp_path.iterdir()) == []


def _one_core_after(hold: Callable[[], object]) -> Callable[..., Any]:
    class One:
        granted = 1

        def adopt(self) -> None: ...

        def refresh(self) -> int:
            return 1

    @contextmanager
    def lend(*_: object, **__: object) -> Iterator[One]:
        hold()
        yield One()

    return lend


async def test_news_for_others_are_no_error() -> None:
    async with alone() as it:
        news = Message("thermometer", "computer", "host_hot", {"host": "a"})
        assert await awaited(it.agent.handle_message(news)) is None
