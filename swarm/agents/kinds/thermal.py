"""The thermal agent: keeps its host cool, and within its watts, by the number of cores that it may use.

One agent per host does it, the others on that host stand by and take over within a cycle when it dies.
"""

from __future__ import annotations

import math
import platform
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

from scheduler_plugins.decide.agents import SCHEDULER
from swarm.agents.base import BaseAgent, State
from swarm.agents.kinds.fans import Fans
from swarm.agents.kinds.heat import Decision, FanRule, Governor, heat_rule, power_rule, power_shares
from swarm.agents.kinds.host_seat import HostSeat
from swarm.channels.messages import Message, Payload, Priority
from swarm.errors import AgentDefinitionError, AgentError
from swarm.ledger import Ledger
from swarm.telemetry.sources.power import Accelerators, PowerMeters, Rapl
from swarm.telemetry.sources.source import Source, SourceAbsent
from swarm.telemetry.sources.temperature import Temperature, TripPoints

HOLDS_S = 10.0
"""A limit that is not renewed for so long ends by itself: whoever set it is dead, and nobody has taken over."""
REPEAT_S = 10.0
"""Between two times that a hot host says so, and that a host says what it draws."""
SAID_HOLDS_S = 3 * REPEAT_S
"""What a host said is believed for so long."""
FORGOTTEN_S = 60.0
"""A host that says nothing for so long draws nothing from the budget of the cluster any more."""
BUDGET = "host_budget"
"""In `Surroundings.extras`: a `HostBudget`."""


class HostBudget(Protocol):
    """What the thermal agent needs of the host's ledger."""

    @property
    def folder(self) -> Path:
        """Private, in memory, and shared by all agents of this user on this host."""

    def all_cores(self) -> int:
        """Cores of the host, limits aside."""

    def cores_in_use(self) -> int | None:
        """By tasks and leases; None if nobody knows."""

    def limit(self, *, cores: int | None, watts: float | None, for_s: float, said_by: str) -> None:
        """Grant no more than that in sum for so long; None: no limit. The next call replaces it."""


