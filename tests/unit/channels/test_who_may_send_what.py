"""Access rules: what they allow, what they refuse, and rules that are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.channels import acl
from swarm.channels.acl import AccessRules, may_claim
from swarm.errors import SettingsError


@pytest.mark.parametrize("built_in", acl.BUILT_IN)
def test_by_default_only_swarms_own_agents_and_the_user_change_the_system(built_in: str) -> None:
    rules = AccessRules.default()
    assert rules.allows("client", "set_budget", built_in)
    assert rules.allows("thermal", "set_budget", built_in)
    assert not rules.allows("custom", "set_budget", built_in)
    assert not rules.allows("stranger", "set_budget", built_in)
    assert rules.allows("custom", "get_power", built_in)
    assert rules.allows("custom", "answer", built_in)
    assert rules.allows("custom", "anything", "custom")
    assert rules.allows("custom", "execute_workload", "compute")


def test_without_rules_nothing_is_allowed() -> None:
    assert not AccessRules([]).allows("client", "status", "compute")


names = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
patterns = st.one_of(st.just("*"), names, names.map(lambda name: name + "*"))
rules = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("from", "send", "to"), st.one_of(patterns, st.lists(patterns, min_size=1, max_size=3)))
)


@given(st.lists(rules, max_size=5), names, names, names)
def test_a_verdict_is_what_the_rules_say_each_time(
    given_rules: list[Any], sender: str, kind: str, recipient: str
) -> None:
    def fits(rule: dict[str, Any], key: str, name: str) -> bool:
        said = rule.get(key, "*")
        return any(
            one == name or (one.endswith("*") and name.startswith(one[:-1]))
            for one in ([said] if isinstance(said, str) else said)
        )

    expected = any(
        fits(rule, "from", sender) and fits(rule, "send", kind) and fits(rule, "to", recipient) for rule in given_rules
    )
    access = AccessRules(given_rules)
    assert [access.allows(sender, kind, recipient) for _ in range(2)] == [expected, expected]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("allow", "must be a mapping"),
        ({"form": "a"}, "must be a mapping with from, send and to"),
        ({"from": 3}, "access rule 1: from is 3"),
        ({"send": []}, "access rule 1: send is"),
        ({"to": ["a b"]}, "must be 1 to 64 letters"),
        ({"to": "*a"}, "must be 1 to 64 letters"),
        ({"to": ["ok", None]}, "must be 1 to 64 letters"),
    ],
)
def test_a_rule_that_is_none_is_refused_in_one_line(rule: object, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        AccessRules([rule])
    assert "\n" not in str(caught.value)


def test_who_asks_with_ever_new_kinds_does_not_fill_the_memory() -> None:
    access = AccessRules.default()
    for n in range(acl.MAX_KNOWN + 10):
        access.allows("custom", f"kind{n}", "compute")
    assert len(access._known) <= acl.MAX_KNOWN


def test_a_frame_may_claim_only_who_lives_where_it_came_from() -> None:
    homes = {"a": "s1", "b": "s2"}
    assert may_claim("a", "s1", homes)
    assert not may_claim("b", "s1", homes)
    assert not may_claim("nobody", "s1", homes)
    assert may_claim("b", "s1", homes, relays=frozenset({"s1"}))
    assert not may_claim("nobody", "s1", homes, relays=frozenset({"s1"}))
