"""A scheduler and workers as real processes on this machine: start, supervise, stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import dask.config
from distributed.core import rpc
from distributed.security import Security
from distributed.utils import format_dashboard_link

from swarm.deploy.child import Child, uninterrupted
from swarm.deploy.folder import PrivateFolder
from swarm.deploy.ports import check_port_is_free, in_use, listener
from swarm.deploy.restart import RestartPolicy
from swarm.deploy.spec import WILDCARDS, ClusterSpec, scheduler_command, worker_command
from swarm.errors import ProcessError, SettingsError
from swarm.leftovers import sweep

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.05
"""Between two looks at processes that start or stop; they take half a second at best."""

ORPHAN_GRACE_S = 2.0
"""A worker ends when its scheduler is gone, but not before its tasks end (`distributed.Worker.close`), which may take
half a minute. It would begin anew in any case; this long it may go on writing what it has."""

PROBE_TIMEOUT_S = 2.0
"""For one question to the scheduler; one that is starting up answers late, so we ask again."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one step of supervision has found or done."""

    role: str
    what: Literal["ended", "restarted", "shut down"]
    message: str
    """One line for a person."""


class LocalProcesses:
    """A cluster of real `dask scheduler` and `dask worker` processes that belong to this one.

    A context manager; not thread-safe. Each process has a session of its own: a Ctrl-C in the terminal reaches only
    us, and we stop them in order. They are on a leash (`swarm.deploy.leash`): should we be killed, they end.

    Parameters
    ----------
    spec
        What to start.
    policy
        When `poll` starts a process that ended again.
    on_progress
        Called with one line at each step of `start`.

    Examples
    --------
    >>> with LocalProcesses(ClusterSpec(workers=2)) as cluster:  # doctest: +SKIP
    ...     client = distributed.Client(cluster.address)
    """

    def __init__(
        self,
        spec: ClusterSpec | None = None,
        *,
        policy: RestartPolicy | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.spec = spec or ClusterSpec()
        self.address = ""
        """Of the scheduler, as `distributed.Client` takes it."""
        self.dashboard_link: str | None = None
        self.shut_down = False
        """The scheduler has ended because it was asked to (`Client.shutdown`, SIGTERM): it stays down."""
        self._policy = policy or RestartPolicy()
        self._tell = on_progress or (lambda _line: None)
        self._children: list[Child] = []
        self._folder: PrivateFolder | None = None
        self._keep_logs = False
        self._leash: tuple[int, ...] = ()
        self._owner = 0

    def __enter__(self) -> Self:
        return self if self._children else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def processes(self) -> dict[str, int]:
        """Pid of each process that runs, by role: `scheduler`, `worker-0` and so on (for a worker, its nanny)."""
        return {child.role: child.pid for child in self._children if child.pid is not None}

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start the scheduler and the workers; return when all workers have registered.

        Raises
        ------
        PortInUseError
            A port that was asked for is taken.
        ProcessError
            A process ended or did not get ready in time. Its log is kept.
        """
        if os.name != "posix":
            raise ProcessError(
                "swarm starts Dask processes on Linux and macOS only; start `dask scheduler` and `dask worker` "
                "yourself and connect to their address"
            )
        if self._children:
            raise RuntimeError("LocalProcesses is already started")
        check_port_is_free(self.spec.host, self.spec.port, option="--port")
        check_port_is_free(self.spec.host, self.spec.dashboard_port or 0, option="--dashboard-port")
        waiting = _Patience(timeout_s)
        try:
            uninterrupted(self._prepare)
            self._start_scheduler(waiting)
            if not self.spec.scheduler_only:
                self._start_workers(waiting)
        except BaseException as error:
            self._keep_logs = isinstance(error, ProcessError)
            self.close(grace_s=3.0)
            raise
        return self

    def add_workers(self, count: int) -> list[str]:
        """Start more workers, supervised like the others; returns their names without waiting for them."""
        return [child.role for child in self._add_workers(count)]

    def poll(self) -> list[Change]:
        """One step of supervision: take note of processes that ended, start those that are due. To be called often.

        A worker is started again however it ended, so that their number stays; the scheduler unless it ended on
        request. Dask's scheduler keeps nothing on disk: after its restart clients and workers begin anew, but for
        durable runs. Each change is also logged.

        Raises
        ------
        ProcessError
            A process keeps ending, and the policy gives it up. The others still run; call `close`.
        """
        now_s = time.monotonic()
        changes = [
            self._take_note(child, status, now_s) for child in self._children if (status := child.ended()) is not None
        ]
        for child in self._children[1:]:
            if child.orphaned_at_s is not None and now_s - child.orphaned_at_s >= ORPHAN_GRACE_S:
                child.kill()
                changes.append(self._orphan_ended(child, now_s))
        for child in self._children:
            if child.restart_at_s is not None and child.restart_at_s <= now_s and self._may_start(child):
                child.start(self._leash[0])
                changes.append(Change(child.role, "restarted", f"{child.role} is started again (pid {child.pid})"))
                logger.warning(changes[-1].message)
        return changes

    def close(self, grace_s: float = 10.0) -> None:
        """Stop all, workers first; may be called twice.

        Those that do not stop within `grace_s` seconds after a SIGTERM are killed with all that they have started.
        An exception in here, say a second Ctrl-C, kills the rest at once.
        """
        # In a fork of ours, which runs `atexit` as well, the cluster is not ours to stop.
        if self._owner != os.getpid():
            return
        try:
            for group in (self._children[1:], self._children[:1]):
                _stop(group, grace_s)
        finally:
            for child in self._children:
                child.kill()
            leash, self._leash = self._leash, ()
            for fd in leash:
                os.close(fd)
            folder, self._folder = self._folder, None
            if folder is not None:
                folder.keep() if self._keep_logs and self._has_private_logs else folder.remove()
            self._children = []
            self._owner = 0
            atexit.unregister(self.close)
            try:
                sweep()  # those who were killed have not removed what they shared
            except OSError as error:
                logger.warning("what killed processes have left on this host can't be removed: %s", error)

    # -- start -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._owner = os.getpid()
        atexit.register(self.close)
        parent = dask.config.get("temporary-directory", None)
        try:
            self._folder = PrivateFolder(None if parent is None else Path(parent))
            if self.spec.log_directory is not None:
                self.spec.log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ProcessError(f"can't make the folder {error.filename}: {error.strerror}") from None
        self._leash = os.pipe()  # neither end is inherited, but for the read end by those who get it by name

    def _start_scheduler(self, waiting: _Patience) -> None:
        spec, folder = self.spec, self._folder
        assert folder is not None
        self._tell("starting the scheduler")
        file = folder.path / "scheduler.json"
        command = scheduler_command(spec, scheduler_file=file, port=spec.port, dashboard_port=spec.dashboard_port)
        scheduler = self._add("scheduler", command, {})
        while (identity := _read_json(file)) is None:
            self._wait(waiting, [scheduler])
        self.address = identity["address"]
        port = int(self.address.rpartition(":")[2])
        http_port = identity["services"]["dashboard"]
        if spec.dashboard_port is not None:
            if spec.dashboard_port not in (0, http_port):  # Dask has taken another one and only warns
                where = f"port {spec.dashboard_port} on {spec.host}"
                raise in_use(where, listener(spec.dashboard_port), "--dashboard-port")
            host = "127.0.0.1" if spec.host in WILDCARDS else spec.host
            self.dashboard_link = format_dashboard_link(host, http_port)
        # After a restart it is found where it was.
        again = None if spec.dashboard_port is None else http_port
        scheduler.command = scheduler_command(spec, scheduler_file=file, port=port, dashboard_port=again)

    def _start_workers(self, waiting: _Patience) -> None:
        assert self._folder is not None
        number = self.spec.shape[0]
        self._tell(f"scheduler at {self.address}; starting {number} worker{'s' if number > 1 else ''}")
        workers = self._add_workers(number)
        while missing := [worker for worker in workers if worker.role not in _registered(self.address)]:
            self._wait(waiting, missing)
        self._tell(f"{number} of {number} workers ready")

    def _add_workers(self, count: int) -> list[Child]:
        first = len(self._children) - 1  # the scheduler is one of them
        added = []
        for i in range(first, first + count):
            name = f"worker-{i}"
            command = worker_command(self.spec, name=name, address=self.address)
            added.append(self._add(name, command, self.spec.worker_env.get(i, {})))
        return added

    def _add(self, role: str, command: list[str], env: Mapping[str, str]) -> Child:
        assert self._folder is not None
        scratch = str(self._folder.path / "scratch")
        logs = self._folder.path if self._has_private_logs else self.spec.log_directory
        child = Child(
            role,
            command=command,
            env={**os.environ, **_inherited(), "DASK_TEMPORARY_DIRECTORY": scratch, **self.spec.env, **env},
            log=None if logs is None else logs / f"{role}.log",
        )
        self._children.append(child)
        child.start(self._leash[0])
        return child

    @property
    def _has_private_logs(self) -> bool:
        return self.spec.log_directory is None and not self.spec.forward

    def _wait(self, waiting: _Patience, missing: Sequence[Child]) -> None:
        """Sleep a little; raise when a process has ended or the time is up."""
        for child in self._children:
            if (status := child.ended()) is not None:
                raise ProcessError(f"{child.role} did not start: {child.epitaph(status)}")
        if waiting.is_over:
            late = missing[0]
            raise ProcessError(
                f"{late.role} was not ready within {waiting.timeout_s:g} s; {late.where_to_read}; on a busy "
                "machine allow it more time"
            )
        time.sleep(LOOK_AGAIN_S)

    # -- supervision -------------------------------------------------------------------------------------------

    def _take_note(self, child: Child, status: int, now_s: float) -> Change:
        is_scheduler = child is self._children[0]
        if self.shut_down or (is_scheduler and status == 0):
            self.shut_down = True
            change = Change(child.role, "shut down", f"{child.role} has ended on request")
            logger.info(change.message)
            return change
        if child.orphaned_at_s is not None:
            return self._orphan_ended(child, now_s)
        child.record = child.record.after_end(self._policy, started_at_s=child.started_at_s, now_s=now_s)
        delay_s = child.record.delay_s(self._policy)
        if delay_s is None:
            self._keep_logs = True
            raise ProcessError(
                f"{child.role} ended {self._policy.failures} times within {self._policy.window_s:g} s and is given "
                f"up, the last time with {child.epitaph(status)}"
            )
        child.restart_at_s = now_s + delay_s
        lost = "; what it knew is lost but for durable runs, clients and workers begin anew" if is_scheduler else ""
        if is_scheduler:
            for worker in self._children[1:]:
                worker.orphaned_at_s = now_s if worker.pid is not None else None
        message = f"{child.role} ended with {child.epitaph(status)}; starts again in {delay_s:g} s{lost}"
        logger.log(logging.ERROR if is_scheduler else logging.WARNING, message)
        return Change(child.role, "ended", message)

    def _orphan_ended(self, child: Child, now_s: float) -> Change:
        """It is not its fault, so it does not count as a failure."""
        child.orphaned_at_s, child.restart_at_s = None, now_s
        change = Change(child.role, "ended", f"{child.role} has ended because its scheduler had; starts again")
        logger.warning(change.message)
        return change

    def _may_start(self, child: Child) -> bool:
        """A worker waits for its scheduler; none starts after a shutdown."""
        scheduler = self._children[0]
        return not self.shut_down and (child is scheduler or scheduler.pid is not None)


class _Patience:
    """A deadline that remembers how long it was."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._deadline_s


def _stop(children: Sequence[Child], grace_s: float) -> None:
    for child in children:
        child.ended()
        child.ask_to_stop()
    waiting = _Patience(grace_s)
    while running := [child for child in children if child.ended() is None and child.pid is not None]:
        if waiting.is_over:
            break
        time.sleep(LOOK_AGAIN_S)
    for child in running:
        logger.warning("%s did not stop within %g s and is killed", child.role, grace_s)
        child.kill()


def _inherited() -> dict[str, str]:
    """What a process that Dask itself spawns would inherit from us: the Dask configuration and the import path."""
    try:
        config = dask.config.serialize(dask.config.global_config)
    except TypeError as error:
        raise SettingsError(f"the Dask configuration can't be handed on to other processes: {error}") from None
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = [entry or str(Path.cwd()) for entry in sys.path if entry not in own]
    return {"DASK_INTERNAL_INHERIT_CONFIG": config, "PYTHONPATH": os.pathsep.join(path)}


def _read_json(file: Path) -> Any:
    """Content of a file that somebody else is about to write; None as long as it is not complete."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _registered(address: str) -> set[str]:
    """Names of the workers that the scheduler knows; empty as long as it does not answer."""

    async def ask() -> Any:
        security = Security().get_connection_args("client")
        async with rpc(address, timeout=PROBE_TIMEOUT_S, connection_args=security) as scheduler:
            return await asyncio.wait_for(scheduler.identity(), PROBE_TIMEOUT_S)

    # In a thread, for this one may have a running loop (Jupyter).
    with ThreadPoolExecutor(1, thread_name_prefix="swarm-probe") as thread:
        try:
            identity = thread.submit(lambda: asyncio.run(ask())).result()
        except (OSError, TimeoutError):
            return set()
    return {str(worker["name"]) for worker in identity["workers"].values()}
