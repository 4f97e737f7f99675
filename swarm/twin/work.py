"""Work for a simulation: a Dask graph, and what each of its tasks costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Real
from typing import Any

from dask._expr import HLGExpr
from dask._task_spec import DependenciesMapping, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.core import getcycle
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from swarm.errors import SubmissionError, TwinError
from swarm.submission import prepare
from swarm.twin.models import Constant, Cost, Durations, Key


def simulated(*_: object) -> None:
    """What tasks of made-up graphs call. The twin never runs a task; elsewhere this must not pass for work."""
    raise TwinError("a simulated task has no function that could run")


def _in_order(keys: frozenset[Key]) -> frozenset[Key]:
    return frozenset(sorted(keys, key=str))


@dataclass(frozen=True, eq=False)
class Work:
    """A graph of tasks with known costs.

    The costs are drawn once, from the seed and the key, so that every policy and every schedule meets the same.
    """

    name: str
    graph: Mapping[Key, Any]
    wanted: tuple[Key, ...]
    costs: Mapping[Key, Cost]
    dependencies: Mapping[Key, frozenset[Key]]
    annotations: Mapping[str, Mapping[Key, Any]] = field(default_factory=dict)
    """What tasks ask of Dask, as `dask.annotate`: resources, workers, retries, priority, …, each key → value."""

    def __post_init__(self) -> None:
        if not self.graph:
            raise TwinError(f"{self.name} has no tasks")
        if unknown := next((key for key in self.wanted if key not in self.graph), None):
            raise TwinError(f"{self.name}: {unknown!r} is wanted and is no task of the graph")
        lacking = next((key for key in self.dependencies if key not in self.costs), None)
        if lacking is not None:
            raise TwinError(f"{self.name}: task {lacking!r} has no cost")

    def __len__(self) -> int:
        return len(self.costs)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill all sets anew, in one order.

        How a set is iterated depends on the order in which it was filled as well, and a pickle has that of the
        process which wrote it, with its own hash seed: the same simulation would go another way.
        """
        self.__dict__.update(state)
        self.__dict__["dependencies"] = {key: _in_order(needs) for key, needs in self.dependencies.items()}
        for node in self.graph.values():
            if isinstance(node, GraphNode):
                node._dependencies = _in_order(node._dependencies)

    @property
    def submitted(self) -> Mapping[Key, Any]:
        """What `distributed.Client.get` takes: the graph, with its annotations if it has any."""
        if not self.annotations:
            return dict(self.graph)
        asked = {kind: values.get for kind, values in self.annotations.items()}  # a callable: Dask asks for each key
        graph: Mapping[Key, Any] = HighLevelGraph(
            {self.name: MaterializedLayer(dict(self.graph), asked)}, {self.name: set()}
        )
        return graph

    @cached_property
    def order(self) -> tuple[Key, ...]:
        """The keys, each after all that it depends on."""
        waiting = {key: len(needs) for key, needs in self.dependencies.items()}
        ready = [key for key, count in waiting.items() if not count]
        order: list[Key] = []
        dependents = self.dependents
        for key in ready:
            order.append(key)
            for after in dependents[key]:
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)
        return tuple(order)

    @cached_property
    def dependents(self) -> Mapping[Key, tuple[Key, ...]]:
        found: dict[Key, list[Key]] = {key: [] for key in self.dependencies}
        for key, needs in self.dependencies.items():
            for need in needs:
                found[need].append(key)
        return {key: tuple(after) for key, after in found.items()}

    @cached_property
    def needed(self) -> frozenset[Key]:
        """The wanted keys and all that they depend on; Dask leaves the others out."""
        found: set[Key] = set()
        waiting = list(self.wanted)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting.extend(self.dependencies[key])
        return frozenset(found)

    @property
    def total_s(self) -> float:
        """Work of all tasks, in seconds at speed 1."""
        return sum(cost.work_s for cost in self.costs.values())

    @cached_property
    def critical_path_s(self) -> float:
        """Work along the longest chain."""
        done_s: dict[Key, float] = {}
        for key in self.order:
            before_s = max((done_s[need] for need in self.dependencies[key]), default=0.0)
            done_s[key] = before_s + self.costs[key].work_s
        return max(done_s.values())


