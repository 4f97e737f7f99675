"""A worker that was lost is on the page, in the status, and explained: how it ended, what ran, its last words."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from swarm.dashboard.view_model import ViewModel
from swarm.explain import Account
from swarm.protocol import WorkerCleared, WorkerDied, WorkerJoined, WorkerLeft, WorkerSuspected
from swarm.status import render

WORKER = "tcp://10.0.0.7:4001"


def model() -> ViewModel:
    view = ViewModel()
    view.apply(WorkerJoined(at_s=0.0, worker=WORKER, name="w7", host="h", threads=1, memory_limit_bytes=0))
    return view


def test_a_suspected_worker_shows_as_such_until_it_is_cleared() -> None:
    view = model()
    view.apply(WorkerSuspected(at_s=10.0, worker=WORKER, silence_s=1.0, phi=9.0))
    (row,) = view.workers(now_s=12.0)
    assert (row.health, row.note) == ("suspected", "Silent for 3 s: it is given nothing new.")
    view.apply(WorkerCleared(at_s=12.5, worker=WORKER, silence_s=3.5, witness="busy"))
    assert view.workers(now_s=13.0)[0].health != "suspected"


def test_deaths_are_kept_the_last_one_first_and_not_for_ever() -> None:
    view = ViewModel(kept=3)
    for number in range(5):
        view.apply(WorkerDied(at_s=number, worker=f"tcp://h:{number}", cause="it crashed: SIGSEGV", running=("x-1",)))
    assert [row.worker for row in view.deaths()] == ["tcp://h:4", "tcp://h:3", "tcp://h:2"]


def status(view: ViewModel) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    facts: dict[str, Any] = {
        "scheduler": "tcp://s:1", "version": "1", "page": None, "page_absent": "no bokeh", "off": {}, **view.state(20.0)
    }  # fmt: skip
    render(facts, console)
    return console.export_text()


def test_the_status_names_them() -> None:
    view = model()
    view.apply(WorkerLeft(at_s=9.0, worker=WORKER, reason="handle-worker-cleanup"))
    view.apply(
        WorkerDied(at_s=9.0, worker=WORKER, name="w7", cause="it ended itself with exit status 7", running=("bad-1",))
    )
    assert "lost w7 11.0 s ago: it ended itself with exit status 7; it ran bad-1" in status(view)


def death(**more: Any) -> dict[str, Any]:
    return {
        "worker": WORKER,
        "name": "w7",
        "died_at_s": 90.0,
        "cause": "the kernel killed it (SIGKILL, out of memory)",
        "running": ["solve-3"],
        "memory": [[30.0, 10**8], [60.0, 9 * 10**8], [89.0, 8 * 10**8]],
        "memory_limit": 10**9,
        "last_lines": ["INFO something"],
        "stacks": [],
        **more,
    }


def told(facts: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Account(facts))
    return console.export_text()


def test_a_dead_worker_is_explained() -> None:
    text = told({"kind": "worker", "status": "dead", "recent": [], "at_s": 100.0, "names": {}, **death()})
    assert f"w7 ({WORKER}) died 10.0 s ago: the kernel killed it (SIGKILL, out of memory)." in text
    assert "What ran there: solve-3." in text
    assert "between 95.37 MiB and 858.31 MiB in the 59.0 s before" in text
    assert "INFO something" in text
    assert "stacks" not in text


def test_without_a_witness_it_says_what_little_is_known() -> None:
    facts = death(cause="nobody saw how it ended", running=[], memory=[], last_lines=[])
    text = told({"kind": "worker", "status": "dead", "recent": [], "at_s": 100.0, "names": {}, **facts})
    assert "nobody saw how it ended" in text
    assert "Nothing ran there." in text
    assert "memory" not in text
