from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from swarm.agents.kinds.anomaly import Facts, Host
from tests.support.made_up_processes import FAULTS, GIB, process

LIMIT = {"worker": 2 * GIB}
RULES = {
    "leaks files": "files",
    "leaks threads": "threads",
    "leaks memory": "memory",
    "spins": "spins",
    "swaps": "swaps",
    "is blocked": "blocked",
}


def detected_after_s(fault: str, seed: int) -> float | None:
    host, from_s = Host(), 120
    for facts in process(Random(seed), fault=fault, from_s=from_s, until_s=from_s + 90):
        news = host.look({"worker": facts}, LIMIT)
        if news and facts.at_s >= from_s and host.scores["worker"].because == RULES[fault]:
            return facts.at_s - from_s
    return None


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault: str) -> None:
    found = [detected_after_s(fault, seed) for seed in range(20)]
    seen = sorted(each for each in found if each is not None)
    assert len(seen) >= 19, found
    assert seen[len(seen) // 2] <= 60


def test_busy_healthy_workers_raise_at_most_one_alarm_in_ten_hours() -> None:
    alarms = []
    for seed in range(10):
        host = Host()
        for facts in process(Random(1000 + seed)):
            alarms += [host.scores[each].because for each in host.look({"worker": facts}, LIMIT)]
    assert len(alarms) <= 1, alarms


def test_what_all_workers_of_a_host_show_is_the_hosts_doing() -> None:
    host = Host()
    together = [process(Random(seed), fault="swaps", from_s=60, until_s=120) for seed in range(3)]
    alarms = [
        worker for looks in zip(*together, strict=True) for worker in host.look(dict(zip("abc", looks, strict=True)))
    ]
    alone = Host()
    assert any(alone.look({"a": facts}) for facts in process(Random(0), fault="swaps", from_s=60, until_s=120))
    assert len(alarms) <= 1, alarms


def test_a_worker_that_has_calmed_down_is_no_longer_suspicious() -> None:
    host = Host()
    seen = []
    for second in range(60):
        age_s = max(0.0, min(second - 10.0, 10.0)) if second < 25 else 0.1
        host.look({"a": Facts(float(second), 0.0, 0, 0, 0, 4, 20, age_s, 1)})
        seen.append(host.scores["a"].is_suspicious)
    first = seen.index(True)
    assert 12 <= first <= 16
    assert not seen[40]
    assert sum(before != after for before, after in pairwise(seen)) == 2


def test_a_worker_that_has_gone_is_forgotten_and_time_that_stands_still_says_nothing() -> None:
    host = Host()
    look = Facts(1.0, 0.0, 0, 0, 0, 4, None)
    for _ in range(3):
        assert host.look({"a": look}) == []
    assert host.scores["a"].score == 0.0
    host.look({})
    assert host.scores == {}
