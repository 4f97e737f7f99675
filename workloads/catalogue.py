"""Finds workloads by name, ours and those of other packages, and makes them from parameters.

A package offers a workload with an entry point of the group `swarm.workloads`::

    [project.entry-points."swarm.workloads"]
    total = "my_package.total:Total"

Everything here runs on the client, before anything is sent to a cluster, and refuses in one line.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from swarm.errors import UnknownWorkloadError, WorkloadParameterError, nearest
from workloads.workload import Workload

GROUP = "swarm.workloads"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a workload as its help shows it."""

    name: str
    allowed: str
    """What may be given, in words: "a whole number from 2 to 256"."""
    default: Any
    required: bool
    description: str
    several: bool = False
    """A tuple, in a string with commas between."""


def names() -> list[str]:
    """All known workloads, in alphabetical order."""
    return sorted(_registered())


def load(name: str) -> type[Workload]:
    """The class of a workload.

    Raises
    ------
    UnknownWorkloadError
        No package offers this name, or several do, or what is offered is no workload; says which package and why.
    """
    registered = _registered()
    if name not in registered:
        hint = f"; did you mean {near}?" if (near := nearest(name, registered)) else ";"
        raise UnknownWorkloadError(f"there is no workload {name!r}{hint} known are: {', '.join(sorted(registered))}")
    entry, *others = registered[name]
    if others:
        packages = ", ".join(sorted(map(_package, registered[name])))
        raise UnknownWorkloadError(
            f"workload {name!r} is offered by several packages: {packages}; uninstall all but one"
        )
    try:
        found = entry.load()
    except Exception as error:  # importing another package may raise anything; the user gets told what
        raise _broken(entry, f"{type(error).__name__}: {error}") from error
    if not inspect.isclass(found):
        raise _broken(entry, "it is not a class")
    abstract = getattr(found, "__abstractmethods__", ())
    missing = [member for member in ("name", "graph", "verify") if member in abstract or not hasattr(found, member)]
    if missing:
        raise _broken(entry, f"it does not define {', '.join(missing)}")
    return cast("type[Workload]", found)


def describe(name: str) -> tuple[str, list[Parameter]]:
    """The first line of a workload's docstring and its parameters, for `swarm run NAME --help`."""
    workload: type[object] = load(name)
    summary = (inspect.getdoc(workload) or name).splitlines()[0]
    if issubclass(workload, BaseModel):
        return summary, [_from_field(key, field) for key, field in workload.model_fields.items()]
    return summary, [_from_signature(p) for p in inspect.signature(workload).parameters.values()]


def create(name: str, **parameters: Any) -> Workload:
    """Make a workload; values may be strings, as from a command line.

    Raises
    ------
    UnknownWorkloadError
        As `load`.
    WorkloadParameterError
        A parameter that is unknown, missing, of the wrong type or out of range.
    UnreadableInputError
        An input file that is missing or can't be read.
    """
    workload = load(name)
    known = {parameter.name: parameter for parameter in describe(name)[1]}
    for key, value in parameters.items():
        if key not in known:
            raise WorkloadParameterError(_unknown_parameter(name, key, known))
        if isinstance(value, str) and known[key].several:
            parameters[key] = [part.strip() for part in value.split(",")]
    try:
        return workload(**parameters)
    except ValidationError as error:
        raise WorkloadParameterError(_in_one_line(name, error.errors(), known)) from error
    except (TypeError, ValueError) as error:  # a workload that is not a pydantic model checks for itself
        raise WorkloadParameterError(f"{name}: {_one_line(error)}") from error


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words.

    >>> from pydantic import Field
    >>> class Example(BaseModel):
    ...     clusters: int = Field(16, ge=2, le=256)
    ...     method: Literal["fast", "exact"] = "fast"
    >>> [allowed(field) for field in Example.model_fields.values()]
    ['a whole number from 2 to 256', 'fast or exact']
    """
    limits = {limit: getattr(m, limit) for m in field.metadata for limit in _LIMITS if hasattr(m, limit)}
    words = _type_in_words(field.annotation)
    if {"ge", "le"} <= limits.keys():
        return f"{words} from {limits['ge']} to {limits['le']}"
    return f"{words} {' and '.join(f'{_LIMITS[limit]} {bound}' for limit, bound in limits.items())}".rstrip()


_LIMITS = {
    "gt": "greater than",
    "ge": "at least",
    "lt": "less than",
    "le": "at most",
    "multiple_of": "a multiple of",
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _type_in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"one or more, with commas between: {_type_in_words(get_args(annotation)[0])}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_in_words(a) if a is not NoneType else "nothing" for a in get_args(annotation))
    return _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _from_field(name: str, field: FieldInfo) -> Parameter:
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True, validated_data={})
    several = get_origin(field.annotation) is tuple
    return Parameter(name, allowed(field), default, required, field.description or "", several)


def _from_signature(parameter: inspect.Parameter) -> Parameter:
    required = parameter.default is parameter.empty
    words = "anything" if parameter.annotation is parameter.empty else _type_in_words(parameter.annotation)
    return Parameter(parameter.name, words, None if required else parameter.default, required, "")


def _registered() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _broken(entry: EntryPoint, reason: str) -> UnknownWorkloadError:
    said = " ".join(reason.split())
    return UnknownWorkloadError(
        f"workload {entry.name!r} of package {_package(entry)} can't be used: {said} ({entry.value})"
    )


def _unknown_parameter(workload: str, key: str, known: Iterable[str]) -> str:
    hint = f"; did you mean {near}?" if (near := nearest(key, known)) else ";"
    return f"{workload} has no parameter {key!r}{hint} it has: {', '.join(known) or 'none'}"


def _in_one_line(workload: str, errors: list[ErrorDetails], known: Mapping[str, Parameter]) -> str:
    return f"{workload}: " + "; ".join(_one_error(error, known) for error in errors)


def _one_error(error: ErrorDetails, known: Mapping[str, Parameter]) -> str:
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "missing":
        return f"{key} is missing: {known[key].allowed}"
    if error["type"] in ("value_error", "assertion_error"):  # raised by a validator of the workload, in its own words
        said = _one_line(error["ctx"]["error"])
        return f"{key} = {error['input']!r} is not allowed: {said}" if key else said
    return f"{key} = {error['input']!r} is not allowed: {known[key].allowed}{_suggestion(error)}"


def _suggestion(error: ErrorDetails) -> str:
    if error["type"] != "literal_error":
        return ""
    choices = [choice.strip("'") for choice in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    near = nearest(str(error["input"]), choices)
    return f"; did you mean {near}?" if near else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
