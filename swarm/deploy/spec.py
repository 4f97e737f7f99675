"""What a cluster of local processes consists of, and the command lines that start it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dask.config
from dask.system import CPU_COUNT
from distributed.deploy.utils import nprocesses_nthreads
from distributed.system import MEMORY_LIMIT
from distributed.worker_memory import parse_memory_limit

from swarm.errors import SettingsError

logger = logging.getLogger(__name__)

LEASH = "swarm.deploy.leash"
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """A scheduler and its workers on this machine.

    Raises
    ------
    SettingsError
        A port or a number of workers or threads is out of range.
    """

    workers: int | None = None
    threads_per_worker: int | None = None
    """Where both are None, `distributed.deploy.utils.nprocesses_nthreads` decides; one follows from the other."""
    memory_limit: str = "auto"
    """Per worker, as `dask worker --memory-limit` takes it. `auto` shares the machine's memory out evenly."""

    host: str = "127.0.0.1"
    port: int = 0
    """Of the scheduler; 0 for any free port."""
    dashboard_port: int | None = 0
    """0 for any free port, None for no dashboard."""

    scheduler_only: bool = False
    """Start no workers: they come from elsewhere."""
    nanny: bool = True
    scheduler_preload: Sequence[str] = ("scheduler_plugins",)
    worker_preload: Sequence[str] = ("swarm.agents",)
    """Both come after what the Dask configuration names (`distributed.scheduler.preload` and so on)."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of all processes."""
    worker_env: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Added for single workers, by their number, which counts from 0."""

    log_directory: Path | None = None
    """For `scheduler.log`, `worker-0.log` and so on. None: a private folder, removed after a clean end."""
    forward: bool = False
    """With no `log_directory`: the processes write to our own standard error instead of to files."""

    def __post_init__(self) -> None:
        for name in ("port", "dashboard_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise SettingsError(f"{name} is {port}, must be 0 to 65535 (0 means any free port)")
        if self.port and self.port == self.dashboard_port:
            raise SettingsError(f"port and dashboard_port are both {self.port}, must differ")
        for name in ("workers", "threads_per_worker"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise SettingsError(f"{name} is {number}, must be 1 or more")
        try:
            parse_memory_limit(self.memory_limit, 1, logger=logger)
        except ValueError:
            allowed = 'must be "auto", a size such as "2GiB", a share such as "0.5", or "0" for no limit'
            raise SettingsError(f"memory_limit is {self.memory_limit!r}, {allowed}") from None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of workers and of threads in each, as `distributed.LocalCluster` works them out."""
        if self.workers is None and self.threads_per_worker is None:
            workers, threads = nprocesses_nthreads()
            return workers, threads
        if self.workers is None:
            assert self.threads_per_worker is not None
            return max(1, CPU_COUNT // self.threads_per_worker), self.threads_per_worker
        return self.workers, self.threads_per_worker or max(1, -(-CPU_COUNT // self.workers))


def scheduler_command(spec: ClusterSpec, *, scheduler_file: Path, port: int, dashboard_port: int | None) -> list[str]:
    """`dask scheduler …`. With a port above 0 it listens there or fails."""
    dashboard = ["--no-dashboard"] if dashboard_port is None else []
    # Dask starts its HTTP server in any case, on port 8787 unless told otherwise.
    http = f"{spec.host}:{dashboard_port or 0}"
    preload = [LEASH, *_configured("distributed.scheduler.preload"), *spec.scheduler_preload]
    return [
        *_DASK,
        "scheduler",
        *("--host", spec.host),
        *("--port", str(port)),
        *("--scheduler-file", str(scheduler_file)),
        *dashboard,
        *("--dashboard-address", http),
        *_repeat("--preload", preload),
    ]


def worker_command(spec: ClusterSpec, *, name: str, address: str) -> list[str]:
    """`dask worker …` for one worker, with its nanny or without."""
    workers, threads = spec.shape
    memory = str(MEMORY_LIMIT // workers) if spec.memory_limit == "auto" else spec.memory_limit
    preload = [*_configured("distributed.worker.preload"), *spec.worker_preload]
    nanny_preload = [LEASH, *_configured("distributed.nanny.preload")]
    return [
        *_DASK,
        "worker",
        address,
        *("--name", name),
        *("--nthreads", str(threads)),
        *("--memory-limit", memory),
        *(() if spec.host in WILDCARDS else ("--host", spec.host)),
        *("--dashboard-address", f"{spec.host}:0"),
        *(("--no-dashboard",) if spec.dashboard_port is None else ()),
        *(("--nanny", *_repeat("--preload-nanny", nanny_preload)) if spec.nanny else ("--no-nanny",)),
        *_repeat("--preload", preload if spec.nanny else [LEASH, *preload]),
    ]


_DASK = (sys.executable, "-m", "dask")


def _configured(key: str) -> list[str]:
    """Preloads of the Dask configuration, which an option on the command line would replace."""
    found = dask.config.get(key)
    return [found] if isinstance(found, str) else list(found)


def _repeat(option: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (option, value)
