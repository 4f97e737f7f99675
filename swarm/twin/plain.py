"""Models and keys as plain JSON types, and back.  PURE"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from swarm.errors import TwinError, nearest
from swarm.twin.models import (
    ClusterModel,
    Drifting,
    Fixed,
    Key,
    Link,
    Memory,
    Network,
    SchedulerCpu,
    Sudden,
    WorkerModel,
)

MODELS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (ClusterModel, Drifting, Fixed, Link, Memory, Network, SchedulerCpu, Sudden, WorkerModel)
}
PLAIN_MAPPINGS = ("resources",)
"""Fields that hold a mapping which is no model."""


def plain(value: Any) -> Any:
    """A model as `{"kind": name of the class, **fields that are not as by default}`, all else as JSON has it.

    Raises
    ------
    TwinError
        It is, or holds, an object of a class that is not one of the twin's models.

    >>> plain(Sudden(1.0, 0.5, at_s=3.0))
    {'kind': 'Sudden', 'before': 1.0, 'after': 0.5, 'at_s': 3.0}
    """
    if type(value).__name__ in MODELS and dataclasses.is_dataclass(value):
        fields = {each.name: (getattr(value, each.name), _default(each)) for each in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | {k: plain(v) for k, (v, default) in fields.items() if v != default}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: plain(each) for key, each in value.items()}
        return [[plain(key), plain(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TwinError(f"{value!r} can't be written as JSON; only the twin's own models can: {', '.join(MODELS)}")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def model(values: object, where: str, kind: str | None = None) -> Any:
    """Read what `plain` made of a model, or what a person wrote.

    Parameters
    ----------
    values
        Mapping with the key "kind", which may be left out where `kind` is given.
    where
        Begins the message of an error.

    Raises
    ------
    TwinError
        A class or a field is not known, or a value is not allowed.
    """
    if not isinstance(values, Mapping):
        raise TwinError(f"{where} is {values!r}, must be a mapping")
    named = values.get("kind", kind)
    if named not in MODELS:
        hint = nearest(str(named), MODELS)
        raise TwinError(
            f"{where}: kind {named!r} is not known, must be one of {', '.join(MODELS)}"
            + (f"; did you mean {hint}?" if hint else "")
        )
    rest = {name: _read(name, value, where) for name, value in values.items() if name != "kind"}
    known = [each.name for each in dataclasses.fields(MODELS[named])]
    if unknown := next((name for name in rest if name not in known), None):
        raise TwinError(f"{where} has no {unknown!r}, only {', '.join(known)}")
    try:
        return MODELS[named](**rest)
    except TypeError as error:
        raise TwinError(f"{where}: {error}") from None


def _read(name: str, value: Any, where: str) -> Any:
    if name == "links":
        return {tuple(hosts): model(link, f"{where}.links", "Link") for hosts, link in value}
    if name == "workers":
        return [model(each, f"{where}.workers[{number}]", "WorkerModel") for number, each in enumerate(value)]
    if isinstance(value, Mapping) and name not in PLAIN_MAPPINGS:
        return model(value, f"{where}.{name}")
    return value


def key_of(value: Any) -> Key:
    """A key of Dask, whose tuples are lists in JSON.

    >>> key_of(["x", 0, ["y", 1]])
    ('x', 0, ('y', 1))
    """
    return tuple(map(key_of, value)) if isinstance(value, list) else value
