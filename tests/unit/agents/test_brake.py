from __future__ import annotations

import pytest

from swarm.agents.kinds.brake import MOST_HELD_S, REST_S, Brake

LIMIT = 2_000_000_000
STEP_S = 0.5


def moves(used: list[float], *, brake: Brake | None = None, from_s: float = 0.0) -> dict[float, str]:
    """When the brake did what; memory in shares of the limit, every half second."""
    brake = brake or Brake()
    found = {}
    for number, share in enumerate(used):
        at_s = from_s + STEP_S * number
        if move := brake.look(at_s, round(share * LIMIT), LIMIT, 0.8):
            found[at_s] = move
    return found


def growing(start: float, per_s: float, seconds: float) -> list[float]:
    return [start + per_s * STEP_S * step for step in range(int(seconds / STEP_S))]


def test_it_presses_before_dask_would_pause_and_lets_go_when_the_growth_ends() -> None:
    calm = [0.3] * 6
    growth = growing(0.3, 0.1, 4.0)  # would be at 80 % after 5 s
    found = moves([*calm, *growth, *[growth[-1]] * 12])
    (pressed_at_s, press), (released_at_s, release) = found.items()
    assert (press, release) == ("press", "release")
    began_s = STEP_S * len(calm)
    assert began_s + 1.5 <= pressed_at_s <= began_s + 4.0
    assert released_at_s - pressed_at_s <= MOST_HELD_S


@pytest.mark.parametrize(
    "used",
    [
        [0.75] * 40,
        [0.7 + 0.03 * (n % 2) for n in range(40)],
        growing(0.05, 0.1, 4.0),  # much room yet
        growing(0.5, 0.004, 30.0),  # slow: the scheduler's forecast tells of it
        [0.6 - 0.01 * n for n in range(40)],
    ],
    ids=["full and steady", "goes up and down", "much room", "slow", "falls"],
)
def test_it_keeps_off_otherwise(used: list[float]) -> None:
    assert moves(used) == {}


def test_it_does_not_hold_for_ever() -> None:
    brake = Brake()
    found = moves(growing(0.5, 0.025, 20.0), brake=brake)
    times = list(found)
    assert list(found.values())[:2] == ["press", "release"]
    assert times[1] - times[0] <= MOST_HELD_S + STEP_S
    assert all(later - earlier >= REST_S for earlier, later in zip(times[1::2], times[2::2], strict=False))


def test_beyond_the_threshold_dask_has_paused_already() -> None:
    assert moves(growing(0.81, 0.05, 3.0)) == {}
