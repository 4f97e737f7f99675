"""What was learned, kept in a file from run to run.

`models.jsonl` in the state directory: a line that says what it is, a line for each function, a line that says how many
there were, with a checksum of all before. So it is read and written a line at a time, and a file cut short shows. It is
data that a program reads back: no code is ever run from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from scheduler_plugins.io.kept import opened, put_aside, replacing
from scheduler_plugins.learn.protocol import VERSION
from swarm.errors import ModelsError

FILE = "models.jsonl"
FORMAT = "swarm models"
MOST_BYTES = 256 * 2**20
MOST_LINE_BYTES = 4 * 2**20


class Models:
    """Reads and writes the file; every method is for a thread beside the event loop.

    Parameters
    ----------
    folder
        Made when it is missing, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.refused: ModelsError | None = None
        """Why the file that was there was not taken."""

    def read(self, pause: Callable[[], object] = lambda: None) -> dict[str, Any] | None:
        """What `Costs.merge` takes; None when there is no file, or none that can be used (`refused` says why).

        `pause` is called after each line, so that others get a turn.
        """
        try:
            with opened(self.path) as file:
                return _parsed(file, pause)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            self.put_aside(error)
            return None

    def put_aside(self, reason: Exception) -> None:
        """Rename the file, since it is of no use, and remember why."""
        self.refused = put_aside(self.path, reason, "learning begins anew")

    def write(
        self,
        functions: Iterable[Mapping[str, Any]],
        workers: Mapping[str, Any],
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        """Replace the file, all of it or not at all: after a crash the old one is there, or the new one.

        Raises
        ------
        ModelsError
            Anybody may write to the folder.
        OSError
            The disk is full, the folder is not ours.
        """
        with replacing(self.path, "models") as file:
            _write(file, functions, workers, pause)


def _write(
    file: BinaryIO, functions: Iterable[Mapping[str, Any]], workers: Mapping[str, Any], pause: Callable[[], object]
) -> None:
    digest = hashlib.sha256()

    def put(entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        digest.update(line)
        file.write(line)
        pause()

    put({"format": FORMAT, "version": VERSION})
    count = 0
    for function in functions:
        try:
            put(function)
        except ValueError:  # a model that has lost its numbers is not worth keeping
            continue
        count += 1
    put({"workers": workers})
    put({"functions": count, "sha256": digest.hexdigest()})


def _parsed(file: BinaryIO, pause: Callable[[], object]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size / 2**20:.0f} MiB, models have {MOST_BYTES / 2**20:.0f} at most")
    digest = hashlib.sha256()
    entries: list[Any] = []
    checksum = ""
    while line := file.readline(MOST_LINE_BYTES):
        if not line.endswith(b"\n"):
            raise ValueError("it was cut short, or has a line that is too long")
        checksum = digest.hexdigest()
        digest.update(line)
        entry = json.loads(line, parse_constant=_refuse)
        if not isinstance(entry, dict):
            raise TypeError(f"line {len(entries) + 1} is not an object")
        if not entries and (entry.get("format") != FORMAT or entry.get("version") != VERSION):
            found = f"{entry.get('format')!r}, version {entry.get('version')!r}"
            raise ValueError(f"it is {found:.80}, this swarm reads {FORMAT!r}, version {VERSION}")
        entries.append(entry)
        pause()
    if len(entries) < 3 or entries[-1].get("functions") != len(entries) - 3:
        raise ValueError("it was cut short")
    if entries[-1].get("sha256") != checksum:
        raise ValueError("its checksum is wrong, it was changed after it was written")
    return {"version": VERSION, "functions": entries[1:-2], "workers": entries[-2]["workers"]}


def _refuse(constant: str) -> float:
    raise ValueError(f"it has a number that is {constant}")
