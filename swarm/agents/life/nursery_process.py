"""The process of which those of agents are forked: `python -m swarm.agents.life.nursery_process <socket> <parent>`.

It has imported what every agent needs, and does nothing: its children share that memory, and are there in milliseconds.
One thread, no event loop, and none of any agent's code: what is forked is always the same. It holds its children until
they are asked for, so that the number of one that has ended is nobody else's meanwhile.

A request comes with its descriptors in one packet, and is answered with one:

- `fork`, the agent's name → the number of its process, or 0 and why there is none; with the agent's end of its socket
  pair, its vitals, and where its output goes;
- `reap`, a number → how it ended, as `subprocess.Popen.returncode` says it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import socket
import sys
from typing import NamedTuple

import msgpack

from swarm.agents.life.agent_process import call_it, end_with, live

REQUEST_BYTES = 4096
FDS = 3


class Born(NamedTuple):
    """What a child is given."""

    agent_id: str
    connection_fd: int
    vitals_fd: int
    output_fd: int


def keep(host: socket.socket) -> Born | None:
    """Answer requests until the host is gone; returns in each child, with what it was given."""
    while True:
        packet, fds, _, _ = socket.recv_fds(host, REQUEST_BYTES, FDS)
        if not packet:
            return None
        what, about = msgpack.unpackb(packet)
        if what == "reap":
            host.send(msgpack.packb(os.waitstatus_to_exitcode(os.waitpid(about, 0)[1])))
            continue
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            pid, failure = 0, str(error)
        else:
            failure = ""
            if pid == 0:
                host.close()
                end_with(me)
                return Born(about, *fds)
        for fd in fds:
            os.close(fd)
        host.send(msgpack.packb([pid, failure]))


def settle(born: Born) -> None:
    """Be a process like one that was started for itself."""
    gc.enable()
    os.setsid()
    for fd in (1, 2):
        os.dup2(born.output_fd, fd)
    os.close(born.output_fd)
    call_it(born.agent_id)


async def _nothing() -> None:
    """So that all that an event loop imports is imported."""


if __name__ == "__main__":
    faulthandler.enable()
    end_with(int(sys.argv[2]))
    ours = socket.socket(fileno=int(sys.argv[1]))
    ours.set_inheritable(False)
    asyncio.run(_nothing())
    gc.collect()
    gc.disable()  # a collection would write to what the children share
    gc.freeze()
    child = keep(ours)
    if child is not None:
        settle(child)
        live(child.connection_fd, child.vitals_fd, child.agent_id)
