"""What can be submitted, and how it becomes one Dask expression with known keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.base import collections_to_expr, is_dask_collection
from dask.core import flatten, get_dependencies, getcycle
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph

from swarm.errors import SubmissionError
from workloads import WorkloadProtocol, create

Key = Any


@dataclass(frozen=True)
class Submission:
    """A graph that is ready to be sent, the keys it is for, and how its results make up the answer."""

    name: str
    graph: Any
    """What `distributed.Client.get` takes: an expression, a dict or a HighLevelGraph."""
    keys: tuple[Key, ...]
    assemble: Callable[[Mapping[Key, Any]], Any]
    """Results by key → the answer."""
    workload: WorkloadProtocol | None = None


def prepare(
    what: object, parameters: Mapping[str, Any] | None = None, *, keys: Sequence[Key] | None = None, name: str = ""
) -> Submission:
    """Make a submission of whatever a user hands in; nothing is sent yet.

    Parameters
    ----------
    what
        Name of a workload, a workload, a Dask collection or Delayed, a list or tuple of these, or a graph (a dict
        or a `HighLevelGraph`).
    parameters
        Of the workload, when `what` is its name.
    keys
        Of a graph: which results are wanted. By default those that no other task needs; a single one gives its
        value, several give a dict.
    name
        What people will see; by default that of the workload or collection.

    Raises
    ------
    SubmissionError
        `what` is none of these, or the graph is empty, cyclic or lacks a key.
    SwarmError
        What `workloads.create` raises.
    """
    if isinstance(what, str):
        what = create(what, **(parameters or {}))
    elif parameters:
        raise SubmissionError(
            f"parameters ({', '.join(parameters)}) go with the name of a workload, not with a {type(what).__name__}"
        )
    if keys is not None:
        _check_keys(what, keys)
    if isinstance(what, WorkloadProtocol) and not isinstance(what, type) and not is_dask_collection(what):
        inner = prepare(what.graph(), name=name or what.name)
        if len(inner.keys) != 1:
            raise SubmissionError(f"the graph of workload {what.name} has {len(inner.keys)} sinks, must have one")
        return Submission(inner.name, inner.graph, inner.keys, inner.assemble, what)
    if is_dask_collection(what):
        return _of_collections([what], name, lambda values: values[0])
    if isinstance(what, HighLevelGraph | Mapping):
        return _of_graph(what, keys, name or "graph")
    if isinstance(what, list | tuple) and not what:
        raise SubmissionError(f"there is nothing to submit: the {type(what).__name__} is empty")
    if isinstance(what, list | tuple) and all(map(is_dask_collection, what)):
        return _of_collections(what, name, type(what))
    raise SubmissionError(
        f"can't submit a {type(what).__name__}: give the name of a workload, a Workload object, a Dask collection "
        "or Delayed, a list of these, or a graph (a dict of tasks)"
    )


def _check_keys(what: object, keys: Sequence[Key]) -> None:
    if not isinstance(what, Mapping):
        raise SubmissionError(f"keys go with a graph (a dict of tasks), not with a {type(what).__name__}")
    if isinstance(keys, str | bytes):
        raise SubmissionError(f"keys is {keys!r}, must be a list of keys: keys=[{keys!r}]")
    if not keys:
        raise SubmissionError("keys is empty: name the results that are wanted, or leave it out")


def _of_collections(collections: Sequence[Any], name: str, shape: Callable[[list[Any]], Any]) -> Submission:
    shown = name or type(collections[0]).__name__.lower()
    # The same steps as distributed.Client.compute, which does not tell the keys before it sends the graph.
    from dask._expr import FinalizeCompute

    if len({*map(type, collections)}) > 1:
        # Dask optimises collections of one kind together and returns their keys in the order of the kinds, so that
        # dask.compute(delayed, array, other_delayed) swaps results (dask 2026.8). Of one kind, the order is kept.
        collections = [delayed(collection) for collection in collections]
    expression = FinalizeCompute(collections_to_expr(collections, True)).optimize()
    keys = tuple(flatten(expression.__dask_keys__()))
    return Submission(shown, expression, keys, lambda results: shape([results[key] for key in keys]))


def _of_graph(graph: Any, keys: Sequence[Key] | None, name: str) -> Submission:
    tasks = dict(graph)
    if not tasks:
        raise SubmissionError("the graph is empty: give at least one task")
    if unknown := [key for key in keys or () if key not in tasks]:
        raise SubmissionError(f"the graph has no key {unknown[0]!r}; it has {len(tasks)} others")
    if cycle := getcycle(tasks, list(tasks)):
        raise SubmissionError(f"the graph is cyclic: {' → '.join(map(str, cycle))}")
    wanted = tuple(dict.fromkeys(keys)) if keys is not None else _sinks(tasks)
    if keys is None and len(wanted) == 1:
        return Submission(name, graph, wanted, lambda results: results[wanted[0]])
    return Submission(name, graph, wanted, lambda results: {key: results[key] for key in wanted})


def _sinks(tasks: Mapping[Key, Any]) -> tuple[Key, ...]:
    needed = {key for task in tasks for key in get_dependencies(tasks, task)}
    return tuple(key for key in tasks if key not in needed)
