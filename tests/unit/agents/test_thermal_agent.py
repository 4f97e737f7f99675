"""The thermal agent on a composed host: what it sets, says, audits and gives back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler_plugins.decide.advice import read
from scheduler_plugins.decide.agents import SCHEDULER
from swarm.agents.base import Surroundings
from swarm.agents.kinds import thermal
from swarm.agents.kinds.thermal import BUDGET, ThermalAgent
from swarm.channels.messages import Message, Payload, encode
from swarm.config import PerformanceThresholds, Settings
from swarm.errors import AgentDefinitionError, AgentError, ChannelFullError
from swarm.telemetry.logs import get_logger
from tests.support.thermal_tree import coretemp, fan, hwmon, rapl, write

J = 1_000_000
SETTINGS = Settings(performance_thresholds=PerformanceThresholds(thermal_critical=85.0))


@dataclass
class FakeBudget:
    folder: Path
    cores: int = 8
    in_use: int | None = 8
    limits: list[tuple[int | None, float | None]] = field(default_factory=list)

    def all_cores(self) -> int:
        return self.cores

    def cores_in_use(self) -> int | None:
        return self.in_use

    def limit(self, *, cores: int | None, watts: float | None, for_s: float, said_by: str) -> None:
        assert said_by.startswith("thermal")
        assert for_s > 0
        self.limits.append((cores, watts))


@dataclass
class Heard:
    """A voice that keeps what was said; everything must be able to travel."""

    messages: list[Message] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    deaf: bool = False

    async def send(self, message: Message, timeout_s: float) -> None:
        assert message.recipient == SCHEDULER
        read(message.kind, message.payload)  # it makes sense there
        self.advice.append(message.kind)

    async def request(self, message: Message, timeout_s: float) -> Payload:
        raise AssertionError(message)

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        if self.deaf:
            raise ChannelFullError("nobody makes room")
        encode(message)
        self.messages.append(message)
        return 1

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message.payload for message in self.messages if message.kind == kind]


class Host:
    """A made-up host, its clock, and the agents on it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = write(root, {**coretemp(50.0), **rapl("0", "package-0", 0)})
        self.budget = FakeBudget(folder / "swarm")
        self.heard = Heard()
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.now_s = 1000.0
        self.energy_uj = 0
        self.agents: list[ThermalAgent] = []

    def agent(self, agent_id: str = "thermal", **options: Any) -> ThermalAgent:
        agent = ThermalAgent(agent_id, root=str(self.root), **options)
        agent.surroundings = Surroundings(
            SETTINGS,
            get_logger(agent=agent_id),
            self.heard,
            lambda what, **details: self.audited.append((what, details)),
            place="tcp://127.0.0.1:1",
            extras={BUDGET: self.budget},
        )
        self.agents.append(agent)
        return agent

    def started(self, agent_id: str = "thermal", **options: Any) -> ThermalAgent:
        agent = self.agent(agent_id, **options)
        agent.setup()
        return agent

    def run(self, agent: ThermalAgent, seconds: int, celsius: float | None = None, watts: float = 50.0) -> None:
        async def cycles() -> None:
            for _ in range(seconds):
                self.now_s += 1
                self.energy_uj += round(watts * J)
                write(self.root, rapl("0", "package-0", self.energy_uj))
                await agent.execute_cycle()

        if celsius is not None:
            write(self.root, coretemp(celsius))
        asyncio.run(cycles())


@pytest.fixture
def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    before = psutil.Process().num_fds()
    host = Host(tmp_path, tmp_path_factory.mktemp("run"))
    monkeypatch.setattr(thermal.time, "monotonic", lambda: host.now_s)
    monkeypatch.setattr(thermal.platform, "node", lambda: "here")
    yield host
    for agent in host.agents:
        if hasattr(agent, "_seat"):
            agent.teardown()
    assert psutil.Process().num_fds() == before
    assert not host.budget.folder.exists()


def test_a_cool_host_is_left_alone(host: Host) -> None:
    agent = host.started()
    host.run(agent, 60, 60.0)
    status = agent.status()
    assert (host.budget.limits, host.heard.messages, host.audited) == ([], [], [])
    assert status["readings"]["host_temperature_celsius"] == 60.0
    assert (status["watts"], status["watts_of"], status["acts"]) == (50.0, "processor", True)
    assert status["forecast_error_celsius"] == pytest.approx(0.0, abs=1.0)
    assert set(status["absent"]) == {"power meters", "nvml"}


