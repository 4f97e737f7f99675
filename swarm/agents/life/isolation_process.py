"""An agent in a process of its own: started, heard, ended; whatever it does harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from distributed.protocol import pickle

from swarm.agents.base import State
from swarm.agents.life.isolation import CANCEL_S, TEARDOWN_S, Bound, Circumstances, Owner, bound, first_of, tune
from swarm.agents.life.nursery import Child
from swarm.agents.life.runner import line_of, one_line
from swarm.agents.life.vitals import Vitals, shared_memory
from swarm.agents.life.wire import Op, Wire
from swarm.agents.spec import AgentSpec, Limits
from swarm.channels.messages import Message, decode
from swarm.errors import AgentDefinitionError, AgentFailedError, ChannelFullError, MessageError
from swarm.reason import outcome, reason

OUTPUT_BYTES = 16 * 1024
"""How much of the end of its output is kept, for the reason of its end."""
AT_ONCE = 256
"""What an agent may have asked its host to send and not yet heard of."""
MOST_ITEMS = 4096
"""In the details of an audit, which is all that an agent sends unpacked."""
LOOK_AGAIN_S = 0.01
"""A process that has closed its sockets is gone milliseconds later."""
LINGER_S = 1.0
"""For a process that has closed its end and does not end: Python's own clearing up takes less."""