def from_graph(
    what: object,
    durations: Durations | Callable[[Key], Cost],
    *,
    output_bytes: int | Callable[[Key], int] = 28,
    seed: int = 0,
    name: str = "",
) -> Work:
    """Any Dask work: a collection, a Delayed, a graph, a workload, with a model of its costs.

    Parameters
    ----------
    what
        As `Swarm.submit` takes it.
    durations
        A model of durations (`Constant`, `LogNormal`, `Pareto`, `ByArgument`, `FromTrace`), or a function from a
        key to its `Cost`.
    output_bytes
        Of each result, where `durations` is a model.
    seed
        Of what is drawn at random.

    Raises
    ------
    TwinError
        The graph is empty, cyclic or lacks a key, or a duration is negative.
    """
    try:
        submission = prepare(what, name=name)
    except SubmissionError as error:
        raise TwinError(str(error)) from None
    raw = submission.graph
    tasks = raw.__dask_graph__() if hasattr(raw, "__dask_graph__") else raw
    nodes: dict[Key, GraphNode] = dict(convert_legacy_graph(dict(tasks)))
    annotations = _annotations(raw)
    dependencies = {key: frozenset(needs) for key, needs in DependenciesMapping(nodes).items()}
    costs = {}
    for key, node in nodes.items():
        made = _cost(key, node, durations, output_bytes, seed)
        costs[key] = made
    return Work(submission.name, nodes, submission.keys, costs, dependencies, annotations)


def _annotations(graph: Any) -> dict[str, dict[Key, Any]]:
    """Kind → key → value, as Dask's scheduler gets them."""
    if isinstance(graph, HighLevelGraph):
        graph = HLGExpr(graph)
    return dict(graph.__dask_annotations__()) if hasattr(graph, "__dask_annotations__") else {}


def _cost(
    key: Key,
    node: GraphNode,
    durations: Durations | Callable[[Key], Cost],
    output_bytes: int | Callable[[Key], int],
    seed: int,
) -> Cost:
    if not callable(durations):
        raise TwinError(
            f"durations is {durations!r}, must be a model of durations or a function from a key to its Cost"
        )
    if not _is_model(durations):
        cost = durations(key)  # type: ignore[call-arg]
        if not isinstance(cost, Cost):
            raise TwinError(f"the cost function returned {cost!r} for {key!r}, must be a swarm.twin.Cost")
        return cost
    work_s = durations(key, numbers(node), random.Random(f"{seed} {key}"))  # type: ignore[call-arg]
    size = output_bytes(key) if callable(output_bytes) else output_bytes
    return Cost(float(work_s), size)  # type: ignore[arg-type]


def _is_model(durations: object) -> bool:
    from swarm.twin import models

    return isinstance(
        durations, models.Constant | models.LogNormal | models.Pareto | models.ByArgument | models.FromTrace
    ) or bool(getattr(durations, "is_duration_model", False))


def numbers(node: GraphNode) -> list[float]:
    """The numbers among a task's own arguments, in their order."""
    if not isinstance(node, Task):
        return []
    given = (*node.args, *node.kwargs.values())
    return [float(each) for each in given if not isinstance(each, bool) and isinstance(each, Real)]


def made_up(
    tasks: Iterable[tuple[Key, Sequence[Key], Cost]],
    *,
    name: str = "made up",
    wanted: Sequence[Key] | None = None,
    annotations: Mapping[str, Mapping[Key, Any]] | None = None,
) -> Work:
    """A graph of (key, keys it depends on, cost); wanted is what nothing depends on, unless said otherwise.

    Raises
    ------
    TwinError
        A key is there twice, is missing, or depends on itself by way of others.
    """
    graph: dict[Key, Task] = {}
    costs: dict[Key, Cost] = {}
    dependencies: dict[Key, frozenset[Key]] = {}
    for key, after, cost in tasks:
        if not isinstance(key, Hashable):
            raise TwinError(f"{name}: {key!r} can't be a key")
        if key in graph:
            raise TwinError(f"{name}: task {key!r} is there twice")
        graph[key] = Task(key, simulated, *map(TaskRef, after))
        costs[key] = cost
        dependencies[key] = frozenset(after)
    for key, needs in dependencies.items():
        for need in needs:
            if need not in graph:
                raise TwinError(f"{name}: task {key!r} depends on {need!r}, which does not exist")
    if cycle := getcycle(graph, list(graph)):
        raise TwinError(f"{name}: the graph is cyclic: {' → '.join(map(str, cycle))}")
    needed = frozenset().union(*dependencies.values()) if dependencies else frozenset()
    sinks = tuple(key for key in graph if key not in needed)
    return Work(name, graph, tuple(wanted) if wanted is not None else sinks, costs, dependencies, annotations or {})


