"""What README and CONTRIBUTING show does what they say: their Python runs, the workload is found by entry point."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.processes import leaving_nothing

ROOT = Path(__file__).parents[2]
PATH_COMMENT = re.compile(r"# (my_package/\w+\.py)\n")


def blocks(language: str, document: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a photograph, and with the README's package installed."""
    Image.effect_mandelbrot((64, 48), (-2, -1.2, 1, 1.2), 100).convert("RGB").save(tmp_path / "photo.jpg")
    [(path, source)] = [(found[1], block) for block in blocks("python") if (found := PATH_COMMENT.match(block))]
    [package] = blocks("toml")
    entry_points = tomllib.loads(package)["project"]["entry-points"]["swarm.workloads"]
    module = tmp_path / path
    module.parent.mkdir()
    (module.parent / "__init__.py").touch()
    module.write_text(source)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[swarm.workloads]", *lines]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    with leaving_nothing():
        yield tmp_path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    program = "\n".join(block for block in blocks("python") if not PATH_COMMENT.match(block))
    said = run(sys.executable, "-c", program).splitlines()
    progress, status, verification, explanation, *_ = said
    assert "kmeans" in progress
    assert status == "finished"
    assert verification.startswith("Verification(passed=True")
    assert explanation.startswith("Run kmeans-1-")
    assert {"4000000.0", "9", "[1, 1, 4, 27, 256]"} <= set(said)
    assert said.count("4000000.0") == 2
    assert "hello client, you are number 1" in said
    assert any(line.startswith("http://127.0.0.1:") and line.endswith("/swarm") for line in said)


def test_the_python_of_contributing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks("python", "CONTRIBUTING.md"):
        run(sys.executable, "-c", block)


def test_the_python_of_the_page_about_the_twin_runs() -> None:
    run(sys.executable, "-c", "\n".join(blocks("python", "docs/twin.md")))


def test_the_python_of_the_page_about_agents_runs() -> None:
    assert "hello, client" in run(sys.executable, "-c", "\n".join(blocks("python", "docs/agents.md")))


def commands(beginning: str, document: str = "README.md") -> list[list[str]]:
    lines = [line for block in blocks("console", document) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(beginning)]


def test_the_workload_of_the_readme_is_found_and_verified(folder: Path) -> None:
    [command] = commands("swarm run total")
    result, verdict = run(*command).splitlines()
    assert result == "5050"
    assert verdict == "verified: 5050, by formula 5050"


@pytest.mark.parametrize("document", ["README.md", "docs/twin.md"])
def test_a_run_is_replayed_as_the_documents_say(folder: Path, document: str) -> None:
    [record], [replay] = commands("swarm run options", document), commands("swarm replay", document)
    run(*record)
    table = run(*replay)
    workers = [line.split()[0] for line in table.splitlines() if line.strip()[:1].isdigit()]
    assert workers[1:] == [count for count in ("4", "16", "64") for _ in range(replay.count("--policy") or 1)]
