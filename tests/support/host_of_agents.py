"""A process that has agents in processes of their own, for a test to kill: prints their numbers, and waits."""

from __future__ import annotations

import asyncio
import json

from swarm.agents.life.supervisor import Supervisor
from swarm.agents.spec import AgentSpec
from swarm.config import Settings
from tests.support.agents_on_trial import Idle, Trial
from tests.support.local_voice import LocalVoice


async def main() -> None:
    voice = LocalVoice()
    supervisor = voice.supervisor = Supervisor(voice, Settings())
    await supervisor.create(AgentSpec(Idle, "idle", isolation="process"))
    await supervisor.create(AgentSpec(Trial, "burns", isolation="process", options={"fails_at": 2, "how": "burn"}))
    await supervisor.create(AgentSpec(Trial, "starts", isolation="process"))
    print(json.dumps([about["pid"] for about in supervisor.status()]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
