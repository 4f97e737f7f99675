"""The governor of heat against hosts of all sizes that get warm, with lazy sensors and tasks that end as they like."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given, note, settings
from hypothesis import strategies as st

from swarm.agents.kinds.heat import Governor, heat_rule
from tests.support.heat_model import HeatModel

CRITICAL_CELSIUS = 85.0
RULE = heat_rule(CRITICAL_CELSIUS)
STEPS = 4
HOUR_S = 3600


@dataclass
class Played:
    peak_celsius: float
    work_core_s: float
    changes_s: list[int]

    def changes_per_minute(self, since_s: int = 0) -> int:
        """In the worst minute."""
        late = [s for s in self.changes_s if s >= since_s]
        return max((sum(first <= s < first + 60 for s in late) for first in late), default=0)


def play(model: HeatModel, load: Callable[[int], float], seconds: int = HOUR_S) -> Played:
    governor, peak, changes = Governor(RULE, model.cores), -math.inf, []
    for second in range(seconds):
        decision = governor.decide(float(second), model.sensor(), cores_in_use=math.ceil(model.busy_cores))
        if decision.changed:
            model.allow(decision.cores)
            changes.append(second)
        for _ in range(STEPS):
            model.run(load(second), 1 / STEPS)
            peak = max(peak, model.celsius)
    return Played(peak, model.work_core_s, changes)


def best_constant(model: HeatModel) -> int:
    """Most cores that may be busy for ever below the limit that the governor keeps."""
    return max((c for c in range(1, model.cores + 1) if model.end_celsius(c) <= RULE.limit), default=1)


@st.composite
def hosts(draw: st.DrawFn, full_celsius: tuple[float, float] = (60.0, 160.0)) -> HeatModel:
    """Drawn by where they end at full load and how fast they climb, up to 1.5 °C/s: faster than that a sample each
    second and tasks of 3 s come too late for any rule, and the processor has its own.

    One core alone must be bearable."""
    cores = draw(st.sampled_from([2, 3, 4, 8, 16, 32, 64]))
    core_watts, idle_watts = draw(st.floats(3, 15)), draw(st.floats(5, 30))
    full = draw(st.floats(*full_celsius))
    resistance = (full - 25) / (idle_watts + core_watts * cores)
    bearable = (RULE.limit - 5 - 25) / (idle_watts + core_watts)
    return HeatModel(
        cores,
        min(resistance, bearable),
        capacity_j_per_k=core_watts * cores / draw(st.floats(0.02, 1.5)),
        core_watts=core_watts,
        idle_watts=idle_watts,
        lag_s=draw(st.floats(0, 3)),
        noise_celsius=draw(st.sampled_from([0.0, 0.5, 1.0])),
        resolution_celsius=draw(st.sampled_from([0.0, 1.0])),
        rng=random.Random(draw(st.integers(0, 1000))),
    )


@given(hosts())
def test_under_full_load_no_host_gets_critical_and_little_work_is_lost(host: HeatModel) -> None:
    best = best_constant(host)
    played = play(host, lambda _: host.cores)
    note(f"{played.peak_celsius:.1f} °C, {played.work_core_s / best / HOUR_S:.3f} of {best} of {host.cores} cores")
    assert played.peak_celsius < CRITICAL_CELSIUS
    assert played.work_core_s >= 0.6 * best * HOUR_S
    assert played.changes_per_minute() <= 10
    assert played.changes_per_minute(since_s=300) <= 5
    assert sum(changed_s >= HOUR_S / 2 for changed_s in played.changes_s) <= 40


@given(hosts(), st.lists(st.tuples(st.integers(5, 300), st.floats(0, 1)), min_size=4, max_size=20))
def test_no_load_makes_a_host_critical(host: HeatModel, phases: list[tuple[int, float]]) -> None:
    wishes = [share * host.cores for seconds, share in phases for _ in range(seconds)]
    played = play(host, wishes.__getitem__, len(wishes))
    assert played.peak_celsius < CRITICAL_CELSIUS
    assert played.changes_per_minute() <= 10


@given(hosts(full_celsius=(40.0, 72.0)))
def test_a_cool_host_loses_nothing(host: HeatModel) -> None:
    assert host.end_celsius(host.cores) < 73
    played = play(host, lambda _: host.cores, 1200)
    assert played.changes_s == []
    assert math.isclose(played.work_core_s, host.cores * 1200)


@settings(max_examples=25)
@given(hosts(), st.floats(0.02, 0.12))
def test_a_die_that_heats_at_once_is_brought_down_within_seconds(host: HeatModel, junction_k_per_w: float) -> None:
    """The jump of the die comes before any sample of it. What the rule can promise is that it does not last."""
    host.junction_k_per_w = min(junction_k_per_w, 30 / (host.core_watts * host.cores))
    if host.end_celsius(1) > RULE.limit - 3:
        host.resistance_k_per_w *= 0.8
    governor, hot = Governor(RULE, host.cores), 0
    for second in range(1200):
        decision = governor.decide(float(second), host.sensor(), cores_in_use=math.ceil(host.busy_cores))
        host.allow(decision.cores)
        for _ in range(STEPS):
            host.run(host.cores, 1 / STEPS)
        hot = hot + 1 if host.celsius >= CRITICAL_CELSIUS else 0
        assert hot <= 20
