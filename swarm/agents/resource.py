"""The resource agent: what its worker and host use, at `monitoring_interval`."""

from __future__ import annotations

import time

from tornado.ioloop import PeriodicCallback

from swarm.protocol import Telemetry
from swarm.telemetry.sampler import Sampler


class ResourceAgent:
    """Samples on the worker's event loop (0.2 ms) and keeps the newest sample for the next heartbeat.

    Parameters
    ----------
    sampler
        Reads the sources; closed with the agent.
    interval_s
        `monitoring_interval`.
    """

    name = "resource"

    def __init__(self, sampler: Sampler, interval_s: float) -> None:
        self._sampler = sampler
        self._callback = PeriodicCallback(self._on_time, interval_s * 1000)
        self.latest: Telemetry | None = None
        self.newest: Telemetry | None = None
        """As `latest`, and it stays until there is a newer one; for the other agents of the worker."""

    @property
    def absent(self) -> dict[str, str]:
        return self._sampler.absent

    def start(self) -> None:
        self._on_time()
        self._callback.start()

    def stop(self) -> None:
        self._callback.stop()
        self._sampler.close()

    def take_latest(self) -> Telemetry | None:
        """The newest sample, once: None until there is a newer one."""
        latest, self.latest = self.latest, None
        return latest

    def _on_time(self) -> None:
        self.latest = self.newest = self._sampler.sample(time.time())
