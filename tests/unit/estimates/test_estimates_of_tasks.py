"""What is said of Dask's tasks, learned from what Dask says of them: one story each."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest

from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask import estimates as module
from scheduler_plugins.on_dask.estimates import Estimates
from tests.support.scheduler_tasks import UNKNOWN_S, Tasks, details, learn

HERE, THERE, SLOW = "tcp://10.0.0.1:1", "tcp://10.0.0.2:1", "tcp://10.0.0.3:1"


def work(*args: Any, **kwargs: Any) -> None:
    """A function that is never called."""


def other(*args: Any) -> None:
    """Another one."""


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def known(tasks: Tasks) -> Estimates:
    return Estimates(tasks.scheduler, Costs(random.Random(0)))


def taught(known: Estimates, tasks: Tasks, seconds: float = 1.0, spread: float = 0.05, count: int = 40) -> None:
    """`work()` takes so long on each of two workers."""
    rng = random.Random(1)
    for i in range(count):
        learn(known, tasks.task(work), seconds * math.exp(rng.gauss(0, spread)), (HERE, THERE)[i % 2])


# -- before anything is known ----------------------------------------------------------------------------------------


def test_an_unknown_function_takes_what_dask_thinks(known: Estimates, tasks: Tasks) -> None:
    task = tasks.task(work)
    guess = known.of(task)
    assert (guess.p50_s, guess.samples, guess.error) == (UNKNOWN_S, 0, 1.0)
    assert guess.p50_s < guess.p90_s < guess.p99_s
    assert guess.output_bytes is None
    assert guess.peak_bytes is None
    task.prefix.duration_average = 3.0
    assert known.of(task).p50_s == 3.0


@pytest.mark.parametrize("average_s", [math.nan, math.inf, -1, 0])
def test_an_average_that_makes_no_sense_does_no_harm(known: Estimates, tasks: Tasks, average_s: float) -> None:
    task = tasks.task(work)
    task.prefix.duration_average = average_s
    assert 0 < known.of(task).p50_s <= UNKNOWN_S


def test_without_a_model_dask_answers_and_what_finishes_waits(tasks: Tasks) -> None:
    estimates = Estimates(tasks.scheduler)
    for _ in range(3):
        learn(estimates, tasks.task(work), 2.0, HERE)
    assert estimates.of(tasks.task(work)).samples == 0
    assert estimates.factor(tasks.task(work), tasks.worker(HERE)) == 1.0
    assert len(estimates._waiting) == 3
    estimates.worker_left(HERE)


def test_what_waits_for_the_model_is_bounded(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    estimates = Estimates(tasks.scheduler)
    for _ in range(9):
        learn(estimates, tasks.task(work), 2.0, HERE)
    assert len(estimates._waiting) == 5


# -- learning --------------------------------------------------------------------------------------------------------


def test_one_task_teaches_and_does_not_pretend_to_be_sure(known: Estimates, tasks: Tasks) -> None:
    waiting = tasks.task(work)
    assert known.of(waiting).samples == 0
    learn(known, tasks.task(work), 4.0, HERE)
    said = known.of(waiting)
    assert said.p50_s == pytest.approx(4.0)
    assert (said.samples, said.error) == (1, 1.0)
    learn(known, tasks.task(work), 4.0, HERE)
    assert known.of(waiting).error == 0.5


def test_arguments_and_functions_are_told_apart(known: Estimates, tasks: Tasks) -> None:
    rng = random.Random(0)
    for _ in range(60):
        n = rng.randint(1, 100)
        learn(known, tasks.task(work, n), 0.1 * n, HERE, nbytes=1000 * n)
        learn(known, tasks.task(other, n), 7.0, HERE)
    for n in (5, 50):
        said = known.of(tasks.task(work, n))
        assert said.p50_s == pytest.approx(0.1 * n, rel=0.1)
        assert said.output_bytes == pytest.approx(1000 * n, rel=0.1)
        assert known.of(tasks.task(other, n)).p50_s == pytest.approx(7.0, rel=0.05)
    assert known.function(tasks.task(work, 1)).endswith(".work")


def test_the_size_of_the_inputs_counts(known: Estimates, tasks: Tasks) -> None:
    for i in range(60):
        size = 10_000 * (1 + i % 30)
        learn(known, tasks.task(work, inputs=[tasks.task(other, nbytes=size)]), 1e-6 * size, HERE)
    for size in (20_000, 250_000):
        task = tasks.task(work, inputs=[tasks.task(other, nbytes=size)])
        assert known.of(task).p50_s == pytest.approx(1e-6 * size, rel=0.15)


def test_inputs_that_come_later_are_looked_at_again(known: Estimates, tasks: Tasks) -> None:
    for i in range(60):
        size = 10_000 * (1 + i % 30)
        learn(known, tasks.task(work, inputs=[tasks.task(other, nbytes=size)]), 1e-6 * size, HERE)
    source = tasks.task(other)
    task = tasks.task(work, inputs=[source])
    task.waiting_on = {source}
    # Those of its like have returned 155 kB on average.
    assert known.of(task).p50_s == pytest.approx(0.155, rel=0.3)
    source.set_nbytes(20_000)
    task.waiting_on.clear()
    assert known.of(task).p50_s == pytest.approx(0.02, rel=0.2)


def test_the_same_answer_is_given_until_there_is_news(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks, 1.0, 0.0)
    learn(known, tasks.task(work), 1.0, HERE)
    task = tasks.task(work)
    said = known.of(task)
    learn(known, tasks.task(work), 1.0, HERE)
    assert known.of(task) is said
    assert known.of(tasks.task(work)) is said
    for _ in range(3):
        learn(known, tasks.task(work), 3.0)
    assert known.of(task).p50_s > 1.05


def test_memory_of_tasks_is_learned_where_somebody_looked(known: Estimates, tasks: Tasks) -> None:
    for _ in range(20):
        learn(known, tasks.task(work), 1.0, HERE, peak_at_most_bytes=9e8)
    assert known.of(tasks.task(work)).peak_bytes == pytest.approx(9e8, rel=0.3)
    for _ in range(40):
        learn(known, tasks.task(work), 1.0, HERE, peak_bytes=2e8)
    for _ in range(40):
        learn(known, tasks.task(work), 1.0, HERE, peak_at_most_bytes=9e8)
    assert known.of(tasks.task(work)).peak_bytes == pytest.approx(2e8, rel=0.3)


# -- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration_s", [math.nan, math.inf, -3600.0, 1e300, None])
def test_a_duration_that_makes_no_sense_teaches_nothing(
    known: Estimates, tasks: Tasks, duration_s: float | None
) -> None:
    taught(known, tasks)
    before = known.of(tasks.task(work))
    for _ in range(50):
        known.finished(tasks.task(work), HERE, details(duration_s))
    assert known.of(tasks.task(work)) == before


def test_a_clock_that_was_set_by_hours_does_little(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    learn(known, tasks.task(work), 1e7, HERE)
    learn(known, tasks.task(work), 0.0, HERE)
    assert known.of(tasks.task(work)).p50_s == pytest.approx(1.0, rel=0.3)
    assert known.factor(tasks.task(work), tasks.worker(HERE)) == pytest.approx(1.0, rel=0.5)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"startstops": None, "nbytes": 1},
        {"startstops": [{"action": "compute"}], "nbytes": 1},
        {"startstops": [{"action": "compute", "start": "x", "stop": 1}], "nbytes": 1},
        {"startstops": [{"action": "compute", "start": 0, "stop": 1}], "nbytes": "many"},
        {"startstops": [{"action": "compute", "start": 0, "stop": 1}], "nbytes": 1, "metadata": {"swarm": 3}},
        {"startstops": [{"action": "transfer", "start": 0, "stop": 1, "source": "?"}], "nbytes": 1},
    ],
)
def test_what_a_worker_says_may_be_nonsense(known: Estimates, tasks: Tasks, said: dict[str, Any]) -> None:
    known.finished(tasks.task(work), HERE, said)
    assert known.malformed == 1
    assert known.of(tasks.task(work)).samples == 0


class Awkward:
    """As unhelpful as an object can be."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError

    def __call__(self) -> None:
        """A task, too."""


