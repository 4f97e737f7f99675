"""`swarm.twin.wfformat`: both layouts of the format, what real traces do with it, and each way to be wrong."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dask.utils import key_split

from swarm.errors import TwinError
from swarm.twin import wfformat
from swarm.twin.models import Cost

V15: dict[str, Any] = {
    "name": "small",
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {
            "tasks": [
                {
                    "name": "split_ID01",
                    "id": "split_ID01",
                    "parents": [],
                    "children": ["map_ID02"],
                    "outputFiles": ["a", "b"],
                },
                {"name": "map_ID02", "id": "map_ID02", "parents": ["split_ID01"], "children": [], "inputFiles": ["a"]},
                {"name": "map_ID03", "id": "map_ID03", "parents": ["split_ID01"], "children": ["join_x_04"]},
                {"name": "join_x_04", "id": "join_x_04", "parents": ["map_ID02"], "children": [], "outputFiles": ["c"]},
            ],
            "files": [{"id": "a", "sizeInBytes": 100}, {"id": "b", "sizeInBytes": 50}, {"id": "c", "sizeInBytes": 0}],
        },
        "execution": {
            "makespanInSeconds": 9,
            "executedAt": "2020-01-01T00:00:00Z",
            "tasks": [
                {"id": "split_ID01", "runtimeInSeconds": 1.5, "memoryInBytes": 7000},
                {"id": "map_ID02", "runtimeInSeconds": 2},
                {"id": "map_ID03", "runtimeInSeconds": 0.0},
                {"id": "join_x_04", "runtimeInSeconds": 4, "command": {"program": "join", "arguments": ["x"]}},
            ],
            "machines": [{"nodeName": "m1", "cpu": {"coreCount": 4}}, {"nodeName": "m2"}],
        },
    },
}
V14: dict[str, Any] = {
    "name": "small",
    "schemaVersion": "1.4",
    "workflow": {
        "makespanInSeconds": 9,
        "executedAt": "2020-01-01T00:00:00Z",
        "machines": [{"nodeName": "m1", "cpu": {"count": 4}}, {"nodeName": "m2"}],
        "tasks": [
            {
                "name": "split_ID01",
                "id": "ID01",
                "category": "split",
                "type": "compute",
                "runtimeInSeconds": 1.5,
                "memoryInBytes": 7000,
                "parents": [],
                "children": ["map_ID02"],
                "files": [
                    {"link": "input", "name": "z", "sizeInBytes": 999},
                    {"link": "output", "name": "a", "sizeInBytes": 100},
                    {"link": "output", "name": "b", "size": 50},
                ],
            },
            # By name, as Pegasus has it, and by id.
            {"name": "map_ID02", "id": "ID02", "type": "compute", "runtime": 2, "parents": ["split_ID01"], "files": []},
            {
                "name": "map_ID03",
                "id": "ID03",
                "type": "transfer",
                "runtimeInSeconds": 0,
                "parents": ["ID01"],
                "children": ["04"],
            },
            {
                "name": "join_x_04",
                "id": "04",
                "category": "join",
                "type": "auxiliary",
                "runtimeInSeconds": 4,
                "parents": ["ID02"],
            },
        ],
    },
}


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[Any], wfformat.Trace]:
    def load(document: Any) -> wfformat.Trace:
        file = tmp_path / "trace.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return wfformat.load(file)

    return load


Load = Callable[[Any], wfformat.Trace]


@pytest.mark.parametrize("document", [V15, V14, {**V15, "schemaVersion": "1.6"}], ids=["1.5", "1.4", "1.6"])
def test_both_layouts_say_the_same(trace: Load, document: Any) -> None:
    found = trace(document)
    work = found.work
    assert work.name == "small"
    assert list(work.costs.values()) == [Cost(1.5, 150, 7000), Cost(2.0, 0), Cost(0.0, 0), Cost(4.0, 0)]
    split, two, three, join = work.costs
    assert [key_split(key) for key in work.costs] == ["split", "map", "map", "join"]
    assert work.dependencies == {split: set(), two: {split}, three: {split}, join: {two, three}}, "either end counts"
    assert work.wanted == (join,)
    assert found.makespan_s == 9
    assert found.machines == (wfformat.Machine("m1", 4), wfformat.Machine("m2", None))
    assert found.remarks == ()


def test_keys_begin_with_what_the_task_does(trace: Load) -> None:
    assert list(trace(V15).work.costs) == ["split-ID01", "map-ID02", "map-ID03", "join-x_04"]
    assert list(trace(V14).work.costs) == ["split-ID01", "map-ID02", "map-ID03", "join-04"]


def test_keys_differ_where_the_short_form_would_not(trace: Load) -> None:
    tasks = [
        {"name": "a", "id": name, "category": "a", "runtimeInSeconds": 1, "parents": []} for name in ("a_1", "a-1", "1")
    ]
    assert list(trace({**V14, "workflow": {"tasks": tasks}}).work.costs) == ["a-1", "a-1_", "a-1__"]


def test_a_file_of_unknown_size_counts_nothing_and_is_told(trace: Load) -> None:
    document = copy.deepcopy(V15)
    del document["workflow"]["specification"]["files"][1:]
    found = trace(document)
    assert found.work.costs["split-ID01"].output_bytes == 100
    assert found.remarks == ("2 output files have no size in the trace and count as 0 bytes",)


def test_makespan_and_machines_may_be_missing(trace: Load) -> None:
    document = copy.deepcopy(V14)
    del document["workflow"]["makespanInSeconds"], document["workflow"]["machines"]
    assert (trace(document).makespan_s, trace(document).machines) == (None, ())


def put(*path: Any, to: Any) -> Callable[[Any], None]:
    """Change one place of a trace of schema 1.5 below `workflow`."""

    def change(document: Any) -> None:
        *way, last = path
        inside = document["workflow"]
        for step in way:
            inside = inside[step]
        inside[last] = to

    return change


def without(*path: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *way, last = path
        inside = document
        for step in way:
            inside = inside[step]
        del inside[last]

    return change


SHAPE = ("specification", "tasks")
RAN = ("execution", "tasks")
WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "two tasks with one id": (
        put(*SHAPE, 1, "id", to="split_ID01"),
        'two tasks have the id "split_ID01", ids must differ',
    ),
    "no id": (
        put(*SHAPE, 1, to={"parents": []}),
        "task number 2 has neither an id nor a name; one of them must be a text",
    ),
    "a parent that does not exist": (
        put(*SHAPE, 1, "parents", to=["nobody"]),
        'task "map_ID02" has the parent "nobody", must be the id of a task of this trace',
    ),
    "a child that does not exist": (
        put(*SHAPE, 1, "children", to=["nobody"]),
        'task "map_ID02" has the child "nobody", must be the id of a task of this trace',
    ),
    "a parent that is two": (
        lambda d: [put(*SHAPE, i, "name", to="twin")(d) for i in (0, 1)] and put(*SHAPE, 3, "parents", to=["twin"])(d),
        'task "join_x_04" has the parent "twin" (2 tasks have this name), must be the id of a task of this trace',
    ),
    "parents that are no list": (
        put(*SHAPE, 1, "parents", to="split_ID01"),
        'task "map_ID02": parents is "split_ID01", must be a list of texts',
    ),
    "a cycle": (put(*SHAPE, 0, "parents", to=["join_x_04"]), r"the graph is cyclic: .* → .*"),
    "a task that needs itself": (
        put(*SHAPE, 2, "parents", to=["map_ID03"]),
        "the graph is cyclic: map-ID03 → map-ID03",
    ),
    "a negative run time": (
        put(*RAN, 1, "runtimeInSeconds", to=-1),
        'task "map_ID02": runtimeInSeconds is -1, must be a number, 0 or more, up to 36500 days',
    ),
    "a run time that is a text": (
        put(*RAN, 1, "runtimeInSeconds", to="2 s"),
        'task "map_ID02": runtimeInSeconds is "2 s", must be a number, 0 or more, up to 36500 days',
    ),
    "a run time that is no number": (
        put(*RAN, 1, "runtimeInSeconds", to=float("nan")),
        'task "map_ID02": runtimeInSeconds is NaN, must be a number, 0 or more, up to 36500 days',
    ),
    "a run time without end": (
        put(*RAN, 1, "runtimeInSeconds", to=float("inf")),
        'task "map_ID02": runtimeInSeconds is Infinity, must be a number, 0 or more, up to 36500 days',
    ),
    "a run time of ages": (
        put(*RAN, 1, "runtimeInSeconds", to=1e18),
        'task "map_ID02": runtimeInSeconds is 1e+18, must be a number, 0 or more, up to 36500 days',
    ),
    "a file that no disk holds": (
        put("specification", "files", 0, "sizeInBytes", to=10**16),
        'task "split_ID01", file "a": sizeInBytes is 10000000000000000, must be a number, 0 or more, up to 1e+15 bytes',
    ),
    "no run time": (
        put(*RAN, 1, to={"id": "map_ID02"}),
        'task "map_ID02" has no runtimeInSeconds, must have a number of seconds, 0 or more',
    ),
    "a task that was not executed": (
        without("workflow", *RAN, 1),
        'task "map_ID02" has no entry in workflow.execution.tasks, which has its runtimeInSeconds',
    ),
    "negative memory": (
        put(*RAN, 0, "memoryInBytes", to=-5),
        'task "split_ID01": memoryInBytes is -5, must be a number, 0 or more, up to 1e+15 bytes',
    ),
    "a negative size": (
        put("specification", "files", 0, "sizeInBytes", to=-5),
        'task "split_ID01", file "a": sizeInBytes is -5, must be a number, 0 or more, up to 1e+15 bytes',
    ),
    "no tasks": (put(*SHAPE, to=[]), "workflow.specification.tasks is empty, must have one or more"),
    "tasks that are none": (put(*SHAPE, to=[1]), "workflow.specification.tasks is [1], must be a list of objects"),
    "no workflow": (without("workflow"), "workflow is missing, must be an object"),
    "the layout of another schema": (
        lambda d: d.update(workflow=V14["workflow"]),
        "workflow.specification is missing, must be an object",
    ),
    "no schema": (without("schemaVersion"), "schemaVersion is missing, must be 1.4, 1.5 or 1.6"),
    "an old schema": (
        lambda d: d.update(schemaVersion="1.3"),
        'schemaVersion is "1.3", must be 1.4, 1.5 or 1.6; wfcommons-migrate-instance.py of WfFormat converts',
    ),
}


@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_is_told_in_one_line(trace: Load, tmp_path: Path, change: str) -> None:
    document = copy.deepcopy(V15)
    make, expected = WRONG[change]
    make(document)
    with pytest.raises(TwinError) as error:
        trace(document)
    where, _, said = str(error.value).partition(": ")
    assert where == str(tmp_path / "trace.json")
    assert said == expected or re.fullmatch(expected, said)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("runtimeInSeconds", -1, "runtimeInSeconds is -1, must be a number, 0 or more"),
        ("files", [{"link": "output", "name": "a", "sizeInBytes": "big"}], 'file "a": sizeInBytes is "big"'),
        ("id", "ID02", 'two tasks have the id "ID02"'),
        ("parents", ["ID99"], 'has the parent "ID99", must be the id of a task'),
    ],
)
def test_the_older_layout_is_checked_as_well(trace: Load, key: str, value: Any, said: str) -> None:
    document = copy.deepcopy(V14)
    document["workflow"]["tasks"][0][key] = value
    with pytest.raises(TwinError, match=re.escape(said)):
        trace(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON: Expecting value in line 1, column 1"),
        ('{"workflow": }', "not valid JSON: Expecting value in line 1, column 14"),
        ("[]", "is not WfFormat, which is an object with schemaVersion and workflow"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth exceeded"),
        (json.dumps(V15).replace("1.5,", f"{'9' * 400},"), "must be a number, 0 or more"),
    ],
)
def test_a_file_that_is_no_trace(trace: Load, text: str, said: str) -> None:
    with pytest.raises(TwinError, match=re.escape(said)) as error:
        trace(text)
    assert len(str(error.value)) < 300


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match=r"none\.json: can't be read \(No such file or directory\)"):
        wfformat.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TwinError, match="not valid JSON"):
        wfformat.load(tmp_path / "bytes.json")


def test_half_a_surrogate_pair_is_refused(trace: Load) -> None:
    with pytest.raises(TwinError, match=r"not valid JSON: .*surrogates not allowed"):
        trace('{"name": "\\ud800"}')


def test_a_machine_of_unbelievable_size_is_refused(trace: Load) -> None:
    machine = {"nodeName": "m", "cpu": {"coreCount": 10**9}}
    workflow = {"tasks": [{"name": "a", "runtimeInSeconds": 1}], "machines": [machine]}
    with pytest.raises(TwinError, match=r"a machine has coreCount 1000000000, must be 65536 or less"):
        trace({"schemaVersion": "1.4", "workflow": workflow})
