"""The parsers of kernel files read what is documented and refuse all else with one kind of error."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.telemetry.sources import parse

PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "cpu_ticks": (parse.cpu_ticks, b"cpu  10 1 5 80 2 1 1 1 3 0\ncpu0 10 1 5 80 2 1 1 1 3 0\nintr 5\n"),
    "cpu_count": (parse.cpu_count, b"cpu  1 1\ncpu0 1 1\ncpu1 1 1\nintr 5\n"),
    "memory": (parse.memory, b"MemTotal:       4 kB\nMemFree:  1 kB\nMemAvailable:   2 kB\nBuffers: 0 kB\n"),
    "load_1min": (parse.load_1min, b"0.50 0.17 0.10 1/88 5315\n"),
    "disk_bytes": (parse.disk_bytes, b" 254 0 vda 1 2 10 4 5 6 20 8 9\n"),
    "network_bytes": (parse.network_bytes, b"head\nhead\n  eth0: 7 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n"),
    "pressure_percent": (parse.pressure_percent, b"some avg10=0.88 avg60=0.70 avg300=0.44 total=9\n"),
    "temperature_celsius": (parse.temperature_celsius, b"61250\n"),
    "energy_uj": (parse.energy_uj, b"262143328850\n"),
    "process": (parse.process, b"7 (a) b) S" + b" 1" * 40),
    "storage_bytes": (parse.storage_bytes, b"rchar: 1\nread_bytes: 5\nwrite_bytes: 6\n"),
    "cpu_limit_v2": (parse.cpu_limit_v2, b"150000 100000\n"),
    "cpu_limit_v1": (functools.partial(parse.cpu_limit_v1, period=b"100000\n"), b"150000\n"),
    "throttled_periods": (parse.throttled_periods, b"nr_periods 8\nnr_throttled 2\nthrottled_time 5\n"),
    "memory_limit_bytes": (parse.memory_limit_bytes, b"1073741824\n"),
    "memory_bytes": (parse.memory_bytes, b"4096\n"),
    "oom_kills": (parse.oom_kills, b"low 0\noom_kill 3\n"),
    "groups": (
        functools.partial(parse.groups, mountinfo=b"9 8 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        b"0::/a\n",
    ),
}
READ = {
    "cpu_ticks": (19, 101),
    "cpu_count": 2,
    "memory": (4096, 2048),
    "load_1min": 0.5,
    "disk_bytes": {"vda": (5120, 10240)},
    "network_bytes": {"eth0": (7, 9)},
    "pressure_percent": 0.88,
    "temperature_celsius": 61.25,
    "energy_uj": 262143328850,
    "process": parse.Process(cpu_ticks=2, threads=1, resident_pages=1),
    "storage_bytes": (5, 6),
    "cpu_limit_v2": 1.5,
    "cpu_limit_v1": 1.5,
    "throttled_periods": (2, 8),
    "memory_limit_bytes": 2**30,
    "memory_bytes": 4096,
    "oom_kills": 3,
    "groups": {"": parse.Group(2, "/sys/fs/cgroup", "a")},
}
BAD = {
    "cpu_ticks": [b"cpu  1 2 3\n", b"cpu  -1 1 5 80 2\n", b"cpu0 1 1 5 80 2\n", b"cpu 1 1 1 1 1"],
    "cpu_count": [b"cpu  1 1\n"],
    "memory": [b"MemTotal: 4 kB\nMemFree: 1 kB\nBuffers: 0 kB\n"],
    "load_1min": [b"nan", b"-1", b"inf"],
    "disk_bytes": [b" 254 0 vda 1 2 10\n", b" 254 0 vda 1 2 -1 4 5 6 20\n"],
    "network_bytes": [b"head\nhead\neth0 7 1\n"],
    "pressure_percent": [b"full avg10=0.88\n", b"some avg10=101\n", b"some avg60=1\n"],
    "temperature_celsius": [b"hot"],
    "process": [b"7 (a) S 1 2"],
    "storage_bytes": [b"read_bytes: 5\n", b"read_bytes: 1_0\nwrite_bytes: 6\n"],
    "cpu_limit_v2": [b"max", b"5 0", b"-1 100000"],
    "cpu_limit_v1": [b"-2"],
    "throttled_periods": [b"usage_usec 1\n"],
    "memory_limit_bytes": [b"-1", b"99999999999999999999999"],
    "memory_bytes": [b"max"],
    "oom_kills": [b"oom 1\n"],
    "groups": [b"0:/a\n", b"\xff\n"],
}


@pytest.mark.parametrize("name", PARSERS)
def test_reads_the_documented_form(name: str) -> None:
    read, text = PARSERS[name]
    assert read(text) == READ[name]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_refuses_another_form(name: str, text: bytes) -> None:
    with pytest.raises(parse.ParseError, match="not in its documented form"):
        PARSERS[name][0](text)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse.cpu_limit_v2, b"max 100000\n"),
        (functools.partial(parse.cpu_limit_v1, period=b"100000\n"), b"-1\n"),
        (parse.memory_limit_bytes, b"max\n"),
        (parse.memory_limit_bytes, b"9223372036854771712\n"),
        (parse.temperature_celsius, b"-273150\n"),
    ],
)
def test_no_limit_and_no_sensor_are_none(read: Callable[[bytes], Any], text: bytes) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/a/b", "/", "a/b"),
        ("/docker/01", "/docker/01", ""),
        ("/docker/01/sub", "/docker/01", "sub"),
        ("/docker/012", "/docker/01", ""),
        ("/../../elsewhere", "/", ""),
        ("/", "/", ""),
    ],
)
def test_group_is_found_below_its_mount(path: str, root: str, below: str) -> None:
    mountinfo = f"9 8 0:2 {root} /sys/fs/with\\040blank rw shared:1 - cgroup2 cgroup2 rw\n".encode()
    assert parse.groups(f"0::{path}\n".encode(), mountinfo) == {"": parse.Group(2, "/sys/fs/with blank", below)}


def test_controllers_of_a_hybrid_host_are_found_one_by_one() -> None:
    mountinfo = (
        b"1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        b"2 0 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    assert parse.groups(b"1:cpuacct,cpu:/job\n1:name=systemd:/x\n0::/\n", mountinfo) == {
        "cpu": parse.Group(1, "/sys/fs/cgroup/cpu", "job"),
        "cpuacct": parse.Group(1, "/sys/fs/cgroup/cpu", "job"),
        "": parse.Group(2, "/sys/fs/cgroup/unified", ""),
    }


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Noise, or the right text with a piece cut out and noise in its place."""
    noise = draw(st.binary(max_size=40) | st.text(" 0123456789.-+einfa=:/\n", max_size=40).map(str.encode))
    if draw(st.booleans()):
        return noise
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return text[:start] + noise + text[end:]


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_bytes_give_finite_numbers_or_a_parse_error(name: str, data: st.DataObject) -> None:
    read, text = PARSERS[name]
    try:
        value = read(data.draw(damaged(text)))
    except parse.ParseError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
        return
    numbers = value if isinstance(value, tuple) else (value,)
    assert all(math.isfinite(n) and abs(n) < 2**68 for n in numbers if isinstance(n, int | float))
