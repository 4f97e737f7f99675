"""When a process is started again: the delays, the forgiveness and the end of patience."""

from __future__ import annotations

import pytest

from swarm.deploy.restart import Record, RestartPolicy

POLICY = RestartPolicy()


def delays(lives_s: list[float], policy: RestartPolicy = POLICY) -> list[float | None]:
    """The delay after each of some lives, each of which begins when the delay before it is over."""
    record, now_s, found = Record(), 1_000.0, []
    for life_s in lives_s:
        started_at_s, now_s = now_s, now_s + life_s
        record = record.after_end(policy, started_at_s=started_at_s, now_s=now_s)
        found.append(record.delay_s(policy))
        now_s += found[-1] or 0.0
    return found


@pytest.mark.parametrize(
    ("lives_s", "expected"),
    [
        pytest.param([0], [0.5], id="first failure"),
        pytest.param([0, 0, 0, 0, 0], [0.5, 1, 2, 4, None], id="five at once are the end"),
        pytest.param([20] * 8, [0.5, 1, 2, 4, 8, 16, 30, 30], id="slower failures back off up to the longest delay"),
        pytest.param([0, 0, 0, 0, 60, 0], [0.5, 1, 2, 4, 0.5, 1], id="a minute of health is a clean record"),
        pytest.param([0, 0, 0, 59.9], [0.5, 1, 2, 4], id="a little less is not"),
        pytest.param([13.1] * 5, [0.5, 1, 2, 4, None], id="five within a minute, counted end to end"),
        pytest.param([13.2] * 5, [0.5, 1, 2, 4, 8], id="five within a little more"),
    ],
)
def test_delays(lives_s: list[float], expected: list[float | None]) -> None:
    assert delays(lives_s) == expected


def test_a_record_stays_small_and_its_delay_finite() -> None:
    record = Record()
    for number in range(5_000):
        record = record.after_end(POLICY, started_at_s=number * 90.0, now_s=number * 90.0 + 59.0)
    assert len(record.ended_at_s) == POLICY.failures
    assert record.delay_s(POLICY) == POLICY.longest_delay_s


def test_one_failure_may_be_enough() -> None:
    assert delays([1_000], RestartPolicy(failures=1)) == [None]
