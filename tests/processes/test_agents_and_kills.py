"""Agents in processes of their own under SIGKILL: theirs, again and again, and that of their host."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from swarm.agents.life.lifecycle import RestartRule
from swarm.agents.life.supervisor import Supervisor
from swarm.agents.spec import AgentSpec
from swarm.config import Settings
from swarm.errors import AgentFailedError
from tests.support.agents_on_trial import Trial
from tests.support.local_voice import LocalVoice
from tests.support.processes import wait_gone
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_agents_end_with_their_host_even_one_that_holds_its_gil(how: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.support.host_of_agents"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as host:
        try:
            assert host.stdout is not None
            agents = [psutil.Process(pid) for pid in json.loads(host.stdout.readline())]
            assert len(agents) == 3
            host.send_signal(how)
            wait_gone(agents, timeout_s=5.0)
        finally:
            host.kill()


async def test_no_answered_message_is_lost_nor_read_twice_when_it_is_killed_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(11)
    voice = LocalVoice()
    supervisor = voice.supervisor = Supervisor(
        voice, Settings(), rule=RestartRule(first_pause_s=0.01, longest_pause_s=0.01, failures=10**6)
    )
    await supervisor.create(AgentSpec(Trial, "a", isolation="process", interval_s=0.01))
    answered: list[int] = []
    refused: list[int] = []
    over = False

    async def ask(numbers: range) -> None:
        for number in numbers:
            if over:
                return
            try:
                await voice.ask("a", "note", number)
                answered.append(number)
            except AgentFailedError as error:
                assert "failed while it handled this: its process ended with signal SIGKILL" in str(error)  # noqa: PT017
                refused.append(number)

    askers = [asyncio.create_task(ask(range(start, start + 10**6))) for start in (0, 10**6, 2 * 10**6)]
    for kill in range(KILLS):
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        os.kill(supervisor.status()[0]["pid"], signal.SIGKILL)
        await eventually(lambda: supervisor.status()[0]["restarts"] > kill, "it runs again")  # noqa: B023 - at once
    over = True
    await asyncio.gather(*askers)
    notes = await voice.ask("a", "notes")
    await supervisor.close()
    assert len(notes) == len(set(notes))
    assert set(answered) <= set(notes)
    assert set(notes) <= set(answered) | set(refused)
    assert len(refused) <= KILLS
    assert len(answered) > KILLS
