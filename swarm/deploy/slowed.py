"""Slow a process down for real: it is stopped and let go again, many times a second (SIGSTOP, SIGCONT).

That needs no privileges, no free core and no cgroup, so it works in containers; all that the process does takes longer,
as on a slow machine. Run as a script, this is the process that does it. Its standard input is its leash: when whoever
started it is gone, however that ended, the slowed process is let go.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

SLICE_S = 0.002
"""For so long it runs. Short, for what fits in between two stops is not slowed at all."""
PATIENCE_S = 5.0


@contextlib.contextmanager
def slowed(pid: int, times: float) -> Iterator[None]:
    """The process gets the `times`-th part of the time, until the block ends.

    Parameters
    ----------
    pid
        Of a process of the same user.
    times
        Above 1.
    """
    from swarm.deploy.child import uninterrupted

    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [sys.executable, "-P", __file__, str(pid), str(times)]
        # A session of its own: a Ctrl-C must not end it before it has let the process go.
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))  # noqa: S603

    try:
        uninterrupted(start)
        yield
    finally:
        for helper in started:
            assert helper.stdin is not None
            helper.stdin.close()
            try:
                helper.wait(PATIENCE_S)
            finally:
                helper.kill()
                helper.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)  # whatever became of the helper


def _slow(pid: int, times: float) -> None:
    leash = select.poll()
    leash.register(sys.stdin.fileno(), select.POLLIN)  # its end is readable, or POLLHUP
    with contextlib.suppress(ProcessLookupError):
        try:
            while not leash.poll(0):
                os.kill(pid, signal.SIGCONT)
                began_s = time.monotonic()
                time.sleep(SLICE_S)
                os.kill(pid, signal.SIGSTOP)
                # On a busy machine we wake late, and it has run for longer than it should.
                time.sleep((time.monotonic() - began_s) * (times - 1))
        finally:
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _slow(int(sys.argv[1]), float(sys.argv[2]))
