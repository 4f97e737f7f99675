"""The plugin that Dask's scheduler loads: it hands Dask's hooks to the parts, each behind the guard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

import swarm
from scheduler_plugins.decide.controller import Controller
from scheduler_plugins.decide.faults import Rules
from scheduler_plugins.decide.limits import Limit
from scheduler_plugins.on_dask import agents, observe, selftest
from scheduler_plugins.on_dask.advised import Advised
from scheduler_plugins.on_dask.agents import Agents
from scheduler_plugins.on_dask.detecting import Detecting
from scheduler_plugins.on_dask.draining import Draining
from scheduler_plugins.on_dask.durable import Durable
from scheduler_plugins.on_dask.enact import Enactor
from scheduler_plugins.on_dask.explaining import Explaining
from scheduler_plugins.on_dask.guard import Guard
from scheduler_plugins.on_dask.loop import ControlLoop
from scheduler_plugins.on_dask.membership import Membership
from scheduler_plugins.on_dask.mind import FAULTS, PART, Mind
from scheduler_plugins.on_dask.pacing import Erring, Pacing
from scheduler_plugins.on_dask.recording import Recording
from scheduler_plugins.on_dask.runs import Key, Runs
from scheduler_plugins.on_dask.scaling import Scaling
from swarm import config_sources
from swarm.config import Layer, Resolved, resolve
from swarm.dashboard.view_model import ViewModel
from swarm.errors import ProtocolError, RunFailedError, UnknownKeyError
from swarm.protocol import SCHEMA_VERSION, Event, PartDisabled, RunStatus, WorkerLeft, to_wire
from swarm.telemetry import prometheus
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Scheduler

    from swarm.dashboard.routes import Page

NAME = "swarm"
"""Of the plugin, of the heartbeat extension and of the entry in the scheduler's metadata."""
SCALING = "scaling"
"""What the guard calls it."""

JOURNAL_PATIENCE_S = 5.0
"""For the last entries of the journal, when the scheduler closes."""


