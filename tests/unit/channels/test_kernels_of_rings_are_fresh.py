"""Compiled kernels that numba finds on disk are those of this layout, also after an upgrade that changed only that."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import swarm.channels

FOLDER = Path(swarm.channels.__file__).parent
BASES = ("layout", "atomics", "objects", "checksum")
KERNELS = {"waiting": BASES, "sending": (*BASES, "waiting"), "receiving": (*BASES, "waiting")}


def digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join((FOLDER / f"{name}.py").read_bytes() for name in names)).hexdigest()[:16]


@pytest.mark.parametrize("name", KERNELS)
def test_a_file_of_kernels_names_what_it_is_made_of(name: str) -> None:
    line = re.search(r'^MADE_OF = "(.*)"$', (FOLDER / f"{name}.py").read_text(), re.MULTILINE)
    assert line is not None
    expected = digest(KERNELS[name])
    assert line[1] == expected, f'write MADE_OF = "{expected}" into swarm/channels/{name}.py'


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_else_of_ours_is_compiled_into_it(name: str) -> None:
    imported = set(
        re.findall(r"^from swarm\.channels\.(\w+) import", (FOLDER / f"{name}.py").read_text(), re.MULTILINE)
    )
    assert imported <= set(KERNELS[name])
