from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.protocol import Telemetry
from swarm.telemetry.sampler import Sampler, sources_of
from swarm.telemetry.sources.ecc import EccErrors
from swarm.telemetry.sources.process import PAGE_BYTES, TICKS_PER_S
from tests.support.kernel_tree import plant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="procfs is Linux")

FIELDS = {field.name for field in dataclasses.fields(Telemetry) if not field.name.startswith("accelerator_")}
ALWAYS = {"taken_at_s", "interval_s", "worker_memory_limit_bytes", "host_disk_free_bytes"}


def _absent(sampler: Sampler) -> dict[str, str]:
    """The recorded machines have no GPU."""
    return {name: why for name, why in sampler.absent.items() if name != EccErrors.name}


@pytest.fixture
def open_files() -> Iterator[None]:
    before = psutil.Process().num_fds()
    yield
    assert psutil.Process().num_fds() == before


@pytest.fixture
def server(tmp_path: Path) -> Path:
    return plant("composed-server", tmp_path)


def sampler_on(root: Path) -> Sampler:
    return Sampler(str(root), memory_limit_bytes=2**30, root=root)


def test_reads_a_server_over_one_second(server: Path, open_files: None) -> None:
    sampler = sampler_on(server)
    assert _absent(sampler) == {}
    sampler.sample(100.0)
    plant("composed-server-later", server)
    telemetry = sampler.sample(101.0)
    sampler.close()
    assert telemetry == Telemetry(
        taken_at_s=101.0,
        interval_s=1.0,
        host_cpu_percent=50.0,
        host_cpu_count=4,
        host_load_1min=2.5,
        host_memory_total_bytes=65536000 * 1024,
        host_memory_available_bytes=32768000 * 1024,
        host_disk_read_bytes_per_s=(2000 + 100) * 512,  # nvme0n1 and nvme1n1: no partition, path, mapped device
        host_disk_write_bytes_per_s=(4000 + 200) * 512,
        host_disk_free_bytes=telemetry.host_disk_free_bytes,
        host_network_received_bytes_per_s=5000,  # eno1 and eno2: no loopback, bridge, virtual function
        host_network_sent_bytes_per_s=2000,
        host_pressure_cpu_percent=12.5,
        host_pressure_memory_percent=3.25,
        host_pressure_io_percent=0.75,
        host_temperature_celsius=61.25,  # not the drive at 74.85, nor the pin that reads 255
        worker_cpu_percent=100 * 150 / TICKS_PER_S,
        worker_memory_bytes=2000 * PAGE_BYTES,
        worker_memory_limit_bytes=2**30,
        worker_threads=13,
        worker_open_files=3,  # four entries, of which listing them would be one
        worker_read_bytes_per_s=1000,
        worker_write_bytes_per_s=2000,
        cgroup_cpu_limit_cores=3.0,  # on the slice
        cgroup_cpu_throttled_percent=50.0,
        cgroup_memory_bytes=2**32,
        cgroup_memory_limit_bytes=2**33,  # on the service
        cgroup_oom_kills=2,
        cgroup_pressure_cpu_percent=20.0,
        cgroup_pressure_memory_percent=1.0,
        cgroup_pressure_io_percent=2.0,
    )
    assert 0 < (telemetry.host_disk_free_bytes or 0) <= psutil.disk_usage(str(server)).total


def test_first_sample_has_no_rates(server: Path) -> None:
    sampler = sampler_on(server)
    first = sampler.sample(100.0)
    sampler.close()
    rates = {name for name in FIELDS if name.endswith("_per_s")}
    shares = {"interval_s", "host_cpu_percent", "worker_cpu_percent", "cgroup_cpu_throttled_percent"}
    assert {name for name in FIELDS if getattr(first, name) is None} == rates | shares


