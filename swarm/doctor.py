"""What this machine offers to swarm, what it lacks, why, and how to get it.

Nothing that is absent stops swarm. Every line comes from a real try or a real file; nothing is left behind.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement

import swarm
from swarm.protocol import Telemetry
from swarm.telemetry import probes
from swarm.telemetry.sampler import Sampler
from swarm.telemetry.sources.cgroup import levels
from swarm.telemetry.sources.source import SourceAbsent

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "absent", "warning"]

MARKS: dict[Status, str] = {"ok": "✓", "warning": "!", "absent": "–"}
ASCII_MARKS: dict[Status, str] = {"ok": "+", "warning": "!", "absent": "-"}
STYLES: dict[Status, str] = {"ok": "green", "warning": "bold yellow", "absent": "dim"}

SMALL_SHARED_MEMORY_BYTES = 256 * 2**20
"""Docker gives a container 64 MiB, which is too little for results; channels alone need a few."""
FEW_OPEN_FILES = 4096
"""Dask's advice against "Too many open files" on clusters (distributed FAQ)."""
GET_GPU = "pip install 'dask-swarm[gpu]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    status: Status
    value: str = ""
    """What there is; empty when it is absent."""
    why: str = ""
    how: str = ""
    """What a person can do about it."""
    group: str = ""


@dataclass(frozen=True, slots=True)
class _Machine:
    root: Path
    sample: Telemetry
    absent: Mapping[str, str]

    def source(self, topic: str, name: str, value: str) -> Finding:
        """A finding about a source of the sampler."""
        reason = self.absent.get(name)
        return Finding(topic, "ok", value) if reason is None else _absent(topic, reason)


def examine(root: Path = Path("/")) -> list[Finding]:
    """Look at this machine, in well under a second.

    `root` stands for `/` in what is read from files, for tests; system calls and packages are always the real ones.
    A look that fails for a reason that nobody thought of becomes a finding that says so.
    """
    with closing(Sampler(tempfile.gettempdir(), None, root=root)) as sampler:
        machine = _Machine(root, sampler.sample(time.time()), sampler.absent)
    return [
        dataclasses.replace(finding, group=group)
        for group, looks in LOOKS.items()
        for topic, look in looks.items()
        for finding in _look(topic, look, machine)
    ]


def _look(topic: str, look: Callable[[_Machine], Iterable[Finding]], machine: _Machine) -> list[Finding]:
    try:
        return list(look(machine))
    except SourceAbsent as absent:
        return [_absent(topic, str(absent))]
    except Exception as error:  # noqa: BLE001 - a doctor that falls over helps nobody; it is shown with its text
        return [Finding(topic, "warning", "", f"could not be looked at: {type(error).__name__}: {error}")]


def _absent(topic: str, reason: str) -> Finding:
    why, _, how = reason.partition("; ")
    return Finding(topic, "absent", "", why, how)


# -- processor and memory --------------------------------------------------------------------------------------


def _cores(machine: _Machine) -> Iterable[Finding]:
    if model := _cpuinfo(machine.root).get("model name"):
        yield Finding("model", "ok", model)
    logical = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else logical
    counts = [f"{logical} logical", f"{psutil.cpu_count(logical=False) or 'unknown'} physical"]
    limit = machine.sample.cgroup_cpu_limit_cores
    limits = [f"{affinity} by affinity", f"{limit:g} by control group" if limit else "no limit by control group"]
    yield Finding("cores", "ok", ", ".join(counts))
    yield Finding("usable cores", "ok", ", ".join(limits))


def _vectors(machine: _Machine) -> Iterable[Finding]:
    info = _cpuinfo(machine.root)
    flags = (info.get("flags") or info.get("Features") or "").split()
    names = [
        name for flag, name in (("avx", "AVX"), ("avx2", "AVX2"), ("asimd", "NEON"), ("sve", "SVE")) if flag in flags
    ]
    wide = [flag.removeprefix("avx512").strip("_").upper() for flag in flags if flag.startswith("avx512")]
    if wide:
        names.append(f"AVX-512 ({', '.join(wide)})")
    if names:
        yield Finding("vector units", "ok", ", ".join(names))
    else:
        yield _absent("vector units", "/proc/cpuinfo names none; kernels fall back to the compiler's baseline")


def _numa(machine: _Machine) -> Iterable[Finding]:
    nodes = machine.root / "sys/devices/system/node/online"
    if not nodes.exists():
        raise SourceAbsent("the kernel was built without NUMA; one node is assumed")
    ranges = (part.split("-") for part in nodes.read_text().strip().split(","))
    count = sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)
    yield Finding("NUMA nodes", "ok", str(count))


def _memory(machine: _Machine) -> Iterable[Finding]:
    sample = machine.sample
    if sample.host_memory_total_bytes is None or sample.host_memory_available_bytes is None:
        yield _absent("memory", machine.absent.get("host memory", "no reading"))
        return
    total, free = _size(sample.host_memory_total_bytes), _size(sample.host_memory_available_bytes)
    yield Finding("memory", "ok", f"{total}, of which {free} are available")


