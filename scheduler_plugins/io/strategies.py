"""Strategies that are worth a try, and how they did: two files beside the models.

`strategies.json` is written by `swarm tune` and read by schedulers; `choices.json` is what one scheduler has seen of
them. Both are small, replaced as a whole, for their owner only, and put aside with a warning when they make no sense.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any

from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.kept import opened, put_aside, replacing
from swarm.errors import ModelsError

STRATEGIES, CHOICES = "strategies.json", "choices.json"
VERSION = 1
MOST_BYTES = 16 * 2**20
ANY = "any"
"""Key of strategies that did better on several kinds of work."""
MOST_OF_WORK = 4
"""Strategies that are kept for one kind of work: each has to be tried before it is of use."""
MOST_WORKS = 256
MOST_TUNED = 1_000
"""Runs that are remembered to have been tuned on."""
NOTABLE = 1 / 64
"""Share of all tasks from which on a function counts for what kind of work it is."""


def fingerprint(tasks: Mapping[str, int]) -> str:
    """What kind of work this is: by its functions and its rounded size; the same for the same work another day.

    Parameters
    ----------
    tasks
        Prefix of their keys, as Dask splits it (`dask.utils.key_split`) → how many.

    >>> fingerprint({"load": 100, "sum": 28}) == fingerprint({"sum": 30, "load": 95, "finalize": 1})
    True
    """
    total = sum(tasks.values())
    names = sorted(name for name, count in tasks.items() if count >= NOTABLE * total)
    digest = hashlib.sha256("\0".join(names).encode(errors="replace")).hexdigest()[:12]
    return f"{digest}-{round(log2(max(total, 1)))}"


@dataclass(slots=True)
class Found:
    """What `swarm tune` has found."""

    of: dict[str, list[Strategy]] = field(default_factory=dict)
    """Fingerprint or ANY → strategies, the best first."""
    names: dict[str, str] = field(default_factory=dict)
    """Fingerprint → what people call such work."""
    tuned: list[str] = field(default_factory=list)
    """Ids of recorded runs that were tuned on, the latest last."""

    def for_work(self, work: str) -> list[Strategy]:
        """What is worth a try with work of this fingerprint, the best first; also what is for a size just beside it."""
        functions, _, size = work.rpartition("-")
        near = [work, *(f"{functions}-{int(size) + by}" for by in (-1, 1))]
        return list(dict.fromkeys(each for key in (*near, ANY) for each in self.of.get(key, ())))[:MOST_OF_WORK]

    def keep(self, key: str, name: str, strategies: Iterable[Strategy]) -> None:
        """In place of what was kept for such work; the works that were tuned first are given up for new ones."""
        self.of.pop(key, None)
        self.names.pop(key, None)
        if kept := [each for each in strategies if each != DEFAULT][:MOST_OF_WORK]:
            self.of[key], self.names[key] = kept, name[:200]
        for surplus in [each for each in self.of if each != ANY][:-MOST_WORKS]:
            del self.of[surplus]
            self.names.pop(surplus, None)

    def note_tuned(self, run: str) -> None:
        self.tuned = [*(each for each in self.tuned if each != run), run][-MOST_TUNED:]


class Document:
    """A JSON object in a file; every method is for a thread beside the event loop.

    Parameters
    ----------
    folder
        Made when it is missing, for its owner only.
    """

    def __init__(self, folder: Path, file: str, kind: str) -> None:
        self.path = folder / file
        self.kind = kind
        self.refused: ModelsError | None = None
        """Why the file that was there was not taken."""

    def stamp(self) -> tuple[int, int] | None:
        """Changes when the file does; None when there is none."""
        try:
            told = self.path.stat()
        except OSError:
            return None
        return told.st_mtime_ns, told.st_ino

    def load(self) -> dict[str, Any] | None:
        """None when there is no file, or none that can be used (`refused` says why)."""
        try:
            with opened(self.path) as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    raise ValueError(f"it is not a file of {MOST_BYTES // 2**20} MiB at most")  # noqa: TRY301
                values = json.loads(file.read(), parse_constant=_refuse)
            if not isinstance(values, dict) or (values.get("format"), values.get("version")) != (self.kind, VERSION):
                raise ValueError(f"this swarm reads {self.kind!r}, version {VERSION}, it is something else")  # noqa: TRY301
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self.put_aside(error)
            return None
        return values

    def put_aside(self, reason: Exception) -> None:
        """Rename the file, since it is of no use, and remember why."""
        self.refused = put_aside(self.path, reason, "the default strategy is used")

    def save(self, values: Mapping[str, Any]) -> None:
        """Replace the file, all of it or not at all: after a crash the old one is there, or the new one.

        Raises
        ------
        ModelsError
            Anybody may write to the folder.
        OSError
            The disk is full, the folder is not ours.
        """
        told = json.dumps({"format": self.kind, "version": VERSION, **values}, indent=1, allow_nan=False)
        with replacing(self.path, "strategies") as file:
            file.write(f"{told}\n".encode())


class Strategies(Document):
    """`strategies.json`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, STRATEGIES, "swarm strategies")

    def read(self) -> Found:
        """What is there; nothing when there is no file, or none that can be used."""
        values = self.load()
        if values is None:
            return Found()
        try:
            return _found(values)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            self.put_aside(ValueError(f"it is damaged ({error})"))
            return Found()

    def write(self, found: Found) -> None:
        """As `save`."""
        works = {
            key: {"name": found.names.get(key, ""), "strategies": [each.as_dict() for each in strategies]}
            for key, strategies in found.of.items()
        }
        self.save({"works": works, "tuned": found.tuned})


class Choices(Document):
    """`choices.json`: what `StrategyBandit.to_state` gives."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CHOICES, "swarm choices")

    def read(self) -> Any:
        """None when there is nothing to go by."""
        values = self.load()
        return None if values is None else values.get("works")

    def write(self, works: Sequence[Any]) -> None:
        """As `save`."""
        self.save({"works": works})


def _found(values: Mapping[str, Any]) -> Found:
    found = Found(tuned=[str(run) for run in values["tuned"]][-MOST_TUNED:])
    for key, told in values["works"].items():
        found.keep(key, str(told["name"]), [Strategy.from_dict(each) for each in told["strategies"]])
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"it has a number that is {constant}")
