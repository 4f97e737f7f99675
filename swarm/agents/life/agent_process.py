"""The process of one agent, forked by a nursery; where there is none, `python -m` this with the arguments of `live`.

It imports as little as possible: settings and log are made when the agent first asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import os
import pickle
import resource
import signal
import socket
import sys
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from swarm import errors
from swarm.agents.base import BaseAgent, Surroundings
from swarm.agents.life.runner import Runner, line_of
from swarm.agents.life.vitals import Vitals
from swarm.agents.life.wire import Op, Wire
from swarm.channels.messages import Message, Payload, encode
from swarm.errors import AgentError, SwarmError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

    from swarm.config import Settings

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
"""`prctl(2)`."""


class LazySurroundings(Surroundings):
    """Surroundings that make settings and log when they are asked for: pydantic and structlog take 15 MB."""

    def __init__(self, agent_id: str, settings: dict[str, Any], home: Home, place: str) -> None:
        self._agent_id = agent_id
        self._settings = settings
        self.voice = home
        self.audit = home.audit
        self.place = place
        self.dask = None
        self.extras = {}

    @cached_property
    def settings(self) -> Settings:  # type: ignore[override]  # a field there
        from swarm.config import Settings

        return Settings.model_validate(self._settings)

    @cached_property
    def log(self) -> BoundLogger:  # type: ignore[override]  # a field there
        from swarm.telemetry.logs import get_logger

        return get_logger(agent=self._agent_id)


class Home:
    """The host of this agent: its voice, and what its runner tells."""

    def __init__(self, agent_id: str) -> None:
        self.wire = Wire(self._heard, self._lost)
        self.hello: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.living: asyncio.Task[None] | None = None
        self.runner: Runner | None = None
        self.farewell: asyncio.Future[None] | None = None
        """Done when all has been said, and the wire is closed."""
        self.has_started = False
        self.stop_asked = False
        self._agent_id = agent_id
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}

    # -- the voice --------------------------------------------------------------------------------------------------

    async def send(self, message: Message, timeout_s: float) -> None:
        await self._say("send", message, timeout_s)

    async def request(self, message: Message, timeout_s: float) -> Payload:
        return await self._say("request", message, timeout_s)

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        told: int = await self._say("broadcast", message, timeout_s, to)
        return told

    async def _say(self, how: str, message: Message, timeout_s: float, to: str = "") -> Any:
        frame = encode(message)
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self.wire.say(Op.SAYS, number, how, frame, float(timeout_s), to)
        try:
            return await answer
        finally:
            del self._answers[number]

    def audit(self, what: str, **details: Any) -> None:
        self.wire.say(Op.AUDIT, what, details)

    # -- what the runner tells ----------------------------------------------------------------------------------------

    def started(self) -> None:
        self.has_started = True
        self.wire.say(Op.STARTED)

    def wants(self) -> None:
        self.wire.say(Op.WANTS)

    def keeps(self, state: bytes) -> None:
        self.wire.say(Op.KEEPS, state)

    def answers(self, answer: Message, frame: bytes) -> None:
        self.wire.say(Op.ANSWERS, frame)

    def complains(self, line: str) -> None:
        self.wire.say(Op.COMPLAINS, line)

    # -- what the host says -------------------------------------------------------------------------------------------

    def _heard(self, op: Op, arguments: list[Any]) -> None:
        if op is Op.HELLO:
            self.hello.set_result(arguments)
        elif op is Op.GIVE and self.runner is not None:
            self.runner.give(arguments[0])
        elif op is Op.STOP:
            self._stop()
        elif op is Op.CANCEL and self.living is not None:
            self.living.cancel()
        elif op in (Op.RESULT, Op.REFUSAL):
            answer = self._answers.get(arguments[0])
            if answer is None or answer.done():
                return  # whoever asked has been cancelled
            if op is Op.RESULT:
                answer.set_result(arguments[1])
            else:
                answer.set_exception(error_called(arguments[1], arguments[2]))

    def _stop(self) -> None:
        self.stop_asked = True
        if self.has_started and self.runner is not None:
            self.runner.stop()
        elif self.living is not None:
            self.living.cancel()

    def _lost(self, wrong: str) -> None:
        if self.farewell is None:  # without its host an agent has nothing to do, and nobody who would end it
            os._exit(1)
        self.farewell.set_result(None)


def error_called(name: str, message: str) -> SwarmError:
    """The error of swarm that is called so."""
    kind = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, SwarmError)
    return kind(message) if is_ours else AgentError(f"{name}: {message}")  # type: ignore[misc]  # it is a class then


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; also while its code holds the GIL."""
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def set_limits(memory_bytes: int | None, cpu_s: int | None) -> None:
    """The limits of the agent's own code; RLIMIT_DATA, since RLIMIT_AS also counts what is only reserved."""
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if cpu_s is not None:
        hard_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft_s = cpu_s if hard_s == resource.RLIM_INFINITY else min(cpu_s, hard_s)
        resource.setrlimit(resource.RLIMIT_CPU, (soft_s, hard_s))


def be_as_host(environ: dict[bytes, bytes], path: list[bytes], folder: bytes) -> None:
    """Have the environment, the way to modules and the working directory that the host has now."""
    if environ != dict(os.environb):
        os.environb.clear()
        os.environb.update(environ)
    sys.path[:] = map(os.fsdecode, path)
    with contextlib.suppress(OSError):  # one of them was removed
        if folder:
            os.chdir(folder)


def call_it(agent_id: str) -> None:
    """Be known by the agent's name to `ps -o comm` and `top`, which show 15 bytes of it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_NAME, agent_id.encode()[:15], 0, 0, 0)


async def main(connection: socket.socket, vitals: Vitals, agent_id: str) -> None:
    """Live one life, as the host tells."""
    home = Home(agent_id)
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: home.wire, connection)
    (about,) = await home.hello
    be_as_host(about["environ"], about["path"], about["folder"])
    set_limits(about["memory_bytes"], about["cpu_s"])
    surroundings = LazySurroundings(agent_id, about["settings"], home, about["place"])

    def make() -> BaseAgent:
        # From our own host over a socket pair that nobody else has: the one place where an agent's code travels.
        agent_class, options = pickle.loads(about["agent"])  # noqa: S301
        made: BaseAgent = agent_class(agent_id, **options)
        return made

    home.runner = Runner(
        make,
        surroundings,
        home,
        vitals,
        interval_s=about["interval_s"],
        optimization_interval_s=about["optimization_interval_s"],
        cpu_clock=time.process_time,
    )
    home.living = asyncio.create_task(home.runner.run(about["state"]))
    if home.stop_asked:
        home.living.cancel()
    try:
        await home.living
    except asyncio.CancelledError:
        home.wire.say(Op.FAILED, "it was cancelled")
    except BaseException as error:  # noqa: BLE001 - the host tells it, and starts us again
        home.wire.say(Op.FAILED, line_of(error))
    home.farewell = loop.create_future()
    home.wire.close()
    await home.farewell


def live(connection_fd: int, vitals_fd: int, agent_id: str) -> None:
    """Be the process of an agent, to its end."""
    os.set_inheritable(connection_fd, False)
    vitals = Vitals(vitals_fd)
    os.close(vitals_fd)
    asyncio.run(main(socket.socket(fileno=connection_fd), vitals, agent_id))


if __name__ == "__main__":
    faulthandler.enable()
    end_with(int(sys.argv[3]))
    call_it(sys.argv[4])
    live(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4])
