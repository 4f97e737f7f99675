"""What the documents point at exists, and a list that promises to be complete is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swarm.telemetry.sampler import sources_of
from swarm.telemetry.sources.power import Accelerators, PowerMeters, Rapl
from swarm.telemetry.sources.temperature import TripPoints

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

LINK = re.compile(r"\]\((?!https?://)([^)]+)\)")
COMMAND_OF_MAKE = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
PATH_FROM_ROOT = re.compile(r"`((?:swarm|scheduler_plugins|workloads|tests|docs|notebooks)/[\w./-]*)`")
PLAN = "## What is still a plan"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_what_is_named_exists(document: Path) -> None:
    text = document.read_text().partition(PLAN)[0]
    links = [link.partition("#") for link in LINK.findall(text)]
    assert [path for path, _, _ in links if not (document.parent / path).exists()] == []
    assert [path for path in PATH_FROM_ROOT.findall(text) if not (ROOT / path).exists()] == []
    for path, _, heading in links:
        target = document.parent / path if path else document
        assert not heading or heading in headings(target), f"{path}#{heading}"


@each_document
def test_commands_of_make_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*COMMAND_OF_MAKE.findall(document.read_text())} <= {*targets}


def test_telemetry_lists_every_source() -> None:
    listed = re.findall(r"^\| `([a-z ]+)` \|", (ROOT / "docs/telemetry.md").read_text(), re.MULTILINE)
    of_the_thermal_agent = (TripPoints, Rapl, PowerMeters, Accelerators)
    known = [source.name for source in (*sources_of("linux", "/", None), *of_the_thermal_agent)]
    assert sorted(listed) == sorted(known)


def headings(document: Path) -> list[str]:
    """The anchors of a document, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found]
