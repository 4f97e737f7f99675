"""Whether all that placement keeps count of is what it would be if it were counted anew."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from scheduler_plugins.decide.load import PER_TASK_S, Load
from scheduler_plugins.decide.placement import Placement

ENDS_SLACK_S = 0.01
"""Sums of points in time since 1970 are large: so much, for each thread, they may be wrong."""


def about(value: float) -> Any:
    return pytest.approx(value, rel=1e-6, abs=1e-6)


def audit_load(load: Load) -> None:
    apart = [*load.running, *load.waiting, *load.fetching]
    assert len(apart) == len(set(apart)) == len(load)
    assert len(load.running) <= load.threads
    assert not load.waiting or load.free_threads <= 0, "a task waits beside a free thread"
    assert load.waiting_s == about(sum(given.p50_s + PER_TASK_S for given in load.waiting.values()))
    ahead = [*load.waiting.values(), *load.fetching.values()]
    assert load.ahead_bytes == pytest.approx(sum(given.nbytes for given in ahead), rel=1e-6, abs=1e4)
    for given in load.running.values():
        assert given.started_at_s is not None
    for given in ahead:
        assert given.started_at_s is None


def audit(placement: Placement) -> None:
    entries = placement._entries
    assert all(task == entry.task and entry.is_ready for task, entry in entries.items())
    _audit_shelves(placement)
    places = Counter((*entry.place, entry.home) for entry in entries.values())
    counted = {(a, b, c): n for a, x in placement._places.items() for b, y in x.items() for c, n in y.items()}
    assert counted == dict(places)
    assert placement._pool_s == about(sum(entry.cost.p50_s for entry in entries.values()))
    for view in placement.views.values():
        audit_load(view.load)
        assert {task for task, on in placement._on.items() if on is view} == set(view.load.tasks())
    _audit_speeds(placement)
    hungry = {view.worker: view for group in placement._hungry.values() for view in group.values()}
    assert hungry == {worker: view for worker, view in placement.views.items() if view.is_hungry}
    assert all(view.step == step for step, group in placement._hungry.items() for view in group.values())
    assert set(placement._at_home) == {worker for worker in hungry if worker in placement._shelves}


def _audit_shelves(placement: Placement) -> None:
    by_home: dict[Any, list[Any]] = {}
    for entry in placement._entries.values():
        by_home.setdefault(entry.home, []).append(entry)
    assert set(placement._shelves) == set(by_home)
    for home, shelf in placement._shelves.items():
        assert shelf.count == len(by_home[home])
        assert shelf.seconds == about(sum(entry.cost.p50_s for entry in by_home[home]))
        found = {id(item[2]) for line in shelf.lines.values() for item in line if item[2].is_ready}
        assert found == {id(entry) for entry in by_home[home]}
        first, best = shelf.first(), min(entry.priority for entry in by_home[home])
        assert first is not None
        assert first.priority == best
        assert (shelf.backlog_step is not None) == (home in placement.views)
    kept = {home: step for step, homes in placement._backlogs.items() for home in homes}
    assert kept == {h: s.backlog_step for h, s in placement._shelves.items() if s.backlog_step is not None}


def _audit_speeds(placement: Placement) -> None:
    by_step: dict[int, list[Any]] = {}
    for view in placement.views.values():
        by_step.setdefault(view.step, []).append(view)
    assert set(placement._speeds) == set(by_step)
    for step, tally in placement._speeds.items():
        views = by_step[step]
        assert set(tally.views) == {view.worker for view in views}
        assert tally.threads == sum(view.load.threads - view.load.held for view in views)
        assert tally.speed == about(sum((view.load.threads - view.load.held) / view.factor for view in views))
        given = [each for view in views for each in _given(view.load)]
        assert tally.given == len(given)
        ends_s = sum(each.ends_at_s for each in given)
        assert abs(tally.ends_s - ends_s) <= ENDS_SLACK_S * sum(view.load.threads for view in views)


def _given(load: Load) -> list[Any]:
    return [*load.running.values(), *load.waiting.values(), *load.fetching.values()]
