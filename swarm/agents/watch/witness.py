"""The witness: an agent in the nanny, which says what became of its worker when that says nothing any more.

It lives in a process of its own, with a connection of its own to the scheduler, so it answers while the worker is
stopped, holds the GIL, or is gone. It looks at the process the way the kernel shows it, at the tick of its event loop
(`black_box`), and keeps what a post-mortem needs: the memory of the last minute, counts of the kernel's OOM killer, the
last lines of the log.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from distributed.core import Status
from distributed.diagnostics.plugin import NannyPlugin
from tornado.ioloop import PeriodicCallback

from swarm.agents.door import Door
from swarm.agents.watch.black_box import BlackBoxReader
from swarm.agents.watch.notice import drain_first
from swarm.agents.watch.process_state import look_twice
from swarm.protocol import POST_MORTEM
from swarm.telemetry.sources.cgroup import CgroupMemory
from swarm.telemetry.sources.source import SourceAbsent

if TYPE_CHECKING:
    from distributed import Nanny

NAME = "swarm-witness"
SAMPLE_S = 1.0
HISTORY_S = 60.0
TICKS_S = 2.0
"""Age of the last tick from which on the event loop counts as blocked."""
ENDING = (Status.closing, Status.closed)
"""Of a nanny that was asked to end its worker: nobody needs a post-mortem, and the scheduler may be gone."""


class Witness(NannyPlugin):
    """Watches the worker of one nanny."""

    name = NAME

    def __init__(self) -> None:
        self._process: psutil.Process | None = None
        self._box: BlackBoxReader | None = None
        self._memory: deque[tuple[float, int]] = deque(maxlen=int(HISTORY_S / SAMPLE_S))
        self._cgroup: CgroupMemory | None = None
        self._oom_kills: float | None = None
        self.worker = ""
        """Address of the worker that lives; empty while there is none."""

    # -- as a plugin of the nanny ------------------------------------------------------------------------------------

    def setup(self, nanny: Nanny) -> None:
        self._nanny = nanny
        nanny.handlers["swarm_witness"] = self.report
        nanny.handlers["swarm_end_worker"] = self.end
        self.door = Door(nanny)
        self.door.connect()
        self._sampling = PeriodicCallback(self._sample, SAMPLE_S * 1000)
        self._sampling.start()

    async def teardown(self, nanny: Nanny) -> None:
        self._sampling.stop()
        for name in ("swarm_witness", "swarm_end_worker"):
            nanny.handlers.pop(name, None)
        self._forget()
        await self.door.close()

    def watch(self, worker: str, pid: int, box: str) -> None:
        """A worker process has started its agents.

        Raises
        ------
        ValueError
            It is not the process of this nanny.
        """
        process = getattr(self._nanny, "process", None)
        if process is None or process.pid != pid:
            raise ValueError(f"process {pid} is not the worker of this nanny")
        self._forget()
        self.worker = worker
        self._process = psutil.Process(pid)
        with suppress(OSError, ValueError):  # without it, a post-mortem has no log
            self._box = BlackBoxReader(box)
        self._open_cgroup(pid)
        if getattr(process.on_exit, "__self__", None) is not self:
            self._dasks_exit: Callable[[int], None] = process.on_exit
            process.on_exit = self._on_exit
        self._sample()

    def _open_cgroup(self, pid: int) -> None:
        if sys.platform != "linux":
            return
        cgroup = CgroupMemory(pid)
        try:
            cgroup.open(Path("/"))
        except (SourceAbsent, OSError):
            return
        self._cgroup = cgroup
        self._oom_kills = self._count_oom_kills()

    def _count_oom_kills(self) -> float | None:
        """By the kernel, in the worker's control group; without one, on the whole host."""
        with suppress(OSError, ValueError):
            if self._cgroup is not None:
                return self._cgroup.read(time.monotonic()).get("cgroup_oom_kills")
            for line in Path("/proc/vmstat").read_text().splitlines():
                if line.startswith("oom_kill "):
                    return float(line.split()[1])
        return None

    def _forget(self) -> None:
        if self._box is not None:
            self._box.close()
        if self._cgroup is not None:
            self._cgroup.close()
        self._box = self._cgroup = self._process = None
        self._memory.clear()

    def _sample(self) -> None:
        if self._process is not None:
            with suppress(psutil.Error):
                self._memory.append((time.time(), self._process.memory_info().rss))

    # -- asked by the scheduler ----------------------------------------------------------------------------------------

    async def report(self) -> dict[str, Any]:
        """What the kernel says of the worker's process, looked at twice (`scheduler_plugins.decide.faults.Report`)."""
        process = self._process
        if process is None:
            return {"process": "gone"} if self._nanny.pid is None else {}
        state, cpu_s = await look_twice(process)
        ticks = None if self._box is None else self._box.tick_age_s(time.monotonic()) < TICKS_S
        return {"process": state, "cpu_s": cpu_s, "ticks": ticks, "worker": self.worker}

    async def end(self, worker: str) -> dict[str, Any]:
        """Kill the worker's process, if it is still that worker, and stopped; the nanny starts a new one."""
        process = self._process
        if process is None or worker != self.worker:
            return {"ended": False, "reason": f"{worker} is not here any more"}
        with suppress(psutil.NoSuchProcess):  # psutil has checked that the number still means this process
            process.send_signal(signal.SIGKILL)
        return {"ended": True}

    # -- told by the nanny ---------------------------------------------------------------------------------------------

    def _on_exit(self, exitcode: int) -> None:
        """The process has ended, in whatever way."""
        try:
            if self.worker and self._nanny.status not in ENDING:
                self._nanny.log_event(POST_MORTEM, self._post_mortem(exitcode))
        finally:
            self.worker = ""
            self._forget()
            self._dasks_exit(exitcode)

    def _post_mortem(self, exitcode: int) -> dict[str, Any]:
        before, now = self._oom_kills, self._count_oom_kills()
        return {
            "worker": self.worker,
            "exitcode": exitcode,
            "oom_kills": None if before is None or now is None else int(now - before),
            "memory": [[round(at_s, 3), nbytes] for at_s, nbytes in self._memory],
            "running": None if self._box is None else self._box.running(),
            "last_lines": [] if self._box is None else self._box.last_lines()[-20:],
            "stacks": [] if self._box is None else self._box.stacks()[:40],
        }


async def install(worker: str, pid: int, box: str, notice_s: float = 0.0, dask_worker: Any = None) -> None:
    """Start the witness on a nanny, or tell it of a new worker; a worker's agents send this with Dask's `run`.

    `dask_worker` is the nanny: `distributed.worker.run` calls it so.
    """
    nanny: Nanny = dask_worker
    witness = nanny.plugins.get(NAME)
    if not isinstance(witness, Witness):
        witness = Witness()
        await nanny.plugin_add(witness, name=NAME)
        if notice_s > 0.0:
            drain_first(nanny, lambda: witness.worker, notice_s)
    witness.watch(worker, pid, box)