class ProcessBody:
    """One process, for one life of an agent."""

    def __init__(self, spec: AgentSpec, owner: Owner, circumstances: Circumstances) -> None:
        self._spec = spec
        self._owner: Owner | None = owner
        self._circumstances = circumstances
        loop = circumstances.loop
        self._started: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[str] = loop.create_future()
        self._wire = Wire(self._heard, self._lost, MOST_ITEMS)
        self._child: Child | None = None
        self._output = bytearray()
        self._output_fd: int | None = None
        self._told: str | None = None
        """What the agent itself said of its end."""
        self._says: set[asyncio.Task[None]] = set()
        self._reaping: asyncio.Task[None] | None = None
        surroundings = circumstances.surroundings
        self._voice = Bound(surroundings.voice, spec.agent_id)
        mine = bound(surroundings, self._voice, spec)
        self._audit, self._log = mine.audit, mine.log
        self._vitals_fd = shared_memory()
        self.vitals = Vitals(self._vitals_fd)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def start(self, state: State) -> None:
        try:
            hello = self._hello(state)
            ours, theirs = socket.socketpair()
            with theirs:
                ours.setblocking(False)
                try:
                    self._child = child = await self._spawn(theirs)
                except BaseException:
                    ours.close()
                    raise
        except BaseException:
            self._over.set_result("it was not started")
            raise
        finally:
            os.close(self._vitals_fd)
        try:
            await self._circumstances.loop.connect_accepted_socket(lambda: self._wire, ours)
        except BaseException:
            ours.close()
            self._kill()
            self._reaping = asyncio.create_task(self._reap())
            raise
        for line in tune(self._spec, child.pid):
            self._log.warning("tuning_absent", reason=line)
        self._wire.say(Op.HELLO, hello)
        await first_of(self._started, self._over)
        if not self._started.done():
            raise AgentFailedError(self._over.result())

    def _hello(self, state: State) -> dict[str, Any]:
        spec = self._spec
        try:
            agent = pickle.dumps((spec.agent_class, dict(spec.options)))
        except Exception as error:  # noqa: BLE001 - pickle raises what it likes
            about = f"{spec.agent_class.__name__} {spec.agent_id}"
            raise AgentDefinitionError(f"{about} can't be sent to a process of its own ({line_of(error)})") from None
        limits = spec.limits or Limits()
        return {
            "agent": agent,
            "state": state,
            "interval_s": spec.interval,
            "optimization_interval_s": self._circumstances.optimization_interval_s,
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
            "settings": self._circumstances.settings,
            "place": self._circumstances.surroundings.place,
            # Its class is found as we found it, and so is what it starts itself.
            "environ": {**os.environb, b"PYTHONPATH": os.fsencode(os.pathsep.join(sys.path))},
            "path": [os.fsencode(entry) for entry in sys.path],
            "folder": _folder(),
        }

    async def _spawn(self, theirs: socket.socket) -> Child:
        self._output_fd, written_fd = os.pipe()
        child = None
        try:
            os.set_blocking(self._output_fd, False)
            start = self._circumstances.nursery.start
            child = await start(self._spec.agent_id, theirs.fileno(), self._vitals_fd, written_fd)
        finally:
            os.close(written_fd)
            if child is None:
                os.close(self._output_fd)
                self._output_fd = None
        self._circumstances.loop.add_reader(self._output_fd, self._read_output)
        return child

    def give(self, frame: bytes, message: Message | None) -> None:
        self._wire.say(Op.GIVE, frame)

    async def stop(self) -> None:
        if self._child is None:
            return
        self._wire.say(Op.STOP)
        await asyncio.wait({self._over}, timeout=TEARDOWN_S)
        if not self._over.done():
            self._log.error("process_killed", reason="teardown did not return", action=await self.leave())
        self._owner = None

    async def leave(self) -> str:
        self._owner = None
        if self._over.done():
            return ""
        self._wire.say(Op.CANCEL)
        await asyncio.wait({self._over}, timeout=CANCEL_S)
        if self._over.done():
            return "it was cancelled"
        self._kill()
        await asyncio.wait({self._over}, timeout=TEARDOWN_S)
        return f"its process {self.pid} was killed"

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    # -- what the agent says ----------------------------------------------------------------------------------------

    def _heard(self, op: Op, arguments: list[Any]) -> None:
        match op, arguments:
            case Op.STARTED, []:
                if not self._started.done():
                    self._started.set_result(None)
            case Op.FAILED, [str(line)]:
                self._told = one_line(line)
            case Op.SAYS, [int(number), str(how), bytes(frame), float(timeout_s), str(to)]:
                self._start_to_say(number, how, frame, timeout_s, to)
            case Op.AUDIT, [str(what), dict(details)]:
                self._audit(what, **{str(key): value for key, value in details.items()})
            case _:
                self._heard_for_owner(op, arguments)

    def _heard_for_owner(self, op: Op, arguments: list[Any]) -> None:
        owner = self._owner or _NOBODY
        match op, arguments:
            case Op.WANTS, []:
                owner.wants()
            case Op.KEEPS, [bytes(state)]:
                owner.keeps(state)
            case Op.ANSWERS, [bytes(frame)]:
                try:
                    owner.answers(decode(frame), frame)
                except MessageError as error:
                    owner.complains(line_of(error))
            case Op.COMPLAINS, [str(line)]:
                owner.complains(one_line(line))
            case _:
                raise ValueError(f"{op.name} with {len(arguments)} arguments")

    def _start_to_say(self, number: int, how: str, frame: bytes, timeout_s: float, to: str) -> None:
        if len(self._says) >= AT_ONCE:
            what = f"{self._spec.agent_id} has {AT_ONCE} messages under way; await some of them first"
            self._wire.say(Op.REFUSAL, number, ChannelFullError.__name__, what)
            return
        task = asyncio.create_task(self._say(number, how, frame, timeout_s, to))
        self._says.add(task)
        task.add_done_callback(self._says.discard)

    async def _say(self, number: int, how: str, frame: bytes, timeout_s: float, to: str) -> None:
        try:
            message = decode(frame)
            result: Any = None
            match how:
                case "send":
                    await self._voice.send(message, timeout_s)
                case "request":
                    result = await self._voice.request(message, timeout_s)
                case "broadcast":
                    result = await self._voice.broadcast(message, to, timeout_s)
                case _:
                    raise MessageError(f"there is no {one_line(how)}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - it is the agent's
            self._wire.say(Op.REFUSAL, number, type(error).__name__, one_line(str(error)))
        else:
            self._wire.say(Op.RESULT, number, result)

    # -- its end ------------------------------------------------------------------------------------------------------

    def _read_output(self) -> None:
        if self._output_fd is None:
            return
        try:
            said = os.read(self._output_fd, 65536)
        except BlockingIOError:
            return
        if not said:
            self._close_output()
            return
        self._output += said
        del self._output[:-OUTPUT_BYTES]
        with contextlib.suppress(OSError):  # a full disk or a closed terminal is no reason to stop
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said)

    def _close_output(self) -> None:
        if self._output_fd is not None:
            self._circumstances.loop.remove_reader(self._output_fd)
            os.close(self._output_fd)
            self._output_fd = None

    def _lost(self, wrong: str) -> None:
        if wrong:
            self._told = f"it sent what no agent sends ({wrong})"
            self._kill()
        self._reaping = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        assert self._child is not None
        deadline_s = time.monotonic() + LINGER_S
        while not self._child.has_ended():
            if time.monotonic() > deadline_s:
                self._kill()
            await asyncio.sleep(LOOK_AGAIN_S)
        self._kill()  # what it has left in its session
        status = await self._child.reap()
        self._read_output()
        self._close_output()
        for task in self._says:
            task.cancel()
        why = self._why(status)
        self._over.set_result(why)
        if self._owner is not None and self._started.done():
            self._owner.ended(why)

    def _why(self, status: int) -> str:
        if self._told is not None:
            return self._told
        told = reason(self._output.decode(errors="replace"))
        limits = self._spec.limits or Limits()
        if status == -signal.SIGXCPU and limits.cpu_s is not None:
            told = f"it has used the {limits.cpu_s} s of CPU that it may"
        elif status == -signal.SIGKILL:
            told = "somebody killed it, or the kernel did as memory ran out"
        return f"its process ended with {outcome(status)}{f' ({one_line(told)})' if told else ''}"


def _folder() -> bytes:
    """The working directory; empty where it was removed."""
    try:
        return os.fsencode(Path.cwd())
    except OSError:
        return b""


class _Nobody:
    """The owner of a process that is being ended."""

    def wants(self) -> None: ...

    def keeps(self, state: bytes) -> None: ...

    def answers(self, answer: Message, frame: bytes) -> None: ...

    def complains(self, line: str) -> None: ...


_NOBODY = _Nobody()
