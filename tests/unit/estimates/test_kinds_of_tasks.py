"""Tasks that need not be read, and what is noticed nevertheless."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest

from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask import reading
from scheduler_plugins.on_dask.estimates import Estimates
from scheduler_plugins.on_dask.reading import LONGEST_STRIDE, MANY
from tests.support.scheduler_tasks import UNKNOWN_S, Tasks, details, learn

HERE, THERE = "tcp://10.0.0.1:1", "tcp://10.0.0.2:1"
SHORT_S = 2e-4


def work(*args: Any, **kwargs: Any) -> None:
    """A function that is never called."""


class Counted(Costs):
    """A cost model that counts what it is taught."""

    learned = 0

    def learn(self, *args: Any) -> None:
        self.learned += 1
        super().learn(*args)


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def costs() -> Counted:
    return Counted(random.Random(0))


@pytest.fixture
def known(tasks: Tasks, costs: Counted) -> Estimates:
    return Estimates(tasks.scheduler, costs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each task whose arguments are read."""
    found: list[object] = []
    own = reading.features_of_task

    def features_of_task(ts: Any) -> Any:
        found.append(ts)
        return own(ts)

    monkeypatch.setattr(reading, "features_of_task", features_of_task)
    return found


def run(known: Estimates, tasks: Tasks, number: int, seconds: float, **more: Any) -> None:
    """One task, from ready to forgotten."""
    task = tasks.task(work, number)
    known.of(task)
    learn(known, task, seconds, (HERE, THERE)[number % 2], **more)
    known.forget(task)


def calm(known: Estimates, tasks: Tasks, count: int) -> None:
    rng = random.Random(1)
    for number in range(count):
        run(known, tasks, number, SHORT_S * rng.uniform(0.8, 1.25))


def test_of_many_short_tasks_few_are_read_and_teach(
    known: Estimates, tasks: Tasks, costs: Counted, reads: list[object]
) -> None:
    calm(known, tasks, 3000)
    first, taught = len(reads), costs.learned
    calm(known, tasks, 3000)
    assert len(reads) - first < 1.5 * 3000 / LONGEST_STRIDE
    assert 0.5 * 3000 / LONGEST_STRIDE < costs.learned - taught < 1.5 * 3000 / LONGEST_STRIDE
    task = tasks.task(work, 1)
    assert known.of(task).p50_s == pytest.approx(SHORT_S, rel=0.2)
    assert known.is_light(task)


def test_tasks_that_were_read_while_little_was_known_need_no_books_either(known: Estimates, tasks: Tasks) -> None:
    """Thousands that came at once were read after the first had ended, and each kept what was read of it."""
    waiting = [tasks.task(work, number) for number in range(2 * MANY)]
    calm(known, tasks, 10)
    for task in waiting:
        known.of(task)
    assert not known.is_light(waiting[-1])
    calm(known, tasks, 1000)
    known.of(waiting[-1])
    assert known.is_light(waiting[-1])


def test_a_function_that_was_short_ten_thousand_times_and_is_not_any_more(known: Estimates, tasks: Tasks) -> None:
    calm(known, tasks, 10_000)
    waiting = tasks.task(work, 7)
    before = known.of(waiting)
    assert before.p99_s < 0.01
    assert known.is_light(waiting)
    run(known, tasks, 1, 5.0)
    assert known.of(waiting).p99_s > before.p99_s
    for number in range(16):
        run(known, tasks, number, 5.0)
    assert not known.is_light(waiting)
    assert known.of(waiting).p99_s > 5.0
    for number in range(48):
        run(known, tasks, number, 5.0)
    for address in (HERE, THERE):
        p50_s, *_ = known.told(waiting, tasks.worker(address))
        assert p50_s == pytest.approx(5.0, rel=0.1)
    assert known.worker_factor(tasks.worker(HERE))[0] == pytest.approx(1.0, abs=0.1), "it is not its workers' doing"


def test_a_short_function_that_takes_a_while_longer_is_soon_known_to(
    known: Estimates, tasks: Tasks, costs: Counted
) -> None:
    calm(known, tasks, 10_000)
    taught = costs.learned
    for number in range(32):
        run(known, tasks, number, 0.005)
    assert costs.learned == taught + 32
    assert known.of(tasks.task(work, 1)).p50_s == pytest.approx(0.005, rel=0.1)


