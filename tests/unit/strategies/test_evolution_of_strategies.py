"""Strategies evolve within bounds, the default never dies, and luck is not taken for merit."""

from __future__ import annotations

import random
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.evolution import (
    LEAST_STEP,
    MOST_STEP,
    ZERO,
    Member,
    Worth,
    crossed,
    difference,
    mutated,
    offspring,
    survivors,
    worth,
)
from scheduler_plugins.decide.strategy import BOUNDS, DEFAULT, Strategy

members = st.builds(
    lambda values, step: Member(Strategy.from_dict(values), step),
    st.fixed_dictionaries({name: st.floats(*bounds) for name, bounds in BOUNDS.items()}),
    st.floats(LEAST_STEP, MOST_STEP),
)
rngs = st.integers(0, 2**32).map(random.Random)


def in_bounds(member: Member) -> bool:
    told = member.strategy.as_dict()
    return all(least <= told[name] <= most for name, (least, most) in BOUNDS.items())


@given(members, rngs)
def test_a_mutant_stays_within_the_bounds_however_large_its_step(member: Member, rng: random.Random) -> None:
    for _ in range(20):
        member = mutated(member, rng)
        assert in_bounds(member)
        assert LEAST_STEP <= member.step <= MOST_STEP


@given(members, members, rngs)
def test_a_child_has_each_number_of_one_of_its_parents(one: Member, other: Member, rng: random.Random) -> None:
    child = crossed(one, other, rng)
    mine, theirs = one.strategy.as_dict(), other.strategy.as_dict()
    assert all(value in (mine[name], theirs[name]) for name, value in child.strategy.as_dict().items())
    assert min(one.step, other.step) * 0.999 <= child.step <= max(one.step, other.step) * 1.001


@given(st.lists(members, max_size=4), st.integers(0, 12), rngs)
def test_offspring_is_new_and_all_different(parents: list[Member], count: int, rng: random.Random) -> None:
    """A strategy that was tried twice took the time of another that was not tried at all."""
    children = offspring(parents, count, rng)
    strategies = [child.strategy for child in children]
    assert len(set(strategies)) == len(children) == count
    assert not {DEFAULT, *(parent.strategy for parent in parents)} & set(strategies)


@given(st.lists(st.tuples(members, st.floats(0.1, 10.0)), max_size=8), st.integers(0, 5))
def test_the_default_is_always_member_zero(tried: list[tuple[Member, float]], most: int) -> None:
    """Once a population had lost it, and went on from a strategy that was lucky."""
    worths = {member.strategy: Worth(ratio, ratio, 0.0, 5) for member, ratio in tried}
    left = survivors([member for member, _ in tried], worths, most)
    assert left[0] == ZERO
    assert len(left) <= max(most, 1)
    assert all(worths[member.strategy].ratio < 1.0 for member in left[1:])


def test_the_best_survive_and_noise_counts_against_them() -> None:
    steady, lucky, bad = (Member(Strategy(gravity=value)) for value in (1.0, 3.0, 4.0))
    worths = {
        steady.strategy: Worth(0.95, 0.97, 0.005, 5),
        lucky.strategy: Worth(0.93, 1.20, 0.08, 5),
        bad.strategy: Worth(1.05, 1.10, 0.005, 5),
    }
    assert survivors([lucky, bad, steady], worths, 4) == [ZERO, steady, lucky]
    assert survivors([lucky, bad, steady], worths, 2) == [ZERO, steady]


def test_one_that_was_not_tried_does_not_survive() -> None:
    assert survivors([Member(Strategy(gravity=3.0))], {}, 4) == [ZERO]


def test_the_same_draws_give_the_same_children() -> None:
    one, two = (offspring([], 5, random.Random(3)) for _ in range(2))
    assert one == two


def test_what_a_strategy_is_worth_does_not_depend_on_how_long_the_works_are() -> None:
    """With sums, one long run had outvoted all others."""
    found = worth([9.0, 900.0, 0.09], [10.0, 1000.0, 0.1])
    assert found.ratio == pytest.approx(0.9)
    assert found.error == pytest.approx(0.0)
    assert found.is_better


def test_one_lucky_run_says_little() -> None:
    lucky = worth([5.0, 10.1, 9.95, 10.1, 10.0], [10.0] * 5)
    assert lucky.worst > 1.0
    assert not lucky.is_better
    noisy = worth([9.8, 12.0, 8.0, 9.0, 11.0], [10.0] * 5)
    assert noisy.ratio < 0.99
    assert not noisy.is_better, "the noise is larger than the gain"


def test_a_gain_of_less_than_a_per_cent_is_not_worth_its_trial() -> None:
    assert not worth([9.95] * 5, [10.0] * 5).is_better
    assert worth([9.85] * 5, [10.0] * 5).is_better


def test_a_loss_of_a_per_cent_is_allowed_elsewhere_and_no_more() -> None:
    assert worth([10.09] * 3, [10.0] * 3).is_harmless
    assert not worth([10.11] * 3, [10.0] * 3).is_harmless


@pytest.mark.parametrize("never", [inf, nan, -1.0, 0.0])
def test_a_strategy_that_once_did_not_end_is_worth_nothing(never: float) -> None:
    """A median alone would forgive a deadlock."""
    found = worth([5.0, 5.0, never], [10.0, 10.0, 10.0])
    assert found.ratio == found.at_most == inf
    assert not found.is_better
    assert not found.is_harmless


@pytest.mark.parametrize(("times", "default"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [inf]), ([1.0], [0.0])])
def test_what_is_no_pair_is_refused(times: list[float], default: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs|makespan of the default"):
        worth(times, default)


def test_only_what_differs_is_told() -> None:
    assert difference(DEFAULT) == {}
    assert difference(Strategy(gravity=4.0)) == {"gravity": 4.0}


def test_it_finds_the_better_side_of_a_number() -> None:
    """A makespan that is least at gravity 6: the search gets there, by its own step."""
    rng, parents = random.Random(1), [ZERO]
    worths: dict[Strategy, Worth] = {}
    for _ in range(12):
        children = offspring(parents, 8, rng)
        for child in children:
            off = abs(child.strategy.gravity - 6.0)
            worths[child.strategy] = worth([0.8 + 0.05 * off] * 3, [1.0] * 3)
        parents = survivors([*parents, *children], worths, 4)
    assert parents[1].strategy.gravity == pytest.approx(6.0, abs=0.5)
