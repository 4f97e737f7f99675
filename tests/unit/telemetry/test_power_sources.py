"""Watts and trip points: on composed trees, with files that vanish, wrap, are forbidden or hold nonsense."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.telemetry.sources import power
from swarm.telemetry.sources.ecc import EccErrors
from swarm.telemetry.sources.parse import ParseError
from swarm.telemetry.sources.power import Accelerators, PowerMeters, Rapl
from swarm.telemetry.sources.source import Source, SourceAbsent
from swarm.telemetry.sources.temperature import TripPoints
from tests.support.thermal_tree import coretemp, hwmon, rapl, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sysfs is Linux")

J = 1_000_000


@pytest.fixture(autouse=True)
def _no_file_stays_open() -> Iterator[None]:
    before = psutil.Process().num_fds()
    yield
    assert psutil.Process().num_fds() == before


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Open a source on the tree; it is closed at the end."""
    sources: list[Source] = []

    def open_it(source: Source) -> Source:
        sources.append(source)
        source.open(tmp_path)
        return source

    yield open_it
    for source in sources:
        source.close()


# -- RAPL -------------------------------------------------------------------------------------------------------------


def test_packages_are_summed_and_their_parts_are_not_counted_again(tmp_path: Path, opened: Any) -> None:
    two_sockets = {
        **rapl("0", "package-0", 100 * J),
        **rapl("0:0", "core", 5 * J),
        **rapl("0:1", "uncore", 1 * J),
        **rapl("0:2", "dram", 10 * J),
        **rapl("1", "package-1", 7 * J),
        **rapl("1:0", "dram", 3 * J),
        **rapl("2", "psys", 0),
        "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
        "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 0,
        "sys/class/powercap/intel-rapl/enabled": 1,
    }
    source = opened(Rapl()) if write(tmp_path, two_sockets) else None
    first = source.read(10.0)
    write(
        tmp_path,
        {
            **rapl("0", "package-0", 180 * J),
            **rapl("1", "package-1", 47 * J),
            **rapl("0:2", "dram", 14 * J),
            **rapl("1:0", "dram", 5 * J),
            **rapl("2", "psys", 300 * J),
            **rapl("0:0", "core", 60 * J),
        },
    )
    assert set(first.values()) == {None}
    assert source.read(12.0) == {"processor_watts": 60.0, "memory_watts": 3.0, "platform_watts": 150.0}


def test_a_counter_that_wraps_goes_on(tmp_path: Path, opened: Any) -> None:
    source = opened(Rapl()) if write(tmp_path, rapl("0", "package-0", 995 * J, 1000 * J)) else None
    source.read(1.0)
    write(tmp_path, rapl("0", "package-0", 15 * J, 1000 * J))
    assert source.read(1.1) == {"processor_watts": pytest.approx(200.0)}


def test_a_counter_that_was_reset_or_may_have_wrapped_twice_gives_no_reading(tmp_path: Path, opened: Any) -> None:
    source = opened(Rapl()) if write(tmp_path, rapl("0", "package-0", 900_000 * J, 10**6 * J)) else None
    source.read(1.0)
    write(tmp_path, rapl("0", "package-0", 5 * J, 10**6 * J))
    assert source.read(2.0) == {"processor_watts": None}  # 100 kW
    write(tmp_path, rapl("0", "package-0", 6 * J, 10**6 * J))
    assert source.read(3.0) == {"processor_watts": 1.0}
    assert source.read(3.0 + 250) == {"processor_watts": None}
    assert source.read(100.0) == {"processor_watts": None}  # the clock was set back


@given(st.lists(st.tuples(st.floats(0, 3000), st.floats(0.01, 10)), min_size=1, max_size=20), st.integers(0, 2**36))
def test_whatever_is_drawn_is_read_across_wraps(draws: list[tuple[float, float]], start_uj: int) -> None:
    counted = SimpleNamespace(uj=start_uj % (65_536 * J))
    zone = power._Zone("", SimpleNamespace(read=lambda: b"%d\n" % counted.uj), 65_536 * J)  # type: ignore[arg-type]
    now_s = 1.0
    zone.watts(now_s)
    for watts, step_s in draws:
        now_s += step_s
        counted.uj = round(counted.uj + watts * step_s * J) % (65_536 * J)
        assert zone.watts(now_s) == pytest.approx(watts, abs=1e-3)