class ThermalAgent(BaseAgent):
    """Samples, forecasts, sets the host's budget, and tells others.

    It takes `thermal_status` or `status` (answers with all it knows) and `thermal_need` (of other hosts).
    Those that it sends to all, and to the scheduler, which gives hot hosts less to do: `host_hot` at each change of the
    cores and every 10 s meanwhile, with `host`, `place`, `cores`, `all_cores`, `reason`, the readings and `holds_s`;
    `host_cool` when all cores may be used again.

    Parameters
    ----------
    host_watts
        What this host may draw; None: no limit.
    cluster_watts
        What all hosts together may draw; each takes its share by need.
    fan_control
        Let fans that hwmon lets us write turn at full speed while the host is hot.
    root
        Directory to take for `/`, for tests.
    """

    kind: ClassVar[str] = "thermal"

    def __init__(
        self,
        agent_id: str,
        *,
        host_watts: float | None = None,
        cluster_watts: float | None = None,
        fan_control: bool = False,
        root: str = "/",
        **options: Any,
    ) -> None:
        super().__init__(agent_id, **options)
        self._host_watts = _watts("host_watts", host_watts)
        self._cluster_watts = _watts("cluster_watts", cluster_watts)
        self._root = Path(root)
        self._fan_control = fan_control
        self._host = platform.node() or "localhost"
        self._start: int | None = None
        self.absent: dict[str, str] = {}
        """Source → why it has no reading."""
        self.failures = 0
        """Messages that nobody took, and sources that failed."""
        self._sources: list[Source] = []
        self._needs: dict[str, tuple[float | None, float]] = {}
        self._peak_watts: float | None = None
        self._readings: dict[str, float | None] = {}
        self._decision: Decision | None = None
        self._power: Governor | None = None
        self._said_cores: int | None = None
        self._said_s = self._need_said_s = -math.inf
        self._throttled_s = 0.0
        self._cycled_s: float | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._ledger = None if BUDGET in self.surroundings.extras else Ledger()
        self._budget: HostBudget = self._ledger or self.surroundings.extras[BUDGET]
        self._seat = HostSeat(self._budget.folder / "thermal")
        rule = heat_rule(self.surroundings.settings.performance_thresholds.thermal_critical)
        self._heat = Governor(rule, self._budget.all_cores(), self._start)
        self._fan_rule = FanRule(rule)
        self._fans = Fans(self._root) if self._fan_control else None

    def teardown(self) -> None:
        """Everything as it was: fans to the board, all cores to the host."""
        if self._seat.is_ours:
            if self._fans is not None and self._fans.automatic:
                self.surroundings.audit("fans_automatic", fans=sorted(self._fans.automatic), reason="the agent ends")
                self._fans.give_back(self._note_fans)
            if self._said_cores is not None or self._limit_watts() is not None:
                self.surroundings.audit("host_budget_restored", cores=self._heat.all_cores, reason="the agent ends")
                self._budget.limit(cores=None, watts=None, for_s=HOLDS_S, said_by=self.agent_id)
            if self._fans is None or not self._fans.automatic:
                self._seat.leave()
        self._close_sources()
        if self._ledger is not None:
            self._ledger.close()

    def state(self) -> State:
        return {"cores": self._decision.cores} if self._decision is not None and self._said_cores is not None else {}

    def restore(self, state: State) -> None:
        self._start = int(state["cores"])

    # -- work -----------------------------------------------------------------------------------------------------

    async def execute_cycle(self) -> None:
        now_s = time.monotonic()
        if not self._seat.is_ours and not self._sit_down():
            return
        self._read(now_s)
        decision = self._decide(now_s)
        self._enact(decision)
        self._turn_fans(now_s)
        await self._tell(now_s, decision)

    def handle_message(self, message: Message) -> Payload:
        if message.kind in {"status", "thermal_status"}:
            return self.status()
        if message.kind == "thermal_need":
            self._learn_need(message.payload)
            return None
        if message.kind in {"host_hot", "host_cool"}:  # of other hosts: for those who place work
            return None
        return super().handle_message(message)

    def status(self) -> dict[str, Payload]:
        """What it reads, what it decided and why, and what is absent."""
        watts, of = _draws(self._readings)
        return {
            "host": self._host,
            "acts": self._seat.is_ours,
            "readings": dict(self._readings),
            "watts": watts,
            "watts_of": of,
            "watts_limit": self._limit_watts(),
            "watts_share": self._share(),
            "all_cores": self._heat.all_cores,
            "decision": None if self._decision is None else self._decision.as_dict(),
            "forecast_error_celsius": self._heat.trend.error,
            "throttled_core_s": self._throttled_s,
            "fans_full": sorted(self._fans.automatic) if self._fans is not None else [],
            "fans_failed": dict(self._fans.failures) if self._fans is not None else {},
            "absent": dict(self.absent),
            "failures": self.failures,
        }

    def _sit_down(self) -> bool:
        """Become the one that acts for this host, if nobody does; go on from where a dead one was."""
        if not self._seat.take():
            return False
        noted = self._seat.noted()
        cores, fans = noted.get("cores"), noted.get("fans")
        if isinstance(cores, int) and cores < self._heat.cores:
            self._heat = Governor(self._heat.rule, self._heat.all_cores, cores)
        if isinstance(fans, dict):
            if self._fans is None and fans:  # a dead one had taken them: they are given back, asked or not
                self._fans = Fans(self._root)
                self._fan_control = False
            if self._fans is not None:
                self._fans.remember(fans)
                self._fan_rule.full = bool(self._fans.automatic)
        self._open_sources()
        self.surroundings.log.info("thermal_acts", host=self._host, absent=self.absent, cores=self._heat.cores)
        return True

    def _open_sources(self) -> None:
        for source in (Temperature(), TripPoints(), Rapl(), PowerMeters(), Accelerators()):
            try:
                source.open(self._root)
            except (SourceAbsent, OSError, ValueError) as absent:
                self._switch_off(source, str(absent))
            else:
                self._sources.append(source)

    def _close_sources(self) -> None:
        while self._sources:
            self._sources.pop().close()

    def _switch_off(self, source: Source, why: str) -> None:
        self.absent[source.name] = " ".join(why.split())
        source.close()

    def _read(self, now_s: float) -> None:
        self._readings = {}
        for source in tuple(self._sources):
            try:
                self._readings.update(source.read(now_s))
            except Exception as error:  # noqa: BLE001 - one bad sensor must not blind the rest; counted, shown in absent
                self.failures += 1
                self._sources.remove(source)
                self._switch_off(source, f"failed and was switched off: {type(error).__name__}: {error}")
                self.surroundings.log.warning("thermal_source_failed", source=source.name, why=self.absent[source.name])

    def _decide(self, now_s: float) -> Decision:
        in_use = self._budget.cores_in_use()
        decision = self._heat.decide(
            now_s,
            self._readings.get("host_temperature_celsius"),
            cores_in_use=in_use,
            trip_celsius=self._readings.get("trip_distance_celsius"),
        )
        limit, (watts, _) = self._limit_watts(), _draws(self._readings)
        if limit is not None:
            if self._power is None:
                self._power = Governor(power_rule(limit), self._heat.all_cores)
            elif abs(self._power.rule.limit - limit) > 0.01 * limit:
                self._power.rule = power_rule(limit)
            by_power = self._power.decide(now_s, watts, cores_in_use=in_use)
            if by_power.cores < decision.cores:
                decision = by_power
        if watts is not None and decision.cores == self._heat.all_cores:
            self._peak_watts = max(watts, 0.995 * (self._peak_watts or watts))
        if self._cycled_s is not None:
            self._throttled_s += (self._heat.all_cores - decision.cores) * (now_s - self._cycled_s)
        self._cycled_s = now_s
        return decision

    def _enact(self, decision: Decision) -> None:
        before, self._decision = self._decision, decision
        cores = decision.cores if decision.cores < self._heat.all_cores else None
        watts = self._limit_watts()
        if cores != (None if before is None else _below(before.cores, self._heat.all_cores)):
            self.surroundings.audit("host_cores_limited", host=self._host, **decision.as_dict())
            self._seat.note({**self._seat.noted(), "cores": decision.cores})
            self._budget.limit(cores=cores, watts=watts, for_s=HOLDS_S, said_by=self.agent_id)
        elif cores is not None or watts is not None:
            self._budget.limit(cores=cores, watts=watts, for_s=HOLDS_S, said_by=self.agent_id)

    def _turn_fans(self, now_s: float) -> None:
        if self._fans is None:
            return
        trend, reading = self._heat.trend, self._readings.get("host_temperature_celsius")
        warmest = None if reading is None else max(reading, trend.forecast(self._heat.rule.horizon_s))
        full = self._fan_rule.decide(now_s, warmest) and self._fan_control
        if full and set(self._fans.names) - set(self._fans.automatic):
            self._fans.raise_all(self._before_fans)
        elif not full and self._fans.automatic:
            self.surroundings.audit("fans_automatic", fans=sorted(self._fans.automatic), celsius=reading)
            self._fans.give_back(self._note_fans)

    def _before_fans(self, automatic: dict[str, int]) -> None:
        celsius = self._readings.get("host_temperature_celsius")
        self.surroundings.audit("fans_full", fans=sorted(automatic), celsius=celsius)
        self._note_fans(automatic)

    def _note_fans(self, automatic: dict[str, int]) -> None:
        self._seat.note({**self._seat.noted(), "fans": automatic})

    # -- others ---------------------------------------------------------------------------------------------------

    async def _tell(self, now_s: float, decision: Decision) -> None:
        cores = _below(decision.cores, self._heat.all_cores)
        if cores != self._said_cores or (cores is not None and now_s - self._said_s >= REPEAT_S):
            kind = "host_cool" if cores is None else "host_hot"
            watts, _ = _draws(self._readings)
            about = {
                "host": self._host,
                "place": self.surroundings.place,
                "all_cores": self._heat.all_cores,
                "holds_s": SAID_HOLDS_S,
                "celsius": self._readings.get("host_temperature_celsius"),
                "watts": watts,
                **decision.as_dict(),
            }
            if await self._say(kind, about, Priority.HIGH):
                self._said_cores, self._said_s = cores, now_s
        if self._cluster_watts is not None and now_s - self._need_said_s >= REPEAT_S:
            need = {"host": self._host, "needs_watts": self._need()}
            self._learn_need(need)
            if await self._say("thermal_need", need, Priority.NORMAL, to=self.kind):
                self._need_said_s = now_s

    async def _say(self, kind: str, about: dict[str, Payload], priority: Priority, to: str = "*") -> bool:
        """False when it could not be said: it is tried again at the next cycle."""
        try:
            await self.broadcast(kind, about, to=to, priority=priority, timeout_s=1.0)
            if to == "*":
                await self.send(SCHEDULER, kind, about, priority=priority, timeout_s=1.0)
        except AgentError as error:
            self.failures += 1
            if self.failures & (self.failures - 1) == 0:
                self.surroundings.log.warning("thermal_unheard", kind=kind, reason=str(error), failures=self.failures)
            return False
        return True

    def _need(self) -> float | None:
        """What the host would draw if nobody held it back, and a tenth to grow; None without a meter."""
        watts, _ = _draws(self._readings)
        return None if watts is None else 1.1 * max(watts, self._peak_watts or 0.0)

    def _learn_need(self, payload: Payload) -> None:
        host = payload.get("host") if isinstance(payload, dict) else None
        needs = payload.get("needs_watts") if isinstance(payload, dict) else None
        good = needs is None or (isinstance(needs, int | float) and math.isfinite(needs) and needs >= 0)
        if not isinstance(host, str) or not good:
            raise AgentError(
                f"thermal_need is {payload!r:.80}, must be host (text) and needs_watts (0 or more, or none)"
            )
        self._needs[host] = (None if needs is None else float(needs), time.monotonic())

    def _share(self) -> float | None:
        """Of the cluster's watts; every host works out the same from what all said."""
        if self._cluster_watts is None:
            return None
        now_s = time.monotonic()
        known = {host: need for host, (need, heard_s) in self._needs.items() if now_s - heard_s < FORGOTTEN_S}
        return power_shares(self._cluster_watts, {self._host: None, **known})[self._host]

    def _limit_watts(self) -> float | None:
        return min((w for w in (self._host_watts, self._share()) if w is not None), default=None)


def _below(cores: int, all_cores: int) -> int | None:
    return cores if cores < all_cores else None


def _draws(readings: dict[str, float | None]) -> tuple[float | None, str]:
    """Watts of the host, and what is in it: the whole machine if a meter says so, else the parts that have one."""
    if (platform_watts := readings.get("platform_watts")) is not None:
        return platform_watts, "platform"
    parts = [part for part in ("processor", "memory", "accelerator") if readings.get(f"{part}_watts") is not None]
    if not parts:
        return None, "nothing: this host has no meter"
    return sum(readings[f"{part}_watts"] or 0.0 for part in parts), " + ".join(parts)


def _watts(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1e9:
        raise AgentDefinitionError(f"{name} is {value!r}, must be a number of watts from 1 to 1e9, or none")
    return float(value)
