"""pyproject.toml, requirements.lock and environment.yml say the same, and name every package that the code imports."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PACKAGES = ("swarm", "scheduler_plugins", "workloads")
OURS = {*PACKAGES, "tests"}

INSTALLED_EXTRAS = ("notebooks", "dev")
"""What `make install` and the conda environment have; the others are for hardware that few have, and for peers that
benchmarks run beside."""
OPTIONAL_EXTRAS = ("gpu", "opencl", "peers")

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cupy": "cupy-cuda12x",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
"""Import name → name on PyPI, where they differ by more than `-` and `_`."""

CONDA_NAMES = {"dask": "dask-core", "msgpack": "msgpack-python", "prometheus-client": "prometheus_client"}
"""Name on PyPI → name on conda-forge, where they differ. `dask` there brings far more than `dask[distributed]`."""

Ranges = dict[str, SpecifierSet]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared(pyproject: dict[str, Any], *extras: str) -> Ranges:
    """Distribution → range, of what swarm itself needs or of some extras."""
    project = pyproject["project"]
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]]
    ranges: Ranges = {}
    for requirement in map(Requirement, lines if extras else project["dependencies"]):
        ranges[canonicalize_name(requirement.name)] = requirement.specifier
        if requirement.name == "dask":  # dask[distributed]: the two are released together, under one number
            ranges |= dict.fromkeys(requirement.extras, requirement.specifier)
    return ranges


def conda_ranges() -> Ranges:
    lines = [line for line in conda()["dependencies"] if isinstance(line, str)]
    return {name: SpecifierSet(version) for name, _, version in (line.partition(" ") for line in lines)}


def conda() -> Any:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def locked() -> dict[str, set[str]]:
    """Distribution → versions; more than one where they depend on the version of Python."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for name, version in pins:
        versions[canonicalize_name(name)].add(version)
    return versions


def test_conda_environment_has_what_pyproject_declares(pyproject: dict[str, Any]) -> None:
    wanted = declared(pyproject) | declared(pyproject, *INSTALLED_EXTRAS)
    expected = {CONDA_NAMES.get(name, name): ranges for name, ranges in wanted.items()}
    expected |= {"python": SpecifierSet(pyproject["project"]["requires-python"]), "pip": SpecifierSet()}
    assert conda_ranges() == expected


def test_conda_environment_installs_the_project_itself() -> None:
    assert conda()["dependencies"][-1] == {"pip": ["--editable ."]}


def test_lock_satisfies_pyproject(pyproject: dict[str, Any]) -> None:
    versions = locked()
    for name, ranges in (declared(pyproject) | declared(pyproject, *INSTALLED_EXTRAS)).items():
        assert versions[name], f"{name} is not in requirements.lock: make lock"
        assert all(version in ranges for version in versions[name]), (
            f"{name} {versions[name]} is not {ranges}: make lock"
        )


def test_build_needs_only_what_is_installed(pyproject: dict[str, Any]) -> None:
    """`make install` builds without isolation, so that nothing beside the lock is downloaded."""
    build = {Requirement(line).name: Requirement(line).specifier for line in pyproject["build-system"]["requires"]}
    assert build.items() <= declared(pyproject, "dev").items()


def test_packages_import_only_what_is_declared(pyproject: dict[str, Any]) -> None:
    sources = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    always, optional = declared(pyproject), declared(pyproject, *OPTIONAL_EXTRAS)
    imported = set()
    for file in sources:
        for name, is_deferred in imports(file.read_text()):
            imported.add(name)
            where = f"{file.relative_to(ROOT)} imports {name}"
            assert name in always or name in optional, f"{where}, which pyproject.toml does not declare"
            assert name in always or is_deferred, f"{where}, which few have: import it inside a function"
    assert always.keys() <= imported, "declared, but never imported"


def test_tests_and_notebooks_import_only_what_is_declared(pyproject: dict[str, Any]) -> None:
    known = declared(pyproject) | declared(pyproject, *INSTALLED_EXTRAS, *OPTIONAL_EXTRAS)
    sources = {file: file.read_text() for file in (ROOT / "tests").rglob("*.py")}
    sources |= {file: code_of_notebook(file) for file in (ROOT / "notebooks").glob("*.ipynb")}
    for file, source in sources.items():
        undeclared = {name for name, _ in imports(source)} - known.keys()
        assert not undeclared, f"{file.relative_to(ROOT)} imports {undeclared}, which pyproject.toml does not declare"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import yaml, os", [("pyyaml", False)]),
        ("from sklearn.cluster import KMeans", [("scikit-learn", False)]),
        ("def f():\n    import cupy", [("cupy-cuda12x", True)]),
        ("if True:\n    import pytest_benchmark.plugin", [("pytest-benchmark", False)]),
        ("from . import sibling\nimport swarm.client", []),
    ],
)
def test_imports_are_found(source: str, found: list[tuple[str, bool]]) -> None:
    assert list(imports(source)) == found


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Distributions that a module imports, and whether inside a function; neither Python's own nor ours."""

    def modules(nodes: Iterable[ast.AST], is_deferred: bool) -> Iterator[tuple[str, bool]]:
        for node in nodes:
            match node:
                case ast.Import():
                    yield from ((alias.name, is_deferred) for alias in node.names)
                case ast.ImportFrom(module=str(module), level=0):
                    yield module, is_deferred
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from modules(ast.iter_child_nodes(node), is_deferred or in_function)

    for module, is_deferred in modules([ast.parse(source)], False):
        top = module.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in OURS:
            yield canonicalize_name(DISTRIBUTIONS.get(top, top)), is_deferred


def code_of_notebook(file: Path) -> str:
    cells = json.loads(file.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
