"""The bandit finds the better strategy, gives up those that do harm, and costs little where all are alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf, nan
from random import Random

import pytest

from scheduler_plugins.learn.strategies import BURN_IN, WARM_UP, WINDOW, StrategyBandit

WORK = "some work"


def play(
    means: Sequence[float], periods: int, *, noise: float = 0.03, seed: int = 0
) -> tuple[list[str], StrategyBandit]:
    """What is chosen when the arms have these mean rewards; the first is the default."""
    arms = ["default", "one", "two", "three", "four"][: len(means)]
    bandit, rng, chosen = StrategyBandit(Random(seed)), Random(f"{seed} world"), []
    for _ in range(periods):
        arm = bandit.choose(WORK, arms)
        chosen.append(arm)
        bandit.learn(WORK, arm, means[arms.index(arm)] * (1 + rng.gauss(0.0, noise)), "default")
    return chosen, bandit


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_better_arm_under_noise(seed: int) -> None:
    chosen, _ = play([0.80, 0.86, 0.80], 60, seed=seed)
    assert chosen[-20:].count("one") >= 18


@pytest.mark.parametrize("seed", range(5))
def test_it_retires_what_does_harm(seed: int) -> None:
    chosen, bandit = play([0.80, 0.60, 0.80], 60, seed=seed)
    assert bandit.is_retired(WORK, "one")
    assert chosen.count("one") == BURN_IN


@pytest.mark.parametrize("seed", range(5))
def test_where_all_rivals_do_harm_it_costs_their_trials_and_no_more(seed: int) -> None:
    means = [0.80, 0.72, 0.70, 0.72, 0.70]
    chosen, _ = play(means, 200, seed=seed)
    assert sum(arm != "default" for arm in chosen) <= 4 * BURN_IN + 3
    assert chosen[-1] == "default"


def test_the_default_is_never_retired() -> None:
    _, bandit = play([0.5, 0.9], 40)
    assert not bandit.is_retired(WORK, "default")


def test_new_work_runs_by_the_default_until_its_costs_are_known() -> None:
    """The first run of anything is slow: whoever was tried first was blamed for it."""
    chosen, bandit = play([0.8, 0.8], WARM_UP)
    assert chosen == ["default"] * WARM_UP
    assert bandit.tries(WORK) == {}


def test_arms_take_turns_while_they_are_tried() -> None:
    """Three in a row were three on a Monday morning."""
    chosen, _ = play([0.8, 0.8, 0.8], WARM_UP + 3 * BURN_IN)
    assert chosen[WARM_UP:] == ["default", "one", "two"] * BURN_IN


def test_without_rivals_there_is_nothing_to_choose() -> None:
    chosen, _ = play([0.8], 30)
    assert set(chosen) == {"default"}


def test_it_follows_when_the_cluster_changes() -> None:
    """What was right last month counts no more than the last few busy periods."""
    bandit, arms = StrategyBandit(Random(0)), ["default", "one"]
    rng, chosen = Random(1), []
    for period in range(120):
        means = {"default": 0.8, "one": 0.84 if period < 40 else 0.7}
        arm = bandit.choose(WORK, arms)
        chosen.append(arm)
        bandit.learn(WORK, arm, means[arm] * (1 + rng.gauss(0.0, 0.02)), "default")
    assert chosen[39] == "one"
    assert set(chosen[-20:]) == {"default"}


@pytest.mark.parametrize("reward", [0.0, -1.0, nan, inf])
def test_a_reward_that_makes_no_sense_teaches_nothing(reward: float) -> None:
    _, bandit = play([0.8, 0.8], 20)
    before = bandit.tries(WORK)
    assert not bandit.learn(WORK, "one", reward, "default")
    assert bandit.tries(WORK) == before


def test_kinds_of_work_are_apart_and_bounded() -> None:
    bandit = StrategyBandit(Random(0), works=3)
    for number in range(10):
        bandit.choose(f"work {number}", ["default", "one"])
        bandit.choose("often", ["default", "one"])
    assert len(bandit) == 3
    assert [work for work, *_ in bandit.to_state()] == ["work 8", "work 9", "often"]


def test_rewards_are_bounded() -> None:
    _, bandit = play([0.8, 0.9], 100)
    assert max(bandit.tries(WORK).values()) == WINDOW


def test_a_strategy_that_is_gone_is_forgotten_and_begins_anew() -> None:
    """`swarm tune` replaces strategies; of the same name, it may have been retired on another day."""
    _, bandit = play([0.80, 0.60], 30)
    assert bandit.is_retired(WORK, "one")
    bandit.choose(WORK, ["default", "other"])
    assert "one" not in bandit.tries(WORK)
    assert not bandit.is_retired(WORK, "one")


def test_what_it_knows_comes_back() -> None:
    chosen, bandit = play([0.80, 0.60, 0.86], 60)
    state = json.loads(json.dumps(bandit.to_state()))
    again = StrategyBandit(Random(5))
    again.restore(state)
    assert again.tries(WORK) == bandit.tries(WORK)
    assert again.is_retired(WORK, "one")
    assert again.choose(WORK, ["default", "one", "two"]) == chosen[-1] == "two"


@pytest.mark.parametrize("state", [5, [[1]], [["w", 1, {"a": ["x"]}, []]], [["w", 1, {"a": [nan]}, []]], {"a": 1}])
def test_a_state_that_makes_no_sense_changes_nothing(state: object) -> None:
    _, bandit = play([0.8, 0.8], 20)
    before = bandit.to_state()
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        bandit.restore(state)
    assert bandit.to_state() == before


# -- advice --------------------------------------------------------------------------------------------------------


def test_what_did_best_is_known_once_it_was_compared() -> None:
    _, bandit = play([0.80, 0.86, 0.70], WARM_UP + 3 * BURN_IN - 3)
    assert bandit.best(WORK) is None
    _, bandit = play([0.80, 0.86, 0.70], 60)
    assert bandit.best(WORK) == "one"
    assert bandit.best("other work") is None
    assert play([0.80], 20)[1].best(WORK) is None


@pytest.mark.parametrize("seed", range(5))
def test_advice_saves_the_trials_of_all_others(seed: int) -> None:
    arms, means = ["default", "one", "two", "three"], [0.80, 0.80, 0.86, 0.60]
    first = {}
    for advised in (None, "two"):
        bandit, rng, chosen = StrategyBandit(Random(seed)), Random(f"{seed} world"), []
        for _ in range(30):
            arm = bandit.choose(WORK, arms, advised)
            chosen.append(arm)
            bandit.learn(WORK, arm, means[arms.index(arm)] * (1 + rng.gauss(0.0, 0.02)), "default")
        first[advised] = chosen.count("two")
        assert advised is None or set(chosen) == {"default", "two"}
    assert first["two"] > first[None]


@pytest.mark.parametrize("seed", range(5))
def test_bad_advice_costs_its_trials_and_then_all_are_tried(seed: int) -> None:
    arms, means = ["default", "one", "two"], [0.80, 0.86, 0.60]
    bandit, rng, chosen = StrategyBandit(Random(seed)), Random(f"{seed} world"), []
    for _ in range(60):
        arm = bandit.choose(WORK, arms, "two")
        chosen.append(arm)
        bandit.learn(WORK, arm, means[arms.index(arm)] * (1 + rng.gauss(0.0, 0.02)), "default")
    assert chosen.count("two") == BURN_IN
    assert chosen[-20:].count("one") >= 18
