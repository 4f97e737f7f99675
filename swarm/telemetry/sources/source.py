"""The interface of a telemetry source, and files that are opened once and read for ever."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

Readings = Mapping[str, float | int | None]
"""Field of `swarm.protocol.Telemetry` → value; None when there is no reading this time."""

PAGE_BYTES = 4096
"""The kernel hands out a procfs or sysfs file in pieces of at most about one page (`fs/seq_file.c`)."""


class SourceAbsent(Exception):  # noqa: N818 - a fact about the machine, nothing went wrong
    """The machine has no such source. The message is one sentence: why, and how to get it where one can."""


class KeptFile:
    """A kernel file that is kept open: `pread` at 0 makes the kernel write it anew, without the cost of `open`."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """The first page: all of any file that is shorter and written in one go."""
        return os.pread(self._fd, PAGE_BYTES, 0)

    def read_all(self) -> bytes:
        """All of it, page by page: files with a line per device end where a read returns nothing."""
        text = piece = os.pread(self._fd, PAGE_BYTES, 0)
        while piece:
            piece = os.pread(self._fd, PAGE_BYTES, len(text))
            text += piece
        return text

    def close(self) -> None:
        os.close(self._fd)


class Source(ABC):
    """Where some of the readings come from. Open it, read it as often as you like, close it."""

    name: ClassVar[str]
    """How status, log and `AgentStarted.absent` call it."""

    def __init__(self) -> None:
        self._kept: list[KeptFile] = []

    @abstractmethod
    def open(self, root: Path, /) -> None:
        """Find and open what is needed below `root`. Raises `SourceAbsent`: call `close` then."""

    @abstractmethod
    def read(self, now_s: float, /) -> Readings:
        """The readings at `now_s` (POSIX time, s). Raises when the source fails: call `close` then."""

    def close(self) -> None:
        """Close all files; more than once does no harm."""
        while self._kept:
            self._kept.pop().close()

    def _keep(self, path: Path, otherwise: str = "") -> KeptFile:
        """Open a file until `close`; `otherwise` tells a person how to get it when it is not there."""
        try:
            file = KeptFile(path)
        except OSError as error:
            why = f"can't open {path}: {(error.strerror or str(error)).lower()}"
            raise SourceAbsent(f"{why}; {otherwise}" if otherwise else why) from error
        self._kept.append(file)
        return file
