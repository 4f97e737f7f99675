"""Graphs of durable runs: kept as they were submitted, and sent again with what is stored in the place of tasks."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dask._expr import LLGExpr
from dask._task_spec import Task, convert_legacy_graph
from distributed.protocol import pickle
from distributed.protocol.serialize import Serialized, deserialize, serialize, to_serialize

from scheduler_plugins.decide.recovery import Key, Plan, plan
from scheduler_plugins.io.results import name_of
from swarm.agents.storing import load
from swarm.errors import DurabilityError

FORMAT = 1


class KeptGraph(NamedTuple):
    """One graph of a run as a client sent it (the message `update-graph` of `distributed.Client`)."""

    name: str
    described: bytes
    """What the client made of the run, pickled: only a client reads it."""
    message: Mapping[str, Any]


@dataclass
class Graphs:
    """The graphs of several runs as one, in the form in which the scheduler keeps tasks."""

    tasks: dict[Key, Any] = field(default_factory=dict)
    """Key → `dask._task_spec.GraphNode`."""
    noted: dict[str, dict[Key, Any]] = field(default_factory=dict)
    """Annotation → key → its value."""

    def parents(self, key: Key) -> Collection[Key] | None:
        node = self.tasks.get(key)
        return None if node is None else node.dependencies

    def add(self, message: Mapping[str, Any]) -> None:
        """Materialise a graph; takes time in proportion to it, so it is for a thread."""
        expr = deserialize(message["expr_ser"].header, message["expr_ser"].frames)
        for annotation, values in expr.__dask_annotations__().items():
            self.noted.setdefault(annotation, {}).update(values)
        self.tasks.update(convert_legacy_graph(expr.__dask_graph__()))


class ResumedExpr(LLGExpr):
    """A graph whose tasks keep the annotations that they had (`Expr.__dask_annotations__`)."""

    _parameters = ["dsk", "noted"]  # noqa: RUF012 - as Dask has it

    def __dask_annotations__(self) -> dict[str, dict[Key, Any]]:
        noted: dict[str, dict[Key, Any]] = self.operand("noted")  # type: ignore[no-untyped-call]
        return noted


def packed(graph: KeptGraph) -> bytes:
    """A graph as it goes to the store."""
    message = dict(graph.message)
    expr = message.pop("expr_ser")
    kept = {
        "format": FORMAT,
        "name": graph.name,
        "described": graph.described,
        "header": expr.header,
        "frames": [bytes(frame) for frame in expr.frames],
        "message": message,
    }
    return pickle.dumps(kept)  # type: ignore[no-any-return]


def unpacked(content: bytes) -> KeptGraph:
    """What `packed` made. The store has checked that it is what was stored.

    Raises
    ------
    DurabilityError
        Another version of swarm or Dask wrote it.
    """
    try:
        kept = pickle.loads(content)
        if kept["format"] != FORMAT:
            raise DurabilityError(f"its graph has format {kept['format']}, this swarm knows {FORMAT}")  # noqa: TRY301
        message = {**kept["message"], "expr_ser": Serialized(kept["header"], kept["frames"])}
        return KeptGraph(kept["name"], kept["described"], message)
    except DurabilityError:
        raise
    except Exception as error:  # a module that is gone, another version of a class: unpickling raises what it likes
        raise DurabilityError(f"its graph can't be read ({type(error).__name__}: {error})") from error


def culled(
    graphs: Graphs, wanted: Collection[Key], places: Mapping[str, tuple[str, str]], known: Container[Key]
) -> tuple[Plan, Serialized]:
    """What is left to do for the keys that are wanted, as the scheduler takes it; for a thread.

    Parameters
    ----------
    places
        Name of a file → the URL of the store and the run there.
    known
        Keys that the scheduler has already; their tasks stay as they are.
    """
    found = plan(wanted, graphs.parents, _Stored(places), known)
    tasks = {key: graphs.tasks[key] for key in found.run}
    for key in found.load:
        url, run = places[name_of(key)]
        tasks[key] = Task(key, load, url, run, key)
    noted = {
        annotation: kept
        for annotation, values in graphs.noted.items()
        if (kept := {key: value for key, value in values.items() if key in tasks})
    }
    expr = ResumedExpr(tasks, noted)  # type: ignore[no-untyped-call]
    return found, Serialized(*serialize(to_serialize(expr), on_error="raise"))


def annotations_of(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was asked for all tasks of the graphs of a run; workers are new ones now, so they are not asked for."""
    merged: dict[str, Any] = {}
    for message in messages:
        merged.update(message.get("annotations") or {})
    return {name: value for name, value in merged.items() if name not in ("workers", "allow_other_workers")}


class _Stored:
    """The keys of which there is a file."""

    def __init__(self, places: Container[str]) -> None:
        self._places = places

    def __contains__(self, key: Key) -> bool:
        return name_of(key) in self._places


class KnownKeys:
    """The keys of which a scheduler has a task, or data."""

    def __init__(self, tasks: Mapping[Key, Any], but: Container[Key] = ()) -> None:
        self._tasks = tasks
        self._but = but

    def __contains__(self, key: Key) -> bool:
        ts = self._tasks.get(key)
        return ts is not None and key not in self._but and (ts.run_spec is not None or bool(ts.who_has))
