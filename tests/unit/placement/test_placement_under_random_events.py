"""Random work on workers that come, go, stall and lie about how fast they are: nothing is lost, or given twice."""

from __future__ import annotations

import random
from heapq import heappop, heappush
from itertools import count
from typing import Any

import pytest

from scheduler_plugins.decide.placement import MOST_WAITING, SLOWER_STEPS, Choice
from scheduler_plugins.decide.shelves import ANYWHERE, ROOTS
from tests.support.placement_audit import audit
from tests.support.pools import NOW_S, Pool

LOOK_S = 0.1


class Driven:
    """Plays the workers: each runs what it was given in that order, a task per thread, for as long as it takes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pool = Pool()
        self.names = count()
        self.done: list[str] = []
        self.ends: list[tuple[float, int, str]] = []
        self.serial = count()
        self.threads: dict[str, int] = {}
        self.started: dict[str, str] = {}
        self.truth_s: dict[str, float] = {}
        for _ in range(self.rng.randint(1, 8)):
            self.join()

    # -- what happens -------------------------------------------------------------------------------------------------

    def join(self, name: str | None = None) -> None:
        name = name or f"w{next(self.names)}"
        self.threads[name] = self.rng.randint(1, 4)
        self.pool.join(name, self.rng.choice([0.5, 1.0, 1.0, 1.1, 4.0, 20.0]), self.threads[name], tried=False)

    def submit(self) -> None:
        rng, pool = self.rng, self.pool
        kind, known = f"f{rng.randrange(4)}", rng.random() < 0.7
        for _ in range(rng.choice([1, 3, 20])):
            task = f"t{next(self.names)}"
            self.truth_s[task] = rng.choice([0.0, 0.001, 0.05, 1.0, 5.0])
            guess_s = self.truth_s[task] * rng.choice([0.1, 1.0, 1.0, 10.0])
            home = rng.choice([ROOTS, ROOTS, ANYWHERE, *pool.placement.views, "gone"])
            pool.ready(
                task,
                guess_s,
                rank_s=guess_s * rng.choice([1, 1, 3, 50]),
                level=rng.choice([0, 0, 0, -1, 2]),
                order=rng.randrange(1000),
                home=home,
                away_s=rng.choice([0.0, 0.01, 0.5, 5.0]),
                kind=None if known else kind,
                is_known=known,
                output_bytes=rng.choice([0.0, 1e3, 5e7]),
            )

    def withdraw(self) -> None:
        """A ready task is wanted no more, or one that a worker has."""
        ready = list(self.pool.placement._entries)
        if ready:
            task = self.rng.choice(ready)
            self.pool.placement.unready(task)
            self.done.append(task)

    def recall(self) -> None:
        waiting = [task for task in self.pool.given if task not in self.started]
        if waiting:
            task = self.rng.choice(waiting)
            self.pool.end(task)
            self._again(task)

    def leave(self) -> None:
        if len(self.threads) > 1:
            name = self.rng.choice(list(self.threads))
            del self.threads[name]
            self.pool.closed.discard(name)
            for task in self.pool.leave(name):
                self.started.pop(task, None)
                self._again(task)
            if self.rng.random() < 0.5:
                self.join(name)

    def _again(self, task: str) -> None:
        cost = self.pool.costs[task]
        self.pool.placement.ready(task, (0, 0, self.rng.randrange(1000)), cost, cost.p50_s, ROOTS)

    def pause(self) -> None:
        if len(self.threads) > len(self.pool.closed) + 1:
            self.pool.closed.add(self.rng.choice(list(self.threads)))

    def go_on(self) -> None:
        if self.pool.closed:
            self.pool.closed.remove(self.rng.choice(sorted(self.pool.closed)))
            self.pool.placement.reconsider()

    def rest(self) -> None:
        """Some threads of a worker are given nothing more, until others are not."""
        name = self.rng.choice(list(self.threads))
        for each in (name, self.rng.choice(list(self.threads))):
            threads = self.rng.randint(0, self.threads[name]) if each == name and len(self.threads) > 1 else 0
            self.pool.placement.rest(each, threads, self.pool.now_s)

    def learn(self) -> None:
        name = self.rng.choice(list(self.threads))
        self.pool.factors[name] = self.rng.choice([0.3, 1.0, 1.2, 3.0])
        self.pool.placement.set_speed(name, self.pool.factors[name], self.rng.choice([1.0, 2.0]))
        ready = list(self.pool.placement._entries)
        if ready:
            self.pool.placement.rank(self.rng.choice(ready), self.rng.choice([0.1, 9.0]), self.pool.costs.__getitem__)

    # -- the workers --------------------------------------------------------------------------------------------------

    def run(self, until_s: float) -> None:
        """Until a time, as the workers do."""
        self._start()
        while self.ends and self.ends[0][0] <= until_s:
            at_s, _, task = heappop(self.ends)
            if self.started.get(task) is None:
                continue  # its worker is gone
            self.pool.now_s = max(self.pool.now_s, at_s)
            del self.started[task]
            self.pool.end(task)
            self.done.append(task)
            self.fill()
            self._start()
        self.pool.now_s = max(self.pool.now_s, until_s)

    def _start(self) -> None:
        for name, threads in self.threads.items():
            busy = sum(where == name for where in self.started.values())
            for task in self.pool.on(name):
                if busy >= threads or name in self.pool.closed:
                    break
                if task not in self.started:
                    self.started[task] = name
                    takes_s = self.truth_s[task] * self.pool.factors[name] + 1e-4
                    heappush(self.ends, (self.pool.now_s + takes_s, next(self.serial), task))
                    busy += 1

    def fill(self) -> list[Choice]:
        made = []
        placement = self.pool.placement
        for choice in placement.choices(self.pool.now_s):
            load = placement.views[choice.worker].load
            assert choice.worker not in self.pool.closed
            assert len(load.waiting) < MOST_WAITING * load.threads
            self.pool.give(choice.task, choice.worker)
            made.append(choice)
        self._nobody_is_idle_in_vain()
        return made

    def _nobody_is_idle_in_vain(self) -> None:
        """One of the fastest workers is never without a task while one that could go anywhere is ready."""
        placement = self.pool.placement
        unhomed = [entry for entry in placement._entries.values() if entry.home in (ROOTS, ANYWHERE)]
        fastest = min((view.step for view in placement.views.values()), default=0)
        for view in placement.views.values():
            is_fast = view.step < fastest + SLOWER_STEPS
            is_free = not len(view.load) and view.resting < view.load.threads
            if unhomed and is_fast and is_free and view.worker not in self.pool.closed:
                assert view not in placement._misfits
                raise AssertionError(f"{view} is idle beside {unhomed[0].task}")


def events(driven: Driven) -> list[Any]:
    often = [driven.submit] * 4 + [driven.recall, driven.learn] * 2
    return [*often, driven.withdraw, driven.leave, driven.join, driven.pause, driven.go_on, driven.rest]


@pytest.mark.parametrize("seed", range(60))
def test_all_are_done_once(seed: int) -> None:
    driven = Driven(seed)
    pool = driven.pool
    for _ in range(60):
        driven.rng.choice(events(driven))()
        pool.placement.reconsider()  # as a look does, ten times a second
        driven.fill()
        audit(pool.placement)
        driven.run(pool.now_s + driven.rng.choice([0.0, 0.01, 1.0]))
    pool.closed.clear()
    for name in driven.threads:
        pool.placement.rest(name, 0, pool.now_s)
    pool.placement.reconsider()
    deadline_s = pool.now_s + 20.0 * sum(driven.truth_s.values()) + 100.0
    while pool.given or len(pool.placement):
        assert pool.now_s < deadline_s, f"left: {list(pool.placement._entries)[:5]}, {list(pool.given)[:5]}"
        driven.run(pool.now_s + LOOK_S)
        pool.placement.reconsider()
        driven.fill()
    audit(pool.placement)
    assert sorted(driven.done) == sorted(pool.costs)
    assert not pool.placement._places
    assert not pool.placement._unknown


def test_what_a_pool_that_is_never_empty_keeps_in_mind_does_not_grow_or_drift() -> None:
    rng, pool = random.Random(7), Pool(1.0, 1.3, 2.0, threads=2)
    placement = pool.placement
    pool.left_s = 1e3
    for number in range(40_000):
        task = f"t{number}"
        pool.ready(task, rng.choice([1e-3, 0.1, 10.0]), order=number, home=rng.choice([ROOTS, ANYWHERE, "w1"]))
        pool.now_s = NOW_S + number * 0.5
        for given in list(pool.given)[: 0 if len(placement) < 20 else 2]:
            pool.end(given)
            del pool.costs[given]
        pool.choose()
        if number % 97 == 0:
            placement.set_speed(f"w{rng.randrange(3)}", rng.choice([0.7, 1.0, 1.9]))
    assert len(placement) > 0
    audit(placement)
    kept = sum(len(line) for shelf in placement._shelves.values() for line in (*shelf.lines.values(), shelf._order))
    assert kept < 4 * len(placement) + 1000
    assert len(placement._alarms) < 1000
