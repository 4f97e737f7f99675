from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from swarm import doctor
from swarm.doctor import Finding
from swarm.telemetry import probes
from swarm.telemetry.sources.source import SourceAbsent
from tests.support.kernel_tree import plant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="procfs is Linux")


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    shm = Path("/dev/shm")
    before = psutil.Process().num_fds(), psutil.Process().num_threads(), psutil.Process().children()
    yield
    assert (psutil.Process().num_fds(), psutil.Process().num_threads(), psutil.Process().children()) == before
    assert not list(shm.glob(f"swarm-doctor-{os.getpid()}*"))


def by_topic(root: Path) -> dict[str, Finding]:
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    return {finding.topic: finding for finding in doctor.examine(root)}


def rendered(findings: list[Finding], width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    doctor.render(findings, Console(file=stream, width=width, color_system=None))
    stream.seek(0)
    return stream.read()


def test_this_machine_is_examined_quickly_and_left_as_it_was(nothing_left_behind: None) -> None:
    began_s = time.perf_counter()
    findings = doctor.examine()
    assert time.perf_counter() - began_s < 2  # typically 0.04 s
    found = {finding.topic: finding for finding in findings}
    assert f"{os.cpu_count()} logical" in found["cores"].value
    assert f"{len(os.sched_getaffinity(0))} by affinity" in found["usable cores"].value
    assert found["futex"].status == found["eventfd"].status == found["shared memory"].status == "ok"
    assert found["python"].value.startswith(sys.version.split()[0])
    assert found["distributed"].status == "ok"
    assert "could not be looked at" not in doctor.as_json(findings)


def test_what_is_absent_says_why(nothing_left_behind: None) -> None:
    for finding in doctor.examine():
        if finding.status == "ok":
            assert finding.value
            assert not finding.why
        else:
            assert finding.why, finding


def test_server_has_sensors(tmp_path: Path) -> None:
    found = by_topic(plant("composed-server", tmp_path))
    assert found["temperature"] == Finding("temperature", "ok", "61.25 °C at the hottest sensor", group="Sensors")
    assert found["fans"].value == "1250, 0 rpm"
    assert found["power (RAPL)"].value == "1 package, 123 J so far"
    assert found["vector units"].value == "AVX, AVX2"
    assert found["NUMA nodes"].value == "2"
    assert found["usable cores"].value.endswith("3 by control group")
    assert (found["control group"].value, found["CPU limit"].value) == ("version 2", "3 cores")
    assert found["memory limit"].value == "8.0 GiB"
    assert found["memory"].value == "62.5 GiB, of which 31.2 GiB are available"


def test_avx_512_is_told_in_detail(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name : X\nflags : avx avx2 avx512f avx512_vnni\n\nflags: none\n")
    assert by_topic(tmp_path)["vector units"].value == "AVX, AVX2, AVX-512 (F, VNNI)"


def test_power_meter_for_root_only_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("composed-server", tmp_path)
    read_text = Path.read_text

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, who may read anything
    power = by_topic(tmp_path)["power (RAPL)"]
    assert power.status == "absent"
    assert "only root may read" in power.why
    assert "chmod a+r" in power.how


def test_empty_machine_gives_findings_not_errors(tmp_path: Path, nothing_left_behind: None) -> None:
    found = by_topic(tmp_path)
    absent = {topic for topic, finding in found.items() if finding.status == "absent"}
    assert {
        "memory",
        "control group",
        "pressure (PSI)",
        "temperature",
        "fans",
        "power (RAPL)",
        "NUMA nodes",
    } <= absent
    assert not [finding for finding in found.values() if "could not be looked at" in finding.why]


def test_file_in_a_strange_form_is_a_finding(tmp_path: Path) -> None:
    plant("composed-server", tmp_path)
    (tmp_path / "sys/devices/system/node/online").write_text("many\n")
    found = by_topic(tmp_path)
    assert found["NUMA nodes"].status == "warning"
    assert "could not be looked at: ValueError" in found["NUMA nodes"].why
    assert found["temperature"].status == "ok"


def test_little_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SMALL_SHARED_MEMORY_BYTES", 2**62)
    finding = by_topic(tmp_path)["shared memory"]
    assert finding.status == "warning"
    assert "--shm-size" in finding.how


def test_no_shared_memory_is_absent(tmp_path: Path) -> None:
    with pytest.raises(SourceAbsent, match=r"can't make a segment in .*: No such file or directory; mount a tmpfs"):
        probes.shared_memory(tmp_path / "dev/shm")


def test_counter_counts(monkeypatch: pytest.MonkeyPatch, nothing_left_behind: None) -> None:
    perf_type_software, cpu_clock_ns = 1, 0  # there on every machine, unlike the hardware counters
    monkeypatch.setattr(probes, "PERF_TYPE_HARDWARE", perf_type_software)
    monkeypatch.setattr(probes, "PERF_COUNT_HW_INSTRUCTIONS", cpu_clock_ns)
    try:
        count = probes.count_instructions()
    except SourceAbsent as absent:
        if "forbids" in str(absent):
            pytest.skip(str(absent))
        raise
    assert 1_000 < count < 1_000_000_000


def test_unknown_counter_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PERF_TYPE_HARDWARE", 4_000_000)
    with pytest.raises(SourceAbsent, match=r"shows no counters; in a virtual machine|forbids"):
        probes.count_instructions()


def test_opencl_that_crashes_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(probes, "OPENCL", "import os; os.abort()")
    with pytest.raises(SourceAbsent, match=r"crashed \(-6\)"):
        probes.opencl()
    monkeypatch.setattr(probes, "OPENCL", "print('A: 1 device')")
    assert probes.opencl() == ["A: 1 device"]


def test_json_holds_all_findings() -> None:
    findings = doctor.examine()
    assert json.loads(doctor.as_json(findings)) == [
        {name: getattr(finding, name) for name in ("topic", "status", "value", "why", "how", "group")}
        for finding in findings
    ]


SOME = [
    Finding("cores", "ok", "2 logical", group="Processor"),
    Finding("fans", "absent", "", "no fan", "load [its] driver", group="Sensors"),
    Finding("open files", "warning", "1024 per process", "too few", "ulimit -n 65536", group="Sensors"),
]


def test_rendering_reads_well_without_colour() -> None:
    assert [line.rstrip() for line in rendered(SOME).splitlines()] == [
        "Processor",
        "  ✓  cores       2 logical",
        "",
        "Sensors",
        "  –  fans        no fan",
        "                 → load [its] driver",
        "  !  open files  1024 per process",
        "                 too few",
        "                 → ulimit -n 65536",
        "",
        "✓ 1 ok   ! 1 to look at   – 1 absent",
        "Swarm works without what is absent; those readings stay empty.",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rendering_fits_the_terminal_and_loses_no_word(width: int) -> None:
    findings = doctor.examine()
    text = rendered(findings, width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for finding in findings:
        assert set(finding.how.split()) <= words


def test_rendering_needs_no_unicode_terminal() -> None:
    text = rendered(SOME, encoding="ascii")
    assert "+  cores" in text
    assert "-> load" in text


def test_doctor_imports_neither_dask_nor_bokeh() -> None:
    code = "import sys, swarm.doctor; print([m for m in ('distributed', 'bokeh', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