def test_reads_the_recorded_machine(tmp_path: Path, open_files: None) -> None:
    sampler = sampler_on(plant("recorded-vm", tmp_path))
    telemetry = sampler.sample(1.0)
    sampler.close()
    assert set(_absent(sampler)) == {"temperature"}
    assert "no temperature sensor" in sampler.absent["temperature"]
    assert "modprobe" in sampler.absent["temperature"]
    assert telemetry.host_cpu_count == 2
    assert telemetry.host_memory_total_bytes == 24684096 * 1024
    assert telemetry.cgroup_memory_bytes == 78749696  # of the group /job, not of the root
    assert telemetry.cgroup_memory_limit_bytes is None
    assert telemetry.cgroup_cpu_limit_cores is None
    assert telemetry.cgroup_pressure_cpu_percent is not None


def test_reads_a_container_with_cgroup_v1(tmp_path: Path, open_files: None) -> None:
    sampler = sampler_on(plant("composed-container-v1", tmp_path))
    sampler.sample(1.0)
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.stat").write_text("nr_periods 110\nnr_throttled 26\n")
    telemetry = sampler.sample(2.0)
    sampler.close()
    assert telemetry.cgroup_cpu_limit_cores == 1.5
    assert telemetry.cgroup_cpu_throttled_percent == 10
    assert telemetry.cgroup_memory_bytes == 2**30
    assert telemetry.cgroup_memory_limit_bytes == 2**31
    assert telemetry.cgroup_oom_kills == 3
    assert telemetry.host_network_received_bytes_per_s == 0  # eth0 counts although it is no card
    assert set(_absent(sampler)) == {"disk", "pressure", "temperature", "worker io", "cgroup pressure"}
    assert "version 2" in sampler.absent["cgroup pressure"]
    assert "psi=1" in sampler.absent["pressure"]
    assert sampler.failures == 0


def test_reads_a_container_with_cgroup_v2(tmp_path: Path, open_files: None) -> None:
    sampler = sampler_on(plant("composed-container-v2", tmp_path))
    telemetry = sampler.sample(1.0)
    sampler.close()
    assert telemetry.cgroup_cpu_limit_cores == 0.5
    assert telemetry.cgroup_memory_limit_bytes == 2**30
    assert telemetry.cgroup_oom_kills == 0


def test_without_any_source_it_says_why_for_each(tmp_path: Path, open_files: None) -> None:
    sampler = Sampler(str(tmp_path / "gone"), memory_limit_bytes=0, root=tmp_path)
    telemetry = sampler.sample(5.0)
    sampler.close()
    assert telemetry == Telemetry(taken_at_s=5.0)
    assert set(sampler.absent) == {source.name for source in sources_of("linux", "", None)}
    assert all(why and "\n" not in why for why in sampler.absent.values())
    assert sampler.failures == 0


def test_root_group_without_limits_is_absent(tmp_path: Path) -> None:
    plant("composed-container-v2", tmp_path)
    for name in ("cpu.max", "memory.max"):
        (tmp_path / "sys/fs/cgroup" / name).unlink()
    sampler = sampler_on(tmp_path)
    sampler.close()
    assert "root of the control groups; run the worker in a container" in sampler.absent["cgroup memory"]
    assert "cgroup cpu" in sampler.absent


def test_source_that_fails_is_switched_off_and_the_others_go_on(server: Path, open_files: None) -> None:
    sampler = sampler_on(server)
    whole = sampler.sample(1.0)
    (server / "proc/meminfo").write_text("nonsense\n")
    for now_s in (2.0, 3.0):
        telemetry = sampler.sample(now_s)
        assert telemetry.host_memory_total_bytes is None
        assert telemetry.host_cpu_count == whole.host_cpu_count
        assert telemetry.cgroup_memory_bytes == whole.cgroup_memory_bytes
    assert sampler.failures == 1
    assert _absent(sampler) == {
        "host memory": "failed and was switched off: /proc/meminfo is not in its documented form: 'nonsense\\n'"
    }
    sampler.close()


def test_counters_that_go_back_give_no_reading(server: Path) -> None:
    sampler = sampler_on(server)
    sampler.sample(1.0)
    plant("composed-server-later", server)
    sampler.sample(2.0)
    plant("composed-server", server)
    telemetry = sampler.sample(3.0)
    sampler.close()
    assert telemetry.host_cpu_percent is None
    assert telemetry.worker_cpu_percent is None
    assert telemetry.host_disk_read_bytes_per_s is None
    assert telemetry.worker_write_bytes_per_s is None
    assert sampler.failures == 0


