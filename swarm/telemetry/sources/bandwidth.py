"""What the host moves to and from memory, where the processor counts it.

Source: Documentation/arch/x86/resctrl.rst (memory bandwidth monitoring, one counter per cache domain). The counters of
the memory controllers themselves (perf, `uncore_imc`) are for root only, and absent in virtual machines.
"""

from __future__ import annotations

from pathlib import Path

from swarm.telemetry.sources.slope import Slope
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent

MONITORS = "sys/fs/resctrl/mon_data"
PERF = "sys/bus/event_source/devices"


class MemoryBandwidth(Source):
    """Bytes per second of all cores, reads and writes."""

    name = "memory bandwidth"

    def open(self, root: Path, /) -> None:
        paths = sorted(root.joinpath(MONITORS).glob("mon_L3_*/mbm_total_bytes"))
        if not paths:
            uncore = sorted(path.name for path in root.joinpath(PERF).glob("uncore_imc*"))
            also = (
                f"the memory controllers have counters ({', '.join(uncore)}), which are for root only"
                if uncore
                else "nor are there counters of the memory controllers, as is usual in a virtual machine"
            )
            raise SourceAbsent(
                f"no memory bandwidth monitoring below /{MONITORS}; {also}; mount -t resctrl for the first"
            )
        self._files = [self._keep(path) for path in paths]
        self._slope = Slope()

    def read(self, now_s: float, /) -> Readings:
        texts = [file.read().strip() for file in self._files]
        if not all(text.isdigit() for text in texts):  # "Unavailable", when the hardware has no counter free
            return {"memory_bandwidth_bytes_per_s": None}
        return {"memory_bandwidth_bytes_per_s": self._slope.since_last(sum(map(int, texts)), now_s)}
