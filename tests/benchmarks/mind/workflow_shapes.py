"""Scientific workflows as work for the twin: of a folder of WfFormat files, or drawn after four published ones.

What is drawn has the shapes of Montage, Epigenomics, 1000Genome and Cycles. How long each type of task takes, how much
that varies and how large results are was read from these instances of WfInstances (DOI 10.5281/zenodo.12510982):
montage-chameleon-2mass-01d-001, epigenomics-chameleon-hep-1seq-100k-001, 1000genome-chameleon-2ch-100k-001 and
cycles-chameleon-1l-1c-9p-001.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from swarm.errors import TwinError
from swarm.twin.models import Cost, Key
from swarm.twin.wfformat import load
from swarm.twin.work import Work, made_up

Kinds = dict[str, tuple[float, float, float]]
"""Type of task → median (s), standard deviation of the log, size of the result (MB)."""


class _Draft:
    """A workflow that is being drawn."""

    def __init__(self, name: str, kinds: Kinds, seed: int) -> None:
        self.name = name
        self._kinds = kinds
        self._rng = random.Random(f"{seed} {name}")
        self._tasks: list[tuple[Key, Sequence[Key], Cost]] = []

    def add(self, kind: str, *needs: Key) -> Key:
        median_s, sigma, size_mb = self._kinds[kind]
        work_s = median_s * math.exp(self._rng.gauss(0.0, sigma))
        key = f"{kind}-{len(self._tasks)}"
        self._tasks.append((key, needs, Cost(work_s, int(size_mb * 1e6))))
        return key

    def work(self) -> Work:
        return made_up(self._tasks, name=self.name)


def montage(seed: int, bands: int = 3, images: int = 7) -> Work:
    """Pictures of the sky are projected, fitted to their neighbours and put together, once for each band."""
    draft = _Draft(
        "montage",
        {
            "mProject": (16.2, 0.03, 8.3),
            "mDiffFit": (0.095, 0.72, 0.001),
            "mConcatFit": (0.18, 0.03, 0.001),
            "mBgModel": (0.59, 0.31, 0.001),
            "mBackground": (0.32, 0.28, 8.3),
            "mImgtbl": (0.18, 0.02, 0.004),
            "mAdd": (0.34, 0.17, 18.7),
            "mViewer": (0.64, 0.43, 0.54),
        },
        seed,
    )
    mosaics = []
    for _ in range(bands):
        projected = [draft.add("mProject") for _ in range(images)]
        pairs = [(a, b) for i, a in enumerate(projected) for b in projected[i + 1 : i + 4]]
        model = draft.add("mBgModel", draft.add("mConcatFit", *(draft.add("mDiffFit", a, b) for a, b in pairs)))
        level = [draft.add("mBackground", image, model) for image in projected]
        mosaics.append(draft.add("mAdd", *level, draft.add("mImgtbl", *level)))
        draft.add("mViewer", mosaics[-1])
    draft.add("mViewer", *mosaics)
    return draft.work()


def epigenomics(seed: int, lanes: int = 9) -> Work:
    """Long chains side by side, most of each in one task, then a merge."""
    draft = _Draft(
        "epigenomics",
        {
            "fastqSplit": (1.3, 0.1, 109.4),
            "filterContams": (0.69, 0.2, 12.8),
            "sol2sanger": (0.39, 0.5, 9.8),
            "fast2bfq": (0.55, 0.35, 2.3),
            "map": (56.2, 0.17, 1.1),
            "mapMerge": (4.4, 0.4, 9.0),
            "chr21": (2.8, 0.1, 9.0),
            "pileup": (30.5, 0.1, 6.9),
        },
        seed,
    )
    split = draft.add("fastqSplit")
    mapped = []
    for _ in range(lanes):
        key = split
        for kind in ("filterContams", "sol2sanger", "fast2bfq", "map"):
            key = draft.add(kind, key)
        mapped.append(key)
    draft.add("pileup", draft.add("chr21", draft.add("mapMerge", draft.add("mapMerge", *mapped))))
    return draft.work()


def genome(seed: int, chromosomes: int = 2, parts: int = 10, populations: int = 7) -> Work:
    """1000Genome: much that is alike, a merge, and then the longest tasks of all."""
    draft = _Draft(
        "1000genome",
        {
            "individuals": (52.3, 0.02, 0.03),
            "sifting": (0.33, 0.08, 0.36),
            "individuals_merge": (37.9, 0.01, 0.03),
            "mutation_overlap": (5.1, 0.75, 0.14),
            "frequency": (109.3, 0.04, 0.27),
        },
        seed,
    )
    for _ in range(chromosomes):
        merged = draft.add("individuals_merge", *(draft.add("individuals") for _ in range(parts)))
        sifted = draft.add("sifting")
        for _ in range(populations):
            draft.add("mutation_overlap", merged, sifted)
            draft.add("frequency", merged, sifted)
    return draft.work()


def cycles(seed: int, points: int = 16) -> Work:
    """Crops are grown twice on each of some fields; one long task draws what came of the first."""
    draft = _Draft(
        "cycles",
        {
            "baseline_cycles": (11.8, 0.15, 9.7),
            "cycles": (20.5, 0.74, 9.6),
            "fertilizer_increase_cycles": (21.0, 0.7, 9.6),
            "fertilizer_parser": (0.051, 0.25, 0.008),
            "output_summary": (0.061, 0.1, 0.075),
            "fertilizer_summary": (0.056, 0.1, 0.12),
            "cycles_plots": (126.6, 0.1, 3.4),
        },
        seed,
    )
    grown, parsed = [], []
    for _ in range(points):
        base = draft.add("baseline_cycles")
        grown.append(draft.add("cycles", base))
        parsed.append(draft.add("fertilizer_parser", grown[-1], draft.add("fertilizer_increase_cycles", base)))
    draft.add("cycles_plots", draft.add("output_summary", *grown))
    draft.add("fertilizer_summary", *parsed)
    return draft.work()


def in_folder(folder: Path) -> dict[str, Work]:
    """Name → work of every WfFormat file there. Raises `TwinError` when there is none, or one can't be read."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise TwinError(f"{folder} has no *.json, must be a folder of workflows in WfFormat")
    return {path.stem: load(path).work for path in paths}


def sources(folder: Path | None) -> dict[str, Callable[[int], Work]]:
    """Name → seed → one instance: of the folder always the same, drawn anew otherwise."""
    if folder is None:
        return {"montage": montage, "epigenomics": epigenomics, "1000genome": genome, "cycles": cycles}
    return {name: lambda _, work=work: work for name, work in in_folder(folder).items()}  # type: ignore[misc]
