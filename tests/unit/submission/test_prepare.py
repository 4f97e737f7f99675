"""What can be submitted, which keys it is for, and what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import pytest
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync

from swarm.errors import SubmissionError, UnknownWorkloadError, WorkloadParameterError
from swarm.submission import Submission, prepare
from workloads import Verification, Workload


class Total(Workload):
    """Sum of the first whole numbers."""

    name = "total"
    up_to: int = 10

    def graph(self) -> Mapping[Any, Any]:
        return {"numbers": (range, self.up_to + 1), "total": (sum, "numbers")}

    def verify(self, result: Any) -> Verification:
        return Verification(result == 55, str(result))


class TwoEnds(Total):
    name = "two-ends"

    def graph(self) -> Mapping[Any, Any]:
        return {"a": 1, "b": 2}


class OfACollection(Total):
    name = "of-a-collection"

    def graph(self) -> Any:
        return da.arange(self.up_to + 1, chunks=4).sum()


class Duck:
    """No `Workload`, but it has all that one needs."""

    name = "duck"

    def graph(self) -> Mapping[Any, Any]:
        return {"quack": (str.upper, "quack!")}

    def verify(self, result: Any) -> Verification:
        return Verification(True, "it quacks")


def computed(submission: Submission) -> Any:
    """The answer, computed here and now by Dask's own synchronous scheduler."""
    graph = submission.graph
    tasks = dict(graph) if isinstance(graph, Mapping) else dict(graph.__dask_graph__())
    values = get_sync(tasks, list(submission.keys))
    return submission.assemble(dict(zip(submission.keys, values, strict=True)))


def refused(what: object, *arguments: Any, **options: Any) -> str:
    with pytest.raises(SubmissionError) as refusal:
        prepare(what, *arguments, **options)
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@delayed  # type: ignore[untyped-decorator]
def doubled(x: int) -> int:
    return 2 * x


def test_a_graph_with_one_end_gives_its_value() -> None:
    submission = prepare({"a": 1, "b": (sum, ["a", "a"])})
    assert (submission.name, submission.keys, submission.workload) == ("graph", ("b",), None)
    assert computed(submission) == 2


def test_a_graph_with_several_ends_gives_a_dict() -> None:
    submission = prepare({"a": 1, ("b", 0): (sum, ["a", 1]), ("b", 1): (sum, ["a", 2])})
    assert computed(submission) == {("b", 0): 2, ("b", 1): 3}


def test_the_keys_of_a_graph_that_are_asked_for() -> None:
    graph = {"a": 1, "b": (sum, ["a", 1]), "c": (sum, ["b", 1])}
    assert computed(prepare(graph, keys=["b"])) == {"b": 2}
    assert computed(prepare(graph, keys=("c", "a", "c"))) == {"a": 1, "c": 3}
    assert prepare(graph, keys=["b"], name="mine").name == "mine"


def test_a_high_level_graph() -> None:
    graph = HighLevelGraph.from_collections("plus", {"plus": (sum, [1, 2])}, dependencies=[])
    assert computed(prepare(graph)) == 3
    assert computed(prepare(graph, keys=["plus"])) == {"plus": 3}


def test_a_delayed() -> None:
    assert computed(prepare(doubled(doubled(3)))) == 12


def test_a_dask_array() -> None:
    submission = prepare(da.arange(10, chunks=3))
    assert submission.name == "array"
    assert len(submission.keys) == 1
    assert list(computed(submission)) == list(range(10))


@pytest.mark.parametrize("shape", [list, tuple])
def test_several_collections_keep_their_order_and_shape(shape: type) -> None:
    same = doubled(4)
    submission = prepare(shape([same, da.ones(6, chunks=2).sum(), doubled(1), same]))
    assert computed(submission) == shape([8, 6.0, 2, 8])


def test_many_calls() -> None:
    assert computed(prepare([doubled(i) for i in range(50)])) == [2 * i for i in range(50)]


