"""One sample of a worker process and its host, out of whatever sources this machine has."""

from __future__ import annotations

import sys
from pathlib import Path

from swarm.protocol import Telemetry
from swarm.telemetry.sources.cgroup import CgroupCpu, CgroupMemory
from swarm.telemetry.sources.ecc import EccErrors
from swarm.telemetry.sources.host import Disks, DiskSpace, HostCpu, HostLoad, HostMemory, Network
from swarm.telemetry.sources.portable import PortableHost, PortableWorker
from swarm.telemetry.sources.pressure import CgroupPressure, HostPressure
from swarm.telemetry.sources.process import WorkerFiles, WorkerIo, WorkerStat
from swarm.telemetry.sources.source import Source, SourceAbsent
from swarm.telemetry.sources.temperature import Temperature

Values = dict[str, float | int | None]


def sources_of(platform: str, local_directory: str, pid: int | None) -> list[Source]:
    """The sources that exist for a platform (`sys.platform`), not opened yet."""
    if platform != "linux":
        return [PortableHost(), PortableWorker(pid), DiskSpace(local_directory)]
    return [
        HostCpu(),
        HostLoad(),
        HostMemory(),
        Disks(),
        DiskSpace(local_directory),
        Network(),
        HostPressure(),
        Temperature(),
        EccErrors(),
        WorkerStat(pid),
        WorkerIo(pid),
        WorkerFiles(pid),
        CgroupCpu(pid),
        CgroupMemory(pid),
        CgroupPressure(pid),
    ]


class Sampler:
    """Reads all sources that this machine has. A source that fails is switched off, the others go on.

    Parameters
    ----------
    local_directory
        Where the worker spills; its file system is the one whose free space counts.
    memory_limit_bytes
        Dask's memory limit of the worker, None or 0 for none; passed through to the samples.
    pid
        The worker process, by default this one.
    root
        Directory to take for `/`, for tests on a recorded tree.

    Examples
    --------
    >>> sampler = Sampler("/tmp", memory_limit_bytes=2**30)
    >>> first, second = sampler.sample(now_s=100.0), sampler.sample(now_s=101.0)
    >>> first.worker_cpu_percent is None, second.interval_s
    (True, 1.0)
    >>> sampler.close()
    """

    def __init__(
        self, local_directory: str, memory_limit_bytes: int | None, pid: int | None = None, root: Path = Path("/")
    ) -> None:
        self.absent: dict[str, str] = {}
        """Source → why it has no reading, in one sentence; grows when a source fails."""
        self.failures = 0
        """Sources that failed after they had been opened."""
        self._memory_limit_bytes = memory_limit_bytes or None
        self._sampled_at_s: float | None = None
        self._sources: list[Source] = []
        for source in sources_of(sys.platform, local_directory, pid):
            try:
                source.open(root)
            except (SourceAbsent, OSError) as absent:
                self._switch_off(source, _one_line(absent))
            except Exception as error:  # noqa: BLE001 - one bad file must not blind the rest; counted, and shown in absent
                self.failures += 1
                self._switch_off(source, f"failed when it was opened: {_one_line(error)}")
            else:
                self._sources.append(source)

    def sample(self, now_s: float) -> Telemetry:
        """All readings at `now_s` (POSIX time, s); rates and shares are over the time since the sample before.

        Never raises for what it reads: a source that fails goes into `absent`, its fields are None from then on.
        """
        values: Values = {}
        for source in tuple(self._sources):
            try:
                values.update(source.read(now_s))
            except Exception as error:  # noqa: BLE001 - one bad file must not blind the rest; counted, and shown in absent
                self.failures += 1
                self._sources.remove(source)
                self._switch_off(source, f"failed and was switched off: {_one_line(error)}")
        before_s, self._sampled_at_s = self._sampled_at_s, now_s
        interval_s = None if before_s is None or now_s <= before_s else now_s - before_s
        return _telemetry(now_s, interval_s, self._memory_limit_bytes, values)

    def close(self) -> None:
        """Close all files. A sample after that has no readings."""
        while self._sources:
            self._sources.pop().close()

    def _switch_off(self, source: Source, why: str) -> None:
        self.absent[source.name] = why
        source.close()


def _telemetry(now_s: float, interval_s: float | None, memory_limit_bytes: int | None, values: Values) -> Telemetry:
    return Telemetry(
        taken_at_s=now_s,
        interval_s=interval_s,
        worker_memory_limit_bytes=memory_limit_bytes,
        **values,  # type: ignore[arg-type] # the sources' fields; the tests check them against Telemetry
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
