"""What `swarm status` and `swarm top` print, from a status as the scheduler gives it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from swarm import status
from swarm.dashboard.view_model import ViewModel
from swarm.errors import ConnectError
from swarm.protocol import AgentChanged
from tests.support.made_up_cluster import joined


def said(workers: int, agents: dict[str, str], reason: str = "") -> dict[str, Any]:
    view = ViewModel()
    for number in reversed(range(workers)):
        view.apply(joined(number, 100.0, name=f"w{number}"))
    for agent, state in agents.items():
        number = agent.rpartition(".w")[2]
        place = joined(int(number) if number.isdigit() else 0, 100.0).worker
        view.apply(AgentChanged(at_s=1.0, agent=agent, kind="x", place=place, state=state, reason=reason, restarts=0))
    about = {"scheduler": "tcp://s:1", "version": "1", "page": None, "page_absent": "no Bokeh", "off": {}}
    return {**about, **view.state(100.0)}


def printed(found: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    status.render(found, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_workers_come_in_the_order_of_their_numbers() -> None:
    rows = [line.split()[1] for line in printed(said(12, {})) if "healthy" in line]
    assert rows == [f"w{number}" for number in range(12)]


def test_agents_on_each_worker_take_one_line_and_what_is_wrong_its_own() -> None:
    agents = {f"tuner.w{number}": "running" for number in range(5)} | {"mine": "running", "tuner.w5": "failed"}
    lines = printed(said(6, agents, "it burns"))
    assert "6 agents: mine, tuner on 5 workers" in lines
    assert "agent tuner.w5 is failed: it burns" in lines


def test_the_screen_follows_and_outlives_a_scheduler_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [said(1, {}), ConnectError("nobody answers"), said(3, {}), KeyboardInterrupt()]

    def fetch(address: str | None) -> dict[str, Any]:
        assert address == "tcp://s:1"
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)

    monkeypatch.setattr(status, "fetch", fetch)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    status.watch(console, "tcp://s:1", 0.001)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nobody answers; what you see is old" in text
    assert "w2" in text.partition("what you see is old")[2]
    assert not answers
    answers = [ConnectError("nobody answers")]
    with pytest.raises(ConnectError):
        status.watch(console, "tcp://s:1", 0.001)
