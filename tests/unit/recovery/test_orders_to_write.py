"""Workers are given no more to write than they can hold, and nothing is forgotten when one leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from scheduler_plugins.decide.recovery import Policy
from scheduler_plugins.on_dask.writing import MOST_ON_THE_WAY_BYTES, Order, Writing

A, B = "tcp://a:1", "tcp://b:1"


@dataclass
class MadeUpScheduler:
    tasks: dict[str, Any] = field(default_factory=dict)
    sent: list[tuple[str, str]] = field(default_factory=list)

    def worker_send(self, worker: str, message: dict[str, Any]) -> None:
        assert (message["op"], message["url"]) == ("swarm-store", "/results")
        self.sent.append((worker, message["key"]))

    def has(self, key: str, *workers: str) -> None:
        self.tasks[key] = SimpleNamespace(who_has=[SimpleNamespace(address=worker) for worker in workers])


def made() -> tuple[MadeUpScheduler, Writing, list[str]]:
    scheduler, lost = MadeUpScheduler(), list[str]()
    writing = Writing(scheduler, Policy(), lambda order: lost.append(order.key))  # type: ignore[arg-type]
    writing.url = "/results"
    return scheduler, writing, lost


def order(key: str, share: float = 0.4, run: str = "run") -> Order:
    """Of a result that takes a share of what a worker may hold."""
    return Order(run, key, int(share * MOST_ON_THE_WAY_BYTES), 1.0)


def test_a_worker_holds_only_so_much_and_gets_the_rest_later() -> None:
    scheduler, writing, lost = made()
    for key in "wxyz":
        scheduler.has(key, A)
        writing.order(A, order(key))
    assert scheduler.sent == [(A, "w"), (A, "x")]
    assert len(writing) == 4
    assert writing.answered(A, "run", "w") == order("w")
    assert scheduler.sent[2:] == [(A, "y")]
    for key in "xyz":
        writing.answered(A, "run", key)
    assert scheduler.sent[3:] == [(A, "z")]
    assert (len(writing), lost) == (0, [])
    assert writing.backlog_s < 1e-9


def test_a_result_larger_than_all_that_goes_alone() -> None:
    scheduler, writing, _ = made()
    writing.order(A, order("large", 3.0))
    writing.order(A, order("small", 0.01))
    writing.order(B, order("other", 0.01))
    assert scheduler.sent == [(A, "large"), (B, "other")]


def test_what_is_gone_when_its_turn_comes_is_lost() -> None:
    scheduler, writing, lost = made()
    for key in "xyz":
        scheduler.has(key, A)
        writing.order(A, order(key, 0.9))
    scheduler.has("y", B)
    writing.answered(A, "run", "x")
    assert lost == ["y"]
    assert scheduler.sent == [(A, "x"), (A, "z")]


def test_what_a_worker_had_to_write_is_lost_with_it() -> None:
    _, writing, lost = made()
    for key in "xyz":
        writing.order(A, order(key))
    writing.order(B, order("b"))
    writing.worker_left(A)
    assert lost == ["x", "y", "z"]
    assert [each.key for each in writing.of("run")] == ["b"]
    assert writing.answered(A, "run", "x") is None


def test_what_waits_of_a_run_can_be_called_off() -> None:
    scheduler, writing, lost = made()
    for key, run in (("x", "one"), ("y", "two"), ("z", "one")):
        scheduler.has(key, A)
        writing.order(A, order(key, 0.9, run))
    writing.called_off("one")
    writing.answered(A, "one", "x")
    assert scheduler.sent == [(A, "x"), (A, "y")]
    assert (len(writing), lost) == (1, [])


async def test_whoever_waits_for_a_run_is_told_when_the_last_of_it_was_written_or_cannot_be_any_more() -> None:
    scheduler, writing, _ = made()
    for key in "xyz":
        scheduler.has(key, A, B)
    writing.order(A, order("x"))
    writing.order(B, order("y"))
    writing.order(B, order("z", run="another"))
    waits = asyncio.create_task(writing.carried_out("run"))
    await asyncio.sleep(0)
    writing.answered(A, "run", "x")
    await asyncio.sleep(0)
    assert not waits.done()
    writing.worker_left(B)
    await waits
    await writing.carried_out("run")
