"""The life of an agent as a state machine: what may follow what, and what the restart rule promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.agents.life.lifecycle import TRANSITIONS, GiveUp, Happened, Life, RestartRule, Stage, Start, Stop

RULE = RestartRule()


def test_each_stage_has_its_transitions_and_each_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(Stage)
    reached = {Stage.CREATED}
    for _ in Stage:
        reached |= {after for stage in reached for after in TRANSITIONS[stage].values()}
    assert reached == set(Stage)


def test_from_every_stage_an_agent_can_be_stopped_and_stopped_is_the_end() -> None:
    for stage, transitions in TRANSITIONS.items():
        if stage is Stage.STOPPED:
            assert transitions == {}
        elif stage is Stage.STOPPING:
            assert transitions == {Happened.ENDED: Stage.STOPPED}
        else:
            assert transitions[Happened.STOP_ASKED] is Stage.STOPPING


def running(rule: RestartRule = RULE, now_s: float = 0.0) -> Life:
    life = Life(rule, now_s)
    life.on(Happened.BEGUN, now_s)
    life.on(Happened.STARTED, now_s)
    return life


def test_a_first_start_that_fails_is_not_tried_again() -> None:
    life = Life(RULE, 0.0)
    life.on(Happened.BEGUN, 0.0)
    assert life.on(Happened.FAULTED, 1.0) == GiveUp(1)
    assert life.stage is Stage.FAILED


def test_pauses_double_and_it_is_given_up() -> None:
    life, pauses = running(), []
    while isinstance(decision := life.on(Happened.FAULTED, 1.0), Start):
        pauses.append(decision.pause_s)
        life.on(Happened.BEGUN, 1.0)
        life.on(Happened.STARTED, 1.0)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert sum(pauses) == pytest.approx(12.7)  # as the rule's text says
    assert decision == GiveUp(8)


def test_a_start_that_fails_counts_as_well() -> None:
    life = running()
    life.on(Happened.FAULTED, 1.0)
    life.on(Happened.BEGUN, 1.1)
    assert life.on(Happened.FAULTED, 1.1) == Start(0.2)
    assert life.restarts == 0


def test_a_good_minute_forgives_everything() -> None:
    life = running()
    for _ in range(100):
        assert life.on(Happened.FAULTED, 0.0, good_s=RULE.good_s) == Start(0.1)
        life.on(Happened.BEGUN, 0.0)
        life.on(Happened.STARTED, 0.0)
    assert (life.failures, life.restarts) == (1, 100)


def test_to_be_displaced_is_no_failure() -> None:
    life = running()
    assert life.on(Happened.DISPLACED, 1.0) == Start(0.0)
    assert (life.stage, life.failures) == (Stage.STARTING, 0)


def test_what_can_not_happen_is_a_defect_and_changes_nothing() -> None:
    life = Life(RULE, 0.0)
    with pytest.raises(ValueError, match="an agent that is created can't be ended"):
        life.on(Happened.ENDED, 1.0)
    with pytest.raises(ValueError, match="can't be faulted"):
        life.on(Happened.FAULTED, 1.0)
    assert (life.stage, life.since_s, life.failures) == (Stage.CREATED, 0.0, 0)


RULES = st.builds(
    RestartRule,
    first_pause_s=st.floats(0.001, 10),
    longest_pause_s=st.floats(10, 100),
    failures=st.integers(1, 12),
    good_s=st.floats(1, 100),
)
STEPS = st.lists(st.tuples(st.sampled_from(Happened), st.floats(0, 200)), max_size=80)


@given(RULES, STEPS)
def test_whatever_happens_the_promises_hold(rule: RestartRule, steps: list[tuple[Happened, float]]) -> None:
    life, now_s, failed = Life(rule, 0.0), 0.0, 0
    for happened, passed_s in steps:
        if not life.may(happened):
            continue
        now_s += passed_s
        before, starts = life.stage, life.starts
        decision = life.on(happened, now_s, good_s=passed_s)
        assert life.since_s == now_s
        assert life.starts == starts + (happened is Happened.STARTED)
        assert life.stage in TRANSITIONS[before].values()
        if happened is Happened.FAULTED:
            failed = 1 if passed_s >= rule.good_s else failed + 1
            assert life.failures == failed
            if isinstance(decision, Start):
                assert life.stage is Stage.DEGRADED
                assert 0 < decision.pause_s <= rule.longest_pause_s
                assert failed < rule.failures
            else:
                assert decision == GiveUp(failed)
                assert life.stage is Stage.FAILED
                assert failed >= rule.failures or starts == 0
        elif happened is Happened.STOP_ASKED:
            assert decision == Stop()
        assert life.is_over == (life.stage in (Stage.STOPPING, Stage.STOPPED, Stage.FAILED))


@given(RULES)
def test_pauses_never_shrink_and_never_exceed_the_longest(rule: RestartRule) -> None:
    pauses = [rule.pause_s(n) for n in range(1, 200)]
    assert pauses == sorted(pauses)
    assert pauses[0] == rule.first_pause_s
    assert pauses[-1] == rule.longest_pause_s
