"""The host of a worker's agents: says hello to the scheduler, starts them, puts their telemetry in the heartbeat."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import pickle

import swarm
from swarm import config_sources, errors
from swarm.agents.cores import CoresAgent
from swarm.agents.door import Door
from swarm.agents.resource import ResourceAgent
from swarm.agents.starting import OVER
from swarm.agents.storing import Storing
from swarm.agents.watch.black_box import BlackBox
from swarm.agents.watch.lease import Lease
from swarm.agents.watch.notice import NoticeAgent, source_of
from swarm.agents.watch.process_state import identity, neighbour
from swarm.agents.watch.task_memory import RUNNING, TaskMemory
from swarm.config import Layer, Settings, resolve
from swarm.errors import ConnectError, MissingPackageError, ProtocolError, SettingsError, SwarmError
from swarm.preloaded import end
from swarm.telemetry import prometheus
from swarm.telemetry.logs import get_logger
from swarm.telemetry.sampler import Sampler

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Worker

NAME = "swarm"
HELLO_TIMEOUT_S = 20.0
WITNESS_TIMEOUT_S = 60.0
"""A nanny answers when its worker has started, which may take long on a busy host."""


class AgentHost(WorkerPlugin):
    """Lives on a worker as a Dask plugin, so that it ends with the worker."""

    name = NAME

    def __init__(
        self,
        agents: list[ResourceAgent],
        storing: Storing,
        notice: NoticeAgent | None = None,
        lease: Lease | None = None,
    ) -> None:
        self.agents = agents
        self.notice = notice
        self.lease = lease
        self.box: BlackBox | None = None
        """What the nanny reads; None where there is none."""
        self.storing = storing
        self.task_memory = TaskMemory()
        self.cores = CoresAgent()
        self.failures = 0

    def setup(self, worker: Worker) -> None:
        for agent in self.agents:
            agent.start()
        if self.notice is not None:
            self.notice.start()
        if self.lease is not None:
            self.lease.start()
        self.task_memory.start(worker)
        for _ in worker.state.all_running_tasks:  # given to it before its agents had started
            self.cores.began()
        worker.handlers["swarm_neighbour"] = neighbour
        worker.extensions[NAME] = self
        self.door = Door(worker)
        self.door.connect()
        self.end_metrics = prometheus.connect("home", lambda: prometheus.of_home(self.door.home))

    async def teardown(self, worker: Worker) -> None:
        worker.extensions.pop(NAME, None)
        worker.handlers.pop("swarm_neighbour", None)
        for agent in self.agents:
            agent.stop()
        if self.notice is not None:
            self.notice.stop()
        if self.lease is not None:
            self.lease.stop()
        self.task_memory.stop()
        if self.box is not None:
            self.box.close()
        self.cores.close()
        self.storing.stop()
        self.end_metrics()
        await self.door.close()

    def transition(self, key: Key, start: str, finish: str, **kwargs: Any) -> None:
        self.task_memory.transition(key, start, finish)
        self.cores.transition(key, start, finish)
        if self.box is not None:
            if finish in RUNNING:
                if start not in RUNNING:
                    self.box.began(key)
            elif start in RUNNING:
                self.box.ended(key)

    def heartbeat(self) -> dict[str, Any] | None:
        """What this worker's next heartbeat carries to `scheduler.extensions["swarm"]`; None when nothing is new."""
        try:
            new: dict[str, Any] = {}
            for agent in self.agents:
                if (telemetry := agent.take_latest()) is not None:
                    new |= telemetry.to_wire()
            if report := self.door.report():
                new["agents"] = report
        except Exception as error:  # noqa: BLE001 — Dask closes a worker whose extension raises here
            self.failures += 1
            if self.failures == 1:
                get_logger(agent="host").error("heartbeat_failed", exc_info=error)
            return None
        return new or None


async def start_as_preload(worker: Worker) -> None:
    """Start the agents of a worker that has just joined.

    A wrong setting closes the worker: whoever wrote it wants to know now. Anything else that goes wrong leaves a
    plain Dask worker: better a cluster that works without agents than one that does not work.
    """
    log = get_logger(worker=worker.address, agent="host")
    try:
        await start(worker)
    except SettingsError as error:
        log.critical("agents_refused", reason=str(error))
        await end(worker, error.exit_code)
    except SwarmError as error:
        log.error("agents_refused", reason=str(error), consequence="this worker runs as a plain Dask worker")
    except Exception as error:
        log.error("agents_failed", consequence="this worker runs as a plain Dask worker", exc_info=error)


