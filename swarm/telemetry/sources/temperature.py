"""The hottest sensor of the host. Source: Documentation/hwmon/sysfs-interface.rst, Documentation/ABI (thermal)."""

from __future__ import annotations

from pathlib import Path

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.source import KeptFile, Readings, Source, SourceAbsent

SLOW_CHIPS = ("nvme", "drivetemp", "iwlwifi", "mt76", "ath1", "jc42", "spd5118")
"""Drives, radios and memory modules: reading one asks the device, which may take milliseconds or wake a disk."""


LOWEST_TRIP_CELSIUS = 50.0
"""Some drivers give 0 or a placeholder where the hardware has no limit."""


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


class TripPoints(Source):
    """How far the nearest sensor is from where its own hardware stops: hwmon crit, critical trips of thermal zones."""

    name = "trip points"

    def open(self, root: Path, /) -> None:
        hwmon, thermal = root / "sys/class/hwmon", root / "sys/class/thermal"
        limits = [
            (limit.with_name(limit.name.replace("_crit", "_input")), limit)
            for chip in sorted(hwmon.glob("hwmon*"))
            if _is_quick(chip)
            for limit in sorted(chip.glob("temp*_crit"))
        ]
        limits += [
            (kind.parent / "temp", kind.with_name(kind.name.replace("_type", "_temp")))
            for kind in sorted(thermal.glob("thermal_zone*/trip_point_*_type"))
            if _text(kind) == b"critical"
        ]
        self._sensors = [
            (self._keep(sensor), trip)
            for sensor, limit in limits
            if sensor.exists() and (trip := _trip(limit)) is not None
        ]
        if not self._sensors:
            raise SourceAbsent(
                f"no sensor below {hwmon} or {thermal} tells the temperature at which its hardware stops"
            )

    def read(self, _: float, /) -> Readings:
        rooms = [trip - degrees for sensor, trip in self._sensors if (degrees := _read(sensor)) is not None]
        return {"trip_distance_celsius": min(rooms, default=None)}


def _trip(limit: Path) -> float | None:
    """Read once: the hardware's limits do not change."""
    try:
        degrees = parse.temperature_celsius(_text(limit))
    except parse.ParseError:
        return None
    return degrees if degrees is not None and degrees >= LOWEST_TRIP_CELSIUS else None


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError:  # it can't be read: the same as if it were not there
        return b""


def _is_quick(chip: Path) -> bool:
    name = chip / "name"
    return not (name.exists() and name.read_text().startswith(SLOW_CHIPS))


def _read(sensor: KeptFile) -> float | None:
    try:
        text = sensor.read()
    except OSError:  # this device sleeps or is busy: no reading now, maybe at the next sample
        return None
    return parse.temperature_celsius(text)