def test_disk_that_is_plugged_in_later_counts(server: Path) -> None:
    sampler = sampler_on(server)
    sampler.sample(1.0)
    (server / "sys/block/sdb/device").mkdir(parents=True)
    with (server / "proc/diskstats").open("a") as diskstats:
        diskstats.write("   8      16 sdb 10 0 2 1 10 0 4 1 0 1 1\n")
    telemetry = sampler.sample(2.0)
    sampler.close()
    assert telemetry.host_disk_read_bytes_per_s == 1024


def test_more_devices_than_fit_a_page_are_all_read(server: Path) -> None:
    lines = [f"   8 {n} sd{n} 10 0 2 1 10 0 4 1 0 1 1 0 0 0 0 0 0\n" for n in range(200)]
    (server / "proc/diskstats").write_text("".join(lines))
    (server / "sys/block/sd199/device").mkdir(parents=True)
    sampler = sampler_on(server)
    sampler.close()
    assert "disk" not in sampler.absent


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_content_makes_it_raise(
    open_files: None, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = plant("composed-server", tmp_path_factory.mktemp("server"))
    files = sorted(path for path in (*root.glob("proc/**/*"), *root.glob("sys/fs/**/*")) if path.is_file())
    texts = st.binary(max_size=30) | st.text("0123456789 -:\n", max_size=30).map(str.encode)
    damage = data.draw(st.dictionaries(st.sampled_from(files), texts, min_size=1, max_size=4))
    with closing(sampler_on(root)) as running:
        running.sample(1.0)
        for path, text in damage.items():
            path.write_bytes(text)
        with closing(sampler_on(root)) as fresh:
            for sampler in (running, fresh):
                wire = sampler.sample(2.0).to_wire()
                assert Telemetry.from_wire(wire).to_wire() == wire


def test_agrees_with_psutil_about_this_process_and_host(open_files: None) -> None:
    process = psutil.Process()
    sampler = Sampler("/tmp", memory_limit_bytes=None)
    began_s, cpu_s = time.monotonic(), time.process_time()
    sampler.sample(began_s)
    while time.process_time() < cpu_s + 0.3:  # enough ticks of 10 ms
        pass
    now_s = time.monotonic()
    telemetry = sampler.sample(now_s)
    files = process.num_fds() - 1  # psutil counts the descriptor with which it lists them
    sampler.close()
    memory = psutil.virtual_memory()
    assert telemetry.worker_cpu_percent == pytest.approx(100 * 0.3 / (now_s - began_s), rel=0.15)
    assert telemetry.worker_memory_bytes == pytest.approx(process.memory_info().rss, rel=0.05)
    assert telemetry.worker_threads == process.num_threads()
    assert telemetry.worker_open_files == files
    assert telemetry.host_cpu_count == psutil.cpu_count()
    assert telemetry.host_memory_total_bytes == memory.total
    assert telemetry.host_memory_available_bytes == pytest.approx(memory.available, rel=0.1)
    assert sampler.failures == 0


def test_samples_another_process_until_it_ends() -> None:
    with psutil.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        child.stdout.readline()  # before its exec a child has no memory of its own
        sampler = Sampler("/tmp", memory_limit_bytes=None, pid=child.pid)
        assert sampler.sample(1.0).worker_memory_bytes
        child.kill()
    telemetry = sampler.sample(2.0)
    assert telemetry.worker_memory_bytes is None
    assert telemetry.host_cpu_count is not None
    assert "switched off" in sampler.absent["worker"]
    sampler.close()


def test_closing_twice_does_no_harm(server: Path, open_files: None) -> None:
    sampler = sampler_on(server)
    sampler.close()
    sampler.close()
    assert sampler.sample(1.0) == Telemetry(taken_at_s=1.0, worker_memory_limit_bytes=2**30)
