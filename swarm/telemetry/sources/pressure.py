"""Pressure stall information of the host and of the control group.

Source: Documentation/accounting/psi.rst. The average over 10 s is the kernel's own, so the first reading counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.cgroup import levels
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent

RESOURCES = ("cpu", "memory", "io")
TURN_ON = "it takes Linux 4.20 or later, and psi=1 on the kernel's command line where it is off by default"


class Pressure(Source):
    """Shares of time in which some task waited for a CPU, for memory, for a disk."""

    prefix: ClassVar[str]

    def _keep_all(self, paths: list[Path]) -> None:
        self._files = [
            (f"{self.prefix}_pressure_{resource}_percent", self._keep(path, TURN_ON))
            for resource, path in zip(RESOURCES, paths, strict=True)
        ]
        try:
            self.read(0.0)
        except OSError as error:  # the files are there, yet the kernel was booted with psi=0
            raise SourceAbsent(f"the kernel measures no pressure; {TURN_ON}") from error

    def read(self, _: float, /) -> Readings:
        return {field: parse.pressure_percent(file.read()) for field, file in self._files}


class HostPressure(Pressure):
    name = "pressure"
    prefix = "host"

    def open(self, root: Path, /) -> None:
        self._keep_all([root / "proc/pressure" / resource for resource in RESOURCES])


class CgroupPressure(Pressure):
    """Only control groups of version 2 measure it."""

    name = "cgroup pressure"
    prefix = "cgroup"

    def __init__(self, pid: int | None = None) -> None:
        super().__init__()
        self._pid = pid

    def open(self, root: Path, /) -> None:
        _, (group, *_) = levels(root, self._pid, "")
        self._keep_all([group / f"{resource}.pressure" for resource in RESOURCES])