class SwarmPlugin(SchedulerPlugin):
    """Makes a Dask scheduler the head of a swarm.

    Loaded by `dask scheduler --preload scheduler_plugins`, or sent to a plain scheduler by the first agent or client
    with `register_scheduler_plugin`; so it pickles small, and everything is built in `start`.

    Parameters
    ----------
    explicit
        Settings of whoever sends it. The scheduler's own settings are stronger, defaults are weaker.
    sender
        Who sends it, as a person would say it; empty for the preload.
    """

    name = NAME
    idempotent = True

    def __init__(self, explicit: Mapping[str, Any] | None = None, sender: str = "") -> None:
        self._explicit = dict(explicit or {})
        self._sender = sender
        self._is_running = False
        self.recording: Recording | None = None

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self, scheduler: Scheduler) -> None:
        """Build the parts. A wrong setting raises `SettingsError`, which stops a scheduler that is starting."""
        if self._is_running:
            return
        own = config_sources.load()
        self.resolved: Resolved = resolve([Layer(self._sender, self._explicit), Layer("scheduler", own.explicit)])
        self.scheduler = scheduler
        self.log = get_logger(agent="scheduler", scheduler=scheduler.address)
        self.guard = Guard(self.log, self._on_disabled)
        self.view = ViewModel()
        self.runs = Runs()
        folder = self.resolved.settings.state_directory
        self.recording = None if folder is None else Recording(scheduler, self.runs, folder)
        self.finished = 0
        self.erred = 0
        self.malformed = 0
        self.enactor = Enactor(scheduler)
        self.loop = ControlLoop(
            scheduler, Controller(self.resolved.settings), self.enactor, self.view, self.guard, self.log
        )
        settings = self.resolved.settings
        self.members = Membership(scheduler, self.resolved, self.loop.take, self._on_hello)
        self.agents = Agents(scheduler, self.members, settings, lambda event: self._take([event]))
        url = settings.result_store or (folder and f"{folder}/results")
        self.durable = Durable(scheduler, self.guard, self.members, self.runs, url, settings.result_quota)
        limit = Limit(settings.task_timeout, settings.task_retries, settings.task_backoff)
        self.detecting = Detecting(
            scheduler,
            self.members.has_witness,
            self.members.neighbour_of,
            self.loop.take,
            self._on_faults_failure,
            Rules(phi=self.resolved.settings.suspicion_phi, patience_s=self.resolved.settings.silence_patience),
        )
        self.mind = Mind(
            scheduler,
            self.guard,
            self.log,
            folder,
            limit,
            publish=self.loop.take,
            has_witness=self.members.has_witness,
            has_agents=self.members.has_agents,
            detecting=self.detecting,
            tune_when_idle=settings.tune_when_idle,
        )
        self.advised = Advised(scheduler, self.members, self.mind, self.loop.take)
        self.enactor.advised, self.agents.hear = self.advised, self.advised.hear
        self.draining = Draining(scheduler, self.mind, self.loop.take)
        self.pacing = Pacing(scheduler, self.mind)
        self.erring = Erring(scheduler)
        self.scaling = Scaling(scheduler, self.mind, self.draining, self._on_scaling_failure)
        for feature, reason in selftest.missing(scheduler).items():
            self.guard.switch_off(feature, reason)
        if self.resolved.settings.load_balancing and self.guard.is_on(PART):
            with self.guard(PART):
                await self.mind.start()
        if self.resolved.settings.fault_tolerance and self.guard.is_on(FAULTS):
            with self.guard(FAULTS):
                self.detecting.start()
        if self.resolved.settings.auto_scaling and self.guard.is_on(SCALING):
            with self.guard(SCALING):
                self.scaling.install()
        self._is_running = True
        self._connect()
        for state in list(scheduler.workers.values()):
            self.add_worker(scheduler, state.address)
        self.log.info("swarm_started", version=swarm.__version__, sender=self._sender or "preload", page=self.page_url)

    def _connect(self) -> None:
        """Hook into the scheduler; `_disconnect` undoes it."""
        scheduler = self.scheduler
        self._handlers: dict[str, Callable[..., Any]] = {
            "swarm_hello_worker": self.members.hello_worker,
            "swarm_witness_started": self.members.witness_started,
            "swarm_notice": self.draining.notice,
            "swarm_hello_client": self.members.hello_client,
            "swarm_install_agents": self.members.install_agents,
            "swarm_status": self.status,
            "swarm_announce_run": self.announce_run,
            "swarm_end_run": self.end_run,
            "swarm_run": self.run,
            "swarm_explain_run": self.explain_run,
            "swarm_explain": self.explain,
            **self.durable.handlers,
            **self.agents.handlers,
        }
        self.durable.connect()
        with self.guard("membership"):
            scheduler.handlers.update(self._handlers)
            scheduler.task_metadata[NAME] = {"version": swarm.__version__, "schema": SCHEMA_VERSION}
        self.ear = observe.TelemetryEar(self._on_telemetry)
        with self.guard("telemetry"):
            scheduler.extensions[NAME] = self.ear
        self._sampler = observe.ClusterSampler(scheduler)
        self._period_s = min(1.0, self.resolved.settings.monitoring_interval)
        self._cycle = PeriodicCallback(self._on_cycle, self._period_s * 1000)
        self._cycle.start()
        self._end_metrics = [
            prometheus.connect("scheduler", self._metrics),
            prometheus.connect("home", lambda: prometheus.of_home(self.agents.home)),
        ]
        self.page: Page | None = None
        if self.guard.is_on("dashboard"):
            with self.guard("dashboard"):
                from swarm.dashboard.routes import install

                self.page = install(scheduler, self.view)

    def _disconnect(self) -> None:
        if not self._is_running:
            return
        self._is_running = False
        self._cycle.stop()
        for end in self._end_metrics:
            end()
        self.detecting.stop()
        self.scaling.uninstall()
        self.draining.stop()
        self.mind.stop()
        self.durable.disconnect()
        self.ear.hear = None  # the extension itself stays: workers may still send to it
        if self.scheduler.handlers.get("swarm_status") == self.status:  # not those of a plugin that came after
            for name in self._handlers:
                self.scheduler.handlers.pop(name, None)
            self.scheduler.task_metadata.pop(NAME, None)
        if self.page is not None:
            self.page.close()
        if self.recording is not None:
            self.recording.journal.stop()

    async def before_close(self) -> None:
        if self._is_running:
            await self.mind.close()
            await self.agents.close()
        self._disconnect()
        if self.recording is not None:
            deadline_s = time.monotonic() + JOURNAL_PATIENCE_S
            while not self.recording.journal.is_over and time.monotonic() < deadline_s:  # noqa: ASYNC110 — a thread
                await asyncio.sleep(0.01)

    @property
    def page_url(self) -> str | None:
        return self.page.url if self.page else None

    # -- Dask's hooks ------------------------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        if not self._is_running:
            return
        self.mind.add_worker(worker)
        self.scaling.add_worker()
        if self.detecting.is_on:
            with self.guard(FAULTS):
                self.detecting.add_worker(scheduler.workers[worker])
        if self.guard.is_on("membership"):
            with self.guard("membership"):
                self._welcome(worker)
        self._on_hello()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        if not self._is_running:
            return
        self.mind.remove_worker(worker)
        self.draining.remove_worker(worker)
        if self.detecting.is_on:
            with self.guard(FAULTS):
                self.detecting.remove_worker(worker)
        if self.guard.is_on("membership"):
            with self.guard("membership"):
                self.members.worker_left(worker)
                self.loop.take(WorkerLeft(at_s=time.time(), worker=worker, reason=stimulus_id.rpartition("-")[0]))
        self._on_hello()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if self._is_running:
            self.members.client_left(client)
        if self._is_running and self.guard.is_on("runs"):
            with self.guard("runs"):
                self._take(self.runs.client_left(client, time.time()))

    def update_graph(
        self, scheduler: Scheduler, *, client: str, keys: Collection[Key], tasks: Collection[Key], **kwargs: Any
    ) -> None:
        if not self._is_running:
            return
        self.mind.update_graph(tasks)
        if self.guard.is_on("runs"):
            with self.guard("runs"):
                if not self.runs.awaits(client, keys):
                    return
                known = scheduler.tasks
                # In the order of the graph, in which the tasks lie in memory: a set's order takes twice as long.
                states = {key: known[key].state for key in (*tasks, *keys) if key in known}
                self._take(self.runs.graph_arrived(client, keys, states, time.time()))

    def log_event(self, topic: str, msg: Any) -> None:
        if not self._is_running:
            return
        self.mind.log_event(topic, msg)
        if self.guard.is_on(agents.PART):
            with self.guard(agents.PART):
                self.agents.log_event(topic, msg)

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called for every transition of every task."""
        if self.mind.is_on:
            self.mind.transition(key, start, finish, kwargs)
        if start == "processing":
            self.erring.transition(key, finish, kwargs)
        if finish == "memory":
            if start == "processing":
                self.finished += 1
        elif finish == "erred":
            self.erred += 1
        elif finish != "forgotten":
            return
        if key in self.runs.by_key and self.guard.is_on("runs"):
            with self.guard("runs"):
                self._on_task_of_run(key, start, finish, kwargs)

    def _on_task_of_run(self, key: Key, start: str, finish: str, details: Mapping[str, Any]) -> None:
        now_s = time.time()
        task = self.scheduler.tasks[key]
        function = task.prefix.name if task.prefix else str(key)
        worker = str(details.get("worker") or (task.erred_on and next(iter(task.erred_on))) or "")
        if finish == "memory":
            spans = details.get("startstops") or ()
            duration_s = sum(span["stop"] - span["start"] for span in spans if span["action"] == "compute")
            if self.recording is not None and self.guard.is_on("journal"):
                with self.guard("journal"):
                    self.recording.on_task_finished(
                        task, function, worker, details, max(task.nbytes, 0), self.mind.why.story(key)
                    )
            self._take(self.runs.task_finished(key, function, worker, duration_s, max(task.nbytes, 0), now_s))
        elif finish == "erred":
            self._take(self.runs.task_erred(key, function, worker, task.exception_text or "", now_s))
        elif finish == "forgotten":
            self._take(self.runs.task_forgotten(key, now_s))

    # -- our own -----------------------------------------------------------------------------------------------

    def _welcome(self, worker: str) -> None:
        joined = observe.worker_joined(self.scheduler.workers[worker], has_agents=self.members.has_agents(worker))
        self._take([joined, *self.members.worker_joined(worker)])

    def _on_hello(self) -> None:
        """The workers that have agents are others now."""
        if self._is_running and self.guard.is_on(agents.PART):
            with self.guard(agents.PART):
                self.agents.workers_changed()

    def _on_telemetry(self, worker: str, data: object) -> None:
        if isinstance(data, dict) and (report := data.pop("agents", None)) is not None:
            with self.guard(agents.PART):
                self.agents.heard(report)
            if not data:
                return
        if not self.guard.is_on("telemetry"):
            return
        with self.guard("telemetry"):
            try:
                event = observe.telemetry_arrived(worker, data)
            except ProtocolError as error:  # somebody else's fault: count it, but stay on
                self.malformed += 1
                if self.malformed & (self.malformed - 1) == 0:  # 1, 2, 4, 8, …: a bad worker can't flood the log
                    self.log.warning("telemetry_malformed", worker=worker, reason=str(error), count=self.malformed)
                return
            self.loop.take(event)
            if self.runs.by_key and self.guard.is_on("runs"):
                with self.guard("runs"):
                    self.runs.telemetry_arrived(event.telemetry)

    def _on_cycle(self) -> None:
        if self.scheduler.plugins.get(NAME) is not self:  # Dask has no hook for a plugin that is taken out
            self._disconnect()
            return
        if self.recording is not None and self.recording.journal.error is not None:
            self.guard.switch_off("journal", str(self.recording.journal.error))
        if not self.guard.is_on("samples"):
            return
        with self.guard("samples"):
            self.loop.take(self._sampler.sample(self.finished, self.erred, self._period_s))
        if self.guard.is_on(agents.PART):
            with self.guard(agents.PART):
                self.agents.look()
        if self.guard.is_on("forecast"):
            with self.guard("forecast"):
                now_s = time.time()
                self._take([*self.pacing.look(now_s), *self.erring.look(now_s)])
        if self.runs.by_key and self.guard.is_on("runs"):
            with self.guard("runs"):
                processing: dict[str, int] = {}
                for state in self.scheduler.workers.values():
                    for task in state.processing:
                        for run in self.runs.by_key.get(task.key, ()):
                            processing[run.run] = processing.get(run.run, 0) + 1
                self._take(self.runs.progressed(processing, time.time()))

    def _on_faults_failure(self, error: Exception) -> None:
        self.guard.failed(FAULTS, error)
        if not self.guard.is_on(FAULTS):
            self.detecting.stop()

    def _on_scaling_failure(self, error: Exception) -> None:
        self.guard.failed(SCALING, error)
        if not self.guard.is_on(SCALING):
            self.scaling.uninstall()

    def _on_disabled(self, part: str, reason: str, failures: int) -> None:
        self.loop.take(PartDisabled(at_s=time.time(), part=part, reason=reason, failures=failures))

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self.loop.take(event)
            if self.recording is not None and self.guard.is_on("journal"):
                with self.guard("journal"):
                    self.recording.on_event(event)

    def _metrics(self) -> Iterator[Any]:
        return prometheus.of_scheduler(self.agents.registry.members.values(), self.view.lost)

    # -- handlers: what clients ask ----------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Everything that `swarm status` and the page show."""
        return {
            "version": swarm.__version__,
            "scheduler": self.scheduler.address,
            "page": self.page_url,
            "page_absent": self.page.reason if self.page else self.guard.off.get("dashboard", "it failed to start"),
            "settings": self.resolved.settings.flat(),
            "origin": self.resolved.origin,
            "failures": dict(self.guard.failures),
            "off": dict(self.guard.off),
            "malformed_telemetry": self.malformed,
            "by_advice": self.advised.counts(),
            "journal": str(self.recording.journal.path) if self.recording else None,
            **self.view.state(time.time()),
        }

    async def announce_run(self, run: str, name: str, client: str, wanted: Collection[Key]) -> dict[str, Any]:
        """A client is about to submit a run; answers an empty dict, since None means that swarm is gone."""
        if self.guard.is_on("runs"):
            with self.guard("runs"):
                self.runs.announced(run, name, client, wanted, time.time())
        return {}

    async def end_run(self, run: str, status: RunStatus, reason: str) -> dict[str, Any]:
        """A client knows that a run is over; answers as `announce_run`."""
        over = [end for end in get_args(RunStatus) if end not in ("pending", "running")]
        if status not in over:
            raise ProtocolError(f"status is {status!r}, must be one of {', '.join(over)}")
        if self.guard.is_on("runs"):
            with self.guard("runs"):
                self._take(self.runs.ended(run, status, reason, time.time()))
        return {}

    async def run(self, run: str) -> dict[str, Any]:
        """How far a run is."""
        if not self.guard.is_on("runs"):
            off = f"the scheduler does not follow runs any more ({self.guard.off['runs']}); results still come"
            return {"error": RunFailedError.__name__, "message": off}
        known = self.runs.get(run)
        if known is None:
            return {"error": RunFailedError.__name__, "message": f"run {run} is not known to this scheduler"}
        return known.summary(time.time())

    async def explain_run(self, run: str) -> dict[str, Any]:
        """How far a run is, and what happened in the cluster meanwhile."""
        summary = await self.run(run)
        known = self.runs.get(run)
        if known is not None:
            end_s = known.ended_at_s or time.time()
            meanwhile = [e for e in self.loop.history if known.submitted_at_s <= e.at_s <= end_s]
            summary["events"] = [to_wire(event) for event in meanwhile[-1000:]]
            summary["names"] = {ws.address: str(ws.name) for ws in self.scheduler.workers.values()}
        return summary

    async def explain(self, what: Any) -> dict[str, Any]:
        """Why a task went where it went, or a worker has what it has."""
        why_not = ""
        if not self.mind.is_on:
            failed = self.guard.off.get(PART, "placement has failed, see the log of the scheduler")
            why_not = failed if self.resolved.settings.load_balancing else "the setting load_balancing is off"
        try:
            facts = await Explaining(self.scheduler, self.mind).answer(what, why_not)
        except UnknownKeyError as error:
            return {"error": UnknownKeyError.__name__, "message": str(error)}
        facts["of_runs"] = [run.run for run in self.runs.by_key.get(facts.get("key"), ())]
        return facts
