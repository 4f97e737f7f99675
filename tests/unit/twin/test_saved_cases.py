"""Saved simulations: all that they depend on comes back from the file, and a file that is wrong is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarm import twin
from swarm.errors import TwinError
from swarm.twin.faults import Crash, Join, Partition
from swarm.twin.models import (
    MIB,
    ClusterModel,
    Constant,
    Cost,
    Drifting,
    Link,
    Memory,
    Network,
    SchedulerCpu,
    Sudden,
    WorkerModel,
)
from swarm.twin.policies import Policy
from swarm.twin.saved import Case, load_case

WORK = twin.made_up(
    [
        (("x", 0), (), Cost(0.1)),
        (("x", 1), (("x", 0),), Cost(0.2, 1000, 5 * MIB)),
        ("y", (("x", 0), ("x", 1)), Cost(0.3)),
        (7, (), Cost(1.0)),
    ],
    wanted=["y", ("x", 1), 7],
    annotations={"resources": {("x", 1): {"GPU": 1.0}}, "retries": {"y": 2}},
)
CLUSTER = ClusterModel(
    [
        WorkerModel("a", threads=2, speed=Sudden(1.0, 0.5, 3.0), memory=Memory(1024 * MIB), resources={"GPU": 1.0}),
        WorkerModel("b", speed=Drifting(1.0, 0.5, until_s=9.0), host="h", nanny=True, restart_s=4.0),
    ],
    Network(Link(1e-3, 1e8), {("a", "h"): Link(0.1, 1e6)}, shared_uplink=Link(0.0, 2e8)),
    SchedulerCpu(1e-3),
    heartbeat_jitter=0.1,
)
FAULTS = (Partition(workers=("a", "b"), at_s=1.0, for_s=2.0), Join(model=WorkerModel("c", threads=3), at_s=1.5))


def there_and_back(case: Case, folder: Path) -> Case:
    case.save(folder / "case.json")
    return load_case(folder / "case.json")


def test_everything_comes_back(tmp_path: Path) -> None:
    case = Case(WORK, CLUSTER, "swarm", FAULTS, 5, 11, 99.0, True, True, "a note", "time limit", "abc")
    again = there_and_back(case, tmp_path)
    assert again.cluster == CLUSTER
    assert tuple(again.faults) == FAULTS
    assert again.work.costs == WORK.costs
    assert again.work.dependencies == WORK.dependencies
    assert list(again.work.graph) == list(WORK.graph)
    assert (again.work.wanted, again.work.annotations) == (WORK.wanted, WORK.annotations)
    for name in ("policy", "seed", "hash_seed", "time_limit_s", "gather", "validate", "note", "ends", "trace_hash"):
        assert getattr(again, name) == getattr(case, name)


def test_the_run_from_the_file_is_the_same_run(tmp_path: Path) -> None:
    work = twin.layered(5, 8, twin.LogNormal(0.1, 1.0), output_bytes=10**6)
    case = Case(work, twin.uniform(4), faults=[Crash(worker="w1", at_s=0.3)], seed=2)
    arguments, options = case.arguments()
    again, options_again = there_and_back(case, tmp_path).arguments()
    assert twin.simulate(*arguments, **options).trace_hash == twin.simulate(*again, **options_again).trace_hash


def test_a_real_graph_becomes_one_of_costs(tmp_path: Path) -> None:
    work = twin.from_graph({"a": (abs, -1), "b": (max, "a", 3)}, Constant(0.5), output_bytes=9)
    again = there_and_back(Case(work, twin.uniform(1)), tmp_path).work
    assert again.costs == {"a": Cost(0.5, 9), "b": Cost(0.5, 9)}
    assert again.wanted == ("b",)


def test_a_policy_of_settings_can_be_saved_and_one_of_code_can_not(tmp_path: Path) -> None:
    settings = Policy(
        "patient", preload=["tests.support.all_on_one"], config={"distributed.scheduler.worker-ttl": None}
    )
    assert there_and_back(Case(WORK, CLUSTER, settings), tmp_path).policy == settings
    assert there_and_back(Case(WORK, CLUSTER, twin.policies.POLICIES["random"]), tmp_path).policy == "random"
    with pytest.raises(TwinError, match="policy 'mine' can't be saved: it has plugins of its own"):
        Case(WORK, CLUSTER, Policy("mine", plugins=lambda seed: ())).save(tmp_path / "case.json")


def test_a_model_of_ones_own_can_not_be_saved(tmp_path: Path) -> None:
    class Odd:
        def changes(self) -> Any:
            yield 0.0, 1.0

    cluster = ClusterModel([WorkerModel("a", speed=Odd())])
    with pytest.raises(TwinError, match="can't be written as JSON; only the twin's own models can"):
        Case(WORK, cluster).save(tmp_path / "case.json")


def test_a_person_can_read_and_write_it(tmp_path: Path) -> None:
    Case(twin.independent(3), twin.uniform(2), faults=[Crash(worker="w1", at_s=0.3)]).save(tmp_path / "case.json")
    text = (tmp_path / "case.json").read_text()
    assert '  {"fault": "Crash", "at_s": 0.3, "worker": "w1"}\n' in text
    assert '  ["task-1", [], 0.1, 28, 0],\n' in text
    least = {"format": 1, "workers": [{"name": "w0"}], "cluster": {}, "work": "w", "wanted": ["a"]}
    (tmp_path / "case.json").write_text(json.dumps({**least, "tasks": [["a", [], 1.0, 28, 0]]}))
    case = load_case(tmp_path / "case.json")
    assert (case.policy, case.seed, case.ends, case.cluster.workers) == ("stock", 0, "finished", [WorkerModel("w0")])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "it is no saved simulation of format 1"),
        ({"tasks": None}, "object is not iterable"),
        ({"tasks": [["a", ["zz"], 1.0, 28, 0]]}, "depends on 'zz', which does not exist"),
        ({"tasks": [["a", [], -1.0, 28, 0]]}, "work_s is -1.0"),
        ({"tasks": [["a", []]]}, "not enough values to unpack"),
        ({"workers": [{"name": "w0", "cores": 3}]}, r"cluster.workers\[0\] has no 'cores'"),
        ({"workers": [{"name": "w0"}, {"name": "w0"}]}, "worker names w0 are taken twice"),
        ({"cluster": {"network": {"kind": "Netwrk"}}}, "kind 'Netwrk' is not known.*did you mean Network"),
        ({"faults": [{"fault": "Crsh", "at_s": 1}]}, "did you mean Crash"),
        ({"wanted": ["b"]}, "'b' is wanted and is no task of the graph"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = {"format": 1, "workers": [{"name": "w0"}], "cluster": {}, "work": "w", "wanted": ["a"]}
    path = tmp_path / "case.json"
    path.write_text(json.dumps({**values, "tasks": [["a", [], 1.0, 28, 0]], **change}))
    with pytest.raises(TwinError, match=says) as caught:
        load_case(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_json_or_half(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    with pytest.raises(TwinError, match="No such file"):
        load_case(path)
    path.write_text("{")
    with pytest.raises(TwinError, match="Expecting property name"):
        load_case(path)
    path.write_text('{"format": 1}')
    with pytest.raises(TwinError, match="there is no 'tasks'"):
        load_case(path)
