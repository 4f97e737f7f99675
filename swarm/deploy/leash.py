"""The leash, a Dask preload: a process that swarm started ends when the process that started it is gone.

The starter holds the only write end of a pipe and never writes. When it ends, however it ends, the kernel closes
that end and all readers wake up. A fork of the starter may hold a copy of the write end, so the reader looks at
its parent's pid as well. (Linux's PR_SET_PDEATHSIG won't do: it fires when the *thread* that started us ends.)

With a nanny, the nanny is on the leash: it closes its worker, and should it be killed, the worker sees the end of
a pipe of Dask's own (`distributed.process.AsyncProcess`) and exits.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time

from swarm.deploy.session import kill_session

VARIABLE = "SWARM_LEASH"
"""`<read end of the pipe>,<pid of the starter>`, set for the children of `swarm.deploy.local` only."""

GRACE_S = 3.0
"""From the polite signal to the kill: Dask needs about half a second to close."""

logger = logging.getLogger(__name__)


def dask_setup(server: object) -> None:
    """Hold the leash in a thread. The variable is taken away: the tasks' own processes are not to see it."""
    held = os.environ.pop(VARIABLE, None)
    if held is None:
        logger.warning("%s runs without a leash: %s is not set", type(server).__name__, VARIABLE)
        return
    fd, starter = map(int, held.split(","))
    os.set_inheritable(fd, False)
    threading.Thread(target=_hold, args=(fd, starter), name="swarm-leash", daemon=True).start()


def _hold(fd: int, starter: int) -> None:
    pipe = select.poll()
    pipe.register(fd, select.POLLIN)  # an end of file is readable, or POLLHUP, which is always reported
    while os.getppid() == starter and not pipe.poll(1000):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    kill_session(os.getsid(0), spare=os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)
