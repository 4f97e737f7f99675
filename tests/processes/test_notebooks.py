"""Every notebook runs from top to bottom: a real kernel, a real cluster, and nothing is left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.processes import leaving_nothing

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EXECUTE = Path(sys.executable).with_name("jupyter-execute")
CELL_TIMEOUT_S = 60

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the kernel runs and writes: neither into the repository nor into the home of whoever runs the tests."""
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    with leaving_nothing():
        yield tmp_path


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each_notebook
def test_notebook_runs(path: Path, folder: Path) -> None:
    copy = Path(shutil.copy(path, folder))
    # In a process of its own: jupyter_client leaves sockets open in the one that uses it.
    command = [str(EXECUTE), "--inplace", "--kernel_name=python3", f"--timeout={CELL_TIMEOUT_S}", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in read(copy).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    complaints = [o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not complaints


@each_notebook
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    """A change in the repository is then a change of the text."""
    for cell in read(path).cells:
        assert not cell.get("outputs"), f"{path.name}: clear all outputs before you save it"
        assert cell.get("execution_count") is None


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    return notebook