def _at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise TwinError(f"{name} is {count}, must be {least} or more")


def independent(count: int, durations: Durations | None = None, *, seed: int = 0, output_bytes: int = 28) -> Work:
    """So many tasks that need nothing of each other."""
    _at_least(1, count=count)
    durations = durations or Constant(0.1)
    keys = [f"task-{i}" for i in range(count)]
    costs = [Cost(durations(key, (i,), random.Random(f"{seed} {key}")), output_bytes) for i, key in enumerate(keys)]
    return made_up(((key, (), cost) for key, cost in zip(keys, costs, strict=True)), name=f"{count} independent tasks")


def layered(
    layers: int,
    width: int,
    durations: Durations | None = None,
    *,
    inputs: int = 2,
    seed: int = 0,
    output_bytes: int = 28,
) -> Work:
    """Layers of tasks, each with inputs drawn at random from the layer before."""
    _at_least(1, layers=layers, width=width)
    _at_least(0, inputs=inputs)
    durations, draw = durations or Constant(0.1), random.Random(f"{seed} layers")
    tasks = []
    for layer in range(layers):
        before = [f"layer{layer - 1}-{i}" for i in range(width)] if layer else []
        for i in range(width):
            key = f"layer{layer}-{i}"
            needs = sorted(draw.sample(before, min(inputs, len(before))))
            cost = Cost(durations(key, (layer, i), random.Random(f"{seed} {key}")), output_bytes)
            tasks.append((key, needs, cost))
    return made_up(tasks, name=f"{layers} layers of {width}")


def tree(
    leaves: int, durations: Durations | None = None, *, fan_in: int = 2, seed: int = 0, output_bytes: int = 28
) -> Work:
    """A reduction: leaves, then groups of `fan_in`, until one is left."""
    _at_least(1, leaves=leaves)
    _at_least(2, fan_in=fan_in)
    durations = durations or Constant(0.1)
    tasks: list[tuple[Key, Sequence[Key], Cost]] = []

    def add(key: str, needs: Sequence[Key]) -> str:
        assert durations is not None
        cost = Cost(durations(key, (len(needs),), random.Random(f"{seed} {key}")), output_bytes)
        tasks.append((key, needs, cost))
        return key

    level = [add(f"leaf-{i}", ()) for i in range(leaves)]
    depth = 0
    while len(level) > 1:
        depth += 1
        groups = [level[i : i + fan_in] for i in range(0, len(level), fan_in)]
        level = [add(f"reduce{depth}-{i}", group) for i, group in enumerate(groups)]
    return made_up(tasks, name=f"tree of {leaves} leaves")


def fan_out(
    count: int,
    durations: Durations | None = None,
    *,
    roots: int = 1,
    root: Cost | None = None,
    seed: int = 0,
    output_bytes: int = 28,
) -> Work:
    """So many tasks that each need all roots.

    Dask queues them at the scheduler when there are fewer than five roots; with more it hands all of them out at
    once, and balances by stealing.
    """
    _at_least(1, count=count, roots=roots)
    durations = durations or Constant(0.1)
    keys = [f"task-{i}" for i in range(count)]
    above = [f"root-{i}" for i in range(roots)]
    leaves = [
        (key, above, Cost(durations(key, (i,), random.Random(f"{seed} {key}")), output_bytes))
        for i, key in enumerate(keys)
    ]
    first = [(key, (), root or Cost(0.1, 28)) for key in above]
    return made_up([*first, *leaves], name=f"fan-out to {count}")
