"""`swarm.config_sources`: every place that settings come from, in Dask's order of precedence."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
import pytest
import yaml

from swarm.config import DEFAULTS, Layer, Resolved, Settings, allowed, resolve
from swarm.config_sources import as_env, load, register_defaults
from swarm.errors import SettingsConflictError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS = Path(__file__).parents[3] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, its folder `dask` the only place of Dask's files; puts `dask.config` back."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("DASK_SWARM", "SWARM_CONFIG", "DASK_INTERNAL")):
            monkeypatch.delenv(name)
    config, defaults, paths = copy.deepcopy(dask.config.config), [*dask.config.defaults], [*dask.config.paths]
    dask.config.paths[:] = [str(tmp_path / "dask")]
    (tmp_path / "dask").mkdir()
    dask.config.defaults[:] = [d for d in defaults if "swarm" not in d]
    dask.config.refresh()
    yield tmp_path
    dask.config.paths[:] = paths
    dask.config.defaults[:] = defaults
    dask.config.config.clear()
    dask.config.update(dask.config.config, config)


@pytest.fixture(params=[False, True], ids=["unregistered", "registered"])
def registered(request: pytest.FixtureRequest) -> bool:
    if request.param:
        register_defaults()
    return bool(request.param)


def error(*args: Any, **overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*args, **overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def by_dask_file(value: object) -> None:
    Path("dask/swarm.yaml").write_text(yaml.safe_dump({"swarm": {"max-agents": value}}))


def by_swarm_file(value: object) -> None:
    Path("swarm_config.json").write_text(json.dumps({"max_agents": value}))


def by_environment(value: object) -> None:
    os.environ["DASK_SWARM__MAX_AGENTS"] = str(value)


def by_program(value: object) -> None:
    dask.config.set({"swarm.max-agents": value})


PLACES: list[tuple[str, Callable[[object], None]]] = [
    ("file {folder}/dask/swarm.yaml", by_dask_file),
    ("file swarm_config.json", by_swarm_file),
    ("environment variable DASK_SWARM__MAX_AGENTS", by_environment),
    ("dask.config", by_program),
    ("argument", lambda _: None),
]
SUBSETS = [s for n in range(len(PLACES) + 1) for s in itertools.combinations(range(len(PLACES)), n)]


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_every_combination_of_places(
    subset: tuple[int, ...], folder: Path, registered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for i in subset:
        if i == 3:
            dask.config.refresh()  # as a new process does, before the program sets anything
        PLACES[i][1](10 + i)
    if 3 not in subset:
        dask.config.refresh()
    resolved = load(max_agents=14 if 4 in subset else None)
    assert resolved.settings.max_agents == (10 + subset[-1] if subset else 32)
    assert resolved.explicit == ({"max_agents": 10 + subset[-1]} if subset else {})
    name = PLACES[subset[-1]][0] if subset else "built-in default"
    assert resolved.origin["max_agents"] == name.format(folder=folder)


@pytest.mark.parametrize("place", [by_dask_file, by_swarm_file, by_environment])
def test_the_program_may_go_back_to_the_default(
    place: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    place(8)
    dask.config.refresh()
    dask.config.set({"swarm.max-agents": 32})
    assert load().explicit == {"max_agents": 32}


def test_with_registered_defaults_a_default_set_again_yields_to_the_file_but_an_argument_does_not() -> None:
    register_defaults()
    by_swarm_file(8)
    dask.config.set({"swarm.max-agents": 32})
    assert load().settings.max_agents == 8
    assert load(max_agents=32).settings.max_agents == 32


@pytest.mark.parametrize(
    "values",
    [
        {"swarm.max-agents": 8},
        {"swarm.max_agents": 8},
        {"swarm": {"max-agents": 8}},
        {"swarm": {"max_agents": 8}},
    ],
)
def test_what_the_program_sets_ends_with_its_context(values: Any, registered: bool) -> None:
    Path("dask/swarm.yaml").write_text("swarm: {auto-scaling: false, max_agents: 9}")
    dask.config.refresh()
    before = load()
    with dask.config.set(values):
        assert load().explicit == {"max_agents": 8, "auto_scaling": False}
        assert load().origin["max_agents"] == "dask.config"
        with dask.config.set({"swarm.performance-thresholds.cpu-critical": 50}):
            assert load().settings.performance_thresholds.cpu_critical == 50
    assert load() == before
    assert before.explicit == {"max_agents": 9, "auto_scaling": False}


def test_keyword_form_of_dask_config_set(registered: bool) -> None:
    with dask.config.set(swarm__performance_thresholds__cpu_critical=50):
        assert load().explicit == {"performance_thresholds.cpu_critical": 50.0}


def test_registering_defaults_makes_nothing_explicit() -> None:
    register_defaults()
    register_defaults()
    assert sum("swarm" in d for d in dask.config.defaults) == 1
    assert dask.config.get("swarm.max-agents") == 32
    assert dask.config.get("swarm.performance_thresholds.cpu_critical") == 90
    assert load().explicit == {}


def test_registering_defaults_keeps_what_was_set_before() -> None:
    with dask.config.set({"swarm.max_agents": 8}):
        register_defaults()
        assert dask.config.get("swarm.max-agents") == 8
        assert load().explicit == {"max_agents": 8}


def test_what_a_parent_hands_down(registered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # As dask.distributed.SSHCluster does: the whole configuration, with the defaults if they are registered.
    with dask.config.set({"swarm.max-agents": 8}):
        monkeypatch.setenv("DASK_INTERNAL_INHERIT_CONFIG", dask.config.serialize(dask.config.config))
    by_swarm_file(9)
    dask.config.refresh()
    resolved = load()
    assert resolved.explicit == {"max_agents": 8}
    assert resolved.origin["max_agents"] == "configuration inherited from the parent process"


def test_what_a_nanny_hands_down(registered: bool) -> None:
    # As distributed.nanny.WorkerProcess._run does in the child.
    with dask.config.set({"swarm.max-agents": 8}):
        nannys = copy.deepcopy(dask.config.config)
    dask.config.refresh()
    dask.config.set(nannys)
    assert load().explicit == {"max_agents": 8}


def test_child_processes_get_the_explicit_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[str, Any] = {
        "max_agents": 8,
        "auto_scaling": False,
        "performance_thresholds": {"cpu_critical": 80.5},
    }
    parent = load(**chosen)
    environ = as_env(parent)
    assert environ == {
        "DASK_SWARM__MAX_AGENTS": "8",
        "DASK_SWARM__AUTO_SCALING": "False",
        "DASK_SWARM__PERFORMANCE_THRESHOLDS__CPU_CRITICAL": "80.5",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    dask.config.refresh()
    child = load()
    assert (child.settings, child.explicit) == (parent.settings, parent.explicit)


def test_the_environment_takes_text_and_dicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SWARM__MONITORING_INTERVAL", "500ms")
    monkeypatch.setenv("DASK_SWARM__FAULT_TOLERANCE", "false")
    monkeypatch.setenv("DASK_SWARM__PERFORMANCE_THRESHOLDS", "{'cpu-critical': 80}")
    dask.config.refresh()
    assert load().explicit == {
        "monitoring_interval": 0.5,
        "fault_tolerance": False,
        "performance_thresholds.cpu_critical": 80.0,
    }


def test_none_as_an_argument_counts_as_not_given() -> None:
    assert load(max_agents=None).explicit == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DASK_SWARM__MAX_AGENTS", "many", 'max_agents = "many" ({}): must be a whole number from 1 to 4096'),
        ("DASK_SWARM__MAX_AGENT", "8", "max_agent = 8 ({}): no such setting; did you mean max_agents?"),
        ("DASK_SWARM", "8", "{}: must be a mapping of settings, is 8"),
        (
            "DASK_SWARM_MAX_AGENTS",
            "8",
            "{}: two underscores follow DASK_SWARM; did you mean DASK_SWARM__MAX_AGENTS?",
        ),
    ],
)
def test_wrong_variables(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    dask.config.refresh()
    assert error().startswith(message.format(f"environment variable {name}"))


def test_wrong_values_elsewhere_name_their_place(folder: Path) -> None:
    Path("dask/x.yaml").write_text("swarm: {max-agents: 0}")
    dask.config.refresh()
    assert error().startswith(f"max_agents = 0 (file {folder}/dask/x.yaml): must be")
    Path("dask/x.yaml").unlink()
    dask.config.refresh()
    with dask.config.set({"swarm.auto-scaling": 1}):
        assert error().startswith("auto_scaling = 1 (dask.config): must be true or false")
    assert error(max_agent=1).startswith("max_agent = 1 (argument): no such setting; did you mean max_agents?")


def test_a_dask_file_that_broke_after_the_import() -> None:
    Path("dask/x.yaml").write_text("swarm: {")
    assert "dask/x.yaml' is malformed" in error()


# -- the swarm_config file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swarm_config.json", "swarm_config.yaml", "swarm_config.yml"])
@pytest.mark.parametrize("text", ['{"max_agents": 8}', '{"swarm": {"max-agents": 8}}', '\ufeff{"max_agents": 8}'])
def test_the_file_in_the_working_directory(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
    resolved = load()
    assert (resolved.explicit, resolved.origin["max_agents"]) == ({"max_agents": 8}, f"file {name}")


def test_an_argument_beats_the_variable_beats_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(["swarm_config.json", "b.yaml", "c.yml"]):
        Path(name).write_text(f'{{"max_agents": {i + 1}}}')
    assert load().settings.max_agents == 1
    monkeypatch.setenv("SWARM_CONFIG", "b.yaml")
    assert load().settings.max_agents == 2
    assert load("c.yml").settings.max_agents == 3
    assert load(Path("c.yml")).origin["max_agents"] == "file c.yml"


def test_an_empty_yaml_file_sets_nothing() -> None:
    Path("swarm_config.yaml").write_text("# all commented out\n")
    assert load().explicit == {}


def test_two_files_in_one_folder() -> None:
    Path("swarm_config.json").write_text('{"max_agents": 8, "monitoring_interval": 2}')
    Path("swarm_config.yaml").write_text("max-agents: 8\nmonitoring-interval: 2s\n")
    assert load().settings.max_agents == 8
    Path("swarm_config.yaml").write_text("max-agents: 9")
    with pytest.raises(SettingsConflictError) as caught:
        load()
    both = "file swarm_config.json and file swarm_config.yaml in this folder"
    assert str(caught.value) == f"{both} differ; keep one of them"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"max_agents": 8,\n "x" 1}', ", line 2, column 6: not valid JSON: Expecting ':' delimiter"),
        ("a.json", "", ", line 1, column 1: not valid JSON: Expecting value"),
        ("a.json", '{"max_agents": 8, "max_agents": 9}', ": not valid: the key max_agents is given twice"),
        ("a.json", "[" * 100_000, ": not valid: maximum recursion depth exceeded"),
        ("a.json", "[1]", ": must be a mapping of settings, is [1]"),
        ("a.json", '{"swarm": 5}', ": must be a mapping of settings, is 5"),
        ("a.json", '{"swarm": {}, "array": {}}', ": array may not stand beside the key swarm"),
        ("a.yaml", "max_agents: 8\n\tx: 1", ", line 2, column 1: not valid YAML: found character '\\t'"),
        ("a.yaml", "max_agents: 8\nmax_agents: 9", ", line 2, column 1: not valid YAML: the key max_agents is"),
        ("a.yaml", "? [1]\n: 2", ", line 1, column 3: not valid YAML: found unhashable key"),
        ("a.yaml", "max_agents: 2020-13-45", ": not valid: month must be in 1..12"),
        ("a.yaml", "max_agents: \x01", ": not valid: unacceptable character #x0001"),
        ("a.toml", "", ": the name must end in .json, .yaml or .yml"),
    ],
)
def test_files_that_are_wrong(name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
    assert error(name).startswith(f"file {name}{message}")


def test_a_yaml_file_that_contains_itself() -> None:
    Path("a.yaml").write_text("&a {max_agents: *a}")
    assert error("a.yaml").endswith("… (file a.yaml): must be a whole number from 1 to 4096")


def test_files_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "d.json").mkdir()
    (folder / "latin.yaml").write_bytes(b"max_agents: \xe9")
    assert error("d.json").startswith("file d.json: can't be read (Is a directory)")
    assert error("latin.yaml").startswith("file latin.yaml: not valid: 'utf-8' codec can't decode")
    monkeypatch.setenv("SWARM_CONFIG", "none.json")
    assert error().startswith("file none.json: can't be read (No such file or directory); give the path")


# -- what is written about it --------------------------------------------------------------------------------


def test_the_shipped_yaml_and_the_defaults_agree() -> None:
    register_defaults()
    shipped = next(d for d in dask.config.defaults if "swarm" in d)
    assert resolve([Layer("swarm.yaml", shipped["swarm"])]).explicit == DEFAULTS
    assert "_" not in json.dumps(shipped), "Dask writes its keys with -"


def test_the_page_names_every_key_with_default_and_range() -> None:
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.+?) \| .+ \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert rows == [(key, json.dumps(value), allowed(key)) for key, value in DEFAULTS.items()]


def test_the_examples_of_the_page_work() -> None:
    def example(language: str) -> Resolved:
        block = re.search(rf"```{language}\n(.+?)```", DOCS.read_text("utf-8"), re.DOTALL)
        assert block is not None
        Path(f"example.{language}").write_text(block[1])
        return load(f"example.{language}")

    assert example("json").explicit == example("yaml").explicit
    assert example("json").settings != Settings()