def test_how_trifles_differ_is_not_learned(known: Estimates, tasks: Tasks, costs: Counted) -> None:
    """As tasks that do nothing on a busy machine: some models with arguments do best by chance."""
    rng = random.Random(5)
    for number in range(3000):
        run(known, tasks, number, 5e-5 * (1 + number % 7) + (0.003 if rng.random() < 0.003 else 0.0))
    assert costs.learned < 700
    task = tasks.task(work, 1)
    assert known.of(task).p50_s < 0.001
    assert known.is_light(task)


def test_one_surprise_is_soon_over(known: Estimates, tasks: Tasks, costs: Counted) -> None:
    calm(known, tasks, 10_000)
    taught = costs.learned
    run(known, tasks, 1, 0.005)
    assert costs.learned == taught + 1
    calm(known, tasks, 1000)
    assert costs.learned < taught + 100


def test_arguments_that_begin_to_matter(known: Estimates, tasks: Tasks) -> None:
    calm(known, tasks, 1000)
    rng = random.Random(2)
    for _ in range(600):
        number = rng.randint(1, 100)
        run(known, tasks, number, 0.1 * number)
    for number in (5, 50):
        assert known.of(tasks.task(work, number)).p50_s == pytest.approx(0.1 * number, rel=0.25)


def test_results_that_become_large(known: Estimates, tasks: Tasks) -> None:
    calm(known, tasks, 3000)
    for _ in range(1000):
        run(known, tasks, 3000, SHORT_S, nbytes=10**8)
    assert known.of(tasks.task(work, 3000)).output_bytes == pytest.approx(1e8, rel=0.5)
    assert known.of(tasks.task(work, 10)).output_bytes == pytest.approx(1e3, rel=0.5)
    assert not known.is_light(tasks.task(work, 3000))


def test_memory_that_a_worker_has_seen_is_not_passed_over(known: Estimates, tasks: Tasks) -> None:
    calm(known, tasks, 3000)
    for _ in range(100):
        run(known, tasks, 3000, SHORT_S, peak_bytes=10**9)
    assert known.peak_bytes(tasks.task(work, 3000)) == pytest.approx(1e9, rel=0.5)


def test_nobody_reads_tasks_of_which_nothing_is_known(known: Estimates, tasks: Tasks, reads: list[object]) -> None:
    waiting = [tasks.task(work, number) for number in range(1000)]
    for task in waiting:
        assert known.of(task).samples == 0
    assert len(reads) <= MANY
    waiting[0].prefix.duration_average = 3.0
    assert known.of(waiting[-1]).p50_s == 3.0
    for task in waiting[:20]:
        learn(known, task, 0.1 * (1 + task.run_spec.args[0]))  # type: ignore[union-attr]
    assert known.of(waiting[9]).p50_s == pytest.approx(1.0, rel=0.3)
    assert known.of(waiting[500]).p50_s > 10.0


def test_what_other_tasks_have_taught_the_function_is_known_at_once(known: Estimates, tasks: Tasks) -> None:
    waiting = [tasks.task(work, number) for number in range(20)]
    assert {known.of(task).p50_s for task in waiting} == {UNKNOWN_S}
    source = tasks.task(None, nbytes=100)
    learn(known, tasks.task(work, 1, inputs=[source]), 4.0)
    assert {known.of(task).samples for task in waiting} == {1}


def test_a_function_that_nobody_needs_is_not_kept_alive(known: Estimates, tasks: Tasks) -> None:
    def once(*args: Any) -> None:
        """Never called, either."""

    gone = weakref.ref(once)
    for number in range(100):
        task = tasks.task(once, number)
        known.of(task)
        learn(known, task, 1.0)
        known.forget(task)
    assert known._kinds._of
    del once, task
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("nonsense", [{}, {"startstops": None}, {"startstops": [{}], "nbytes": 1}, {"startstops": [3]}])
def test_what_makes_no_sense_teaches_nothing(
    known: Estimates, tasks: Tasks, costs: Counted, nonsense: dict[str, Any]
) -> None:
    calm(known, tasks, 1000)
    taught, task = costs.learned, tasks.task(work, 1)
    known.of(task)
    assert known.finished(task, HERE, nonsense) is None
    assert (known.malformed, costs.learned) == (1, taught)
    assert known.finished(task, HERE, details(SHORT_S)) == pytest.approx(SHORT_S, rel=1e-3)
