"""Fault scripts: JSON there and back, one line for what is wrong, and processes that the seed decides."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from swarm.errors import TwinError
from swarm.twin.faults import (
    BlockLoop,
    Crash,
    Fault,
    Hang,
    HoldGil,
    Join,
    Leave,
    LoseHeartbeats,
    Partition,
    Preempt,
    SchedulerLag,
    SlowDown,
    at_random,
    check,
    from_json,
    to_json,
)
from swarm.twin.models import Drifting, Fixed, Memory, Sudden, WorkerModel

ONE_OF_EACH = [
    Crash(worker="w0", at_s=1.0),
    Hang(worker="w0", at_s=1.0),
    Hang(worker="w0", at_s=1.0, for_s=10.0),
    HoldGil(worker="w0", at_s=1.0, for_s=20.0),
    BlockLoop(worker="w0", at_s=1.0, for_s=2.0),
    SlowDown(worker="w0", at_s=1.0, factor=0.1),
    SlowDown(worker="w0", at_s=1.0, factor=0.1, for_s=5.0),
    Partition(workers=("w0", "w1"), at_s=1.0, for_s=10.0),
    LoseHeartbeats(worker="w0", at_s=1.0),
    SchedulerLag(at_s=1.0, for_s=3.0),
    Preempt(worker="w0", at_s=1.0, notice_s=30.0, retire=True),
    Join(model=WorkerModel("new", threads=4, host="h9", nanny=True), at_s=1.0),
    Join(
        model=WorkerModel(
            "odd",
            speed=Sudden(1.0, 0.5, 3.0),
            memory=Memory(1 << 30, pause=0.85),
            resources={"GPU": 1.0},
            restart_s=9.0,
            task_overhead_s=0.0,
        ),
        at_s=2.0,
    ),
    Join(model=WorkerModel("tired", speed=Drifting(1.0, 0.5, until_s=60.0)), at_s=2.0),
    Leave(worker="w0", at_s=1.0),
]


@pytest.mark.parametrize("fault", ONE_OF_EACH, ids=repr)
def test_there_and_back_as_text(fault: Fault) -> None:
    assert from_json(json.loads(json.dumps(to_json(fault)))) == fault


def test_every_kind_is_there() -> None:
    assert {type(fault).__name__ for fault in ONE_OF_EACH} == set(Fault.KINDS)


def test_a_person_may_leave_out_what_has_a_default() -> None:
    assert from_json({"fault": "Hang", "worker": "w0", "at_s": 2}) == Hang(worker="w0", at_s=2)
    joined = from_json({"fault": "Join", "at_s": 0, "model": {"name": "w9"}})
    assert joined == Join(model=WorkerModel("w9", speed=Fixed()), at_s=0)


@pytest.mark.parametrize(
    ("fault", "ends_at_s"),
    [
        (Hang(worker="w", at_s=2.0, for_s=3.0), 5.0),
        (Hang(worker="w", at_s=2.0), None),
        (Crash(worker="w", at_s=2.0), None),
        (SchedulerLag(at_s=1.0, for_s=0.5), 1.5),
    ],
)
def test_when_a_fault_is_over(fault: Fault, ends_at_s: float | None) -> None:
    assert fault.ends_at_s == ends_at_s


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"fault": "Crsh", "worker": "w0", "at_s": 1},
            "fault 'Crsh' is not known, must be one of .*did you mean Crash",
        ),
        ({"fault": "???", "at_s": 1}, r"fault '\?\?\?' is not known"),
        ({"worker": "w0", "at_s": 1}, "fault None is not known"),
        ("Crash", "fault is 'Crash', must be a mapping with the key 'fault'"),
        ({"fault": "Crash", "at_s": 1}, "Crash: .*missing.*'worker'"),
        ({"fault": "Crash", "worker": "w0", "at_s": 1, "when": 2}, "Crash has no 'when', only at_s, worker"),
        ({"fault": "Crash", "worker": "w0", "at_s": -1}, "Crash.at_s is -1, must be a finite number, 0 or more"),
        (
            {"fault": "Crash", "worker": "w0", "at_s": "soon"},
            "Crash.at_s is 'soon', must be a finite number, 0 or more",
        ),
        ({"fault": "Partition", "workers": "w0", "at_s": 1}, "Partition.workers is 'w0', must be a list of names"),
        ({"fault": "Join", "at_s": 1, "model": {"threads": 2}}, "Join.model: .*missing.*'name'"),
        ({"fault": "Join", "at_s": 1, "model": {"name": "a", "cores": 2}}, "Join.model has no 'cores', only .*threads"),
        ({"fault": "Join", "at_s": 1, "model": "w9"}, "Join.model is 'w9', must be a mapping"),
        (
            {"fault": "Join", "at_s": 1, "model": {"name": "a", "speed": {"kind": "Suden"}}},
            r"Join.model.speed: kind 'Suden' is not known.*did you mean Sudden",
        ),
    ],
)
def test_a_script_that_is_wrong_gets_one_line(values: object, says: str) -> None:
    with pytest.raises(TwinError, match=says) as caught:
        from_json(values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Crash(worker="w", at_s=-1.0), "Crash.at_s is -1.0, must be a finite number, 0 or more"),
        (lambda: Crash(worker="w", at_s=float("nan")), "Crash.at_s is nan"),
        (lambda: Hang(worker="w", at_s=0.0, for_s=-2.0), "Hang.for_s is -2.0"),
        (lambda: HoldGil(worker="w", at_s=0.0, for_s=float("inf")), "HoldGil.for_s is inf"),
        (lambda: Preempt(worker="w", at_s=0.0, notice_s=-30.0), "Preempt.notice_s is -30.0"),
        (lambda: SlowDown(worker="w", at_s=0.0, factor=0.0), "SlowDown.factor is 0.0, must be a finite number above 0"),
        (lambda: SlowDown(worker="w", at_s=0.0, factor=-1.0), "SlowDown.factor is -1.0"),
    ],
)
def test_a_fault_that_can_not_be_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(TwinError, match=says):
        make()


# -- which workers there are -------------------------------------------------------------------------------------


def test_faults_may_name_workers_that_join_later() -> None:
    check([Crash(worker="new", at_s=5.0), Join(model=WorkerModel("new"), at_s=1.0)], ["w0"])


@pytest.mark.parametrize(
    "fault", [Crash(worker="worker-l", at_s=1.0), Partition(workers=("worker-0", "worker-l"), at_s=1.0)]
)
def test_a_worker_that_is_never_there_is_named_with_the_nearest_one(fault: Fault) -> None:
    name = type(fault).__name__
    with pytest.raises(TwinError, match=f"{name} at 1.0 s names worker 'worker-l', which does not exist; did you mean"):
        check([fault], ["worker-0", "worker-1"])


def test_a_worker_that_joins_needs_a_name_of_its_own() -> None:
    with pytest.raises(TwinError, match=r"Join at 1.0 s: worker name 'w0' is taken"):
        check([Join(model=WorkerModel("w0"), at_s=1.0)], ["w0"])
    with pytest.raises(TwinError, match=r"Join at 2.0 s: worker name 'a' is taken"):
        check([Join(model=WorkerModel("a"), at_s=1.0), Join(model=WorkerModel("a"), at_s=2.0)], ["w0"])


# -- random processes --------------------------------------------------------------------------------------------


def crashes(seed: int, until_s: float = 1000.0) -> list[Fault]:
    return at_random(Crash, workers=["a", "b", "c"], mean_between_s=10.0, until_s=until_s, rng=random.Random(seed))


def test_the_seed_decides_about_a_random_process() -> None:
    assert crashes(1) == crashes(1)
    assert crashes(1) != crashes(2)


def test_a_random_process_has_the_rate_that_was_asked_for() -> None:
    drawn = crashes(0, until_s=20_000.0)
    assert len(drawn) == pytest.approx(2_000, rel=0.1)
    assert [fault.at_s for fault in drawn] == sorted(fault.at_s for fault in drawn)
    assert drawn[-1].at_s < 20_000.0
    assert {fault.worker for fault in drawn if isinstance(fault, Crash)} == {"a", "b", "c"}


def test_details_go_to_each_fault() -> None:
    drawn = at_random(
        SlowDown, workers=["a"], mean_between_s=1.0, until_s=9.0, rng=random.Random(0), factor=0.5, for_s=2.0
    )
    assert drawn
    assert all(isinstance(fault, SlowDown) and (fault.factor, fault.for_s) == (0.5, 2.0) for fault in drawn)


@pytest.mark.parametrize("mean_between_s", [0.0, -1.0, float("nan")])
def test_a_process_needs_a_mean_above_0(mean_between_s: float) -> None:
    with pytest.raises(TwinError, match=r"mean_between_s is .*, must be above 0"):
        at_random(Crash, workers=["a"], mean_between_s=mean_between_s, until_s=1.0, rng=random.Random(0))


def test_what_happens_to_no_worker_can_be_drawn_too() -> None:
    drawn = at_random(SchedulerLag, mean_between_s=1.0, until_s=9.0, rng=random.Random(0), for_s=0.5)
    assert drawn
    assert all(isinstance(fault, SchedulerLag) for fault in drawn)


def test_workers_that_join_at_random_are_numbered() -> None:
    model = WorkerModel("spot", threads=2)
    drawn = at_random(Join, model=model, mean_between_s=1.0, until_s=9.0, rng=random.Random(0))
    models = [fault.model for fault in drawn if isinstance(fault, Join)]
    assert [each.name for each in models] == [f"spot-{i + 1}" for i in range(len(drawn))]
    assert {each.threads for each in models} == {2}


def test_a_partition_that_is_drawn_has_one_worker() -> None:
    drawn = at_random(Partition, workers=["a", "b"], mean_between_s=1.0, until_s=20.0, rng=random.Random(0), for_s=1.0)
    assert {fault.workers for fault in drawn if isinstance(fault, Partition)} == {("a",), ("b",)}


def test_a_process_needs_workers() -> None:
    with pytest.raises(TwinError, match="no workers"):
        at_random(Crash, workers=[], mean_between_s=1.0, until_s=1.0, rng=random.Random(0))
