"""What the scheduler makes of what agents say: bounded, undone when it is over, and never twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.advice import (
    LEAST_SHARE,
    MOST_HOLDS_S,
    MOST_SHARE,
    USUAL_SHARE,
    held_up_share,
    read,
    threads_of,
)
from scheduler_plugins.decide.controller import Controller
from scheduler_plugins.decide.speculate import STUCK_SHARE
from swarm.config import Settings
from swarm.errors import MessageError
from swarm.protocol import AdviceHeard, ClusterSampled, DropAdvice, Event, TakeAdvice
from tests.support.builders import worker_joined, worker_left
from tests.support.recorder import Recorder

HOT = {"host": "h", "place": "tcp://h:1", "cores": 3, "all_cores": 8, "holds_s": 30.0, "reason": "95 °C"}
SLOW = {"function": "load", "tasks": 200, "held_up": 11, "by_themselves": 0, "holds_s": 60.0}
LIKE = {"work": "w", "strategy": "gravity=4", "run": "r2", "like": "r1", "distance": 0.1, "holds_s": 60.0}
WORKERS = ("tcp://h:2", "tcp://h:3")


def said(what: str, about: dict[str, Any], *, at_s: float = 10.0, agent: str = "a", **changes: Any) -> AdviceHeard:
    workers = WORKERS if "place" in about else ()
    return AdviceHeard(at_s=at_s, agent=agent, what=what, details=read(what, {**about, **changes}), workers=workers)


def at(at_s: float) -> Event:
    return ClusterSampled(
        at_s=at_s,
        workers=2,
        threads=8,
        tasks_finished=0,
        tasks_erred=0,
        tasks_processing=0,
        tasks_queued=0,
        tasks_waiting=0,
    )


def cluster() -> Recorder:
    recorder = Recorder(Controller(Settings()))
    recorder.happens(*(worker_joined(worker, threads=4) for worker in WORKERS))
    return recorder


def taken(recorder: Recorder, count: int) -> list[tuple[str, str, Any]]:
    actions = [recorder.expect(TakeAdvice) for _ in range(count)]
    return [(action.topic, action.subject, action.value) for action in actions]


def dropped(recorder: Recorder, count: int) -> list[str]:
    return [recorder.expect(DropAdvice).subject for _ in range(count)]


# -- a hot host ----------------------------------------------------------------------------------------------------


def test_the_workers_of_a_hot_host_run_as_many_tasks_as_it_may_use_cores() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT))
        assert taken(recorder, 2) == [("threads", WORKERS[0], 2), ("threads", WORKERS[1], 1)]


def test_the_same_again_makes_it_last_and_then_it_ends_by_itself() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT))
        taken(recorder, 2)
        recorder.happens(said("host_hot", HOT, at_s=20.0), at(49.9))
        recorder.happens(at(50.0))
        assert dropped(recorder, 2) == list(WORKERS)
        recorder.happens(at(51.0))


def test_only_what_has_changed_is_changed() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT))
        taken(recorder, 2)
        recorder.happens(said("host_hot", HOT, cores=4))
        assert taken(recorder, 1) == [("threads", WORKERS[1], 2)]
        recorder.happens(said("host_hot", HOT, cores=7))
        assert dropped(recorder, 1) == [WORKERS[0]]
        assert taken(recorder, 1) == [("threads", WORKERS[1], 3)]


def test_a_host_that_is_cool_again_gets_all_back() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT))
        taken(recorder, 2)
        recorder.happens(said("host_cool", {"host": "other"}))
        recorder.happens(said("host_cool", {"host": "h"}))
        assert dropped(recorder, 2) == list(WORKERS)


def test_a_worker_that_has_left_is_nobodys_any_more() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT))
        taken(recorder, 2)
        recorder.happens(worker_left(WORKERS[0]), said("host_cool", {"host": "x"}))
        recorder.happens(said("host_hot", HOT))
        assert taken(recorder, 1) == [("threads", WORKERS[1], 3)]


def test_nothing_holds_for_ever() -> None:
    with cluster() as recorder:
        recorder.happens(said("host_hot", HOT, holds_s=1e12))
        taken(recorder, 2)
        recorder.happens(at(10.0 + MOST_HOLDS_S))
        assert dropped(recorder, 2) == list(WORKERS)


@given(st.lists(st.integers(0, 64), min_size=1, max_size=9), st.integers(1, 128), st.integers(1, 128))
def test_a_share_for_each(threads: list[int], cores: int, more: int) -> None:
    workers, all_cores = {f"w{n}": each for n, each in enumerate(threads)}, cores + more
    shares = threads_of(workers, cores, all_cores)
    total = sum(threads)
    assert all(0 <= shares[worker] <= workers[worker] for worker in workers)
    assert sum(shares.values()) >= min(total, 1)
    if total <= all_cores:
        assert sum(shares.values()) == min(total, cores)
    else:
        assert sum(shares.values()) <= max(1.0, total * cores / all_cores)


# -- slow tasks ----------------------------------------------------------------------------------------------------


def test_tasks_that_are_held_up_make_copies_likelier_until_nobody_says_so_again() -> None:
    with cluster() as recorder:
        recorder.happens(said("slow_tasks", SLOW))
        assert taken(recorder, 1) == [("copies", "load", 0.04)]
        recorder.happens(said("slow_tasks", SLOW, at_s=50.0), at(109.0))
        recorder.happens(at(110.0))
        assert dropped(recorder, 1) == ["load"]


def test_what_the_agents_of_several_workers_saw_is_added_up() -> None:
    with cluster() as recorder:
        recorder.happens(said("slow_tasks", SLOW, held_up=3))  # too few to say anything
        recorder.happens(said("slow_tasks", SLOW, held_up=8, agent="b"))
        assert taken(recorder, 1) == [("copies", "load", 0.024)]
        recorder.happens(said("slow_tasks", SLOW, held_up=8, agent="b", at_s=71.0))  # the other is of yesterday
        assert taken(recorder, 1) == [("copies", "load", 0.03)]


def test_tasks_that_do_more_make_copies_rarer_and_mixed_reasons_say_nothing() -> None:
    with cluster() as recorder:
        recorder.happens(said("slow_tasks", SLOW, held_up=1, by_themselves=20))
        assert taken(recorder, 1) == [("copies", "load", LEAST_SHARE)]
        recorder.happens(said("slow_tasks", SLOW, held_up=10, by_themselves=20))
        assert dropped(recorder, 1) == ["load"]


def test_no_agent_can_make_it_worse_than_the_bounds() -> None:
    assert held_up_share(10, 10**9, 0) == MOST_SHARE
    assert held_up_share(10**9, 10, 0) == USUAL_SHARE == STUCK_SHARE
    assert held_up_share(0, 0, 0) is None


# -- strategies ----------------------------------------------------------------------------------------------------


def test_a_strategy_is_advised_for_work() -> None:
    with cluster() as recorder:
        recorder.happens(said("strategy_advised", LIKE))
        action = recorder.expect(TakeAdvice)
        assert (action.topic, action.subject, action.value) == ("strategy", "w", "gravity=4")
        assert action.reason == "run r2 is like run r1, which did best with gravity=4"


# -- messages that make no sense -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "why"),
    [
        ("dance", {}, "the scheduler takes host_hot, host_cool, slow_tasks, strategy_advised, not dance"),
        ("host_hot", None, "payload of host_hot is a NoneType, must be a mapping"),
        ("host_hot", {**HOT, "cores": "3"}, "cores of host_hot is '3', must be int"),
        ("host_hot", {**HOT, "cores": True}, "cores of host_hot is True, must be int"),
        ("host_hot", {**HOT, "cores": 0}, "cores of host_hot is 0, must be 1 to all_cores, 8"),
        ("host_hot", {**HOT, "cores": 9}, "cores of host_hot is 9, must be 1 to all_cores, 8"),
        ("host_hot", {**HOT, "holds_s": float("nan")}, "holds_s of host_hot is nan, must be 0 or more"),
        ("slow_tasks", {**SLOW, "held_up": -1}, "held_up of slow_tasks is -1, must be 0 or more"),
        ("strategy_advised", {**LIKE, "work": 3}, "work of strategy_advised is 3, must be str"),
    ],
)
def test_a_malformed_message_is_refused(kind: str, payload: Any, why: str) -> None:
    with pytest.raises(MessageError) as refused:
        read(kind, payload)
    assert str(refused.value) == why


def test_what_is_not_plain_stays_behind() -> None:
    assert "more" not in read("host_hot", {**HOT, "more": [1, 2]})
    assert read("host_hot", {**HOT, "celsius": None})["celsius"] is None
