"""When an alert is raised, when it is cleared, and that nothing else ever is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.alerts import AlertPolicy, limits
from scheduler_plugins.decide.controller import Controller
from swarm.config import Settings
from swarm.protocol import ClearAlert, Event, RaiseAlert
from tests.support.builders import arrived, settings, telemetry, worker_joined, worker_left
from tests.support.recorder import Recorder

ONE, TWO = "tcp://10.0.0.1:4001", "tcp://10.0.0.1:4002"
ELSEWHERE = "tcp://10.0.0.9:4001"
SEVERE = settings(performance_thresholds={"cpu_critical": 90, "memory_critical": 95, "thermal_critical": 85})


def cluster(*workers: str, of: Settings = SEVERE) -> Recorder:
    recorder = Recorder(Controller(of))
    recorder.happens(*(worker_joined(worker) for worker in workers))
    return recorder


def marks(readings: Iterable[float | None], reading: str, of: Settings = SEVERE) -> str:
    """One letter per sample: R for an alert that is raised, c for one that is cleared, . for nothing."""
    controller = Controller(of)
    controller.on_event(worker_joined(ONE))
    found = ""
    for second, value in enumerate(readings):
        actions = controller.on_event(arrived(ONE, 1000.0 + second, **{reading: value}))
        assert len(actions) <= 1
        found += {RaiseAlert: "R", ClearAlert: "c"}[type(actions[0])] if actions else "."
    return found


@pytest.mark.parametrize(
    ("reading", "values", "expected"),
    [
        # CPU: three in a row at 90 % or more raise, three in a row below 85 % clear.
        ("host_cpu_percent", [97, 97, 97, 97, 97, 97], "..R..."),
        ("host_cpu_percent", [90, 90, 90], "..R"),
        ("host_cpu_percent", [89.9, 89.9, 89.9, 89.9], "...."),
        ("host_cpu_percent", [97, 97, 10, 97, 97, 10, 97, 97, 97], "........R"),
        ("host_cpu_percent", [97, 97, 97, 84, 84, 84, 84], "..R..c."),
        ("host_cpu_percent", [97, 97, 97, 85, 85, 85, 85, 85], "..R....."),
        ("host_cpu_percent", [97, 97, 97, 89, 91, 89, 91, 89, 91], "..R......"),
        ("host_cpu_percent", [97, 97, 97, 80, 80, 88, 80, 80, 80], "..R.....c"),
        ("host_cpu_percent", [97, 97, 97, 10, 10, 10, 97, 97, 97], "..R..c..R"),
        ("host_cpu_percent", [97, None, 97, None, 97], "....R"),
        ("host_cpu_percent", [None, None, None, None], "...."),
        # Memory: the first sample counts, in both directions.
        ("memory_percent", [96, 96, 96], "R.."),
        ("memory_percent", [94.9, 95.0], ".R"),
        ("memory_percent", [96, 91, 90, 89, 96], "R..cR"),
        # Temperature: two in a row, three degrees of hysteresis.
        ("host_temperature_celsius", [86, 86, 86], ".R."),
        ("host_temperature_celsius", [86, 84, 86, 86], "...R"),
        ("host_temperature_celsius", [86, 86, 82, 82, 81.9, 81.9], ".R...c"),
    ],
)
def test_raise_and_clear(reading: str, values: list[float | None], expected: str) -> None:
    assert marks(values, reading) == expected


@pytest.mark.parametrize("threshold", [1, 2, 5, 6, 50, 100])
def test_an_alert_can_be_cleared_however_low_its_threshold_is(threshold: float) -> None:
    low = settings(performance_thresholds={"memory_critical": threshold, "cpu_critical": threshold})
    assert marks([threshold, 0], "memory_percent", low) == "Rc"
    assert marks([threshold] * 3 + [0] * 3, "host_cpu_percent", low) == "..R..c"


def test_what_an_alert_says() -> None:
    with cluster(ONE) as one:
        one.happens(arrived(ONE, 1000.0, memory_percent=97.0))
        raised = one.expect(RaiseAlert)
    assert (raised.alert, raised.worker, raised.resource) == (f"memory {ONE}", ONE, "memory")
    assert (raised.value, raised.threshold, raised.unit) == (97.0, 95.0, "%")
    assert raised.rule == "performance_thresholds.memory_critical"
    assert raised.reason == f"memory of worker {ONE} is at 97.0 %, limit 95"


def test_an_alert_of_a_host_says_who_saw_it_and_for_how_long() -> None:
    with cluster(ONE) as one:
        one.happens(*(arrived(ONE, at_s, host_cpu_percent=97.5) for at_s in (1000.0, 1001.0, 1002.5)))
        raised = one.expect(RaiseAlert)
        assert "10.0.0.1" in raised.reason
        assert "97.5 %, limit 90 for 3 samples in a row (2.5 s)" in raised.reason
        assert raised.inputs["held_s"] == 2.5
        one.happens(*(arrived(ONE, at_s, host_cpu_percent=20.0) for at_s in (1010.0, 1011.0, 1012.5)))
        cleared = one.expect(ClearAlert)
    assert (cleared.alert, cleared.value, cleared.lasted_s) == (raised.alert, 20.0, 10.0)
    assert "fell to 20.0 %" in cleared.reason


def test_64_workers_of_one_host_raise_one_alert() -> None:
    workers = [f"tcp://10.0.0.1:{4000 + i}" for i in range(64)]
    controller = Controller(SEVERE)
    for worker in workers:
        controller.on_event(worker_joined(worker))
    actions = [
        action
        for second in range(10)
        for worker in workers
        for action in controller.on_event(arrived(worker, second, host_cpu_percent=99, host_temperature_celsius=95))
    ]
    assert sorted(action.resource for action in actions if isinstance(action, RaiseAlert)) == ["cpu", "thermal"]
    assert len(actions) == 2


def test_each_worker_has_a_memory_alert_of_its_own() -> None:
    with cluster(ONE, TWO) as two:
        two.happens(arrived(ONE, memory_percent=99))
        assert two.expect(RaiseAlert).worker == ONE
        two.happens(arrived(TWO, memory_percent=99))
        assert two.expect(RaiseAlert).worker == TWO
        two.happens(worker_left(ONE, at_s=1010.0))
        assert two.expect(ClearAlert).alert == f"memory {ONE}"
        two.happens(arrived(TWO, memory_percent=99))


def test_when_the_speaker_leaves_its_alert_is_cleared_and_another_worker_speaks() -> None:
    with cluster(ONE, TWO) as two:
        two.happens(arrived(ONE, 1000, host_cpu_percent=99), arrived(TWO, 1000, host_cpu_percent=99))
        two.happens(arrived(ONE, 1001, host_cpu_percent=99), arrived(TWO, 1001, host_cpu_percent=99))
        two.happens(arrived(ONE, 1002, host_cpu_percent=99))
        assert two.expect(RaiseAlert).worker == ONE
        two.happens(worker_left(ONE, at_s=1005.0))
        cleared = two.expect(ClearAlert)
        assert (cleared.alert, cleared.value, cleared.lasted_s) == (f"cpu {ONE}", None, 3.0)
        assert cleared.reason == f"worker {ONE} left"
        # The new speaker's samples from before do not count: they stood for nobody.
        two.happens(arrived(TWO, 1006, host_cpu_percent=99), arrived(TWO, 1007, host_cpu_percent=99))
        two.happens(arrived(TWO, 1008, host_cpu_percent=99))
        assert two.expect(RaiseAlert).worker == TWO


def test_a_worker_that_does_not_speak_leaves_the_hosts_alert_alone() -> None:
    with cluster(ONE, TWO) as two:
        two.happens(arrived(ONE, 1000, host_cpu_percent=99), arrived(ONE, 1001, host_cpu_percent=99))
        two.happens(arrived(ONE, 1002, host_cpu_percent=99))
        two.expect(RaiseAlert)
        two.happens(arrived(TWO, 1003, host_cpu_percent=10), worker_left(TWO))


def test_hosts_are_apart() -> None:
    with cluster(ONE, ELSEWHERE) as two:
        for second in (1000, 1001):
            two.happens(arrived(ONE, second, host_cpu_percent=99), arrived(ELSEWHERE, second, host_cpu_percent=99))
        two.happens(arrived(ONE, 1002, host_cpu_percent=99))
        assert two.expect(RaiseAlert).worker == ONE
        two.happens(arrived(ELSEWHERE, 1002, host_cpu_percent=99))
        assert two.expect(RaiseAlert).worker == ELSEWHERE


def test_unknown_workers_change_nothing() -> None:
    with cluster() as nobody:
        nobody.happens(arrived(ONE, memory_percent=100), worker_left(ONE))
        nobody.happens(worker_joined(ONE), worker_left(ONE), arrived(ONE, memory_percent=100))


def test_a_worker_that_comes_back_starts_anew() -> None:
    with cluster(ONE) as one:
        one.happens(arrived(ONE, memory_percent=99))
        one.expect(RaiseAlert)
        one.happens(worker_left(ONE))
        one.expect(ClearAlert)
        one.happens(worker_joined(ONE), arrived(ONE, memory_percent=99))
        one.expect(RaiseAlert)


def test_nothing_is_remembered_of_workers_that_left() -> None:
    policy = AlertPolicy(limits(SEVERE.performance_thresholds))
    for i in range(100):
        worker = f"tcp://10.0.{i % 3}.1:{4000 + i}"
        policy.worker_joined(worker, "w", f"10.0.{i % 3}.1")
        for _ in range(4):
            full = telemetry(memory_percent=99, host_cpu_percent=99, host_temperature_celsius=99)
            list(policy.telemetry_arrived(worker, full, 1000.0))
        list(policy.worker_left(worker, 1001.0))
    assert not policy._workers
    assert not policy._speakers
    assert not policy._triggers


WORKERS = st.sampled_from([ONE, TWO, ELSEWHERE])
PERCENT = st.none() | st.sampled_from([0.0, 84.0, 89.0, 91.0, 96.0, 100.0])
HAPPENINGS = st.lists(
    st.one_of(
        st.builds(worker_joined, WORKERS),
        st.builds(worker_left, WORKERS),
        st.builds(
            arrived,
            WORKERS,
            memory_percent=PERCENT,
            host_cpu_percent=PERCENT,
            host_temperature_celsius=PERCENT,
        ),
    ),
    max_size=80,
)


@given(HAPPENINGS)
def test_raise_and_clear_alternate_per_place_and_the_same_events_give_the_same_actions(events: list[Event]) -> None:
    controller, again = Controller(SEVERE), Controller(SEVERE)
    active: dict[tuple[str, str], str] = {}
    joined: set[str] = set()
    for event in events:
        actions = controller.on_event(event)
        assert actions == again.on_event(event)
        worker = event.worker  # type: ignore[attr-defined] # all of these have one
        for action in actions:
            assert isinstance(action, RaiseAlert | ClearAlert)
            assert action.worker == worker
            place = (action.resource, worker if action.resource == "memory" else worker.rpartition(":")[0])
            if isinstance(action, RaiseAlert):
                assert worker in joined
                assert place not in active
                assert action.value >= action.threshold
                active[place] = action.alert
            else:
                assert active.pop(place) == action.alert
        if type(event).__name__ == "WorkerJoined":
            joined.add(worker)
        elif type(event).__name__ == "WorkerLeft":
            joined.discard(worker)
            assert worker not in {alert.partition(" ")[2] for alert in active.values()}
