"""A simulation as a JSON file that a person can read: a run that found a bug is kept, and run again as a test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from swarm.errors import TwinError
from swarm.twin.faults import Fault, from_json, to_json
from swarm.twin.models import ClusterModel, Cost
from swarm.twin.plain import key_of, model, plain
from swarm.twin.policies import POLICIES, Policy
from swarm.twin.work import Work, made_up

FORMAT = 1
OPTIONS = ("time_limit_s", "gather", "validate")


@dataclass(frozen=True)
class Case:
    """All that a simulation depends on, and what came of it."""

    work: Work
    cluster: ClusterModel
    policy: str | Policy = "stock"
    faults: Sequence[Fault] = ()
    seed: int = 0
    hash_seed: int = 0
    """`PYTHONHASHSEED` of the process, without which it is another run."""
    time_limit_s: float | None = None
    gather: bool = False
    validate: bool = False
    note: str = ""
    """What it shows."""
    ends: str = "finished"
    """Status that it must have: finished, failed, time limit, or deadlock."""
    trace_hash: str = ""
    """Hash that the trace must have; empty: any."""

    def save(self, path: str | Path) -> None:
        """Write it to a file.

        Raises
        ------
        TwinError
            A model or a policy is of a class of one's own, which JSON can't hold.
        """
        Path(path).write_text(_laid_out(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Of plain types. The functions of the tasks are left out: a simulation does not call them."""
        cluster = plain(self.cluster)
        del cluster["kind"]
        annotations = {kind: [[plain(k), v] for k, v in of.items()] for kind, of in self.work.annotations.items()}
        return {
            "format": FORMAT,
            "note": self.note,
            "ends": self.ends,
            "trace_hash": self.trace_hash,
            "seed": self.seed,
            "hash_seed": self.hash_seed,
            "policy": _plain_policy(self.policy),
            **{name: getattr(self, name) for name in OPTIONS},
            "faults": [to_json(fault) for fault in self.faults],
            "workers": cluster.pop("workers"),
            "cluster": cluster,
            "work": self.work.name,
            "wanted": plain(self.work.wanted),
            "annotations": annotations,
            "tasks": [
                [
                    plain(key),
                    [plain(need) for need in sorted(self.work.dependencies[key], key=str)],
                    *(cost.work_s, cost.output_bytes, cost.peak_bytes),
                ]
                for key, cost in self.work.costs.items()
            ],
        }

    def arguments(self) -> tuple[tuple[Work, ClusterModel], dict[str, Any]]:
        """Of `swarm.twin.simulate`."""
        options = {name: getattr(self, name) for name in ("policy", "faults", "seed", *OPTIONS)}
        return (self.work, self.cluster), options


def hash_seed_here() -> int:
    """`PYTHONHASHSEED` of this process; 0 where it is drawn at random, for nobody knows it then."""
    given = os.environ.get("PYTHONHASHSEED", "")
    return int(given) if given.isdigit() else 0


def load_case(path: str | Path) -> Case:
    """Read what `Case.save` wrote.

    Raises
    ------
    TwinError
        The file is missing, is no JSON, or lacks something; names the file and what is wrong.
    """
    try:
        return _case(json.loads(Path(path).read_text()))
    except KeyError as error:
        raise TwinError(f"{path}: there is no {error}") from None
    except (OSError, ValueError, TypeError, TwinError) as error:
        raise TwinError(f"{path}: {error}") from None


def _case(values: Any) -> Case:
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        raise TwinError(f"it is no saved simulation of format {FORMAT}")
    work = made_up(
        [
            (key_of(key), [key_of(need) for need in needs], Cost(work_s, output_bytes, peak_bytes))
            for key, needs, work_s, output_bytes, peak_bytes in values["tasks"]
        ],
        name=values["work"],
        wanted=[key_of(key) for key in values["wanted"]],
        annotations={kind: {key_of(k): v for k, v in of} for kind, of in values.get("annotations", {}).items()},
    )
    cluster = model({**values["cluster"], "workers": values["workers"]}, "cluster", "ClusterModel")
    faults = [from_json(fault) for fault in values.get("faults", ())]
    policy = values.get("policy", "stock")
    read = {"work", "faults", "policy", "cluster"}
    rest = {each.name: values[each.name] for each in fields(Case) if each.name in values and each.name not in read}
    return Case(work, cluster, policy if isinstance(policy, str) else Policy(**policy), faults, **rest)


def _plain_policy(policy: str | Policy) -> Any:
    if isinstance(policy, str):
        return policy
    if POLICIES.get(policy.name) is policy:
        return policy.name
    if policy.plugins is not Policy.plugins:
        raise TwinError(f"policy {policy.name!r} can't be saved: it has plugins of its own; make them a preload")
    config = {key: plain(value) for key, value in policy.config.items()}
    return {"name": policy.name, "preload": list(policy.preload), "config": config, "agents": policy.agents}


def _laid_out(values: Mapping[str, Any]) -> str:
    """As JSON with a line per task, worker and fault."""
    told = []
    for name, value in values.items():
        text = json.dumps(value)
        if isinstance(value, list) and any(isinstance(each, list | dict) for each in value):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        told.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(told) + "\n}\n"
