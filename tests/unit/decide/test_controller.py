"""The controller passes events to its rules, and is silent about all others."""

from __future__ import annotations

import pytest

from scheduler_plugins.decide.controller import Controller
from swarm.config import Settings
from swarm.protocol import AlertRaised, ClusterSampled, Event, PartDisabled, RaiseAlert, RunEnded, RunSubmitted
from tests.support.builders import WORKER, agent_started, arrived, settings, worker_joined
from tests.support.recorder import Recorder

SAMPLED = ClusterSampled(
    at_s=1.0,
    workers=1,
    threads=1,
    tasks_finished=0,
    tasks_erred=0,
    tasks_processing=0,
    tasks_queued=0,
    tasks_waiting=0,
)
ALERT = AlertRaised(
    at_s=1.0, alert="x", worker=WORKER, resource="cpu", value=99.0, threshold=90.0, unit="%", rule="r", reason="hot"
)


@pytest.mark.parametrize(
    "event",
    [
        SAMPLED,
        ALERT,
        agent_started(),
        RunSubmitted(at_s=1.0, run="r", name="n", tasks=3),
        RunEnded(at_s=1.0, run="r", status="error"),
        PartDisabled(at_s=1.0, part="view", reason="why"),
    ],
)
def test_events_that_call_for_nothing(event: Event) -> None:
    with Recorder(Controller(Settings())) as quiet:
        quiet.happens(worker_joined(), event)


def test_thresholds_come_from_the_settings() -> None:
    with Recorder(Controller(settings(performance_thresholds={"memory_critical": 40}))) as strict:
        strict.happens(worker_joined(), arrived(memory_percent=41))
        assert strict.expect(RaiseAlert).threshold == 40.0
    with Recorder(Controller(Settings())) as lenient:
        lenient.happens(worker_joined(), arrived(memory_percent=41))


def test_the_recorder_fails_on_an_action_that_nobody_expected() -> None:
    with pytest.raises(AssertionError, match="unexpected"), Recorder(Controller(Settings())) as careless:
        careless.happens(worker_joined(), arrived(memory_percent=99))
    with pytest.raises(AssertionError, match="no RaiseAlert"), Recorder(Controller(Settings())) as hasty:
        hasty.happens(worker_joined(), arrived(memory_percent=9))
        hasty.expect(RaiseAlert)