ARGUMENTS: dict[str, tuple[object, ...]] = {
    "awkward": (Awkward(),),
    "not finite": (math.nan, math.inf),
    "list of the awkward": ([Awkward()] * 3,),
    "huge": (10**400,),
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_are_whatever_people_pass(known: Estimates, tasks: Tasks, arguments: tuple[object, ...]) -> None:
    for _ in range(5):
        learn(known, tasks.task(work, *arguments), 2.0, HERE)
    assert known.of(tasks.task(work, *arguments)).p50_s == pytest.approx(2.0)


FUNCTIONS: dict[str, Any] = {
    "awkward": Awkward(),
    "partial": functools.partial(work, 3),
    "awkward partial": functools.partial(Awkward()),
    "builtin": print,
    "class": dict,
    "method": "".join,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_whatever_can_be_called(known: Estimates, tasks: Tasks, function: Any) -> None:
    for _ in range(3):
        learn(known, tasks.task(function, prefix="odd"), 2.0, HERE)
    task = tasks.task(function, prefix="odd")
    assert known.of(task).p50_s == pytest.approx(2.0)
    assert known.function(task)


def test_data_without_a_task_has_an_estimate_too(known: Estimates, tasks: Tasks) -> None:
    assert known.of(tasks.task(None)).samples == 0
    assert known.function(tasks.task(None)) == "data"


def test_a_function_written_anew_is_another_one(known: Estimates, tasks: Tasks) -> None:
    """In a notebook the name stays, and what it does changes."""

    def version(source: str) -> Any:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(source, names)
        return names["step"]

    quick, slow = version("def step(x): return x"), version("def step(x): return [y for y in range(x)]")
    for _ in range(20):
        learn(known, tasks.task(quick, 1), 0.01, HERE)
    for _ in range(3):
        learn(known, tasks.task(slow, 1), 5.0, HERE)
    assert known.of(tasks.task(slow, 1)).p50_s == pytest.approx(5.0)
    assert known.of(tasks.task(version("def step(x): return x"), 1)).p50_s == pytest.approx(0.01)
    assert known.function(tasks.task(slow, 1)) == "__main__.step"


def test_a_hundred_thousand_functions_take_bounded_memory(tasks: Tasks) -> None:
    known = Estimates(tasks.scheduler, Costs(random.Random(0), functions=100))
    first = tasks.task(work, prefix="first")
    learn(known, first, 1.0, HERE)
    assert known.of(first).samples == 1
    key, x = known._tasks[first].key, known._tasks[first].x
    observation = known._observation(first, HERE, details(1.0))
    assert observation is not None
    assert known._costs is not None
    for i in range(100_000):
        known._costs.learn((f"f{i}", key[1]), x, HERE, observation)
    assert len(known._costs) == 100
    assert known.of(first).samples == 0, "it was forgotten, and says so"


def test_what_is_forgotten_is_gone(known: Estimates, tasks: Tasks) -> None:
    made = [tasks.task(work) for _ in range(5)]
    for task in made:
        known.of(task)
        known.running_for(task, HERE, 1.0)
    assert len(known) == 5
    for task in made:
        known.forget(task)
        known.forget(task)
    assert len(known) == 0


# -- workers ---------------------------------------------------------------------------------------------------------


def test_a_slow_worker_is_found_out(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    for _ in range(6):
        learn(known, tasks.task(work), 4.0, SLOW)
    task = tasks.task(work)
    known.of(task)
    assert known.factor(task, tasks.worker(SLOW)) == pytest.approx(4.0, rel=0.25)
    assert known.factor(task, tasks.worker(HERE)) == pytest.approx(1.0, rel=0.1)
    known.worker_left(SLOW)
    assert known.worker_factor(tasks.worker(SLOW))[0] == 1.0


def test_one_slow_task_does_not_shut_a_worker_out_for_ever(known: Estimates, tasks: Tasks) -> None:
    """The probe learned a speed from one sample, gave that worker nothing any more, and so never learned better."""
    taught(known, tasks)
    learn(known, tasks.task(work), 10.0, SLOW)
    slow = tasks.worker(SLOW)
    factors = [known.worker_factor(slow)[0]]
    assert 1.2 < factors[0] < 7.0
    known.tick(0.0)
    for second in range(1, 301):
        known.tick(float(second))
        factors.append(known.worker_factor(slow)[0])
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] < 1.1


def test_a_slow_worker_that_many_tasks_have_shown_stays_slow_for_a_while(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    for _ in range(20):
        learn(known, tasks.task(work), 10.0, SLOW)
    for second in range(61):
        known.tick(float(second))
    assert known.worker_factor(tasks.worker(SLOW))[0] > 4.0


# -- tasks that still run --------------------------------------------------------------------------------------------


def test_a_task_in_its_time_says_nothing(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    task = tasks.task(work)
    for elapsed_s in (0.0, 0.5, known.of(task).p90_s, math.nan, math.inf, -1.0):
        known.running_for(task, SLOW, elapsed_s)
    assert known.factor(task, tasks.worker(SLOW)) == 1.0


def test_a_steady_task_that_is_late_makes_its_worker_look_slow_until_it_ends(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    late, slow = tasks.task(work), tasks.worker(SLOW)
    late.processing_on = slow
    known.running_for(late, SLOW, 3.0)
    after_3_s = known.factor(late, slow)
    known.running_for(late, SLOW, 10.0)
    after_10_s = known.factor(late, slow)
    assert 1.5 < after_3_s < 3.0 < after_10_s < 10.0
    assert known.worker_factor(slow)[0] == after_10_s
    known.tick(0.0)
    known.tick(1.0)
    assert known.worker_factor(slow)[0] == after_10_s
    known.stopped(late)
    assert known.worker_factor(slow)[0] == 1.0


def test_one_late_task_of_a_wide_function_says_little_and_several_say_more(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks, spread=1.0, count=200)
    late = [tasks.task(work) for _ in range(4)]
    factors = []
    for task in late:
        known.running_for(task, SLOW, 20.0)
        factors.append(known.worker_factor(tasks.worker(SLOW))[0])
    assert factors == sorted(factors)
    assert factors[0] < 1.6
    assert factors[3] > factors[0] ** 2


def test_what_is_known_of_a_slow_worker_is_not_counted_twice(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    for _ in range(20):
        learn(known, tasks.task(work), 4.0, SLOW)
    before = known.worker_factor(tasks.worker(SLOW))[0]
    known.running_for(tasks.task(work), SLOW, 4.0)
    assert known.worker_factor(tasks.worker(SLOW))[0] == before


def test_a_late_task_that_is_taken_away_falls_off(known: Estimates, tasks: Tasks) -> None:
    taught(known, tasks)
    late, before = tasks.task(work), known.worker_factor(tasks.worker(HERE))[0]
    late.processing_on = tasks.worker(SLOW)
    known.running_for(late, SLOW, 30.0)
    late.processing_on = tasks.worker(HERE)
    known.tick(0.0)
    known.tick(1.0)
    assert known.worker_factor(tasks.worker(SLOW))[0] == 1.0
    known.running_for(late, HERE, 30.0)
    known.running_for(late, THERE, 30.0)
    assert known.worker_factor(tasks.worker(HERE))[0] == before, "a task runs in one place"
    known.worker_left(THERE)
    assert known.worker_factor(tasks.worker(THERE))[0] == 1.0
    assert not known._late.on


def test_a_late_task_of_an_unknown_function_says_nothing(known: Estimates, tasks: Tasks) -> None:
    task = tasks.task(work)
    known.running_for(task, SLOW, 1000.0)
    assert known.factor(task, tasks.worker(SLOW)) == 1.0


# -- data ------------------------------------------------------------------------------------------------------------


def test_transfers_begin_with_dasks_bandwidth(known: Estimates) -> None:
    assert known.transfer_s(1e8, HERE, HERE) == 0.0
    assert known.transfer_s(1e8, HERE, THERE) == pytest.approx(1.0, rel=0.05)
    assert known.bandwidth(HERE, THERE) == 1e8
    assert known.transfer_s(0, HERE, "elsewhere") < 0.1


def test_links_are_learned_from_fetches(known: Estimates, tasks: Tasks) -> None:
    here = tasks.worker(HERE)
    for _ in range(20):
        large = tasks.task(other, nbytes=10**7, held_by=[here])
        learn(known, tasks.task(work, inputs=[large]), 1.0, THERE, transfers=[(HERE, 1.0)])
        small = tasks.task(other, nbytes=100, held_by=[here])
        learn(known, tasks.task(work, inputs=[small]), 1.0, THERE, transfers=[(HERE, 0.02)])
    assert known.transfer_s(0, HERE, THERE) == pytest.approx(0.02, rel=0.1)
    assert known.bandwidth(HERE, THERE) == pytest.approx(1e7, rel=0.1)
    assert known.transfer_s(1e7, HERE, THERE) == pytest.approx(1.0, rel=0.1)
    assert known.bandwidth(SLOW, THERE) == pytest.approx(1e7, rel=0.1), "as all links between hosts, until it is known"
    assert known.bandwidth("tcp://10.0.0.3:1", "tcp://10.0.0.3:2") == 1e8, "within a host is another matter"


def test_what_dask_measured_between_two_workers_counts(known: Estimates, tasks: Tasks) -> None:
    tasks.scheduler.bandwidth_workers[THERE, HERE] = 5e6
    for _ in range(20):
        learn(known, tasks.task(work), 1.0, THERE, transfers=[(HERE, 0.1)])
    assert known.bandwidth(HERE, THERE) == pytest.approx(5e6, rel=0.01)


@pytest.mark.parametrize("seconds", [math.nan, -5.0, 0.0, math.inf, 1e9])
def test_fetches_of_a_strange_length_do_no_harm(known: Estimates, tasks: Tasks, seconds: float) -> None:
    for nbytes in (100, 10**8):
        held = tasks.task(other, nbytes=nbytes, held_by=[tasks.worker(HERE)])
        learn(known, tasks.task(work, inputs=[held]), 1.0, THERE, transfers=[(HERE, seconds)])
    assert 0 < known.transfer_s(1e6, HERE, THERE) < math.inf


def test_it_cannot_be_told_which_of_two_inputs_came(known: Estimates, tasks: Tasks) -> None:
    held = [tasks.task(other, nbytes=10**7, held_by=[tasks.worker(HERE)]) for _ in range(2)]
    learn(known, tasks.task(work, inputs=held), 1.0, THERE, transfers=[(HERE, 9.0)])
    assert known.bandwidth(HERE, THERE) == 1e8


def test_a_task_of_an_unknown_function_that_still_runs_shows_how_long_others_are(
    known: Estimates, tasks: Tasks
) -> None:
    """Twelve tasks of 3 s were begun last, because they were thought to take half a second until one had ended."""
    running, waiting = tasks.task(other), tasks.task(other)
    assert not known.is_longer(running, 0.1), "that is no longer than was thought"
    assert known.is_longer(running, 2.0)
    assert known.of(waiting).p50_s == 4.0
    assert known.of(waiting).samples == 0
    assert not known.is_longer(running, 3.0), "told already"
    learn(known, tasks.task(other), 0.2, HERE)
    assert known.of(waiting).p50_s == pytest.approx(0.2, rel=0.1), "one has ended"
