"""One Dask process in a session of its own: start, look, stop, start again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from swarm.deploy.leash import VARIABLE
from swarm.deploy.restart import Record
from swarm.deploy.session import kill_session
from swarm.deploy.signals import ASKS_TO_STOP
from swarm.reason import outcome, reason

_OUTPUT_BYTES = 64 * 1024
"""How much of the end of a log is read for the reason of an end; a deep traceback has about 10 KiB."""


def uninterrupted(do: Callable[[], None]) -> None:
    """Call it in a thread: what a signal raises, it raises in the main thread, so nothing is made and then lost.

    When the main thread is interrupted, `do` has been called and is over, or it will never be called.
    """
    turn, called_off, errors = threading.Lock(), threading.Event(), list[Exception]()

    def run() -> None:
        with turn:
            try:
                if not called_off.is_set():
                    do()
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)

    thread = threading.Thread(target=run, name="swarm-uninterrupted")
    try:
        thread.start()
        thread.join()
    except BaseException:
        with turn:
            called_off.set()
        raise
    if errors:
        raise errors[0]


class Child:
    """A scheduler or a worker (with its nanny), over all its restarts.

    In its own session a Ctrl-C in the terminal does not reach it, and all that it starts can be found again.

    Parameters
    ----------
    log
        File that its output is appended to; None to write to our own standard error.
    """

    def __init__(self, role: str, *, command: list[str], env: Mapping[str, str], log: Path | None) -> None:
        self.role = role
        self.command = command
        self.log = log
        self.record = Record()
        self.started_at_s = 0.0
        self.restart_at_s: float | None = None
        """When it is due to be started again (`time.monotonic`)."""
        self.orphaned_at_s: float | None = None
        """When its scheduler ended, after which it is of no use (`time.monotonic`)."""
        self._env = env
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, leash_fd: int) -> None:
        """Start the process; `leash_fd` is the read end of the leash (`swarm.deploy.leash`)."""
        uninterrupted(lambda: self._start(leash_fd))

    def _start(self, leash_fd: int) -> None:
        env = {**self._env, VARIABLE: f"{leash_fd},{os.getpid()}"}
        output = None if self.log is None else os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._log_start = 0 if output is None else os.fstat(output).st_size
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, and no shell
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=2 if output is None else output,
                stderr=output,
                pass_fds=(leash_fd,),
                start_new_session=True,
            )
        finally:
            if output is not None:
                os.close(output)
        self.started_at_s = time.monotonic()
        self.restart_at_s = None

    @property
    def pid(self) -> int | None:
        """Of the running process; None when there is none."""
        return None if self._process is None else self._process.pid

    def ended(self) -> int | None:
        """The exit status, once, when the process has ended; whatever it left in its session is killed."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        session, self._process = self._process.pid, None
        # At once: as long as it has members the number of a session is not given away, later it may be.
        kill_session(session)
        return status

    def ask_to_stop(self) -> None:
        """SIGTERM to the process itself, which closes what it has started (Dask's own handler)."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole session, and wait for the process."""
        if self._process is not None:
            kill_session(self._process.pid)
            self._process.kill()
            self._process.wait()
            self._process = None

    def epitaph(self, status: int) -> str:
        """How and why it ended, and where to read more."""
        told = None if -status in ASKS_TO_STOP or status == -signal.SIGKILL else reason(self._output())
        return f"{outcome(status)}{f' ({told})' if told else ''}; {self.where_to_read}"

    @property
    def where_to_read(self) -> str:
        """Where its output is, in words."""
        return "its output is above" if self.log is None else f"its log is {self.log}"

    def _output(self) -> str:
        """The end of what it has said since its last start."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - _OUTPUT_BYTES))
            return file.read().decode(errors="replace")
