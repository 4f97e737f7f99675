"""The agent of fault tolerance: lives in a nanny, and tells of workers of its host that behave strangely.

It looks at every worker process of the host from outside, so that it sees also what a worker can't say itself: with
the black box that the witness reads too (`swarm.agents.watch.witness` says what became of a worker, this says it
before).

Messages that it answers: `anomaly_scores`, with {worker: {"score", "is_suspicious", "because", "times"}}. Messages that
it sends to all: `worker_suspicious` {"worker", "host", "score", "because", "times"} and `worker_calm` {"worker"}.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed.comm.addressing import get_address_host

from swarm.agents.base import BaseAgent
from swarm.agents.kinds.anomaly import Host, Score
from swarm.agents.kinds.process_facts import ProcessFacts
from swarm.agents.watch import black_box
from swarm.agents.watch.black_box import BlackBoxReader
from swarm.channels.messages import Message, Payload, Priority
from swarm.errors import AgentError, MessageError, SwarmError

ROLL_S = 10.0
"""Between two questions to the scheduler which workers the host has."""


class FaultToleranceAgent(BaseAgent):
    """One per host.

    Parameters
    ----------
    tells
        Whether it tells all agents of suspicious workers; else it only answers.
    """

    kind = "fault_tolerance"
    interval_s = 1.0

    def __init__(self, agent_id: str, *, tells: bool = True) -> None:
        super().__init__(agent_id)
        self._tells = tells
        self._host = Host()
        self._processes: dict[str, ProcessFacts] = {}
        self._limits_bytes: dict[str, int] = {}
        self._suspicious: set[str] = set()
        self._rolled_at_s = -ROLL_S
        self.looks = 0
        self.alarms = 0

    def setup(self) -> None:
        if sys.platform != "linux":
            raise AgentError(f"the agent of fault tolerance reads procfs, which {sys.platform} does not have")

    def teardown(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    async def execute_cycle(self) -> None:
        now_s = time.monotonic()
        if now_s - self._rolled_at_s >= ROLL_S:
            self._rolled_at_s = now_s
            await self._call_the_roll()
        facts = {}
        for worker, process in list(self._processes.items()):
            if (look := process.look(time.monotonic())) is None:
                process.close()
                del self._processes[worker]
                self._rolled_at_s = -ROLL_S  # its nanny starts another
            else:
                facts[worker] = look
        self.looks += 1
        for worker in self._host.look(facts, self._limits_bytes):
            await self._raise_alarm(worker, self._host.scores[worker])
        scores = self._host.scores
        for worker in [each for each in self._suspicious if each not in scores or not scores[each].is_suspicious]:
            self._suspicious.discard(worker)
            await self._tell("worker_calm", {"worker": worker})

    def handle_message(self, message: Message) -> Payload:
        if message.kind == "anomaly_scores":
            return {worker: _told(score) for worker, score in self._host.scores.items()}
        if not message.wants_answer:  # news, for others
            return None
        raise MessageError(f"a fault tolerance agent takes anomaly_scores, not {message.kind}")

    def state(self) -> dict[str, Payload]:
        return {"alarms": self.alarms}

    def restore(self, state: dict[str, Payload]) -> None:
        self.alarms = int(state["alarms"])

    # -- who is there -----------------------------------------------------------------------------------------------

    async def _call_the_roll(self) -> None:
        """Ask the scheduler for the workers of this host; a worker says its process in its black box."""
        nanny = self.surroundings.dask
        if nanny is None:
            return
        here = get_address_host(nanny.address)
        answer = await nanny.scheduler.identity()
        found: dict[str, dict[str, Any]] = {
            str(address): about for address, about in answer["workers"].items() if about["host"] == here
        }
        for gone in self._processes.keys() - found.keys():
            self._processes.pop(gone).close()
        for address, about in found.items():
            self._limits_bytes[address] = int(about["memory_limit"])
            if address not in self._processes:
                with suppress(OSError, ValueError):  # it has no agents, or none yet; or it is just ending
                    box = BlackBoxReader(Path(about["local_directory"], black_box.NAME))
                    try:
                        self._processes[address] = ProcessFacts(box.pid, box)
                    except BaseException:
                        box.close()
                        raise
        self._limits_bytes = {worker: limit for worker, limit in self._limits_bytes.items() if worker in found}

    async def _raise_alarm(self, worker: str, score: Score) -> None:
        self.alarms += 1
        self._suspicious.add(worker)
        self.surroundings.log.warning(
            "worker_suspicious", worker=worker, because=score.because, score=round(score.score, 3)
        )
        await self._tell("worker_suspicious", {"worker": worker, "host": self.surroundings.place, **_told(score)})

    async def _tell(self, kind: str, payload: dict[str, Any]) -> None:
        if not self._tells:
            return
        try:
            await self.broadcast(kind, payload, priority=Priority.HIGH)
        except SwarmError as error:  # the others hear of it when they ask
            self.surroundings.log.warning("broadcast_failed", kind=kind, reason=str(error))


def _told(score: Score) -> dict[str, Any]:
    return {
        "score": score.score,
        "is_suspicious": score.is_suspicious,
        "because": score.because,
        "times": {rule: round(times, 3) for rule, times in score.times.items()},
    }
