"""Experiments: what is kept, what isn't, and what a wrong guess costs."""

from __future__ import annotations

import itertools
import math
import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.agents.kinds.experiments import Book, Experiment, Rules, Verdict, chance_at_most, next_values

SIZE = (10, 10)
TENTH_FOUND_WITHIN = 400
"""Tasks, of a noise of 15 %."""


def tried(seed: int, effect: float, noise: float = 0.15, correlation: float = 0.0, outliers: float = 0.02):
    """An experiment on simulated tasks: log-normal, some five times as long; returns it, its tasks and its cost."""
    world, load, tasks, cost = random.Random(f"world {seed}"), 0.0, 0, 0.0
    trial = Experiment("knob", "f", "a", "b", random.Random(f"coin {seed}"))
    while trial.verdict is None:
        load = correlation * load + world.gauss(0, noise * math.sqrt(1 - correlation**2))
        seconds = math.exp(load) * (world.uniform(1, 5) if world.random() < outliers else 1.0)
        if trial.is_after:
            cost += seconds * (effect - 1.0)
            seconds *= effect
        trial.saw(SIZE, seconds)
        tasks += 1
    return trial, tasks, cost


def kept_ratio(runs: int, **world: float) -> float:
    return sum(tried(seed, **world)[0].verdict.ending == "kept" for seed in range(runs)) / runs


@pytest.mark.parametrize(
    "world", [{}, {"noise": 0.5}, {"noise": 0.4, "correlation": 0.9}, {"noise": 0.02}, {"outliers": 0.2}]
)
def test_a_useless_knob_is_kept_in_at_most_one_of_twenty(world: dict[str, float]) -> None:
    assert kept_ratio(200, effect=1.0, **world) <= 0.05


def test_a_knob_worth_a_tenth_is_found_within_400_tasks() -> None:
    found = [tried(seed, effect=0.9) for seed in range(200)]
    quick = [tasks for trial, tasks, _ in found if trial.verdict.ending == "kept" and tasks <= TENTH_FOUND_WITHIN]
    assert len(quick) >= 0.9 * len(found)
    gains = sorted(trial.verdict.gain for trial, *_ in found)
    assert gains[len(gains) // 2] == pytest.approx(0.1, abs=0.02)


@given(seed=st.integers(0, 10**6), effect=st.floats(1.1, 100.0), noise=st.floats(0.0, 0.2))
def test_a_harmful_one_is_undone_and_its_cost_is_bounded(seed: int, effect: float, noise: float) -> None:
    trial, tasks, cost = tried(seed, effect, noise, outliers=0.0)
    assert trial.verdict.ending == "undone"
    assert not trial.is_after
    # The budget, one task beyond it, and what noise hides of both.
    assert cost <= trial.rules.regret_tasks + 2 * effect + 12
    assert tasks <= 3 + trial.rules.most_tasks


def test_one_short_task_that_the_system_held_up_does_not_end_it() -> None:
    trial = Experiment("knob", "f", "slow", "quick", random.Random(3))
    while not trial.is_after:
        trial.saw(SIZE, 0.004)
    trial.saw(SIZE, 0.060)
    assert trial.verdict is None
    while trial.verdict is None:
        trial.saw(SIZE, 0.002 if trial.is_after else 0.004)
    assert trial.verdict.ending == "kept"


def test_what_large_tasks_cost_counts_in_full_where_most_are_small() -> None:
    def begun() -> Experiment:
        trial = Experiment("knob", "f", "a", "b", random.Random(3))
        trial.saw((20, 20), 2.0)
        while not trial.is_after:
            trial.saw(SIZE, 0.001)
        return trial

    late, hung = begun(), begun()
    late.saw((20, 20), 20.0)
    assert late.verdict is not None
    assert late.verdict.reason == "it has cost too much"
    hung.running(17.0)
    assert hung.verdict is None
    hung.running(19.0)
    assert hung.verdict is not None
    assert hung.verdict.reason == "a task runs for too long with it"


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=600), st.integers(0, 2**32))
def test_whatever_tasks_take_it_ends_after_a_known_number_of_them(times: list[float], seed: int) -> None:
    trial = Experiment("knob", "f", 1, 2, random.Random(seed))
    rules, seen = trial.rules, 0
    for seconds in itertools.cycle(times):
        if trial.verdict is not None:
            break
        assert trial.value == (2 if trial.is_after else 1)
        trial.saw(SIZE, seconds)
        seen += 1
    assert seen <= rules.block_tasks + rules.most_tasks
    assert trial.value == 1
    assert 0.0 <= trial.verdict.confidence <= 1.0
    assert trial.verdict.gain < 1.0


def test_sizes_are_compared_with_their_own() -> None:
    """Large tasks happen to come in the blocks of the new setting more often; it makes no difference."""
    world, trial = random.Random(1), Experiment("knob", "f", 1, 2, random.Random(2))
    while trial.verdict is None:
        is_large = world.random() < (0.7 if trial.is_after else 0.3)
        trial.saw((20 if is_large else 10, 0), world.gauss(1, 0.01) * (30 if is_large else 1))
    assert trial.verdict.ending == "undone"
    assert abs(trial.verdict.gain) < 0.02


