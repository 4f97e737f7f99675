"""Traces of real workflows in WfFormat, schema 1.4 to 1.6, as work for a simulation.

WfFormat is the JSON of the WfCommons project (Coleman et al., "WfCommons: a framework for enabling scientific
workflow research and development", FGCS 128, 2022). 1.4 keeps all there is to know of a task in one place,
`workflow.tasks`; 1.5 has its shape in `workflow.specification` and what became of it in `workflow.execution`; 1.6
only adds what nothing here needs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.errors import TwinError
from swarm.twin.models import MOST_S, Cost
from swarm.twin.progress import span
from swarm.twin.work import Work, made_up

SCHEMAS = ("1.4", "1.5", "1.6")
MOST_BYTES = 10**15
"""Of a file or of memory: a petabyte."""
MOST_CORES = 1 << 16
"""Of a machine; the largest that run Linux have some thousands."""

_NUMBER_AT_THE_END = re.compile(r"[-_.]*(?:ID)?\d+$")
"""What makes the name of a task out of the name of what it does: `mProject_ID0000001`, `cpuhog_00000001`."""


@dataclass(frozen=True)
class Machine:
    """A machine of the recorded run."""

    name: str
    cores: int | None


@dataclass(frozen=True)
class Trace:
    """A recorded workflow."""

    work: Work
    """One task of one thread for each task of the workflow, with its run time as it was: neither the cores that it
    used there nor the clock of its machine are in it. It reads the whole results of its parents."""
    makespan_s: float | None
    """Of the recorded run; None where the trace does not tell."""
    machines: tuple[Machine, ...]
    remarks: tuple[str, ...]
    """What a reader of the results should know, one sentence each."""


@dataclass
class _Task:
    """One task, whatever the schema."""

    where: str
    name: str
    category: str
    parents: Sequence[Any]
    children: Sequence[Any]
    output_bytes: int
    runtime_s: float
    peak_bytes: int


def load(path: str | Path) -> Trace:
    """Read a trace.

    Task keys are `<category>-<number>`, so that Dask gives all tasks of a category one prefix. An edge counts when
    either end names it. The result of a task has the bytes of all its output files, its peak memory is
    `memoryInBytes`, where the trace has it.

    Raises
    ------
    TwinError
        The file is not WfFormat of a known schema; names the file, the task, and what is allowed.
    """
    return _Reader(Path(path)).read()


class _Reader:
    """Reads one file; every complaint names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.without_size = 0

    def wrong(self, what: str) -> TwinError:
        return TwinError(" ".join(f"{self.path}: {what}".split()))

    def read(self) -> Trace:
        document = self._document()
        schema = str(document.get("schemaVersion"))
        if schema not in SCHEMAS:
            hint = "" if "schemaVersion" not in document else "; wfcommons-migrate-instance.py of WfFormat converts"
            raise self.wrong(f"schemaVersion is {_shown(document.get('schemaVersion'))}, must be 1.4, 1.5 or 1.6{hint}")
        workflow = self._mapping(document, "workflow")
        tasks = self._tasks_of_14(workflow) if schema == "1.4" else self._tasks_of_15(workflow)
        ran = workflow if schema == "1.4" else self._mapping(workflow, "execution", "workflow.")
        work = self._work(str(document.get("name") or self.path.stem), tasks)
        makespan = ran.get("makespanInSeconds", ran.get("makespan"))
        makespan_s = None if makespan is None else self._number(makespan, "makespanInSeconds")
        remarks = []
        if self.without_size:
            remarks.append(f"{self.without_size} output files have no size in the trace and count as 0 bytes")
        return Trace(work, makespan_s, tuple(self._machines(ran)), tuple(remarks))

    def _document(self) -> Mapping[str, Any]:
        try:
            document = json.loads(self.path.read_text("utf-8-sig"))
            # Half of a surrogate pair may stand in JSON, and no message and no hash can hold it.
            json.dumps(document, ensure_ascii=False).encode()
        except OSError as error:
            raise self.wrong(f"can't be read ({error.strerror})") from None
        except json.JSONDecodeError as error:
            raise self.wrong(f"not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # not UTF-8, or a number of thousands of digits
            raise self.wrong(f"not valid JSON: {error}") from None
        if not isinstance(document, Mapping):
            raise self.wrong("is not WfFormat, which is an object with schemaVersion and workflow")
        return document

    # -- the two layouts -------------------------------------------------------------------------------------------

    def _tasks_of_14(self, workflow: Mapping[str, Any]) -> dict[str, _Task]:
        tasks: dict[str, _Task] = {}
        for number, entry in enumerate(self._objects(workflow, "tasks", "workflow.", at_least=1)):
            identity, where = self._identity(entry, number, tasks)
            sizes = [
                self._size(file.get("sizeInBytes", file.get("size")), f"{where}, file {_shown(file.get('name'))}")
                for file in self._objects(entry, "files", f"{where}: ")
                if str(file.get("link")).lower() == "output"
            ]
            tasks[identity] = self._task(where, identity, entry, entry, sum(sizes))
        return tasks

    def _tasks_of_15(self, workflow: Mapping[str, Any]) -> dict[str, _Task]:
        specification = self._mapping(workflow, "specification", "workflow.")
        execution = self._mapping(workflow, "execution", "workflow.")
        sizes = {
            str(file.get("id")): file.get("sizeInBytes")
            for file in self._objects(specification, "files", "workflow.specification.")
        }
        ran = {
            str(entry.get("id")): entry
            for entry in self._objects(execution, "tasks", "workflow.execution.", at_least=1)
        }
        tasks: dict[str, _Task] = {}
        for number, entry in enumerate(self._objects(specification, "tasks", "workflow.specification.", at_least=1)):
            identity, where = self._identity(entry, number, tasks)
            if identity not in ran:
                raise self.wrong(f"{where} has no entry in workflow.execution.tasks, which has its runtimeInSeconds")
            written = [
                self._size(sizes.get(str(name)), f"{where}, file {_shown(name)}")
                for name in self._list(entry, "outputFiles", where)
            ]
            tasks[identity] = self._task(where, identity, entry, ran[identity], sum(written))
        return tasks

    def _identity(self, entry: Mapping[str, Any], number: int, known: Mapping[str, _Task]) -> tuple[str, str]:
        """The id of a task (1.4 allows that there is only a name), and what to call it."""
        given = entry.get("id", entry.get("name"))
        if not isinstance(given, str) or not given:
            raise self.wrong(f"task number {number + 1} has neither an id nor a name; one of them must be a text")
        if given in known:
            raise self.wrong(f"two tasks have the id {_shown(given)}, ids must differ")
        return given, f"task {_shown(given)}"

    def _task(
        self, where: str, identity: str, shape: Mapping[str, Any], ran: Mapping[str, Any], output_bytes: int
    ) -> _Task:
        runtime = ran.get("runtimeInSeconds", ran.get("runtime"))
        if runtime is None:
            raise self.wrong(f"{where} has no runtimeInSeconds, must have a number of seconds, 0 or more")
        name = str(shape.get("name") or identity)
        memory = ran.get("memoryInBytes")
        return _Task(
            where=where,
            name=name,
            category=_category(name, shape, ran),
            parents=self._list(shape, "parents", where),
            children=self._list(shape, "children", where),
            output_bytes=output_bytes,
            runtime_s=self._number(runtime, f"{where}: runtimeInSeconds"),
            peak_bytes=0 if memory is None else int(self._number(memory, f"{where}: memoryInBytes", MOST_BYTES)),
        )

    def _machines(self, ran: Mapping[str, Any]) -> list[Machine]:
        machines = []
        for entry in self._objects(ran, "machines", ""):
            cpu = entry.get("cpu")
            cores = cpu.get("coreCount", cpu.get("count")) if isinstance(cpu, Mapping) else None
            is_count = isinstance(cores, int) and not isinstance(cores, bool) and cores > 0
            if is_count and cores and cores > MOST_CORES:
                raise self.wrong(f"a machine has coreCount {_shown(cores)}, must be {MOST_CORES} or less")
            machines.append(Machine(str(entry.get("nodeName") or "machine"), cores if is_count else None))
        return machines

    # -- the graph -------------------------------------------------------------------------------------------------

    def _work(self, name: str, tasks: Mapping[str, _Task]) -> Work:
        named = Counter(task.name for task in tasks.values())
        by_name = {task.name: identity for identity, task in tasks.items() if named[task.name] == 1}

        def resolve(task: _Task, relation: str, reference: object) -> str:
            """Most 1.4 traces give the name of a parent, others its id."""
            found = reference if reference in tasks else by_name.get(str(reference))
            if found is None:
                several = f" ({named[str(reference)]} tasks have this name)" if named[str(reference)] else ""
                given = f"{task.where} has the {relation} {_shown(reference)}{several}"
                raise self.wrong(f"{given}, must be the id of a task of this trace")
            return str(found)

        needs: dict[str, dict[str, None]] = {identity: {} for identity in tasks}
        for identity, task in tasks.items():
            for parent in task.parents:
                needs[identity][resolve(task, "parent", parent)] = None
            for child in task.children:
                needs[resolve(task, "child", child)][identity] = None
        keys = _keys(tasks)
        rows = [
            (keys[identity], [keys[need] for need in needs[identity]], _cost(task)) for identity, task in tasks.items()
        ]
        try:
            return made_up(rows, name=name)
        except TwinError as error:
            raise self.wrong(str(error).removeprefix(f"{name}: ")) from None

    # -- values ----------------------------------------------------------------------------------------------------

    def _mapping(self, inside: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
        value = inside.get(key)
        if not isinstance(value, Mapping):
            raise self.wrong(f"{where}{key} is {_shown(value)}, must be an object")
        return value

    def _objects(
        self, inside: Mapping[str, Any], key: str, where: str, *, at_least: int = 0
    ) -> Sequence[Mapping[str, Any]]:
        values = inside.get(key)
        if values is None and not at_least:
            return []
        if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
            raise self.wrong(f"{where}{key} is {_shown(values)}, must be a list of objects")
        if len(values) < at_least:
            raise self.wrong(f"{where}{key} is empty, must have one or more")
        return values

    def _list(self, inside: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
        values = inside.get(key)
        if values is None:
            return []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong(f"{where}: {key} is {_shown(values)}, must be a list of texts")
        return values

    def _number(self, value: object, what: str, most: float = MOST_S) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= most:  # type: ignore[operator]
            limit = span(most) if most == MOST_S else f"{most:.0e} bytes"
            raise self.wrong(f"{what} is {_shown(value)}, must be a number, 0 or more, up to {limit}")
        return float(value)  # type: ignore[arg-type]

    def _size(self, value: object, where: str) -> int:
        if value is None:
            self.without_size += 1
            return 0
        return int(self._number(value, f"{where}: sizeInBytes", MOST_BYTES))


def _category(name: str, shape: Mapping[str, Any], ran: Mapping[str, Any]) -> str:
    """What the task does: tasks of a category have much the same cost."""
    if category := shape.get("category"):
        return str(category)
    command = ran.get("command")
    program = str(command.get("program") or "") if isinstance(command, Mapping) else ""
    if program and name.startswith(program):  # a file name in the name of a task says nothing
        return program
    return _NUMBER_AT_THE_END.sub("", name) or "task"


def _keys(tasks: Mapping[str, _Task]) -> dict[str, str]:
    """Id → a key that begins with the category, as Dask's own keys begin with the name of a function."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for identity, task in tasks.items():
        rest = identity.removeprefix(task.category).lstrip("-_.")
        key = f"{task.category}-{rest}" if rest else identity
        while key in taken:
            key += "_"
        taken.add(key)
        keys[identity] = key
    return keys


def _cost(task: _Task) -> Cost:
    return Cost(task.runtime_s, task.output_bytes, task.peak_bytes)


def _shown(value: object) -> str:
    text = "missing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
