"""Work for a simulation: what a graph becomes, its costs, its order and its longest chain; and what is no graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import dask
import dask.array
import dask.bag
import pytest
from dask import delayed
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import SwarmError, TwinError
from swarm.twin.models import ByArgument, Constant, Cost, FromTrace, LogNormal
from swarm.twin.work import Work, fan_out, from_graph, independent, layered, made_up, simulated, tree

ONE_S = Constant(1.0)


def costs(work: Work) -> list[float]:
    return [cost.work_s for cost in work.costs.values()]


# -- any Dask work -----------------------------------------------------------------------------------------------


def test_a_dask_array() -> None:
    work = from_graph(dask.array.ones((8, 8), chunks=4).sum(), ONE_S, output_bytes=100)
    assert len(work) == work.total_s == 6  # four chunks with their sums, the sum of these, and the one result
    assert len(work.wanted) == 1
    assert {cost.output_bytes for cost in work.costs.values()} == {100}


def test_a_bag() -> None:
    work = from_graph(dask.bag.from_sequence(range(6), npartitions=3).map(abs).sum(), ONE_S)
    assert len(work) > 3
    assert work.critical_path_s < work.total_s


def test_delayed_calls() -> None:
    leaves = [delayed(abs, name=f"leaf{i}")(i, dask_key_name=f"leaf-{i}") for i in range(4)]
    work = from_graph(delayed(sum)(leaves, dask_key_name="all"), ONE_S)
    assert work.wanted == ("all",)
    assert {f"leaf-{i}" for i in range(4)} <= set(work.costs)


def test_a_graph_that_is_a_dict() -> None:
    work = from_graph({"a": 1, "b": (abs, "a"), ("c", 0): (max, "a", "b")}, ONE_S)
    assert work.wanted == (("c", 0),)
    assert work.dependencies["c", 0] == {"a", "b"}


def test_a_workload_by_name() -> None:
    work = from_graph("kmeans", ONE_S)
    assert work.name == "kmeans"
    assert len(work.wanted) == 1


def test_what_a_graph_asks_of_dask_is_kept() -> None:
    with dask.annotate(resources={"GPU": 1}):
        asks = delayed(abs)(1, dask_key_name="asks")
    work = from_graph(delayed(abs)(asks, dask_key_name="asks not"), ONE_S)
    assert work.annotations == {"resources": {"asks": {"GPU": 1}}}


def test_the_cost_may_be_a_function_of_the_key() -> None:
    work = from_graph({"a": (abs, 1), "b": (abs, "a")}, lambda key: Cost(2.0 if key == "a" else 3.0, peak_bytes=7))
    assert work.costs == {"a": Cost(2.0, peak_bytes=7), "b": Cost(3.0, peak_bytes=7)}


def test_the_size_of_results_may_be_a_function_of_the_key() -> None:
    work = from_graph({"a": (abs, 1), "b": (abs, "a")}, ONE_S, output_bytes=lambda key: 10 if key == "a" else 20)
    assert [work.costs[key].output_bytes for key in "ab"] == [10, 20]


def test_numbers_among_the_arguments_decide_about_the_duration() -> None:
    work = from_graph({"a": (pow, 3, 2), "b": (pow, 10, 2)}, ByArgument(0.5))
    assert {key: cost.work_s for key, cost in work.costs.items()} == {"a": 1.5, "b": 5.0}


def test_what_is_drawn_depends_on_the_seed_and_the_key_alone() -> None:
    graph = {f"t{i}": (abs, i) for i in range(50)}
    turned = dict(reversed(graph.items()))
    first, again = from_graph(graph, LogNormal(0.1, 1.0), seed=1), from_graph(turned, LogNormal(0.1, 1.0), seed=1)
    assert first.costs == again.costs
    assert first.costs != from_graph(graph, LogNormal(0.1, 1.0), seed=2).costs
    assert statistics.median(costs(first)) == pytest.approx(0.1, rel=0.5)


# -- made-up work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "tasks", "wanted", "critical_path_s"),
    [
        (lambda: independent(5, ONE_S), 5, 5, 1.0),
        (lambda: layered(4, 3, ONE_S), 12, 3, 4.0),
        (lambda: tree(8, ONE_S), 15, 1, 4.0),
        (lambda: tree(9, ONE_S, fan_in=3), 13, 1, 3.0),
        (lambda: tree(1, ONE_S), 1, 1, 1.0),
        (lambda: fan_out(6, ONE_S, root=Cost(2.0)), 7, 6, 3.0),
    ],
)
def test_shapes(make: Callable[[], Work], tasks: int, wanted: int, critical_path_s: float) -> None:
    work = make()
    assert len(work) == tasks
    assert critical_path_s == work.critical_path_s
    assert len(work.wanted) >= wanted


def test_made_up_tasks_can_not_be_run_for_real() -> None:
    with pytest.raises(TwinError, match="a simulated task has no function that could run"):
        dask.get(independent(1).graph, "task-0")
    with pytest.raises(TwinError):
        simulated()


def test_wanted_is_what_nothing_depends_on_unless_it_is_said() -> None:
    tasks: list[tuple[str, Sequence[str], Cost]] = [
        ("a", (), Cost(1.0)),
        ("b", ("a",), Cost(1.0)),
        ("c", (), Cost(1.0)),
    ]
    assert made_up(tasks).wanted == ("b", "c")
    assert made_up(tasks, wanted=["a"]).wanted == ("a",)


# -- what is no work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: made_up([("a", (), Cost(1.0)), ("a", (), Cost(1.0))], name="x"), "x: task 'a' is there twice"),
        (lambda: made_up([("a", ("b",), Cost(1.0))]), "task 'a' depends on 'b', which does not exist"),
        (
            lambda: made_up([("a", ("b",), Cost(1.0)), ("b", ("c",), Cost(1.0)), ("c", ("a",), Cost(1.0))]),
            "the graph is cyclic: .* → ",
        ),
        (lambda: made_up([("a", ("a",), Cost(1.0))]), "the graph is cyclic: a → a"),
        (lambda: made_up([]), "made up has no tasks"),
        (lambda: made_up([([], (), Cost(1.0))]), r"\[\] can't be a key"),
        (lambda: made_up([("a", (), Cost(1.0))], wanted=["z"]), "'z' is wanted and is no task of the graph"),
        (lambda: made_up([("a", (), Cost(-1.0))]), "work_s is -1.0, must be a finite number, 0 or more"),
        (lambda: independent(2, Constant(-1.0)), "work_s is -1.0"),
        (lambda: independent(-3), "count is -3, must be 1 or more"),
        (lambda: layered(0, 3), "layers is 0, must be 1 or more"),
        (lambda: layered(3, 0), "width is 0, must be 1 or more"),
        (lambda: tree(0), "leaves is 0, must be 1 or more"),
        (lambda: tree(4, fan_in=1), "fan_in is 1, must be 2 or more"),
        (lambda: fan_out(0), "count is 0, must be 1 or more"),
        (lambda: from_graph({}, ONE_S), "empty"),
        (lambda: from_graph({"a": (abs, "b"), "b": (abs, "a")}, ONE_S), "cycl"),
        (lambda: from_graph(42, ONE_S), "can't submit a int"),
        (lambda: from_graph("kmean", ONE_S), "did you mean kmeans"),
        (lambda: from_graph({"a": (abs, -1)}, ByArgument(1.0)), "work_s is -1.0"),
        (lambda: from_graph({"a": (abs, 1)}, FromTrace({"b": 1.0})), "the trace has no duration of task 'a'"),
        (lambda: from_graph({"a": (abs, 1)}, lambda key: 3.0), "the cost function returned 3.0 for 'a', must be a"),  # type: ignore[arg-type, return-value]
        (lambda: from_graph({"a": (abs, 1)}, 3.0), "durations is 3.0, must be a model of durations or a function"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_work_gets_one_line(make: Callable[[], Work], says: str) -> None:
    with pytest.raises(SwarmError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


# -- order, dependents, the longest chain ------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Work:
    count = draw(st.integers(1, 12))
    tasks = []
    for i in range(count):
        needs = draw(st.sets(st.integers(0, i - 1), max_size=4)) if i else set()
        tasks.append((i, sorted(needs), Cost(draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])))))
    return made_up(draw(st.permutations(tasks)))


def longest_s(work: Work, key: object) -> float:
    """Brute force: the longest of all chains that end here."""
    return work.costs[key].work_s + max((longest_s(work, need) for need in work.dependencies[key]), default=0.0)


@given(graphs())
def test_order_dependents_and_critical_path_of_any_graph(work: Work) -> None:
    place = {key: i for i, key in enumerate(work.order)}
    assert place.keys() == work.costs.keys()
    assert all(place[need] < place[key] for key, needs in work.dependencies.items() for need in needs)
    assert {(need, key) for key, needs in work.dependencies.items() for need in needs} == {
        (key, after) for key, afters in work.dependents.items() for after in afters
    }
    assert work.critical_path_s == max(longest_s(work, key) for key in work.costs)
    assert set(work.wanted) == {key for key, afters in work.dependents.items() if not afters}
