"""The conformance suite: what holds for each model of the zoo alone, and for all of them together."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterable

import pytest

from scheduler_plugins.learn.costs import ZOO, Costs
from scheduler_plugins.learn.protocol import CostModel, Observation, Prediction, TaskFeatures
from tests.support.synthetic_tasks import SETS, Task, by_argument, by_input_bytes, on_unequal_workers

Make = Callable[[], Costs]
ZOOS = [*((name,) for name in ZOO), ZOO]


@pytest.fixture(params=ZOOS, ids="+".join)
def make(request: pytest.FixtureRequest) -> Make:
    return lambda: Costs(random.Random(7), zoo=request.param)


class Tick:
    """A clock that moves when it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-4
        return self.now_s


def taught(costs: Costs, tasks: Iterable[Task]) -> Costs:
    clock = Tick()
    for i, task in enumerate(tasks):
        costs.observe(task.features, task.observation)
        if i % 100 == 0:
            costs.learn_pending(1.0, clock)
    return costs


def asked() -> list[TaskFeatures]:
    return [task.features for make in SETS.values() for task in make(30, 99)]


def test_it_is_a_cost_model(make: Make) -> None:
    model: CostModel = make()
    assert model.predict(TaskFeatures("f")) is None
    assert model.predict_output(TaskFeatures("f")) is None
    assert model.predict_peak(TaskFeatures("f")) is None


def test_an_unknown_function_has_dasks_average_and_says_so(make: Make) -> None:
    guess = make().predict(TaskFeatures("f"), prior_s=0.5)
    assert guess is not None
    assert (guess.p50_s, guess.samples, guess.source) == (0.5, 0, "prior")
    assert guess.p50_s < guess.p90_s < guess.p99_s


@pytest.mark.parametrize("prior_s", [math.nan, math.inf, -1.0, 0.0])
def test_a_prior_that_is_no_duration_is_none(make: Make, prior_s: float) -> None:
    assert make().predict(TaskFeatures("f"), prior_s) is None


def test_one_task_is_enough_to_be_near(make: Make) -> None:
    costs = make()
    costs.observe(TaskFeatures("f", ("n",), (3.0,)), Observation(0.2, output_bytes=1000, peak_bytes=5000))
    known = costs.predict(TaskFeatures("f", ("n",), (3.0,)))
    assert known is not None
    assert known.p50_s == pytest.approx(0.2, rel=0.05)
    assert known.p90_s > 0.3, "one task is no reason to be sure"
    output, peak = (
        costs.predict_output(TaskFeatures("f", ("n",), (3.0,))),
        costs.predict_peak(TaskFeatures("f", ("n",), (3.0,))),
    )
    assert output is not None
    assert output.p50_bytes == pytest.approx(1000, rel=0.1)
    assert peak is not None
    assert peak.p50_bytes == pytest.approx(5000, rel=0.1)


@pytest.mark.parametrize("name", SETS)
def test_predictions_are_finite_positive_and_in_order(make: Make, name: str) -> None:
    costs = taught(make(), SETS[name](400))
    for features in asked():
        if (said := costs.predict(features)) is not None:
            assert all(map(math.isfinite, said[:5])), features
            assert 0.0 < said.p50_s <= said.p90_s <= said.p99_s, features
            assert said.source in ZOO


def test_it_is_deterministic(make: Make) -> None:
    one, other = (taught(make(), by_argument(600)) for _ in range(2))
    assert [one.predict(features) for features in asked()] == [other.predict(features) for features in asked()]


def test_asking_changes_nothing(make: Make) -> None:
    asked_between, left_alone = make(), make()
    for task in by_argument(300):
        for features in (task.features, task.features._replace(input_bytes=1e6)):
            asked_between.predict(features)
        asked_between.observe(task.features, task.observation)
        left_alone.observe(task.features, task.observation)
    assert asked_between.to_state() == left_alone.to_state()


@pytest.mark.parametrize("duration_s", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_what_is_no_duration_is_ignored_and_counted(make: Make, duration_s: float) -> None:
    costs = taught(make(), by_argument(200))
    before = json.dumps(costs.to_state())
    costs.observe(next(by_argument()).features, Observation(duration_s))
    assert json.dumps(costs.to_state()) == before
    assert costs.ignored == 1


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_what_is_no_size_is_ignored_and_the_duration_is_not(make: Make, size: float) -> None:
    costs = make()
    costs.observe(TaskFeatures("f"), Observation(1.0, output_bytes=size, peak_bytes=size))
    assert costs.predict(TaskFeatures("f")) is not None
    assert costs.predict_output(TaskFeatures("f")) is None
    assert costs.ignored == 2


def test_a_task_of_no_time_at_all_is_a_short_one(make: Make) -> None:
    costs = make()
    for _ in range(100):
        costs.observe(TaskFeatures("f"), Observation(0.0))
    said = costs.predict(TaskFeatures("f"))
    assert said is not None
    assert 0.0 < said.p50_s < 1e-5


def test_what_is_learned_survives_a_snapshot(make: Make) -> None:
    costs = taught(make(), by_argument(1500))
    warm = make()
    assert warm.merge(json.loads(json.dumps(costs.to_state()))) == len(costs)
    for task in by_argument(50, seed=0):
        before, after = costs.predict(task.features), warm.predict(task.features)
        assert before is not None
        assert after is not None
        assert after.p50_s == pytest.approx(before.p50_s, rel=0.25)


def test_a_snapshot_of_a_snapshot_says_the_same(make: Make) -> None:
    costs = taught(make(), [*by_input_bytes(600), *on_unequal_workers(600)])
    once, twice = make(), make()
    once.merge(json.loads(json.dumps(costs.to_state())))
    twice.merge(json.loads(json.dumps(once.to_state())))
    for features in asked():
        one, two = once.predict(features), twice.predict(features)
        assert (one is None) == (two is None)
        if one and two:
            assert two.p50_s == pytest.approx(one.p50_s, rel=1e-6)


def test_the_error_that_it_gives_is_the_error_that_it_makes(make: Make) -> None:
    costs = taught(make(), by_argument(2000))
    misses: list[float] = []
    said: list[Prediction] = []
    for task in [*by_argument(2500)][2000:]:
        prediction = costs.predict(task.features)
        assert prediction is not None
        said.append(prediction)
        misses.append(abs(math.log(task.observation.duration_s / prediction.p50_s)))
        costs.observe(task.features, task.observation)
    claimed = sorted(prediction.error for prediction in said)[250]
    assert claimed == pytest.approx(sorted(misses)[250], rel=0.35)


def test_what_it_needs_is_no_dask() -> None:
    script = "import sys, scheduler_plugins.learn.costs, scheduler_plugins.learn.features;"
    script += "print(*(m for m in ('dask', 'distributed', 'pandas', 'tornado') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