async def start(worker: Worker) -> None:
    """Say hello and start the agents; does nothing where they run already. Raises `SwarmError` on a refusal."""
    if NAME in worker.plugins:
        return
    explicit = config_sources.load().explicit
    sampler = Sampler(worker.local_directory, worker.memory_manager.memory_limit)
    storing = Storing(worker)
    storing.start()
    try:
        settings = await _hello(worker, explicit, sampler.absent)
        if NAME in worker.plugins or worker.status in OVER:  # somebody else was quicker, or the worker ends
            sampler.close()
            return
        agent = ResourceAgent(sampler, settings.monitoring_interval)
        lease = Lease(worker, settings.silence_patience) if settings.fault_tolerance else None
        host = AgentHost([agent], storing, _notice(worker, settings), lease)
        await worker.plugin_add(host, name=NAME, catch_errors=False)
    except BaseException:
        sampler.close()
        storing.stop()
        raise
    log = get_logger(worker=worker.address, agent="host")
    if settings.fault_tolerance and worker.nanny:
        # Not awaited: while a worker starts, its nanny answers nobody.
        worker._ongoing_background_tasks.call_soon(_find_witness, worker, host, settings.notice_period)
    if host.task_memory.absent:
        log.warning("task_memory_absent", reason=host.task_memory.absent)
    log.info("agents_started", version=swarm.__version__, agents=[agent.name for agent in host.agents])


def _notice(worker: Worker, settings: Settings) -> NoticeAgent | None:
    source = settings.notice_source
    return None if source is None else NoticeAgent(worker, source_of(source, settings.notice_period), source)


async def _find_witness(worker: Worker, host: AgentHost, notice_s: float) -> None:
    """Have the nanny watch this process, and tell the scheduler that it does."""
    from swarm.agents.watch.witness import install

    try:
        host.box = box = BlackBox(worker.local_directory)
        box.start(_logged(worker), [task.key for task in worker.state.all_running_tasks])
        about = {"worker": worker.address, "pid": os.getpid(), "box": str(box.path), "notice_s": notice_s}
        async with asyncio.timeout(WITNESS_TIMEOUT_S), worker.rpc(str(worker.nanny)) as nanny:
            answer = await nanny.run(function=pickle.dumps(install), kwargs=pickle.dumps(about))
        reason = str(answer.get("exception_text") or "")
        if not reason:
            await worker.scheduler.swarm_witness_started(worker=worker.address)
            return
    except Exception as error:  # noqa: BLE001 - whatever it is, a worker without a witness works as before
        reason = f"{type(error).__name__}: {error}"
    get_logger(worker=worker.address, agent="host").warning("witness_absent", nanny=worker.nanny, reason=reason)


def _logged(worker: Worker) -> Sequence[logging.LogRecord]:
    """What `Worker.get_logs` keeps, oldest first; nothing where Dask has changed that."""
    return list(getattr(getattr(worker, "_deque_handler", None), "deque", ()))


async def _hello(worker: Worker, explicit: dict[str, Any], absent: dict[str, str]) -> Settings:
    """Introduce the worker to the scheduler, putting swarm there first if need be; returns the settings to use."""
    scheduler = worker.scheduler
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            known = await scheduler.get_metadata(keys=[NAME], default=None)
            if known is None:
                await install_on_scheduler(scheduler, explicit, sender=f"worker {worker.address}")
            answer = await scheduler.swarm_hello_worker(
                worker=worker.address,
                version=swarm.__version__,
                explicit=explicit,
                agents=[ResourceAgent.name, Storing.name],
                absent=absent,
                process=identity(),
            )
    except TimeoutError:
        raise ConnectError(
            f"scheduler {scheduler.address} did not answer the agents within {HELLO_TIMEOUT_S:.0f} s"
        ) from None
    return settings_of(answer, scheduler.address)


async def install_on_scheduler(scheduler: Any, explicit: Mapping[str, Any], sender: str) -> None:
    """Send the scheduler's side of swarm to a plain scheduler (`Scheduler.register_scheduler_plugin`).

    `scheduler` is an rpc to it. Raises `MissingPackageError` when it can't import swarm.
    """
    from scheduler_plugins.on_dask.plugin import SwarmPlugin

    plugin = pickle.dumps(SwarmPlugin(explicit, sender))
    try:
        await scheduler.register_scheduler_plugin(plugin=plugin, name=NAME, idempotent=True)
    except ModuleNotFoundError as error:
        what_to_do = f"install dask-swarm=={swarm.__version__} there and start it again"
        raise MissingPackageError(f"scheduler {scheduler.address} can't import swarm ({error}); {what_to_do}") from None
    except ValueError as error:
        if "disallowed" not in str(error):  # the setting distributed.scheduler.blocked-handlers
            raise
        what_to_do = "start it with `dask scheduler --preload scheduler_plugins`"
        raise MissingPackageError(f"scheduler {scheduler.address} takes no plugins ({error}); {what_to_do}") from None


def settings_of(answer: object, scheduler: str) -> Settings:
    """The settings in the scheduler's answer to a hello; raises the `SwarmError` that it names instead."""
    if not isinstance(answer, Mapping):
        raise ProtocolError(f"scheduler {scheduler} answered the hello with {answer!r}")
    if "error" in answer:
        kind = getattr(errors, str(answer["error"]), SwarmError)
        is_ours = isinstance(kind, type) and issubclass(kind, SwarmError)
        raise (kind if is_ours else SwarmError)(str(answer["message"]))
    return resolve([Layer(f"scheduler {scheduler}", answer["settings"])]).settings
