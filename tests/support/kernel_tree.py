"""Fake `/proc` and `/sys` for tests, out of the text files in tests/unit/telemetry/trees.

Each text holds many small files: a header of `#` lines that says whether it was recorded or composed, and then
`=== path` before the contents of each file.
"""

from __future__ import annotations

from pathlib import Path

TREES = Path(__file__).parents[1] / "unit/telemetry/trees"


def plant(name: str, root: Path) -> Path:
    """Write the files of a tree below `root`; files that are open stay the same files, as in a kernel."""
    _, *files = f"\n{(TREES / f'{name}.txt').read_text()}".split("\n=== ")
    for file in files:
        path, _, text = file.partition("\n")
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.rstrip("\n") + "\n" if text else "")
    return root
