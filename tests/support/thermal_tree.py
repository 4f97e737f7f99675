"""Fake `/sys` of a host with sensors, power meters and fans, made file by file: composed, not recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Write `path: contents` below `root`; a file that is there already stays the same file, as in a kernel."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")
    return root


def hwmon(number: int, name: str, files: Mapping[str, object]) -> dict[str, object]:
    return {f"sys/class/hwmon/hwmon{number}/{file}": text for file, text in {"name": name, **files}.items()}


def coretemp(celsius: float, critical: float = 100.0, number: int = 0) -> dict[str, object]:
    return hwmon(number, "coretemp", {"temp1_input": round(celsius * 1000), "temp1_crit": round(critical * 1000)})


def rapl(number: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> dict[str, object]:
    zone = f"sys/class/powercap/intel-rapl:{number}"
    return {f"{zone}/name": name, f"{zone}/energy_uj": energy_uj, f"{zone}/max_energy_range_uj": range_uj}


def fan(number: int, mode: int = 2, speed: int = 90) -> dict[str, object]:
    return {f"pwm{number}": speed, f"pwm{number}_enable": mode}