def test_a_hot_host_gets_fewer_cores_says_so_and_gets_them_back(host: Host) -> None:
    agent = host.started()
    host.run(agent, 10, 60.0)
    host.run(agent, 5, 95.0)
    cores = agent.status()["decision"]["cores"]
    assert cores < 8
    assert host.budget.limits[-1] == (cores, None)
    what, details = host.audited[0]
    assert what == "host_cores_limited"
    assert details["reason"].startswith("temperature 95.0 °C, ")
    said = host.heard.of("host_hot")
    assert (said[0]["host"], said[0]["place"], said[0]["all_cores"]) == ("here", "tcp://127.0.0.1:1", 8)
    assert said[-1]["cores"] == cores
    host.run(agent, 60, 78.5)
    held = agent.status()["decision"]["cores"]
    assert len(host.heard.of("host_hot")) >= 6  # it is said again while it lasts
    assert host.budget.limits[-1] == (held, None)  # and renewed each cycle
    host.run(agent, 1500, 40.0)
    assert host.budget.limits[-1] == (None, None)
    assert len(host.heard.of("host_cool")) == 1
    assert host.heard.advice == [message.kind for message in host.heard.messages]  # the scheduler hears it all
    assert agent.status()["throttled_core_s"] > 60


def test_every_change_is_audited_before_it_is_made(host: Host) -> None:
    agent = host.started()
    changes = []
    host.budget.limit = lambda **how: changes.append((how["cores"], len(host.audited)))  # type: ignore[method-assign]
    host.run(agent, 10, 60.0)
    host.run(agent, 30, 95.0)
    host.run(agent, 300, 40.0)
    audited = [details["cores"] for what, details in host.audited if what == "host_cores_limited"]
    seen: list[int | None] = []
    for cores, so_far in changes:
        if not seen or cores != seen[-1]:
            seen.append(cores)
            assert audited[so_far - 1] == (cores or 8)
    assert len(seen) >= 4


def test_near_its_trip_point_a_host_has_one_core_at_once(host: Host) -> None:
    agent = host.started()
    host.run(agent, 10, 60.0)
    host.run(agent, 1, 97.5)
    assert host.budget.limits == [(1, None)]
    assert "trip point of the hardware" in host.audited[0][1]["reason"]


def test_one_acts_for_the_host_and_another_goes_on_where_a_killed_one_was(host: Host) -> None:
    first, second = host.started("thermal-1"), host.started("thermal-2")
    host.run(first, 10, 60.0)
    host.run(first, 10, 95.0)
    cores = first.status()["decision"]["cores"]
    host.run(second, 1)
    assert (first.status()["acts"], second.status()["acts"]) == (True, False)
    assert second.status()["decision"] is None
    # What the kernel does when the first is killed: its lock is gone, nothing was given back.
    fd, first._seat._fd = first._seat._fd, None
    thermal_file = host.budget.folder / "thermal"
    assert fd is not None
    os.close(fd)
    assert thermal_file.exists()
    host.run(second, 1, 79.0)
    assert second.status()["acts"]
    assert second.status()["decision"]["cores"] == cores


def test_a_restart_goes_on_with_the_cores_of_before(host: Host) -> None:
    agent = host.started()
    host.run(agent, 10, 60.0)
    assert agent.state() == {}
    host.run(agent, 10, 95.0)
    state = agent.state()
    agent.teardown()
    assert host.budget.limits[-1] == (None, None)
    assert host.audited[-1][0] == "host_budget_restored"
    again = host.agent()
    again.restore(state)
    again.setup()
    host.run(again, 1, 79.0)
    assert host.budget.limits[-1] == (state["cores"], None)


def test_a_sensor_that_fails_is_switched_off_and_told(host: Host) -> None:
    agent = host.started()
    host.run(agent, 3, 60.0)
    write(host.root, {"sys/class/powercap/intel-rapl:0/energy_uj": "garbage"})
    host.now_s += 1
    asyncio.run(agent.execute_cycle())
    status = agent.status()
    assert status["absent"]["rapl"].startswith("failed and was switched off: ParseError")
    assert (status["watts"], status["watts_of"]) == (None, "nothing: this host has no meter")
    assert status["readings"]["host_temperature_celsius"] == 60.0


def test_a_host_without_any_sensor_has_all_its_cores_and_says_why(tmp_path: Path, host: Host) -> None:
    host.root = tmp_path / "nothing"
    host.root.mkdir()
    agent = host.started(host_watts=100.0)
    for _ in range(3):
        asyncio.run(agent.execute_cycle())
    assert agent.status()["decision"]["reason"] == "no temperature can be read: nothing is known, all 8 cores"
    assert set(agent.status()["absent"]) == {"temperature", "trip points", "rapl", "power meters", "nvml"}
    assert host.heard.messages == []


def test_a_host_stays_within_its_watts(host: Host) -> None:
    agent = host.started(host_watts=60.0)
    for _ in range(120):
        cores = host.budget.limits[-1][0] if host.budget.limits else None
        host.run(agent, 1, 50.0, watts=15 + 10 * (cores or 8))
    assert agent.status()["watts"] <= 60.0
    assert agent.status()["decision"]["reason"].startswith("power ")
    assert host.budget.limits[-1][1] == 60.0


