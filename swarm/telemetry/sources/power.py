"""Watts: of processors (RAPL), of the machine (power meters), of accelerators (hwmon, NVML). No device is woken for it.

Sources: Documentation/power/powercap, Documentation/ABI/testing/sysfs-class-hwmon, the NVML API reference.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.source import KeptFile, Readings, Source, SourceAbsent

MOST_WATTS = 5000.0
"""Of one RAPL domain. More than that is no wrap of its counter but a reset, or a wrap that was missed."""
RAPL_FOR_ALL = (
    "since 2020 only root may read it (CVE-2020-8694); a udev rule or chmod can allow it to a group that you trust"
)
DOMAINS = {"package": "processor_watts", "dram": "memory_watts", "psys": "platform_watts"}
"""Kind of a RAPL domain → reading. `core` and `uncore` are parts of their package."""
METERS = {
    "power_meter": "platform_watts",  # ACPI: what the machine draws
    "fam15h_power": "processor_watts",
    "amdgpu": "accelerator_watts",
}
"""hwmon chip → reading. Other chips measure single rails, of which nobody knows what they add up to."""
NVIDIA = "0x10de"


class Rapl(Source):
    """Energy counters of processors. AMD's are below the same name; those of `intel-rapl-mmio` count the same again."""

    name = "rapl"

    def open(self, root: Path, /) -> None:
        powercap = root / "sys/class/powercap"
        zones = sorted(powercap.glob("intel-rapl:*"))
        self._zones = [
            _Zone(
                reading,
                self._keep(zone / "energy_uj", RAPL_FOR_ALL),
                parse.energy_uj(_read(zone, "max_energy_range_uj")),
            )
            for zone in zones
            if (reading := DOMAINS.get(_name(zone).split("-")[0])) is not None
        ]
        if not self._zones:
            raise SourceAbsent(
                f"no RAPL domain below {powercap}, as is usual in a virtual machine;"
                " on a machine of your own load the driver (modprobe intel_rapl_msr)"
            )

    def read(self, now_s: float, /) -> Readings:
        return _sums((zone.reading, zone.watts(now_s)) for zone in self._zones)


class _Zone:
    """One energy counter, and what it was before."""

    def __init__(self, reading: str, file: KeptFile, range_uj: int) -> None:
        self.reading = reading
        self._file = file
        self._range_uj = range_uj
        self._before: tuple[float, int] | None = None

    def watts(self, now_s: float) -> float | None:
        """Mean since the last call; None at the first, and where the counter may have wrapped more than once."""
        try:
            energy_uj = parse.energy_uj(self._file.read())
        except OSError:  # the processor was taken offline
            self._before = None
            return None
        before, self._before = self._before, (now_s, energy_uj)
        if before is None or now_s <= before[0]:
            return None
        step_s, grown_uj = now_s - before[0], energy_uj - before[1]
        if grown_uj < 0:
            grown_uj += self._range_uj
        watts = grown_uj * 1e-6 / step_s
        sure = step_s < self._range_uj * 1e-6 / MOST_WATTS and 0 <= watts <= MOST_WATTS
        return watts if sure else None


class PowerMeters(Source):
    """hwmon chips that say how much a whole device draws."""

    name = "power meters"

    def open(self, root: Path, /) -> None:
        hwmon = root / "sys/class/hwmon"
        self._meters: list[tuple[str, KeptFile, Path]] = []
        others = []
        for chip in sorted(hwmon.glob("hwmon*")):
            path = next((p for p in (chip / "power1_average", chip / "power1_input") if p.exists()), None)
            if path is not None and (reading := METERS.get(_name(chip))) is not None:
                self._meters.append((reading, self._keep(path), chip / "device"))
            elif path is not None:
                others.append(_name(chip))
        if not self._meters:
            also = f" (of {', '.join(others)} nobody knows what they measure)" if others else ""
            raise SourceAbsent(f"no power meter below {hwmon}{also}; servers have one with the driver acpi_power_meter")

    def read(self, _: float, /) -> Readings:
        return _sums((reading, _meter_watts(file, device)) for reading, file, device in self._meters)


def _meter_watts(file: KeptFile, device: Path) -> float | None:
    if sleeps(device):
        return None
    try:
        return parse.energy_uj(file.read()) * 1e-6
    except OSError:  # busy, or on its way to sleep
        return None


class Accelerators(Source):
    """NVIDIA's, by NVML: power, temperature, and the limits that the driver enforces itself."""

    name = "nvml"

    def open(self, root: Path, /) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        self._pci = nvidia_gpus(root)
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            raise SourceAbsent("the package nvidia-ml-py is not installed; pip install 'dask-swarm[gpu]'") from None
        if self._sleep():
            raise SourceAbsent("an NVIDIA GPU sleeps, and asking would wake it")
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            self._devices = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise SourceAbsent(f"the NVIDIA driver does not answer: {error}") from error
        if not self._devices:
            raise SourceAbsent("the NVIDIA driver knows no GPU")

    def read(self, _: float, /) -> Readings:
        if self._sleep():
            return {}
        nvml = self._nvml
        watts = [self._ask(nvml.nvmlDeviceGetPowerUsage, card) for card in self._devices]
        limits = [self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, card) for card in self._devices]
        degrees = [self._ask(nvml.nvmlDeviceGetTemperature, card, nvml.NVML_TEMPERATURE_GPU) for card in self._devices]
        slows = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        trips = [self._ask(nvml.nvmlDeviceGetTemperatureThreshold, card, slows) for card in self._devices]
        rooms = [
            trip - warm for trip, warm in zip(trips, degrees, strict=True) if trip is not None and warm is not None
        ]
        return {
            "accelerator_watts": None if None in watts else sum(w for w in watts if w is not None) / 1000,
            "accelerator_limit_watts": None if None in limits else sum(w for w in limits if w is not None) / 1000,
            "accelerator_celsius": max((warm for warm in degrees if warm is not None), default=None),
            "accelerator_slowdown_distance_celsius": min(rooms, default=None),
        }

    def close(self) -> None:
        super().close()
        nvml, self._nvml = getattr(self, "_nvml", None), None
        if nvml is not None:
            nvml.nvmlShutdown()

    def _sleep(self) -> bool:
        return any(sleeps(card) for card in self._pci)

    def _ask(self, question: Any, *about: Any) -> int | None:
        """Not every card has every sensor, and a card can fall off the bus: then there is no reading."""
        try:
            answer: int = question(*about)
        except self._nvml.NVMLError:
            return None
        return answer


def sleeps(device: Path) -> bool:
    """True when runtime power management has suspended the device; reading this file does not wake it."""
    try:
        return (device / "power/runtime_status").read_bytes().startswith(b"suspend")
    except OSError:  # it has no power management, so it is awake
        return False


def nvidia_gpus(root: Path) -> list[Path]:
    """Their folders on the PCI bus."""
    return [card for card in sorted((root / "sys/bus/pci/devices").glob("*")) if _is_nvidia_gpu(card)]


def _is_nvidia_gpu(card: Path) -> bool:
    return _read(card, "vendor").strip() == NVIDIA.encode() and _read(card, "class").startswith(b"0x03")


def _sums(readings: Iterator[tuple[str, float | None]]) -> Readings:
    """A sum of which one part is missing is no sum."""
    found: dict[str, float | None] = {}
    for name, watts in readings:
        before = found.get(name, 0.0)
        found[name] = None if watts is None or before is None else before + watts
    return found


def _name(folder: Path) -> str:
    return _read(folder, "name").decode("ascii", "replace").strip()


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError:  # not there, or gone this moment
        return b""
