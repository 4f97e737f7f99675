"""The agent of resources: what its worker and host run short of, and soon will; and a brake before it is too late.

Messages that it answers:

`pressure`
    {"telemetry", "pressure", "forecast_s", "memory_bandwidth_bytes_per_s", "absent", "brake"}: the newest sample,
    stalls of host and control group, seconds until memory and disk are full (None: not in sight), and for each source
    that is not there the reason.
`set_priority` {"nice", "io_class", "io_level"}
    Of all threads of the worker's process, until the agent ends; each may be left out.
`unset_priority`
    As it was.

Messages that it sends to all: `host_pressure` {"worker", "resource", "percent"} when tasks stall for memory or disks
much of the time, and `host_relieved` {"worker", "resource"}.

Placement and admission on the scheduler plan with what they know of tasks. The brake is for what nobody knew: when the
memory of the worker will cross Dask's pause threshold within seconds, the threshold is lowered for a moment, so that
Dask's own memory manager pauses the worker while there is still room for the tasks that run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler_plugins.decide.forecast import ROOMS, Series
from swarm.agents.base import BaseAgent
from swarm.agents.kinds.brake import Brake
from swarm.agents.kinds.process_priority import Priority
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentDefinitionError, MessageError, SwarmError
from swarm.protocol import Telemetry
from swarm.telemetry.sampler import Sampler
from swarm.telemetry.sources.bandwidth import MemoryBandwidth
from swarm.telemetry.sources.source import SourceAbsent

HIGH_PERCENT = {"memory": 20.0, "io": 40.0}
"""Of the last 10 s in which some task stalled; CPUs are meant to be busy."""
SAFE_RATIO = 0.5
"""Of that, from which on it is over."""
BELOW_RATIO = 0.05
"""Of the memory limit that a lowered threshold is below what is used."""


class ResourceAgent(BaseAgent):
    """One per worker.

    Parameters
    ----------
    brakes
        Whether it may pause its worker before the memory is full.
    nice, io_class, io_level
        As in `set_priority`, from the start.
    """

    kind = "resource"
    interval_s = 0.5

    def __init__(
        self,
        agent_id: str,
        *,
        brakes: bool = True,
        nice: int | None = None,
        io_class: str | None = None,
        io_level: int = 4,
    ) -> None:
        super().__init__(agent_id)
        self._brakes = brakes
        self._priority_asked = (nice, io_class, io_level)
        self.brake = Brake()
        self._lowered: tuple[float, float] | None = None
        """What the pause threshold was, and what this agent made of it."""
        self._series = {room.resource: Series() for room in ROOMS}
        self._high: set[str] = set()
        self._sampler: Sampler | None = None
        self._bandwidth: MemoryBandwidth | None = MemoryBandwidth()
        self._bytes_per_s: float | None = None
        self._absent: dict[str, str] = {}
        self._telemetry: Telemetry | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        worker = self.surroundings.dask
        if worker is None or not hasattr(worker, "memory_manager"):
            raise AgentDefinitionError('a resource agent lives on a worker, with isolation="loop"')
        if not self._shared():
            self._sampler = Sampler(worker.local_directory, worker.memory_manager.memory_limit)
        self._open_bandwidth()
        self._priority = Priority(self.surroundings.audit)
        if self._priority_asked[:2] != (None, None):
            self._priority.set(*self._priority_asked)

    def teardown(self) -> None:
        self._release()
        self._priority.undo()
        if self._sampler is not None:
            self._sampler.close()
        if self._bandwidth is not None:
            self._bandwidth.close()

    def _open_bandwidth(self) -> None:
        assert self._bandwidth is not None
        try:
            self._bandwidth.open(Path("/"))
        except (SourceAbsent, OSError) as absent:
            self._absent[self._bandwidth.name] = str(absent)
            self._bandwidth.close()
            self._bandwidth = None

    def _shared(self) -> Any:
        """The sampler of the worker's telemetry, if it has one: whoever samples already does it for both."""
        host = self.surroundings.dask.extensions.get("swarm")
        return next((agent for agent in getattr(host, "agents", ()) if hasattr(agent, "newest")), None)

    # -- cycle ------------------------------------------------------------------------------------------------------

    async def execute_cycle(self) -> None:
        now_s = time.time()
        telemetry = (
            self._sampler.sample(now_s) if self._sampler is not None else getattr(self._shared(), "newest", None)
        )
        if telemetry is not None and telemetry is not self._telemetry:
            self._telemetry = telemetry
            for room in ROOMS:
                if (found := room.room(telemetry)) is not None:
                    self._series[room.resource].add(telemetry.taken_at_s, float(found[0]))
            await self._tell_of_pressure(telemetry)
        if self._bandwidth is not None:
            rate = self._bandwidth.read(now_s)["memory_bandwidth_bytes_per_s"]
            self._bytes_per_s = self._bytes_per_s if rate is None else rate
        if self._brakes:
            self._look_at_the_brake()

    async def _tell_of_pressure(self, telemetry: Telemetry) -> None:
        for resource, percent in _stalls(telemetry).items():
            is_high = resource in self._high
            if percent >= HIGH_PERCENT[resource] and not is_high:
                self._high.add(resource)
                await self._tell("host_pressure", {"resource": resource, "percent": percent})
            elif percent < SAFE_RATIO * HIGH_PERCENT[resource] and is_high:
                self._high.discard(resource)
                await self._tell("host_relieved", {"resource": resource})

    async def _tell(self, kind: str, payload: dict[str, Any]) -> None:
        try:
            await self.broadcast(kind, {"worker": self.surroundings.place, **payload})
        except SwarmError as error:  # whoever wants to know can ask
            self.surroundings.log.warning("broadcast_failed", kind=kind, reason=str(error))

    # -- brake ------------------------------------------------------------------------------------------------------

    def _look_at_the_brake(self) -> None:
        worker = self.surroundings.dask
        manager = worker.memory_manager
        pause_ratio = self._lowered[0] if self._lowered is not None else manager.memory_pause_fraction
        if not manager.memory_limit or not pause_ratio:
            self._absent["brake"] = (
                "the worker has no memory limit, or does not pause (distributed.worker.memory.pause)"
            )
            return
        used_bytes = worker.monitor.get_process_memory()  # what Dask's memory manager goes by
        match self.brake.look(time.monotonic(), used_bytes, manager.memory_limit, pause_ratio):
            case "press":
                lowered = used_bytes / manager.memory_limit - BELOW_RATIO
                left_s = round(self.brake.left_s or 0.0, 2)
                self.surroundings.audit("lower_pause_threshold", before=pause_ratio, now=lowered, left_s=left_s)
                self._lowered = (pause_ratio, lowered)
                manager.memory_pause_fraction = lowered
                self.surroundings.log.warning("worker_brakes", used_bytes=used_bytes, full_in_s=left_s)
            case "release":
                self._release()

    def _release(self) -> None:
        """Unless somebody else has set it meanwhile."""
        if self._lowered is None:
            return
        before, lowered = self._lowered
        self._lowered = None
        manager = self.surroundings.dask.memory_manager
        if manager.memory_pause_fraction == lowered:
            self.surroundings.audit("restore_pause_threshold", before=lowered, now=before)
            manager.memory_pause_fraction = before

    # -- messages ---------------------------------------------------------------------------------------------------

    def handle_message(self, message: Message) -> Payload:
        match message.kind:
            case "pressure":
                return self._told()
            case "set_priority":
                asked = {} if message.payload is None else message.payload
                if not isinstance(asked, Mapping) or not asked or asked.keys() - {"nice", "io_class", "io_level"}:
                    raise MessageError(f"set_priority takes nice, io_class and io_level, not {message.payload!r}")
                return self._priority.set(asked.get("nice"), asked.get("io_class"), asked.get("io_level", 4))
            case "unset_priority":
                self._priority.undo()
                return None
        if not message.wants_answer:  # news, for others
            return None
        raise MessageError(f"a resource agent takes pressure, set_priority and unset_priority, not {message.kind}")

    def _told(self) -> Payload:
        telemetry = self._telemetry
        sampler: Any = self._sampler or self._shared()
        return {
            "telemetry": {} if telemetry is None else telemetry.to_wire(),
            "pressure": {} if telemetry is None else _stalls(telemetry),
            "forecast_s": {resource: series.time_left_s(0.0) for resource, series in self._series.items()},
            "memory_bandwidth_bytes_per_s": self._bytes_per_s,
            "absent": {**getattr(sampler, "absent", {}), **self._absent},
            "brake": {
                "is_pressed": self.brake.is_pressed,
                "presses": self.brake.presses,
                "full_in_s": self.brake.left_s,
            },
        }


def _stalls(telemetry: Telemetry) -> dict[str, float]:
    """Of host or control group, whichever stalls more."""
    readings = {
        "memory": (telemetry.host_pressure_memory_percent, telemetry.cgroup_pressure_memory_percent),
        "io": (telemetry.host_pressure_io_percent, telemetry.cgroup_pressure_io_percent),
    }
    return {
        resource: max(each for each in both if each is not None)
        for resource, both in readings.items()
        if any(each is not None for each in both)
    }
