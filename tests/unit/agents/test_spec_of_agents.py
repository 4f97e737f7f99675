"""What may be asked for when an agent is made: each mistake is one clear line, said at once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from swarm.agents.base import MAX_STATE_BYTES, BaseAgent
from swarm.agents.spec import AgentSpec, Limits
from swarm.errors import AgentDefinitionError
from tests.support.agents_on_trial import Idle, Plain, Trial


@pytest.mark.parametrize(
    ("agent_class", "asked", "expected"),
    [(Idle, None, "loop"), (Plain, None, "thread"), (BaseAgent, None, "loop"), (Plain, "process", "process")],
)
def test_isolation_suits_the_class(agent_class: type[BaseAgent], asked: Any, expected: str) -> None:
    assert AgentSpec(agent_class, "a", isolation=asked).isolation == expected


def test_the_interval_is_that_of_the_class_or_what_is_asked_for() -> None:
    assert AgentSpec(Plain, "a").interval == Plain.interval_s
    assert AgentSpec(Plain, "a", interval_s=3).interval == 3.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"agent_class": dict}, "<class 'dict'> is not a subclass of swarm.BaseAgent"),
        ({"agent_class": Trial("t")}, "is not a subclass of swarm.BaseAgent"),
        ({"agent_id": "no spaces"}, "id of an agent is 'no spaces', must be 1 to 64 letters"),
        ({"agent_id": 5}, "id of an agent is 5, must be"),
        ({"options": {"speed": 3}}, "options of agent a: Trial: got an unexpected keyword argument 'speed'"),
        ({"options": {"agent_id": "b"}}, "options of agent a: Trial: multiple values for argument 'agent_id'"),
        ({"options": ["x"]}, "options of agent a: must be a mapping of names to values"),
        ({"options": {1: 2}}, "options of agent a: must be a mapping of names to values"),
        ({"isolation": "jail"}, "isolation is 'jail', must be one of loop, thread, process"),
        ({"priority": 20}, "priority of agent a is 20, must be a whole number -20 to 19"),
        ({"priority": True}, "priority of agent a is True"),
        ({"priority": 1.5}, "priority of agent a is 1.5"),
        ({"cpu_affinity": {0}}, 'cpu_affinity of agent a needs isolation="thread" or "process"'),
        ({"isolation": "thread", "cpu_affinity": set()}, "must be a set of numbers of cores, at least one"),
        ({"isolation": "thread", "cpu_affinity": 3}, "cpu_affinity of agent a is 3, must be a set"),
        ({"isolation": "thread", "cpu_affinity": {-1}}, "must be a set of numbers of cores"),
        ({"isolation": "thread", "cpu_affinity": {"0"}}, "must be a set of numbers of cores"),
        ({"limits": Limits(cpu_s=5)}, 'limits of agent a: must be Limits(…), and need isolation="process"'),
        ({"isolation": "process", "limits": {"cpu_s": 5}}, "limits of agent a: must be Limits(…)"),
        ({"interval_s": 0}, "interval_s of agent a is 0, must be a number from 0.01 to 86400 (seconds)"),
        ({"interval_s": math.nan}, "interval_s of agent a is nan"),
        ({"interval_s": math.inf}, "interval_s of agent a is inf"),
        ({"interval_s": True}, "interval_s of agent a is True"),
        ({"cycle_timeout_s": "1m"}, "cycle_timeout_s of agent a is '1m', must be a number from 0.01"),
        ({"state": [1]}, "state of agent a is a list, must be a dict"),
        ({"state": {"x": object()}}, "state of agent a can't be kept ("),
        ({"state": {"x": 1 << 70}}, "state of agent a can't be kept ("),
        ({"state": {"x": b"x" * MAX_STATE_BYTES}}, "bytes, at most 1048576 are kept"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(AgentDefinitionError) as raised:
        AgentSpec(**{"agent_class": Trial, "agent_id": "a", **wrong})
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"memory_bytes": 1000}, "memory_bytes of limits is 1000, must be a whole number of at least 67108864"),
        ({"memory_bytes": "1GB"}, "memory_bytes of limits is '1GB'"),
        ({"memory_bytes": 2**63}, "memory_bytes of limits is 9223372036854775808"),
        ({"cpu_s": 0}, "cpu_s of limits is 0, must be a whole number of at least 1"),
        ({"cpu_s": True}, "cpu_s of limits is True"),
    ],
)
def test_limits_that_can_not_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(AgentDefinitionError) as raised:
        Limits(**wrong)
    assert told in str(raised.value)
