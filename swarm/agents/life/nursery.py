"""Starts the processes of agents: forked from one that has imported what they need, or each started for itself.

A fork shares its memory with its nursery (`swarm.agents.life.nursery_process`): it takes 3 MB instead of 14, and starts
in milliseconds. That needs Linux 5.3 (`pidfd_open(2)`); elsewhere each process is a child of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import msgpack

from swarm.errors import AgentFailedError

ANSWER_BYTES = 4096


class Child(Protocol):
    """The process of an agent. Its number stays its own until it is reaped."""

    pid: int

    def has_ended(self) -> bool: ...

    def kill(self) -> None:
        """End it and what it has started, which is in its session unless it went to some length."""

    async def reap(self) -> int:
        """How it ended, as `subprocess.Popen.returncode`; once, and after it has."""


class Started:
    """A child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def has_ended(self) -> bool:
        # It stays a zombie, and the number its own, until it is waited for.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only a zombie is left
                os.killpg(self.pid, signal.SIGKILL)

    async def reap(self) -> int:
        return self._process.wait()


class Forked:
    """A child of the nursery. Should that be killed, the kernel kills its children."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self._fd: int | None = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def has_ended(self) -> bool:
        return self._fd is None or bool(self._poll.poll(0))

    def kill(self) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._nursery.is_alive:  # else it may have been reaped, and its number be another's
                os.killpg(self.pid, signal.SIGKILL)
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def reap(self) -> int:
        try:
            status: int = await self._nursery.ask("reap", self.pid)
        except ConnectionError:
            status = -signal.SIGKILL
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        return status


class Nursery:
    """Of the agents of one host process; it starts with the first of them, and again if it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._asked: deque[tuple[str, asyncio.Future[Any]]] = deque()
        """What it has not answered yet, in the order in which it will."""
        self._disowning: set[asyncio.Task[int]] = set()
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self, agent_id: str, connection_fd: int, vitals_fd: int, output_fd: int) -> Child:
        """A process that lives the life of an agent, in a session of its own; what it prints goes to `output_fd`.

        Raises
        ------
        OSError
            There can be no more processes, or no more open files.
        """
        fds = [connection_fd, vitals_fd, output_fd]
        if not _can_fork():
            return _start(agent_id, *fds)
        if not self.is_alive:
            self._begin()
        pid, failure = await self.ask("fork", agent_id, fds)
        if not pid:
            raise OSError(failure)
        child = Forked(self, pid)
        cores = os.sched_getaffinity(0)  # as a child of ours would have it
        with contextlib.suppress(OSError):  # it has ended already
            if os.sched_getaffinity(pid) != cores:
                os.sched_setaffinity(pid, cores)
        return child

    async def ask(self, what: str, about: Any, fds: Sequence[int] = ()) -> Any:
        """What the nursery answers; raises `ConnectionError` when it is not there any more."""
        if self._socket is None:
            raise ConnectionResetError("the nursery of agents has ended")
        answer = asyncio.get_running_loop().create_future()
        socket.send_fds(self._socket, [msgpack.packb([what, about])], fds)
        self._asked.append((what, answer))
        return await answer

    def _hear(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._end()
            return
        what, answer = self._asked.popleft()
        said = msgpack.unpackb(packet)
        if not answer.cancelled():
            answer.set_result(said)
        elif what == "fork" and said[0]:
            self._disown(said[0])

    def _disown(self, pid: int) -> None:
        """Whoever asked for a process has not waited for it."""
        child = Forked(self, pid)
        child.kill()
        task = asyncio.ensure_future(child.reap())
        self._disowning.add(task)
        task.add_done_callback(self._disowning.discard)

    def _begin(self) -> None:
        if self._is_closed:
            raise AgentFailedError("the host of the agent is closing")
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                ours.setblocking(False)
                self._process = _python("nursery_process", [theirs.fileno()], [str(os.getpid())])
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    def _end(self) -> None:
        """Have it end, and its children with it, if there are any left."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        asked, self._asked = self._asked, deque()
        for _, answer in asked:
            if not answer.done():
                answer.set_exception(ConnectionResetError("the nursery of agents was killed"))

    def close(self) -> None:
        """Its agents have ended; now it does."""
        self._is_closed = True
        self._end()


def _can_fork() -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


def _start(agent_id: str, connection_fd: int, vitals_fd: int, output_fd: int) -> Started:
    """Takes about half a millisecond, however large this process is (vfork); the rest is imports."""
    about = [str(os.getpid()), agent_id]
    return Started(_python("agent_process", [connection_fd, vitals_fd], about, output_fd))


def _python(module: str, fds: list[int], about: list[str], output_fd: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter, and no shell
        [sys.executable, "-m", f"swarm.agents.life.{module}", *map(str, fds), *about],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # swarm is found as we found it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if output_fd is None else output_fd,
        stderr=output_fd,
        pass_fds=fds,
        start_new_session=True,
    )
