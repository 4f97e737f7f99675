"""The hottest sensor of the host. Source: Documentation/hwmon/sysfs-interface.rst, Documentation/ABI (thermal)."""

from __future__ import annotations

from pathlib import Path

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.source import KeptFile, Readings, Source, SourceAbsent

SLOW_CHIPS = ("nvme", "drivetemp", "iwlwifi", "mt76", "ath1", "jc42", "spd5118")
"""Drives, radios and memory modules: reading one asks the device, which may take milliseconds or wake a disk."""


class Temperature(Source):
    """Processor, board and graphics sensors: hwmon and the kernel's thermal zones."""

    name = "temperature"

    def open(self, root: Path, /) -> None:
        hwmon, thermal = root / "sys/class/hwmon", root / "sys/class/thermal"
        paths = [path for chip in sorted(hwmon.glob("hwmon*")) if _is_quick(chip) for path in chip.glob("temp*_input")]
        paths += thermal.glob("thermal_zone*/temp")
        self._sensors = [self._keep(path) for path in sorted(paths)]
        if self._hottest() is None:
            raise SourceAbsent(
                f"no temperature sensor below {hwmon} or {thermal}, as is usual in a virtual machine;"
                " on a machine of your own load the driver of its processor (modprobe coretemp or k10temp)"
            )

    def read(self, _: float, /) -> Readings:
        return {"host_temperature_celsius": self._hottest()}

    def _hottest(self) -> float | None:
        return max((degrees for sensor in self._sensors if (degrees := _read(sensor)) is not None), default=None)


def _is_quick(chip: Path) -> bool:
    name = chip / "name"
    return not (name.exists() and name.read_text().startswith(SLOW_CHIPS))


def _read(sensor: KeptFile) -> float | None:
    try:
        text = sensor.read()
    except OSError:  # this device sleeps or is busy: no reading now, maybe at the next sample
        return None
    return parse.temperature_celsius(text)
