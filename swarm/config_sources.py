"""Where settings come from: Dask's configuration, the environment, `swarm_config.json` or `.yaml`.

From weakest to strongest, Dask's own order (`dask.config.refresh`, `dask.config.set`) with one file added:

1. the built-in defaults,
2. the namespace `swarm` in Dask's configuration files (`dask.config.paths`),
3. the swarm_config file,
4. the environment: `DASK_SWARM__MAX_AGENTS=8`,
5. what the program set: `dask.config.set({"swarm.max-agents": 8})`,
6. keyword arguments of `load`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import dask.config
import yaml

from swarm.config import DEFAULTS, Layer, Resolved, Value, flatten, one_line, resolve
from swarm.errors import SettingsConflictError, SettingsError, nearest

VARIABLE = "SWARM_CONFIG"
"""Environment variable with the path of the swarm_config file."""

_FILES = ("swarm_config.json", "swarm_config.yaml", "swarm_config.yml")
_INHERITED = "DASK_INTERNAL_INHERIT_CONFIG"


def load(path: str | Path | None = None, **overrides: Any) -> Resolved:
    """Read all places and resolve them.

    Dask reads its files and the environment when it is imported, so after a change to `os.environ` in a running
    program call `dask.config.refresh()` first.

    Parameters
    ----------
    path
        The swarm_config file. Without it: the variable `SWARM_CONFIG`, else `swarm_config.json`, `.yaml` or `.yml`
        in the working directory, else none.
    overrides
        Settings that win over all others; None counts as not given, as in `dask.config.get(override_with=None)`.

    Raises
    ------
    SettingsError
        A file that can't be read, a wrong key or a wrong value; one line.
    SettingsConflictError
        Two swarm_config files in the working directory that differ.
    """
    defaults = Layer("registered defaults", dask.config.merge(*dask.config.defaults).get("swarm"))
    files = _dask_files(dask.config.paths)
    inherited = _inherited(os.environ)
    variables = _variables(os.environ)
    collected = [defaults, *files, inherited, *variables]
    given = {key: value for key, value in overrides.items() if value is not None}
    return resolve(
        [
            *files,
            *_swarm_file(path),
            # A parent that has registered the defaults hands them down like values that somebody chose.
            _beyond(inherited, [defaults]),
            *variables,
            _beyond(Layer("dask.config", dask.config.config.get("swarm")), collected),
            Layer("argument", given),
        ]
    )


def register_defaults() -> None:
    """Let `dask.config.get("swarm.max-agents")` answer; `load` does not need it. May be called again.

    Once registered, a default can't be told from the same value set by the program: `dask.config.set` with the
    built-in default no longer overrules a swarm_config file, a keyword argument of `load` does. So call it in every
    process of a cluster or in none.
    """
    defaults = yaml.safe_load(resources.files("swarm").joinpath("swarm.yaml").read_text("utf-8"))
    if defaults not in dask.config.defaults:
        dask.config.update_defaults(defaults)


def as_env(resolved: Resolved) -> dict[str, str]:
    """Environment variables that hand the explicit settings to a child process; Dask reads them as it starts."""
    return {_variable(key): repr(value) for key, value in resolved.explicit.items()}


def _variable(key: str) -> str:
    return f"DASK_SWARM__{key.upper().replace('.', '__')}"


def _dask_files(paths: Sequence[str]) -> list[Layer]:
    try:
        found = list(dask.config.collect_yaml(paths, return_paths=True))
    except ValueError as error:
        raise SettingsError(one_line(" ".join(str(error).split()))) from None
    return [Layer(f"file {path}", values["swarm"]) for path, values in found if "swarm" in values]


def _variables(environ: Mapping[str, str]) -> list[Layer]:
    """One layer for each variable, so that an error can name it."""
    layers = []
    for name in sorted(n for n in environ if n.startswith("DASK_")):
        head, nested, _ = name[5:].lower().partition("__")
        if head == "swarm":
            values = dask.config.collect_env({name: environ[name]})["swarm"]
            layers.append(Layer(f"environment variable {name}", values))
        elif head.startswith("swarm_") and not nested:
            near = nearest(name, map(_variable, DEFAULTS))
            hint = f"; did you mean {near}?" if near else ""
            raise SettingsError(one_line(f"environment variable {name}: two underscores follow DASK_SWARM{hint}"))
    return layers


def _inherited(environ: Mapping[str, str]) -> Layer:
    """What `dask.distributed.SSHCluster` hands down: the whole configuration of the process that started it."""
    found = {_INHERITED: environ[_INHERITED]} if _INHERITED in environ else {}
    return Layer("configuration inherited from the parent process", dask.config.collect_env(found).get("swarm"))


def _beyond(layer: Layer, weaker: Sequence[Layer]) -> Layer:
    """The part of `layer` that differs from what `weaker` add up to.

    `dask.config.config` is one merged mapping: what the program set is what differs from all that Dask collected.
    """
    if not isinstance(layer.values, Mapping):
        return layer
    known: dict[str, Any] = {}
    for below in weaker:
        if isinstance(below.values, Mapping):
            known |= flatten(below.values)
    kept = {key: value for key, value in flatten(layer.values) if key not in known or not _same(value, known[key])}
    return Layer(layer.name, kept)


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _swarm_file(path: str | Path | None) -> list[Layer]:
    if path is None and VARIABLE in os.environ:
        path = os.environ[VARIABLE]
    if path is not None:
        return [_read(Path(path))]
    found = [_read(Path(name)) for name in _FILES if Path(name).exists()]
    first: dict[str, Value] | None = None
    for layer in found:
        explicit = resolve([layer]).explicit
        if first is not None and explicit != first:
            raise SettingsConflictError(f"{found[0].name} and {layer.name} in this folder differ; keep one of them")
        first = explicit
    return found[:1]


def _read(path: Path) -> Layer:
    """Settings of one file, at the top level or, as in Dask's files, all under the key `swarm`."""
    name = f"file {path}"
    parse = {".json": _json, ".yaml": _yaml, ".yml": _yaml}.get(path.suffix.lower())
    if parse is None:
        raise SettingsError(one_line(f"{name}: the name must end in .json, .yaml or .yml"))
    try:
        values = parse(path.read_text("utf-8-sig"))
    except OSError as error:
        why = f"can't be read ({error.strerror}); give the path of a readable file, or unset {VARIABLE}"
        raise SettingsError(one_line(f"{name}: {why}")) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SettingsError(one_line(f"{name}, {where}: not valid JSON: {error.msg}")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(one_line(f"{name}{where}: not valid YAML: {error.problem}")) from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(one_line(f"{name}: not valid: {' '.join(str(error).split())}")) from None
    if isinstance(values, Mapping) and "swarm" in values:
        beside = [str(key) for key in values if key != "swarm"]
        if beside:
            what = "may not stand beside the key swarm; settings of Dask belong in ~/.config/dask"
            raise SettingsError(one_line(f"{name}: {', '.join(beside)[:60]} {what}"))
        values = values["swarm"]
    return Layer(name, values)


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key} is given twice")
        values[key] = value
    return values


def _yaml(text: str) -> Any:
    return yaml.load(text, _UniqueKeys)  # noqa: S506 - a SafeLoader


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
