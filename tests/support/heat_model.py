"""A host that gets warm: a thermal network of first order, with cores that obey a budget late.

C dT/dt = P - (T - T_ambient) / R, with P = idle + per core x busy cores. The processor's die sits on top of that: its
sensor shows `junction_k_per_w` x P more than the heat sink, at once. Everything here is generated, nothing recorded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

Load = Callable[[float], float]
"""Seconds → cores that would like to be busy."""


@dataclass
class HeatModel:
    cores: int
    resistance_k_per_w: float
    capacity_j_per_k: float
    core_watts: float = 10.0
    idle_watts: float = 15.0
    ambient_celsius: float = 25.0
    junction_k_per_w: float = 0.0
    lag_s: float = 1.0
    """Tasks that run are not stopped: a core is free so long after the budget has shrunk."""
    noise_celsius: float = 0.0
    resolution_celsius: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.sink_celsius = self.ambient_celsius + self.resistance_k_per_w * self.idle_watts
        self.work_core_s = 0.0
        self.busy_cores = 0.0
        self._obeys: list[tuple[float, int]] = []
        self._budget = self.cores

    @property
    def watts(self) -> float:
        return self.idle_watts + self.core_watts * self.busy_cores

    @property
    def celsius(self) -> float:
        """True temperature of the die."""
        return self.sink_celsius + self.junction_k_per_w * self.watts

    def sensor(self) -> float:
        """What a sensor shows of it."""
        shown = self.celsius + self.rng.gauss(0, self.noise_celsius) if self.noise_celsius else self.celsius
        return (
            shown if not self.resolution_celsius else self.resolution_celsius * round(shown / self.resolution_celsius)
        )

    def end_celsius(self, busy: float) -> float:
        """Where it ends when so many cores stay busy."""
        watts = self.idle_watts + self.core_watts * busy
        return self.ambient_celsius + (self.resistance_k_per_w + self.junction_k_per_w) * watts

    def allow(self, cores: int) -> None:
        """The budget from now on; obeyed at once where it grows, after the lag where it shrinks."""
        if cores >= self._budget:
            self._obeys, self._budget = [], cores
        else:
            self._obeys.append((self.now_s + self.lag_s, cores))

    def run(self, load: float, for_s: float) -> None:
        """`for_s` must be short beside the lag; the solution of the equation over it is exact."""
        while self._obeys and self._obeys[0][0] <= self.now_s:
            self._budget = self._obeys.pop(0)[1]
        self.busy_cores = min(load, self._budget, self.cores)
        end = self.ambient_celsius + self.resistance_k_per_w * self.watts
        fade = math.exp(-for_s / (self.resistance_k_per_w * self.capacity_j_per_k))
        self.sink_celsius = end + (self.sink_celsius - end) * fade
        self.work_core_s += self.busy_cores * for_s
        self.now_s += for_s
