"""The house keeps its walls: pure rooms import nothing that acts, and imports point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("swarm", "scheduler_plugins", "workloads")

ACTS = {
    # Dask and whatever talks to the world, waits, reads a clock or draws lots.
    *("dask", "distributed", "tornado", "bokeh", "asyncio", "socket", "ssl", "http", "urllib", "requests"),
    *("os", "io", "pathlib", "shutil", "tempfile", "subprocess", "multiprocessing", "threading", "concurrent"),
    *("mmap", "ctypes", "psutil", "sqlite3", "fsspec", "logging", "structlog"),
    *("time", "datetime", "random", "secrets", "uuid"),
}
"""What no module marked PURE may import."""

ONE_WAY = {
    "workloads": ("scheduler_plugins", "swarm.agents", "swarm.client", "swarm.dashboard", "swarm.deploy"),
    "scheduler_plugins/decide": ("scheduler_plugins.on_dask", "swarm.agents", "swarm.client", "swarm.deploy"),
    "swarm/agents": ("swarm.client", "swarm.cli", "swarm.deploy", "workloads"),
    "swarm/ledger": ("scheduler_plugins", "swarm.agents", "swarm.client", "swarm.deploy", "workloads"),
    "swarm/telemetry": ("scheduler_plugins", "swarm.agents", "swarm.client", "swarm.dashboard", "workloads"),
    "swarm/dashboard": ("scheduler_plugins", "swarm.agents", "swarm.client", "swarm.deploy", "workloads"),
    "swarm/deploy": ("scheduler_plugins", "swarm.agents", "swarm.client", "swarm.dashboard", "workloads"),
}
"""Room → what it must not import, not even inside a function."""

PRIVATE_NAMES_LIVE_IN = ("scheduler_plugins/on_dask", "swarm/twin")


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_pure(path: Path) -> bool:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0].rstrip().endswith("PURE")


def imports(path: Path, *, at_run_time_only: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; `if TYPE_CHECKING:` does not run."""
    for node in ast.walk(_without_type_checking(path) if at_run_time_only else ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


class _Strip(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)


def _without_type_checking(path: Path) -> ast.AST:
    return _Strip().visit(ast.parse(path.read_text()))


PURE = [path for path in modules() if is_pure(path)]


def test_the_rooms_that_must_be_pure_are_marked() -> None:
    marked = {str(path.relative_to(ROOT)) for path in PURE}
    decide = {str(path.relative_to(ROOT)) for path in (ROOT / "scheduler_plugins/decide").rglob("*.py")}
    assert decide <= marked
    assert {"swarm/protocol.py", "swarm/config.py", "swarm/errors.py", "swarm/dashboard/view_model.py"} <= marked


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_imports_nothing_that_acts(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for line, module in imports(path, at_run_time_only=True)
        if module.partition(".")[0] in ACTS
    ]
    assert not found


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_uses_only_pure_rooms_of_ours(path: Path) -> None:
    pure = {name_of(p) for p in PURE}
    ours = {name_of(p) for p in modules()}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for line, module in imports(path, at_run_time_only=True)
        if module in ours and module not in pure and module not in PACKAGES
    ]
    assert not found


def test_importing_all_pure_modules_loads_no_dask() -> None:
    """The scan above sees what is written; this sees what happens."""
    names = ", ".join(map(name_of, PURE))
    script = (
        f"import sys, {names}; print(*(m for m in ('dask', 'distributed', 'bokeh', 'tornado') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_packages_that_dask_preloads_import_nothing_heavy() -> None:
    script = (
        "import sys, swarm, swarm.agents, scheduler_plugins, workloads;"
        "print(*(m for m in ('dask', 'distributed', 'numpy', 'numba', 'pydantic', 'structlog') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_a_worker_has_joined_before_its_agents_are_imported_and_has_no_channels_before_the_first_of_them() -> None:
    script = (
        "import sys, swarm.agents.starting;"
        "print(*(m for m in ('swarm.protocol', 'pydantic', 'structlog') if m in sys.modules));"
        "import swarm.agents.host, swarm.agents.watch.witness;"
        "print(*(m for m in ('swarm.channels', 'swarm.agents.life', 'numba', 'cryptography') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_command_line_is_light_because_dask_imports_it_too() -> None:
    script = (
        "import sys, swarm.cli;"
        "print(*(m for m in ('dask', 'distributed', 'numpy', 'numba', 'pydantic', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("room", ONE_WAY)
def test_imports_point_one_way(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, module in imports(path, at_run_time_only=True)
        if any(module == wall or module.startswith(f"{wall}.") for wall in ONE_WAY[room])
    ]
    assert not found


def test_only_the_adapters_know_dasks_private_modules() -> None:
    """A module or name of Dask that begins with an underscore is imported in the adapters only, or excused here."""
    excused = {
        # The expression that Client.compute builds; the client tells its keys to the scheduler before it is sent.
        ("swarm/submission.py", "dask._expr"),
        ("swarm/submission.py", "dask._expr.FinalizeCompute"),
    }
    found = {
        (str(path.relative_to(ROOT)), module)
        for path in modules()
        if not str(path.relative_to(ROOT)).startswith(PRIVATE_NAMES_LIVE_IN)
        for _, module in imports(path, at_run_time_only=True)
        if module.partition(".")[0] in ("dask", "distributed") and any(p.startswith("_") for p in module.split("."))
    }
    assert found <= excused


def test_no_room_has_a_name_that_says_nothing() -> None:
    empty_names = {"utils", "util", "common", "helpers", "helper", "core", "manager", "misc"}
    assert not [str(path) for path in modules() if path.stem in empty_names]
