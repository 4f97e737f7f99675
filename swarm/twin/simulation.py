"""Run work on a simulated cluster: the real scheduler, a real client and the policy's plugins in virtual time."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import dask.config
from dask._expr import LLGExpr
from distributed import Client
from distributed.core import Status

from swarm.errors import DeadlockError, InvariantError, TwinError
from swarm.twin import diagnosis, selftest
from swarm.twin.bounds import lower_bound_s
from swarm.twin.clock import VirtualLoop, running_loop, virtual_time
from swarm.twin.faults import Fault, Join, check
from swarm.twin.fleet import Fleet
from swarm.twin.inject import Injector
from swarm.twin.models import LIMIT_S, MOST_S, ClusterModel, WorkerModel
from swarm.twin.network import SCHEDULER, Fabric
from swarm.twin.outcome import Outcome
from swarm.twin.policies import Policy, policy
from swarm.twin.progress import Progress, span, telling
from swarm.twin.record import Recorder
from swarm.twin.saved import Case, hash_seed_here
from swarm.twin.scheduler import ClockSetter, GraphCharge, TwinScheduler, report_by_stream
from swarm.twin.surroundings import CONFIG, collector_paused, drop_tasks, quiet, same_for_every_run
from swarm.twin.watch import ClientWatch
from swarm.twin.work import Work

PATIENCE_S = 720.0
"""Virtual seconds without any progress after which a simulation is stuck: longer than the 600 s in which Dask itself
notices a hung worker (`distributed.scheduler.worker-ttl`, twice)."""
LOOK_S = 30.0
"""Between two looks at the progress."""
IDLE_CHECKS = {"idle-timeout": "idle_timeout", "no-workers-timeout": "no_workers_timeout"}
"""Callback of the scheduler, four times a second → its setting, without which it does nothing."""


def simulate(
    work: Work,
    cluster: ClusterModel,
    *,
    policy: str | Policy = "stock",
    faults: Sequence[Fault] = (),
    seed: int = 0,
    time_limit_s: float | None = None,
    gather: bool = False,
    validate: bool = False,
    checked: bool = True,
    on_progress: Callable[[Progress], object] | None = None,
) -> Outcome:
    """Run `work` on `cluster` and tell what happened.

    Parameters
    ----------
    work
        The graph and its costs.
    cluster
        Workers, network, the scheduler's CPU.
    policy
        Name (`stock`, `no-stealing`, `random`, `swarm`), a `Policy`, or a module that is a scheduler preload.
    faults
        What goes wrong, in seconds after the submission.
    seed
        Of what the simulation itself draws: when workers' heartbeats begin, what Dask draws at random.
    time_limit_s
        Virtual seconds after which it ends unfinished, 100 years at most; by default 30 days, and then work
        that would take longer on the fastest schedule is refused before it starts.
    gather
        Whether the client also fetches the results, as `Client.gather` does, and the makespan includes that.
    validate
        Check Dask's own state after every transition (slow).
    checked
        Check the rules that every run must keep when it is over; costs a tenth of the time.
    on_progress
        Is told a few times a second how far it is, in a thread of its own.

    Returns
    -------
    Outcome
        Makespan, executions, hash of all that happened.

    Raises
    ------
    DeadlockError
        Nothing moves any more: names the stuck tasks and why.
    InvariantError
        A rule is broken.
    TwinError
        A model or a fault is wrong, it would take too long, or this version of distributed is not supported.

    Notes
    -----
    The same arguments give the same trace, if the hash seed of the process is the same (`PYTHONHASHSEED`): Dask
    iterates over sets of strings. `swarm.twin.isolated.simulate_isolated` starts a process with a given one.
    """
    chosen = _policy(policy)
    selftest.require()
    check(faults, [worker.name for worker in cluster.workers])
    if not cluster.workers and not any(isinstance(fault, Join) for fault in faults):
        raise TwinError("the cluster has no workers, and none joins")
    if time_limit_s is None:
        joining = [fault.model for fault in faults if isinstance(fault, Join)]
        require_within(LIMIT_S, work, [*cluster.workers, *joining], "time_limit_s")
    elif not 0 < time_limit_s <= MOST_S:
        raise TwinError(f"time_limit_s is {time_limit_s!r}, must be above 0 and at most {MOST_S:.4g} (100 years)")
    run = _Simulation(work, cluster, chosen, list(faults), seed, time_limit_s, gather, validate, checked)
    try:
        with telling(on_progress, run.progress):
            return run.run()
    except (DeadlockError, InvariantError) as error:
        ends = "deadlock" if isinstance(error, DeadlockError) else "finished"
        options = (time_limit_s, gather, validate)
        error.case = Case(
            work, cluster, chosen, list(faults), seed, hash_seed_here(), *options, note=str(error), ends=ends
        )
        error.add_note("to keep this simulation as a test: error.case.save('tests/replays/NAME.json')")
        raise


_policy = policy


def require_within(limit_s: float, work: Work, workers: Sequence[WorkerModel], option: str) -> None:
    """Raise `TwinError` when even the fastest schedule takes longer; `option` is what allows more."""
    slowest = max(min(factor for _, factor in worker.speed.changes()) for worker in workers)
    if work.total_s <= limit_s * slowest:  # one thread alone could do it, no need to look at the whole graph
        return
    bound_s = lower_bound_s(work.total_s, work.critical_path_s, workers)
    if bound_s <= limit_s:
        return
    size = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
    longest = max(work.costs, key=lambda key: work.costs[key].work_s)
    raise TwinError(
        f"{work.name} takes {span(bound_s)} or more on {size} (longest task: {longest!r}, "
        f"{span(work.costs[longest].work_s)}), a simulation may take {span(limit_s)}: mend the costs, or allow more "
        f"with {option}, up to {span(MOST_S)}"
    )


@dataclass
class _Simulation:
    """One run of `simulate`."""

    work: Work
    cluster: ClusterModel
    policy: Policy
    faults: list[Fault]
    seed: int
    time_limit_s: float | None
    gather: bool
    validate: bool
    checked: bool
    unheard: list[str] = field(default_factory=list)
    """What failed in callbacks and coroutines that nobody awaits."""

    def _on_unheard(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised, or a coroutine that nobody awaits."""
        error = context.get("exception")
        self.unheard.append(f"{context['message']}: {type(error).__name__}: {error}")

    def run(self) -> Outcome:
        config = {**CONFIG, **self.policy.config}
        config["distributed.scheduler.preload"] = list(self.policy.preload)
        config["distributed.scheduler.validate"] = self.validate
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(config))
            stack.enter_context(quiet())
            stack.enter_context(same_for_every_run(self.seed))
            self.loop: VirtualLoop = stack.enter_context(running_loop())
            self.loop.set_exception_handler(self._on_unheard)
            self.fabric = Fabric(self.loop, self.cluster.network, self.cluster.scheduler)
            stack.enter_context(self.fabric.in_charge())
            packages = tuple(name.partition(".")[0] for name in self.policy.preload)
            for name in self.policy.preload:
                importlib.import_module(name)
            self.patch = stack.enter_context(virtual_time(self.loop, lambda: self.fabric.scheduler_cpu_s, packages))
            stack.enter_context(collector_paused())
            began_s = time.process_time()
            try:
                outcome = self.loop.run_until_complete(self._main())
            finally:
                drop_tasks(self.loop)
                if hasattr(self, "scheduler") and (folder := self.scheduler._workdir) is not None:
                    folder.release()  # a scheduler that is never closed keeps its folder and a lock until the end
            outcome.cpu_s = time.process_time() - began_s
            return outcome

    async def _main(self) -> Outcome:
        self.scheduler = TwinScheduler(
            host="scheduler:8786",
            port=8786,
            protocol="sim",
            dashboard=False,
            plugins=[GraphCharge(self.fabric), ClockSetter(self.patch), *self.policy.plugins(self.seed)],
        )
        await self.scheduler
        self.patch()
        if self.cluster.heartbeat_s is not None:
            self._seldom(self.cluster.heartbeat_s)
        self.record = Recorder(self.loop)
        self.fleet = Fleet(
            self.scheduler,
            self.fabric,
            self.record,
            cost_of=self.work.costs.__getitem__,
            seed=self.seed,
            validate=self.validate,
            agents=self.policy.agents,
            heartbeat_s=self.cluster.heartbeat_s,
            jitter=self.cluster.heartbeat_jitter,
        )
        for model in self.cluster.workers:
            self.fleet.start(model)
        await self.fleet.all_registered()
        async with Client(
            SCHEDULER, asynchronous=True, name="twin", set_as_default=False, direct_to_workers=False
        ) as client:
            outcome = await self._submit(client)
            self.scheduler.status = Status.closed  # so that nobody cleans up, which takes O(n²)
            self.scheduler.clients[client.id].wants_what.clear()  # and does not release them task by task
            self.fleet.stop()
        return outcome

    async def _submit(self, client: Client) -> Outcome:
        wanted = list(dict.fromkeys(self.work.wanted))
        self.record.start_clock()
        began_s = self.began_s = self.loop.now_s
        self.fleet.start_clock()
        Injector(self.fleet).inject(self.faults)
        self.watch = ClientWatch(client, wanted, self.loop.create_future())
        self.loop.schedule(began_s + LOOK_S, self._look, self._progress(), began_s)
        self.loop.schedule(began_s + (self.time_limit_s or LIMIT_S), self.watch.end, "time limit")
        graph: Any = self.work.submitted
        if isinstance(graph, dict):  # with a token of our own: nobody needs Dask to hash every task
            graph = LLGExpr(graph, _determ_token=self.work.name)
        report_by_stream(self.scheduler, self.fabric, client.id)
        futures = client.get(graph, wanted, sync=False)
        status = await self.watch.over
        if self.gather and status == "finished":
            self.gathered = await client.gather(futures, errors="skip")
        makespan_s = self.loop.now_s - began_s
        outcome = self._outcome(status, makespan_s)
        if self.checked:
            self._check_rules(outcome)
        for future in futures:
            future.release = lambda: None  # nobody needs the scheduler to forget what is about to vanish
        del futures
        client.futures.clear()
        return outcome

    def progress(self) -> Progress | None:
        """How far it is; may be asked from another thread."""
        if not hasattr(self, "watch"):
            return None
        return Progress(min(len(self.record.done), len(self.work)), len(self.work), self.loop.now_s - self.began_s)

    def _seldom(self, interval_s: float) -> None:
        """Where heartbeats are seldom, so is what only repeats itself and decides nothing."""
        for name, timeout in IDLE_CHECKS.items():
            if getattr(self.scheduler, timeout) is None:
                self.scheduler.periodic_callbacks[name].callback_time = 1000 * interval_s

    # -- standstill ------------------------------------------------------------------------------------------------

    def _progress(self) -> tuple[int, ...]:
        return (self.scheduler.transition_counter, self.record.transfers, self.record.started_count)

    def _look(self, before: tuple[int, ...], moved_s: float) -> None:
        """Look whether anything moved; a simulation that is stuck ends here."""
        if self.watch.over.done():
            return
        now_s, now = self.loop.now_s, self._progress()
        if now != before or self.fleet.expects_something():
            moved_s = now_s
        elif now_s - moved_s >= PATIENCE_S:
            lines = diagnosis.why_stuck(self.scheduler, self.fleet, self.work.wanted)
            told = "; ".join([diagnosis.summary(lines, now_s - moved_s), *self.unheard[:3]])
            self.watch.over.set_exception(DeadlockError(told))
            return
        self.loop.schedule(now_s + LOOK_S, self._look, now, moved_s)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _outcome(self, status: str, makespan_s: float) -> Outcome:
        stealing = self.scheduler.extensions.get("stealing")
        return Outcome(
            work=self.work.name,
            policy=self.policy.name,
            seed=self.seed,
            status=status,
            makespan_s=makespan_s,
            tasks=len(self.work),
            workers=len(self.cluster.workers),
            threads=self.cluster.threads,
            executions=list(self.record.executions.values()),
            events=self.record.events,
            failed={str(key): reason for key, reason in self.watch.failed.items()},
            steals=self.fleet.steals,
            steal_requests=int(sum(stealing.metrics["request_count_total"].values())) if stealing else 0,
            transfers=self.record.transfers,
            transferred_bytes=self.record.transferred_bytes,
            scheduler_cpu_s=self.fabric.scheduler_cpu_s,
            messages=self.fabric.messages_to_scheduler,
            peak_bytes=self.fleet.peak_bytes,
            trace_hash=self.record.trace_hash,
            hash_seed=os.environ.get("PYTHONHASHSEED", "random"),
            loop_events=self.loop.events_run,
        )

    def _is_alive(self, address: str) -> bool:
        worker = self.fleet.by_address.get(address)
        return worker is not None and worker.is_alive

    def _check_rules(self, outcome: Outcome) -> None:
        """The invariants; raises `InvariantError` with all that are broken."""
        broken = self.record.not_held[:5] + self.unheard[:3]
        tasks = self.scheduler.tasks
        if outcome.status == "finished":
            for key in self.work.wanted:
                task = tasks.get(key)
                if task is None or not task.who_has:
                    broken.append(f"wanted task {key!r} has no result")
                    continue
                results = {
                    self.fleet.by_address[ws.address].state.data[key].execution  # type: ignore[attr-defined]
                    for ws in task.who_has
                    if ws.address in self.fleet.by_address and key in self.fleet.by_address[ws.address].state.data
                }
                if not results and not any(self._is_alive(ws.address) for ws in task.who_has):
                    continue  # its holder died, and the run was over before the scheduler could notice
                if len(results) != 1:
                    broken.append(f"wanted task {key!r} has {len(results)} different results")
        if self.gather and outcome.status == "finished":
            broken += [
                f"gathered {r!r} for {k!r}" for k, r in zip(self.work.wanted, self.gathered, strict=True) if r.key != k
            ]
        broken += self.record.broken(self.work, is_finished=outcome.status == "finished", copies=self.policy.copies)
        broken += self.fleet.broken()
        try:
            self.scheduler.validate_state()
            for worker in self.fleet.by_address.values():
                worker.state.validate_state()
        except AssertionError as error:
            broken.append(f"Dask's own validation fails: {error!r}")
        if broken:
            raise InvariantError("; ".join(map(str, broken[:5])) + (f"; {len(broken) - 5} more" if broken[5:] else ""))