def test_the_watts_of_the_cluster_are_shared_by_need(host: Host) -> None:
    agent = host.started(cluster_watts=300.0)
    host.run(agent, 3, 50.0, watts=100.0)
    assert agent.status()["watts_share"] == 300.0
    for other, needs in (("there", 250.0), ("blind", None)):
        agent.handle_message(Message("o", "thermal", "thermal_need", {"host": other, "needs_watts": needs}))
    host.run(agent, 11, 50.0, watts=100.0)
    need = host.heard.of("thermal_need")[-1]
    assert need == {"host": "here", "needs_watts": pytest.approx(110.0)}
    assert agent.status()["watts_share"] == pytest.approx(100.0)  # 300 / 3 for the blind, the rest by need
    host.run(agent, 61, 50.0, watts=100.0)
    assert agent.status()["watts_share"] == 300.0  # who is silent for a minute is gone


@pytest.mark.parametrize(
    "payload",
    [None, [], {}, {"host": 3}, {"host": "a", "needs_watts": -1}, {"host": "a", "needs_watts": float("nan")},
     {"host": "a", "needs_watts": "x"}],
)  # fmt: skip
def test_a_malformed_need_is_refused(host: Host, payload: Any) -> None:
    agent = host.started(cluster_watts=100.0)
    with pytest.raises(AgentError, match="thermal_need is"):
        agent.handle_message(Message("o", "thermal", "thermal_need", payload))


def test_what_nobody_hears_is_said_again(host: Host) -> None:
    agent = host.started()
    host.run(agent, 10, 60.0)
    host.heard.deaf = True
    host.run(agent, 3, 95.0)
    assert agent.status()["failures"] == 3
    host.heard.deaf = False
    host.run(agent, 1, 79.0)
    assert len(host.heard.of("host_hot")) == 1


def test_messages(host: Host) -> None:
    agent = host.started()
    host.run(agent, 1, 60.0)
    answer = agent.handle_message(Message("me", "thermal", "thermal_status"))
    assert agent.handle_message(Message("me", "thermal", "status")) == answer
    encode(Message("thermal", "me", "answer", answer))
    assert answer["decision"]["cores"] == 8
    assert agent.handle_message(Message("other", "thermal", "host_hot", {})) is None
    with pytest.raises(AgentDefinitionError, match="does not answer dance"):
        agent.handle_message(Message("me", "thermal", "dance", wants_answer=True))


def test_fans_turn_full_while_it_is_hot_only_if_asked(host: Host) -> None:
    write(host.root, hwmon(1, "nct6775", fan(1, 2, 90)))
    switch, speed = (host.root / f"sys/class/hwmon/hwmon1/{name}" for name in ("pwm1_enable", "pwm1"))
    agent = host.started()
    host.run(agent, 5, 90.0)
    assert (switch.read_text(), speed.read_text()) == ("2\n", "90\n")
    agent.teardown()
    agent = host.started(fan_control=True)
    host.run(agent, 5, 90.0)
    assert (switch.read_text(), speed.read_text()) == ("1\n", "255\n")
    assert "fans_full" in [what for what, _ in host.audited]
    assert agent.status()["fans_full"] == ["sys/class/hwmon/hwmon1/pwm1"]
    host.run(agent, 120, 40.0)
    assert switch.read_text() == "2\n"
    host.run(agent, 5, 90.0)
    agent.teardown()
    assert switch.read_text() == "2\n"


def test_fans_that_a_killed_agent_left_full_are_given_back_by_the_next(host: Host) -> None:
    write(host.root, hwmon(1, "nct6775", fan(1, 2, 90)))
    switch = host.root / "sys/class/hwmon/hwmon1/pwm1_enable"
    killed = host.started(fan_control=True)
    host.run(killed, 5, 90.0)
    assert switch.read_text() == "1\n"
    fd, killed._seat._fd = killed._seat._fd, None
    assert fd is not None
    os.close(fd)
    after = host.started("thermal-2")  # was not asked to control fans
    host.run(after, 90, 40.0)
    assert switch.read_text() == "2\n"


@pytest.mark.parametrize("options", [{"host_watts": 0}, {"cluster_watts": "many"}, {"host_watts": True}, {"speed": 3}])
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(AgentDefinitionError) as refused:
        ThermalAgent("thermal", **options)
    assert next(iter(options)) in str(refused.value)


def test_without_a_ledger_given_it_opens_the_host_s_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(host.root))
    agent = host.agent()
    agent.surroundings.extras.clear()
    agent.setup()
    assert (host.root / "swarm").stat().st_mode & 0o777 == 0o700
    agent.teardown()
    assert [path.name for path in (host.root / "swarm").glob("ledger*")] == []