def _shared_memory(machine: _Machine) -> Iterable[Finding]:
    directory = machine.root / "dev/shm"
    probes.shared_memory(directory)
    space = shutil.disk_usage(directory)
    value = f"{_size(space.total)}, of which {_size(space.free)} are free; made, mapped and removed a segment"
    if space.free >= SMALL_SHARED_MEMORY_BYTES:
        yield Finding("shared memory", "ok", value)
    else:
        why = f"less than {_size(SMALL_SHARED_MEMORY_BYTES)} free: channels and large results may not fit"
        yield Finding("shared memory", "warning", value, why, "in a container: docker run --shm-size=1g")


def _open_files(_: _Machine) -> Iterable[Finding]:
    soft, hard = (_limit(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    value = f"{soft} per process, can be raised to {hard}" if soft != hard else f"{soft} per process"
    if soft == "unlimited" or int(soft) >= FEW_OPEN_FILES:
        yield Finding("open files", "ok", value)
    else:
        why = "each worker takes several connections and spilled results take files"
        yield Finding("open files", "warning", value, why, "ulimit -n 65536, or LimitNOFILE= in a systemd unit")


# -- kernel ----------------------------------------------------------------------------------------------------


def _control_group(machine: _Machine) -> Iterable[Finding]:
    version, _ = levels(machine.root, None, "memory")
    yield Finding("control group", "ok", f"version {version}")
    sample = machine.sample
    cores, size = sample.cgroup_cpu_limit_cores, sample.cgroup_memory_limit_bytes
    yield machine.source("CPU limit", "cgroup cpu", f"{cores:g} cores" if cores else "none")
    yield machine.source("memory limit", "cgroup memory", _size(size) if size else "none")


def _pressure(machine: _Machine) -> Iterable[Finding]:
    sample = machine.sample
    value = (
        f"CPU {sample.host_pressure_cpu_percent} %, memory {sample.host_pressure_memory_percent} %,"
        f" I/O {sample.host_pressure_io_percent} % of the last 10 s"
    )
    yield machine.source("pressure (PSI)", "pressure", value)


def _counters(machine: _Machine) -> Iterable[Finding]:
    level = machine.root / "proc/sys/kernel/perf_event_paranoid"
    paranoid = level.read_text().strip() if level.exists() else "unknown"
    count = probes.count_instructions()
    yield Finding("perf counters", "ok", f"counted {count:,} instructions of this process (paranoid level {paranoid})")


def _futex(_: _Machine) -> Iterable[Finding]:
    probes.futex()
    yield Finding("futex", "ok", "works")


def _eventfd(_: _Machine) -> Iterable[Finding]:
    probes.eventfd()
    yield Finding("eventfd", "ok", "works")


# -- sensors ---------------------------------------------------------------------------------------------------


def _temperature(machine: _Machine) -> Iterable[Finding]:
    hottest = machine.sample.host_temperature_celsius
    yield machine.source("temperature", "temperature", f"{hottest} °C at the hottest sensor")


def _fans(machine: _Machine) -> Iterable[Finding]:
    hwmon = machine.root / "sys/class/hwmon"
    speeds = [path.read_text().strip() for path in sorted(hwmon.glob("hwmon*/fan*_input"))]
    if not speeds:
        raise SourceAbsent(f"no fan below {hwmon}; on a machine of your own load its board's driver (sensors-detect)")
    yield Finding("fans", "ok", f"{', '.join(speeds)} rpm")


def _power(machine: _Machine) -> Iterable[Finding]:
    powercap = machine.root / "sys/class/powercap"
    packages = sorted(powercap.glob("*-rapl:?"))
    if not packages:
        raise SourceAbsent(
            f"no power meter (RAPL) in {powercap}; modprobe intel_rapl_msr on an Intel or AMD machine"
            " of your own; virtual machines have none"
        )
    try:
        joules = [int((package / "energy_uj").read_text()) / 1e6 for package in packages]
    except PermissionError as error:
        # CVE-2020-8694: the fine resolution gave keys away, so Linux 5.10 took it from users.
        raise SourceAbsent(f"only root may read {error.filename}; chmod a+r it in a udev rule") from error
    count = "1 package" if len(joules) == 1 else f"{len(joules)} packages"
    yield Finding("power (RAPL)", "ok", f"{count}, {sum(joules):,.0f} J so far")


# -- accelerators ----------------------------------------------------------------------------------------------


def _gpu(machine: _Machine) -> Iterable[Finding]:
    if not (machine.root / "dev/nvidiactl").exists():
        raise SourceAbsent(
            "no NVIDIA driver, /dev/nvidiactl is missing; needs an NVIDIA GPU and its driver;"
            " in a container: docker run --gpus all"
        )
    if importlib.util.find_spec("pynvml") is None:
        gpus = (machine.root / "proc/driver/nvidia/gpus").glob("*/information")
        models = [_colon_pairs(gpu.read_text()).get("Model", "unknown") for gpu in sorted(gpus)]
        why = "the package that reads GPUs (NVML) is not installed"
        yield Finding("NVIDIA GPU", "warning", ", ".join(models), why, GET_GPU)
        return
    import pynvml

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [f"{pynvml.nvmlDeviceGetName(gpu)}, {pynvml.nvmlDeviceGetTemperature(gpu, 0)} °C" for gpu in handles]
    finally:
        pynvml.nvmlShutdown()
    yield Finding("NVIDIA GPU", "ok", "; ".join(names))


def _cupy(_: _Machine) -> Iterable[Finding]:
    for name in ("cupy", "cupy-cuda12x", "cupy-cuda13x"):
        if version := _version(name):
            yield Finding("CuPy", "ok", f"{name} {version} is installed")
            return
    raise SourceAbsent(f"not installed; {GET_GPU}, useful with an NVIDIA GPU only")


def _opencl(_: _Machine) -> Iterable[Finding]:
    yield Finding("OpenCL", "ok", "; ".join(probes.opencl()))


# -- software --------------------------------------------------------------------------------------------------


def _software(_: _Machine) -> Iterable[Finding]:
    yield Finding("system", "ok", f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("swarm", "ok", swarm.__version__)
    for name in ("dask", "distributed", "numpy", "numba", "bokeh"):
        version = _version(name)
        wanted = _requirement(name)
        if version is None:
            yield Finding(name, "warning", "", "not installed", f"pip install '{wanted or name}'")
        elif wanted is not None and not wanted.specifier.contains(version, prereleases=True):
            yield Finding(
                name, "warning", version, f"swarm was tested with {wanted.specifier}", f"pip install '{wanted}'"
            )
        else:
            yield Finding(name, "ok", version)


# -- what was left behind ----------------------------------------------------------------------------------------


def _left_behind(_: _Machine) -> Iterable[Finding]:
    from swarm import leftovers

    for left in leftovers.look():
        used = f"{left.used} in use" if left.used else "none in use"
        if not left.dead:
            yield Finding(left.what, "ok", f"{used}, none left behind")
            continue
        value = f"{used}, {len(left.dead)} left behind in {left.folder} by processes that were killed"
        yield Finding(left.what, "warning", value, "they do no harm", "swarm doctor --clean removes them")


# -- the list --------------------------------------------------------------------------------------------------

Look = Callable[[_Machine], Iterable[Finding]]

LOOKS: dict[str, dict[str, Look]] = {
    "Processor": {"cores": _cores, "vector units": _vectors, "NUMA nodes": _numa},
    "Memory and files": {"memory": _memory, "shared memory": _shared_memory, "open files": _open_files},
    "Kernel": {
        "control group": _control_group,
        "pressure (PSI)": _pressure,
        "perf counters": _counters,
        "futex": _futex,
        "eventfd": _eventfd,
    },
    "Sensors": {"temperature": _temperature, "fans": _fans, "power (RAPL)": _power},
    "Accelerators": {"NVIDIA GPU": _gpu, "CuPy": _cupy, "OpenCL": _opencl},
    "Software": {"versions": _software},
    "Left behind": {"stations and ledgers": _left_behind},
}
"""Group → topic → the look that makes its findings."""


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as a JSON list of objects with the fields of `Finding`."""
    return json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def render(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings by group: a mark, the topic, what there is; below it why not, and → how to get it."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    marks, arrow = (ASCII_MARKS, "->") if console.options.ascii_only else (MARKS, "→")
    width = max((len(finding.topic) for finding in findings), default=0)
    for group, members in groupby(findings, key=lambda finding: finding.group):
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=1)
        table.add_column(width=width, no_wrap=True)
        table.add_column(ratio=1, overflow="fold")
        for finding in members:
            style = STYLES[finding.status]
            first, *rest = [line for line in (finding.value, finding.why) if line] or ["absent"]
            table.add_row(
                Text(marks[finding.status], style), Text(finding.topic), Text(first, "" if finding.value else style)
            )
            for line in rest:
                table.add_row("", "", Text(line, style))
            if finding.how:
                table.add_row("", "", Text.assemble((f"{arrow} ", "cyan"), finding.how))
        console.print(Text(group, "bold"))
        console.print(Padding(table, (0, 0, 1, 2)))
    counts = Counter(finding.status for finding in findings)
    words = {"ok": "ok", "warning": "to look at", "absent": "absent"}
    summary = [
        Text(f"{marks[status]} {counts[status]} {words[status]}", STYLES[status]) for status in marks if counts[status]
    ]
    console.print(Text("   ").join(summary))
    if counts["absent"]:
        console.print(Text("Swarm works without what is absent; those readings stay empty."))


def _cpuinfo(root: Path) -> dict[str, str]:
    path = root / "proc/cpuinfo"
    return _colon_pairs(path.read_text().split("\n\n")[0]) if path.exists() else {}


def _colon_pairs(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirement(distribution: str) -> Requirement | None:
    """What swarm's own metadata ask for; None when swarm runs from a directory that was never installed."""
    try:
        wanted = map(Requirement, importlib.metadata.requires("dask-swarm") or ())
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((one for one in wanted if one.name == distribution and one.marker is None), None)