def test_without_two_tasks_of_a_size_it_is_given_up() -> None:
    trial, size = Experiment("knob", "f", 1, 2, random.Random(3)), 0
    while trial.verdict is None:
        trial.saw((size := size + 1, 0), 1.0)
    assert trial.verdict.reason == "no two tasks are of the same size"


def test_a_task_that_does_not_end_ends_the_experiment() -> None:
    trial = Experiment("knob", "f", 1, 2, random.Random(4))
    while not trial.is_after:
        trial.running(1e9)
        trial.saw(SIZE, 1.0)
    trial.running(5.0)
    assert trial.verdict is None
    trial.running(11.0)
    assert (trial.verdict.reason, trial.value) == ("a task runs for too long with it", 1)


def test_too_few_tasks() -> None:
    trial = Experiment("knob", "f", 1, 2, random.Random(5), began_s=100.0)
    trial.passed(100.0 + Rules.patience_s)
    assert trial.verdict is None
    trial.passed(101.0 + Rules.patience_s)
    assert trial.verdict.reason == "too few tasks"


@given(st.lists(st.floats(-1, 1).filter(lambda d: d == 0 or abs(d) > 1e-9), max_size=9))
def test_the_chance_is_that_of_all_signs_counted_one_by_one(differences: list[float]) -> None:
    values = sorted((d for d in differences if d), key=abs)
    ranks = [max(i for i, other in enumerate(values, 1) if abs(other) == abs(d)) for d in values]
    seen = sum(rank for rank, d in zip(ranks, values, strict=True) if d > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    exact = sum(total <= seen for total in sums) / len(sums)
    assert chance_at_most(differences) >= exact - 1e-12
    if len(set(map(abs, values))) == len(values):
        assert chance_at_most(differences) == pytest.approx(exact)


# -- the book --------------------------------------------------------------------------------------------------------


def ended(ending: str, before: object = 1, after: object = 2, took_s: tuple[float, float] = (1.0, 1.0)) -> Experiment:
    trial = Experiment("knob", "f", before, after, random.Random(0))
    trial.verdict = Verdict(ending, "a reason", 0.1, 0.99, *took_s, 100)  # type: ignore[arg-type]
    return trial


def test_what_was_lost_is_tried_again_only_after_hours_or_when_tasks_have_changed() -> None:
    book = Book("cpu", Rules())
    assert book.may_try("f", "knob", 1, 2, 1.0, now_s=0.0)
    book.note(ended("undone"), 0.0)
    assert not book.may_try("f", "knob", 1, 2, 1.0, now_s=60.0)
    assert book.may_try("g", "knob", 1, 2, 1.0, now_s=60.0)
    assert book.may_try("f", "knob", 1, 4, 1.0, now_s=60.0)
    assert book.may_try("f", "knob", 1, 2, 3.0, now_s=60.0)
    assert book.may_try("f", "knob", 1, 2, 1.0, now_s=Rules.rest_s)


def test_what_won_is_not_tried_backwards_at_once() -> None:
    book = Book("cpu", Rules())
    book.note(ended("kept", took_s=(1.0, 0.4)), 0.0)
    assert book.best("f", "knob", 1) == 2
    assert not book.may_try("f", "knob", 2, 1, 0.4, now_s=60.0)


def test_the_best_is_the_end_of_the_chain() -> None:
    book = Book("cpu", Rules())
    for before, after, ending in ((1, 2, "kept"), (2, 4, "kept"), (4, 8, "undone")):
        book.note(ended(ending, before, after), 0.0)
    assert (book.best("f", "knob", 1), book.best("g", "knob", 1)) == (4, 1)


def test_the_book_travels_as_a_message_and_holds_for_its_cpu_only() -> None:
    book = Book("cpu", Rules())
    book.note(ended("kept"), 5.0)
    rows = msgpack.unpackb(msgpack.packb(book.rows()))
    here, elsewhere = Book("cpu", Rules()), Book("another", Rules())
    for taken in (here, elsewhere):
        taken.take(rows)
    assert (here.best("f", "knob", 1), elsewhere.best("f", "knob", 1)) == (2, 1)
    assert here.rows() == elsewhere.rows() == book.rows()


def test_the_book_stays_small() -> None:
    book = Book("cpu", Rules())
    for number in range(2 * Book.MOST):
        trial = ended("undone")
        trial.function = f"f{number}"
        book.note(trial, float(number))
    assert len(book.rows()) == Book.MOST
    assert book.trials(f"f{2 * Book.MOST - 1}", "knob")


def test_neighbours_of_the_best_are_tried_the_higher_first() -> None:
    assert next_values((1, 2, 4), 2, lambda _: True) == 4
    assert next_values((1, 2, 4), 2, lambda value: value != 4) == 1
    assert next_values((1, 2, 4), 4, lambda value: value != 2) is None
    assert next_values((1, 2, 4), 3, lambda _: True) is None
