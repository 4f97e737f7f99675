"""Slow a process down for real: it is stopped and let go again, twenty times a second (SIGSTOP, SIGCONT).

That needs no privileges, no free core and no cgroup, so it works in containers; whatever the process does takes longer,
as on a slow machine. Run as a script, this is the process that does it. It holds its own standard input as a leash: when
whoever started it is gone, however that ended, the slowed process is let go.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil

PERIOD_S = 0.05
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
    target = psutil.Process(pid)

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
        with contextlib.suppress(psutil.NoSuchProcess):
            target.resume()


def _slow(target: psutil.Process, times: float) -> None:
    leash = select.poll()
    leash.register(sys.stdin.fileno(), select.POLLIN)  # its end is readable, or POLLHUP
    runs_ms = 1000 * PERIOD_S / times
    stops_ms = 1000 * PERIOD_S - runs_ms
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            while True:
                target.suspend()
                if leash.poll(stops_ms):
                    return
                target.resume()
                if leash.poll(runs_ms):
                    return
        finally:
            target.resume()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _slow(psutil.Process(int(sys.argv[1])), float(sys.argv[2]))
