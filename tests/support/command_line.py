"""What a user types, as real processes in a place of their own: no settings, no home, no ports of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.processes import MARK, marked, orphaned_segments, shared_memory, wait_until

BIN = Path(sys.executable).parent
OURS = ("swarm", "scheduler_plugins", "workloads", "dask_swarm", "_editable_impl_dask_swarm")
PATIENCE_S = 60.0
"""For one command on a busy machine; a hang is what it is to find."""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on standard error."""
        (line,) = self.err.splitlines()
        return line

    @property
    def log(self) -> list[str]:
        """The lines on standard error without what Dask tells in passing."""
        return [line for line in self.err.splitlines() if " - INFO - " not in line]


@dataclass(frozen=True)
class Running:
    """A command that has not ended yet."""

    process: subprocess.Popen[bytes]
    _out: Path
    _err: Path

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def waits_for(self, pattern: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """The first match on standard error, also one that comes later."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.err)
            ended = found is None and self.process.poll() is not None
            assert not ended, f"it ended before it said {pattern!r}: {self.err[-3000:]}"
            return found

        return wait_until(look, f"it says {pattern!r}", timeout_s)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self, timeout_s: float = PATIENCE_S) -> Said:
        return Said(self.process.wait(timeout_s), self.out, self.err)


class Place:
    """A working directory with a home and a temporary folder; nothing that was started here outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.tmp = Path(tempfile.mkdtemp(prefix="swarm-test-"))  # short: a socket in it has a path of 108 bytes
        (folder / "home").mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DASK_", "SWARM_", "XDG_"))}
        self.env = {
            **kept,
            "HOME": str(folder / "home"),
            "TMPDIR": str(self.tmp),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            MARK: self.mark,
        }

    def __enter__(self) -> Self:
        self._segments = shared_memory()
        return self

    def __exit__(self, *_: object) -> None:
        left = marked(self.mark)
        try:
            wait_until(lambda: not marked(self.mark), "no process is left", 10)
            wait_until(lambda: not orphaned_segments(self._segments), "no shared memory is left", 5)
            assert not list(self.tmp.glob("swarm-cluster-*")), "no folder of a cluster is left"
        finally:
            for process in left:
                if process.is_running():
                    process.kill()

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    def run(self, *command: str, timeout_s: float = PATIENCE_S, **env: str) -> Said:
        """Run a command to its end."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def run_together(self, *commands: Sequence[str], **env: str) -> list[Said]:
        """Run commands that mostly wait, all at the same time."""
        with ExitStack() as stack:
            running = [stack.enter_context(self.start(*command, **env)) for command in commands]
            return [command.ends() for command in running]

    @contextmanager
    def start(self, *command: str, **env: str) -> Iterator[Running]:
        """Start a command, and stop it at the end of the block."""
        name = f"{time.monotonic_ns()}"
        out, err = self.folder / f"{name}.out", self.folder / f"{name}.err"
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
            )
        try:
            yield Running(process, out, err)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                finally:
                    process.kill()
                    process.wait()

    # -- Dask ------------------------------------------------------------------------------------------------------

    @contextmanager
    def scheduler(self, *options: str, program: tuple[str, ...] = ("dask",), **env: str) -> Iterator[Scheduler]:
        """`dask scheduler …` on free ports."""
        ports = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        with self.start(*program, "scheduler", *ports, *options, **env) as running:
            address = running.waits_for(r"Scheduler at:\s+(tcp://\S+)")[1]
            page = running.waits_for(r"dashboard at:\s+(http://\S+)/status")[1]
            yield Scheduler(running, address, f"{page}/swarm")

    @contextmanager
    def worker(
        self, address: str, *options: str, program: tuple[str, ...] = ("dask",), **env: str
    ) -> Iterator[Running]:
        """`dask worker …` with one thread, registered."""
        with self.start(*program, "worker", address, "--nthreads", "1", *options, **env) as running:
            running.waits_for(r"Registered to:")
            yield running

    def without_swarm(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """A Dask whose interpreter can't import swarm, however swarm is installed here, and its environment.

        `-S` keeps the interpreter from `site-packages`, and its path leads to a copy of that folder made of links.
        """
        bare = self.folder / "without_swarm"
        if not bare.exists():
            bare.mkdir()
            for entry in Path(_site_packages()).iterdir():
                if entry.suffix != ".pth" and not entry.name.startswith(OURS):
                    (bare / entry.name).symlink_to(entry)
        return (sys.executable, "-S", "-m", "dask"), {"PYTHONPATH": str(bare)}


@dataclass(frozen=True)
class Scheduler:
    """A `dask scheduler` that listens."""

    running: Running
    address: str
    page: str


def _site_packages() -> str:
    import dask

    return str(Path(dask.__file__).parents[1])