def test_a_workload_and_its_name() -> None:
    workload = Total(up_to=4)
    submission = prepare(workload)
    assert (submission.name, submission.keys, submission.workload) == ("total", ("total",), workload)
    assert computed(submission) == 10
    assert prepare(workload, name="mine").name == "mine"


def test_a_workload_may_give_a_collection() -> None:
    submission = prepare(OfACollection())
    assert (submission.name, type(submission.workload)) == ("of-a-collection", OfACollection)
    assert computed(submission) == 55


def test_whatever_looks_like_a_workload_is_one() -> None:
    submission = prepare(Duck())
    assert submission.name == "duck"
    assert computed(submission) == "QUACK!"


def test_a_workload_by_name() -> None:
    submission = prepare("kmeans", {"clusters": "3"})
    assert submission.name == "kmeans"
    assert submission.workload is not None
    assert submission.workload.clusters == 3  # type: ignore[attr-defined] # its parameter
    assert len(submission.keys) == 1


def test_what_the_catalogue_refuses() -> None:
    with pytest.raises(UnknownWorkloadError, match="did you mean kmeans"):
        prepare("kmean")
    with pytest.raises(WorkloadParameterError, match="clusters"):
        prepare("kmeans", {"clusters": "many"})


def test_parameters_go_with_a_name() -> None:
    said = "parameters (up_to, mode) go with the name of a workload, not with a Total"
    assert refused(Total(), {"up_to": 3, "mode": "fast"}) == said
    assert "not with a dict" in refused({"a": 1}, {"clusters": 3})


@pytest.mark.parametrize("graph", [{}, HighLevelGraph({}, {})])
def test_an_empty_graph(graph: object) -> None:
    assert refused(graph) == "the graph is empty: give at least one task"


@pytest.mark.parametrize("nothing", [[], ()])
def test_an_empty_list(nothing: object) -> None:
    assert refused(nothing) == f"there is nothing to submit: the {type(nothing).__name__} is empty"


@pytest.mark.parametrize(
    "graph",
    [
        {"a": (sum, ["b"]), "b": (sum, ["a"])},
        {"a": (sum, ["a"])},
        {"end": 1, "a": (sum, ["b"]), "b": (sum, ["a"])},
        {"a": (sum, ["b"]), "b": (sum, ["c"]), "c": (sum, ["a"]), "d": (sum, ["c"])},
    ],
)
def test_a_cyclic_graph_names_its_cycle(graph: dict[str, Any]) -> None:
    said = refused(graph)
    assert said.startswith("the graph is cyclic: ")
    cycle = said.removeprefix("the graph is cyclic: ").split(" → ")
    assert len(cycle) > 1
    assert cycle[0] == cycle[-1]
    assert set(cycle) <= set(graph)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["nope"], "the graph has no key 'nope'; it has 2 others"),
        (["a", ("a", 1)], "the graph has no key ('a', 1); it has 2 others"),
        ([], "keys is empty: name the results that are wanted, or leave it out"),
        ("a", "keys is 'a', must be a list of keys: keys=['a']"),
    ],
)
def test_keys_that_are_wrong(keys: Any, said: str) -> None:
    assert refused({"a": 1, "b": 2}, keys=keys) == said


@pytest.mark.parametrize("what", [doubled(1), [doubled(1)], Total(), da.ones(2)])
def test_keys_go_with_a_graph(what: object) -> None:
    assert refused(what, keys=["a"]).startswith("keys go with a graph (a dict of tasks), not with a ")


def test_a_workload_must_have_one_end() -> None:
    assert refused(TwoEnds()) == "the graph of workload two-ends has 2 sinks, must have one"


@pytest.mark.parametrize("what", [None, 3, 2.5, b"kmeans", sum, Total, object(), [1, 2], [doubled(1), 3], {1, 2}])
def test_what_can_not_be_submitted(what: object) -> None:
    said = refused(what)
    assert said.startswith(f"can't submit a {type(what).__name__}: give the name of a workload")
