"""The process of which those of agents are forked: nothing of an agent depends on it, and nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from swarm.agents.base import BaseAgent
from swarm.agents.life import nursery
from swarm.agents.life.lifecycle import RestartRule
from swarm.agents.life.supervisor import Supervisor
from swarm.agents.spec import AgentSpec
from swarm.channels.messages import Message, Payload
from swarm.config import Settings
from tests.support.local_voice import LocalVoice
from tests.support.processes import is_alive
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not nursery._can_fork(), reason="there are no nurseries without pidfd_open")


class Teller(BaseAgent):
    """Tells of its process, and counts what it was asked."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self.asked = 0

    def state(self) -> dict[str, Payload]:
        return {"asked": self.asked}

    def restore(self, state: Any) -> None:
        self.asked = state["asked"]

    def handle_message(self, message: Message) -> Payload:
        self.asked += 1
        match message.kind:
            case "about":
                return {
                    "parent": os.getppid(),
                    "is_leader": [os.getsid(0), os.getpgid(0)] == 2 * [os.getpid()],
                    "environ": dict(os.environ),
                    "path": sys.path,
                    "folder": str(Path.cwd()),
                    "cores": sorted(os.sched_getaffinity(0)),
                    "name": Path("/proc/self/comm").read_text().strip(),
                    "open": sorted(int(fd.name) for fd in Path("/proc/self/fd").iterdir()),
                }
            case "asked":
                return self.asked
        return None


class Home:
    """A supervisor, and what it was told."""

    def __init__(self) -> None:
        self.voice = LocalVoice()
        self.events: list[str] = []
        self.supervisor = Supervisor(
            self.voice,
            Settings(),
            on_event=lambda name, details: self.events.append(f"{name} {details['agent']}"),
            rule=RestartRule(first_pause_s=0.05, failures=3),
        )
        self.voice.supervisor = self.supervisor

    async def create(self, *agents: str) -> None:
        for agent in agents:
            await self.supervisor.create(AgentSpec(Teller, agent, isolation="process"))

    async def about(self, agent: str) -> dict[str, Any]:
        told: dict[str, Any] = await self.voice.ask(agent, "about")
        return told

    @property
    def nursery(self) -> psutil.Process:
        (only,) = below()
        return only


def below() -> list[psutil.Process]:
    """Our children, without the tracker that multiprocessing keeps from an earlier test until we end."""
    return [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    assert below() == []
    home = Home()
    yield home
    await home.supervisor.close()
    assert below() == []


async def test_there_is_none_before_the_first_agent_and_one_for_all(home: Home) -> None:
    await home.supervisor.create(AgentSpec(Teller, "elsewhere", isolation="thread"))
    assert below() == []
    await home.create("a", "b", "c")
    assert {(await home.about(agent))["parent"] for agent in "abc"} == {home.nursery.pid}
    await home.supervisor.destroy("b")
    assert len(home.nursery.children()) == 2
    assert all(is_alive(child) for child in home.nursery.children())


async def test_an_agent_is_as_in_a_process_that_was_started_for_it(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.create("first")  # its nursery knows what was before
    monkeypatch.setenv("SWARM_TEST_OF_NURSERY", "é")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        await home.create("a-rather-long-name")
    finally:
        os.sched_setaffinity(0, cores)
    about = await home.about("a-rather-long-name")
    assert about["is_leader"]
    assert about["environ"] == {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert about["path"] == sys.path
    assert about["folder"] == str(tmp_path)
    assert about["cores"] == [min(cores)]
    assert about["name"] == "a-rather-long-n"
    # What it prints, the socket to its host, its vitals, what its event loop has, and the folder that it lists.
    assert len(about["open"]) == 3 + 1 + 1 + 3 + 1
    monkeypatch.setenv("SWARM_TEST_OF_NURSERY", "caf\udce9")  # no UTF-8
    await home.create("another")  # starts at all


async def test_when_it_is_killed_its_agents_are_forked_by_another_with_their_state(home: Home) -> None:
    await home.create("a", "b")
    assert await home.voice.ask("a", "asked") == 1
    before = home.nursery
    old = before.children()
    before.send_signal(signal.SIGKILL)
    await eventually(lambda: {"restarted a", "restarted b"} <= {*home.events}, "both are there again")
    assert not any(is_alive(process) for process in [before, *old])
    assert home.nursery != before
    assert await home.voice.ask("a", "asked") == 2
    reasons = [about["last_error"] for about in home.supervisor.status()]
    assert all("signal SIGKILL" in reason for reason in reasons), reasons


async def test_who_loses_patience_while_it_is_stopped_gets_no_process_later(home: Home) -> None:
    await home.create("a")
    home.nursery.suspend()
    late = asyncio.create_task(home.create("late"))
    await asyncio.sleep(0.1)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    home.nursery.resume()
    await home.create("b")  # is answered after the one before
    await eventually(lambda: len(home.nursery.children()) == 2, "nothing is left of what nobody waited for")
    assert sorted(about["id"] for about in home.supervisor.status()) == ["a", "b"]


async def test_it_ends_with_its_host(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(
        "import asyncio\n"
        "from tests.processes.test_nursery_of_agents import Home\n"
        "async def main():\n"
        "    home = Home()\n"
        "    await home.create('a', 'b')\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    host = await asyncio.create_subprocess_exec(sys.executable, script, stdout=asyncio.subprocess.PIPE, env=environ)
    assert host.stdout is not None
    assert await host.stdout.readline() == b"ready\n"
    descendants = psutil.Process(host.pid).children(recursive=True)
    assert len(descendants) == 3
    host.kill()
    await host.wait()
    await eventually(lambda: not any(map(is_alive, descendants)), "the kernel has ended them")


async def test_no_more_processes_is_told_to_who_creates_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(self: nursery.Nursery, what: str, about: Any, fds: Any = ()) -> Any:
        return [0, "[Errno 11] Resource temporarily unavailable"]

    await home.create("a")
    with monkeypatch.context() as patch, pytest.raises(Exception, match="Resource temporarily unavailable"):
        patch.setattr(nursery.Nursery, "ask", refuses)
        await home.create("b")
    await home.create("c")