def test_a_forbidden_counter_is_absent_with_the_reason(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a refusal of our own, since tests may run as root."""
    write(tmp_path, rapl("0", "package-0", 0))
    real = os.open

    def forbid(path: Any, *how: Any, **more: Any) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return real(path, *how, **more)

    monkeypatch.setattr(os, "open", forbid)
    with pytest.raises(SourceAbsent, match="permission denied; since 2020 only root") as absent:
        opened(Rapl())
    assert "\n" not in str(absent.value)


@pytest.mark.parametrize("nonsense", ["", "-5", "abc", "1e9", "9" * 30, "1 2"])
def test_nonsense_in_a_counter_is_an_error_not_a_number(tmp_path: Path, opened: Any, nonsense: str) -> None:
    source = opened(Rapl()) if write(tmp_path, rapl("0", "package-0", 5)) else None
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text(nonsense)
    with pytest.raises(ParseError):
        source.read(1.0)


def test_a_package_that_goes_offline_takes_the_sum_with_it(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {**rapl("0", "package-0", 0), **rapl("1", "package-1", 0), **rapl("2", "dram", 0)})
    source = opened(Rapl())
    source.read(1.0)

    def gone() -> bytes:
        raise OSError(19, "No such device")

    monkeypatch.setattr(source._zones[1], "_file", SimpleNamespace(read=gone))
    assert source.read(2.0) == {"processor_watts": None, "memory_watts": 0.0}


@pytest.mark.parametrize("source", [Rapl(), PowerMeters(), TripPoints()], ids=lambda source: source.name)
def test_a_machine_without_any_is_told_in_one_line(source: Source, opened: Any) -> None:
    with pytest.raises(SourceAbsent) as absent:
        opened(source)
    assert str(absent.value).startswith("no ")
    assert "\n" not in str(absent.value)


# -- power meters -----------------------------------------------------------------------------------------------------


def test_power_meters_of_which_one_knows_what_they_measure(tmp_path: Path, opened: Any) -> None:
    write(
        tmp_path,
        {
            **hwmon(0, "power_meter", {"power1_average": 250 * J}),
            **hwmon(1, "ina3221", {"power1_input": 5 * J}),
            **hwmon(2, "amdgpu", {"power1_average": 30 * J, "device/power/runtime_status": "active"}),
            **hwmon(3, "amdgpu", {"power1_input": 40 * J}),
            **hwmon(4, "coretemp", {"temp1_input": 50000}),
        },
    )
    assert opened(PowerMeters()).read(0.0) == {"platform_watts": 250.0, "accelerator_watts": 70.0}


def test_a_device_that_sleeps_is_not_asked(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, hwmon(0, "amdgpu", {"power1_average": 30 * J, "device/power/runtime_status": "active"}))
    source = opened(PowerMeters())
    assert source.read(0.0) == {"accelerator_watts": 30.0}
    write(tmp_path, hwmon(0, "amdgpu", {"device/power/runtime_status": "suspended"}))
    monkeypatch.setattr(power.KeptFile, "read", lambda _: pytest.fail("it was woken"))
    assert source.read(1.0) == {"accelerator_watts": None}


def test_a_meter_of_unknown_meaning_is_named(tmp_path: Path, opened: Any) -> None:
    write(tmp_path, hwmon(1, "ina3221", {"power1_input": 5 * J}))
    with pytest.raises(SourceAbsent, match="of ina3221 nobody knows"):
        opened(PowerMeters())


# -- trip points ------------------------------------------------------------------------------------------------------


def test_the_nearest_trip_point_of_chips_and_zones(tmp_path: Path, opened: Any) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write(
        tmp_path,
        {
            **coretemp(70.0, 100.0),
            **hwmon(
                1, "k10temp", {"temp1_input": 60000, "temp1_crit": 0, "temp2_input": 90000}
            ),  # no limit, none given
            **hwmon(2, "nvme", {"temp1_input": 84000, "temp1_crit": 85000}),  # asking could wake it
            **hwmon(3, "nct6775", {"temp1_crit": 90000}),  # no sensor
            **hwmon(4, "acpitz", {"temp1_input": 50000, "temp1_crit": "garbage"}),
            f"{zone}/temp": 65000,
            f"{zone}/trip_point_0_type": "passive",
            f"{zone}/trip_point_0_temp": 66000,
            f"{zone}/trip_point_1_type": "critical",
            f"{zone}/trip_point_1_temp": 90000,
        },
    )
    source = opened(TripPoints())
    assert source.read(0.0) == {"trip_distance_celsius": 25.0}
    write(tmp_path, coretemp(98.5))
    assert source.read(1.0) == {"trip_distance_celsius": 1.5}
    write(tmp_path, {**coretemp(-273), f"{zone}/temp": -5000000})
    assert source.read(2.0) == {"trip_distance_celsius": None}


# -- NVML -------------------------------------------------------------------------------------------------------------


class FakeNvml:
    """The part of nvidia-ml-py that is used, with its units."""

    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1

    class NVMLError(Exception):
        pass

    def __init__(self, cards: list[dict[str, int]], driver: bool = True) -> None:
        self.cards, self.driver, self.inits = cards, driver, 0

    def start(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.inits += 1

    def stop(self) -> None:
        self.inits -= 1

    def count(self) -> int:
        return len(self.cards)

    def card(self, number: int) -> dict[str, int]:
        return self.cards[number]

    def _get(self, card: dict[str, int], what: str) -> int:
        if what not in card:
            raise self.NVMLError("Not Supported")
        return card[what]

    def power(self, card: dict[str, int]) -> int:
        return self._get(card, "mw")

    def limit(self, card: dict[str, int]) -> int:
        return self._get(card, "limit_mw")

    def temperature(self, card: dict[str, int], sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._get(card, "celsius")

    def threshold(self, card: dict[str, int], threshold: int) -> int:
        assert threshold == self.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return self._get(card, "slowdown")

    def ecc(self, card: dict[str, int], kind: int, counter: int) -> int:
        assert counter == 0, "since the driver was loaded"
        return self._get(card, f"ecc-{kind}")


CARD = {"mw": 250_500, "limit_mw": 700_000, "celsius": 60, "slowdown": 90}


def module(fake: FakeNvml) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=fake.NVMLError,
        NVML_TEMPERATURE_GPU=fake.NVML_TEMPERATURE_GPU,
        NVML_TEMPERATURE_THRESHOLD_SLOWDOWN=fake.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        nvmlInit=fake.start,
        nvmlShutdown=fake.stop,
        nvmlDeviceGetCount=fake.count,
        nvmlDeviceGetHandleByIndex=fake.card,
        nvmlDeviceGetPowerUsage=fake.power,
        nvmlDeviceGetEnforcedPowerLimit=fake.limit,
        nvmlDeviceGetTemperature=fake.temperature,
        nvmlDeviceGetTemperatureThreshold=fake.threshold,
        nvmlDeviceGetTotalEccErrors=fake.ecc,
        NVML_MEMORY_ERROR_TYPE_CORRECTED=0,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
    )


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml([CARD, {**CARD, "celsius": 70, "slowdown": 85}])
    monkeypatch.setitem(sys.modules, "pynvml", module(fake))
    yield fake
    assert fake.inits in (0, 1)


def test_accelerators_are_read_by_nvml(nvml: FakeNvml, opened: Any) -> None:
    source = opened(Accelerators())
    assert source.read(0.0) == {
        "accelerator_watts": 501.0,
        "accelerator_limit_watts": 1400.0,
        "accelerator_celsius": 70,
        "accelerator_slowdown_distance_celsius": 15,
    }
    source.close()
    source.close()
    assert nvml.inits == 0


def test_what_a_card_does_not_tell_is_no_reading(nvml: FakeNvml, opened: Any) -> None:
    nvml.cards[0] = {"celsius": 40}
    assert opened(Accelerators()).read(0.0) == {
        "accelerator_watts": None,
        "accelerator_limit_watts": None,
        "accelerator_celsius": 70,
        "accelerator_slowdown_distance_celsius": 15,
    }


def test_no_driver_no_card_no_package(nvml: FakeNvml, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.cards.clear()
    with pytest.raises(SourceAbsent, match="knows no GPU"):
        opened(Accelerators())
    nvml.driver = False
    with pytest.raises(SourceAbsent, match="does not answer: Driver Not Loaded"):
        opened(Accelerators())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SourceAbsent, match="nvidia-ml-py is not installed"):
        opened(Accelerators())


def test_a_gpu_that_sleeps_is_not_woken_by_nvml(nvml: FakeNvml, tmp_path: Path, opened: Any) -> None:
    card = "sys/bus/pci/devices/0000:01:00.0"
    write(tmp_path, {f"{card}/vendor": "0x10de", f"{card}/class": "0x030200", f"{card}/power/runtime_status": "active"})
    source = opened(Accelerators())
    assert source.read(0.0)["accelerator_celsius"] == 70
    write(tmp_path, {f"{card}/power/runtime_status": "suspended"})
    assert source.read(1.0) == {}
    with pytest.raises(SourceAbsent, match="would wake it"):
        opened(Accelerators())


def test_errors_of_gpu_memory_are_added_up_and_only_where_there_is_ecc(nvml: FakeNvml, opened: Any) -> None:
    without = EccErrors()
    with pytest.raises(SourceAbsent, match="ECC"):
        opened(without)
    without.close()
    nvml.cards[0] = {**CARD, "ecc-0": 4, "ecc-1": 1}
    source = opened(EccErrors())
    assert source.read(0.0) == {"accelerator_ecc_corrected": 4, "accelerator_ecc_uncorrected": 1}
    nvml.cards[0].pop("ecc-1")
    assert source.read(0.0) == {"accelerator_ecc_corrected": 4, "accelerator_ecc_uncorrected": None}
    source.close()
    source.close()
    assert nvml.inits == 0
