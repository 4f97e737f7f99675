"""Why a task was slow: because it did more than others like it, or because it was held up."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.agents.kinds.function_costs import Cost, FunctionCosts


def seen(*slow: dict[str, Any], usual: int = 20, **of_all: Any) -> tuple[int, int, int]:
    costs = FunctionCosts("f")
    for fields in [{}] * usual + list(slow):
        costs.learn(Cost("f", **{"wall_s": 1.0, "cpu_s": 1.0, "is_full": True, **of_all, **fields}), 0.0)
    return costs.slow()


@pytest.mark.parametrize(
    ("slow", "held_up", "by_itself"),
    [
        ({"wall_s": 1.9, "cpu_s": 1.9}, 0, 0),
        ({"wall_s": 5.0}, 1, 0),
        ({"wall_s": 5.0, "cpu_s": 2.0}, 1, 0),
        ({"wall_s": 5.0, "cpu_s": 4.5}, 0, 1),
    ],
)
def test_by_time_on_the_cpu(slow: dict[str, Any], held_up: int, by_itself: int) -> None:
    assert seen(slow) == (21, held_up, by_itself)


def test_a_cpu_that_is_slow_is_not_the_tasks_doing() -> None:
    slow = {"wall_s": 4.0, "cpu_s": 4.0}
    assert seen({**slow, "counted": {"instructions": 1.0e9}}, counted={"instructions": 1.0e9}) == (21, 1, 0)
    assert seen({**slow, "counted": {"instructions": 4.0e9}}, counted={"instructions": 1.0e9}) == (21, 0, 1)


def test_a_task_that_waits_longer_has_not_done_more() -> None:
    """As one that reads from a store that is slow now and then."""
    assert seen({"wall_s": 9.0}, cpu_s=0.01) == (21, 1, 0)


def test_larger_inputs_are_another_size() -> None:
    assert seen({"wall_s": 5.0, "cpu_s": 5.0, "input_bytes": 10**9}, input_bytes=10**6) == (20, 0, 0)


def test_what_other_threads_did_for_a_task_is_unknown() -> None:
    assert seen({"wall_s": 5.0}, process_cpu_s=4.0) == (21, 0, 0)


def test_of_few_nothing_is_typical() -> None:
    assert seen({"wall_s": 5.0}, usual=3) == (0, 0, 0)
