"""Durable runs on the scheduler: has results stored as they come, and sends graphs again after a crash.

The store is the one truth about what is there: a run is a folder, and a result is a file that is complete. Nothing else
has to agree with it after a crash, neither the journal nor what any process remembers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.decide.recovery import Key, Ledger, Policy
from scheduler_plugins.io.results import GRAPHS, ResultStore, name_of
from scheduler_plugins.on_dask.resuming import (
    Graphs,
    KeptGraph,
    KnownKeys,
    annotations_of,
    culled,
    packed,
    unpacked,
)
from scheduler_plugins.on_dask.writing import Order, Writing
from swarm.agents.storing import STORED, Storing
from swarm.errors import DurabilityError, SwarmError
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

    from scheduler_plugins.on_dask.guard import Guard
    from scheduler_plugins.on_dask.membership import Membership
    from scheduler_plugins.on_dask.runs import Runs

PART = "durability"
"""For the guard."""
SUBMITTED = "swarm-durable-graph"
"""Message of a client, in the place of Dask's `update-graph`."""
WRITTEN_S = 5.0
"""So long a client that has fetched its results waits for what is still being written of them, to be removed too."""
ITS_CLIENT = object()
"""In the place of a child, for a result that somebody wants."""

Message = Mapping[str, Any]
"""What Dask's client sends to submit a graph (`Client._graph_to_futures`)."""


@dataclass(eq=False)
class DurableRun:
    """A run whose results outlive the cluster."""

    run: str
    name: str
    client: str
    ledger: Ledger
    off: str = ""
    """Why it is not durable any more; its tasks go on."""
    stored: int = 0
    unstorable: int = 0
    """Results that can't be pickled; they would be computed again."""
    needs: set[str] = field(default_factory=set)
    """Runs whose results its tasks use."""
    is_fetched: bool = False


class Durable(SchedulerPlugin):
    """A plugin of Dask's scheduler of its own, there only while a durable run is: plain work pays nothing for it.

    Parameters
    ----------
    url
        Of the result store; None: there is none, and durable runs are refused.
    quota_bytes
        That the store may hold.
    """

    name = "swarm-durable"

    def __init__(
        self,
        scheduler: Scheduler,
        guard: Guard,
        members: Membership,
        runs: Runs,
        url: str | None,
        quota_bytes: float,
        policy: Policy | None = None,
    ) -> None:
        self.durable: dict[str, DurableRun] = {}
        self._scheduler = scheduler
        self._guard = guard
        self._members = members
        self._runs = runs
        self._url = url
        self._quota_bytes = quota_bytes
        self._policy = policy or Policy()
        self._store: ResultStore | None = None
        self._writing = Writing(scheduler, self._policy, self._on_lost)
        self._by_key: dict[Key, DurableRun] = {}
        self._arriving: dict[tuple[str, frozenset[Key]], DurableRun] = {}
        self._graphs: Graphs | None = None
        """Of what was resumed, for the day on which a stored result is damaged."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swarm-durable")
        self._log = get_logger(agent="scheduler", part=PART)

    # -- life ------------------------------------------------------------------------------------------------------

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """What clients and workers ask."""
        return {
            "swarm_durable_begin": self.begin,
            "swarm_durable_resume": self.resume,
            "swarm_durable_open": self.open,
            "swarm_durable_list": self.list,
            "swarm_durable_fetched": self.fetched,
            "swarm_durable_damaged": self.damaged,
        }

    def connect(self) -> None:
        """Listen to the streams of clients and workers."""
        self._scheduler.stream_handlers[SUBMITTED] = self.submitted
        self._scheduler.stream_handlers[STORED] = self.on_stored

    def disconnect(self) -> None:
        """Stop. The streams keep handlers: a message without one would close the connection."""

        async def submitted(client: str, graph: dict[str, Any], **_: Any) -> None:
            await self._scheduler.update_graph(client=client, **graph)

        self._scheduler.stream_handlers[SUBMITTED] = submitted
        self._scheduler.stream_handlers[STORED] = lambda **_: None
        self._detach()
        self._thread.shutdown(wait=False)

    def _detach(self) -> None:
        if self._scheduler.plugins.get(self.name) is self:
            del self._scheduler.plugins[self.name]

    async def _beside(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """Call it in the thread for the store and for graphs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)

    async def _opened(self) -> ResultStore:
        if PART in self._guard.off:
            raise DurabilityError(f"runs can't be durable here: {self._guard.off[PART]}")
        if self._url is None:
            no = "the scheduler has no place for results of durable runs"
            raise DurabilityError(f"{no}: start it with the setting state_directory or result_store")
        if self._store is None:
            self._store = await self._beside(ResultStore, self._url)
            self._writing.url = self._store.url
        return self._store

    # -- what clients and workers ask ------------------------------------------------------------------------------

    async def begin(self, run: str, name: str, client: str) -> dict[str, Any]:
        """A client is about to submit a durable run; makes room for it."""
        try:
            store = await self._opened()
            removed, left = await self._beside(store.make_room, self._quota_bytes, frozenset(self.durable))
            if removed:
                self._log.warning("durable_runs_removed", runs=removed, reason="result_quota is used up")
            if left > self._quota_bytes:
                full = f"{store.url} holds {left:.3g} bytes of runs under way, its quota is {self._quota_bytes:.3g}"
                raise DurabilityError(f"{full}: raise result_quota, or fetch their results")
        except SwarmError as error:
            return _refusal(error)
        self._begun(run, name, client)
        return {"url": store.url}

    async def submitted(
        self, client: str, run: str, name: str, described: bytes, number: int, graph: dict[str, Any], **_: Any
    ) -> None:
        """A graph of a durable run: Dask gets it at once, and the store beside that."""
        known = self.durable.get(run)
        if known is None or known.off:
            await self._scheduler.update_graph(client=client, **graph)
            return
        keeping = asyncio.ensure_future(self._keep_graph(known, number, KeptGraph(name, described, graph)))
        await self._to_dask(known, client, set(graph["keys"]), graph)
        await keeping

    async def resume(self, client: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Runs that a client had submitted to a scheduler that is gone, or found in the store.

        Parameters
        ----------
        runs
            Of each: `run`, `name`, `described`, `keys` that are still wanted, and `graphs`: the messages as they were
            sent, or nothing to take them from the store.
        """
        graphs, places = Graphs(), dict[str, tuple[str, str]]()
        resumed: list[tuple[DurableRun, set[Key], Sequence[Message]]] = []
        for asked in runs:
            known = self.durable.get(asked["run"]) or self._begun(asked["run"], asked["name"], client)
            known.client, messages, names = client, asked["graphs"], dict[str, int]()
            try:
                store = await self._opened()
                names = await self._beside(store.names, known.run)
                if not messages:
                    contents = await self._beside(store.read_graphs, known.run)
                    messages = [unpacked(content).message for content in contents]
                places.update(dict.fromkeys(names, (store.url, known.run)))
            except (SwarmError, FileNotFoundError) as error:
                if not messages:
                    return _refusal(DurabilityError(f"run {known.run} can't be resumed: {error}"))
                self._give_up(known, str(error))  # it runs again from its beginning
            for number, message in enumerate(messages):
                if not known.off and f"{GRAPHS}{number:06d}" not in names:
                    await self._keep_graph(known, number, KeptGraph(asked["name"], asked["described"], message))
                await self._beside(graphs.add, message)
            resumed.append((known, set(asked["keys"]), messages))
        self._graphs = graphs
        answer: dict[str, Any] = {}
        for known, keys, messages in resumed:
            if keys:
                answer[known.run] = await self._again(known, keys, graphs, places, messages)
        return answer

    async def open(self, run: str) -> dict[str, Any]:
        """What the store has of a run, for a client that wants to resume it."""
        try:
            store = await self._opened()
            found = [each.run for each in await self._beside(store.runs)]
            matches = [each for each in found if each == run] or [each for each in found if each.startswith(run)]
            if len(matches) != 1:
                what = f"{len(matches)} stored runs begin with" if matches else f"{store.url} has no run"
                some = ", ".join((matches or found)[-3:])
                raise DurabilityError(f"{what} {run!r}" + (f" (the latest are {some})" if some else ""))
            kept = [unpacked(content) for content in await self._beside(store.read_graphs, matches[0])]
        except FileNotFoundError:
            return _refusal(DurabilityError(f"run {run} can't be resumed: its graph is not stored"))
        except SwarmError as error:
            return _refusal(error)
        keys = dict.fromkeys(key for graph in kept for key in graph.message["keys"])
        return {"run": matches[0], "name": kept[0].name, "described": kept[0].described, "keys": [*keys]}

    async def list(self) -> dict[str, Any]:
        """The runs that the store has, the newest last."""
        try:
            store = await self._opened()
            stored = await self._beside(store.runs)
        except SwarmError as error:
            return _refusal(error)
        rows = [
            {
                "run": each.run,
                "size_bytes": each.size_bytes,
                "changed_at_s": each.changed_at_s,
                **self._summary(each.run),
            }
            for each in stored
        ]
        return {"url": store.url, "runs": rows}

    async def fetched(self, run: str) -> dict[str, Any]:
        """A client has all that it wanted of a run: what is stored of it goes, once no other run rests on it."""
        known = self.durable.get(run)
        if known is not None:
            known.is_fetched = True
        try:
            store = await self._opened()
            if known is None:
                await self._remove(store, run)
            needed = {need for each in self.durable.values() if not each.is_fetched for need in each.needs}
            for over in [each for each in self.durable.values() if each.is_fetched and each.run not in needed]:
                self._end(over, "its results were fetched")
                await self._remove(store, over.run)
        except SwarmError as error:
            return _refusal(error)
        return {}

    async def damaged(self, run: str, key: Key, reason: str) -> dict[str, Any]:
        """A worker found that a stored result is of no use: the key gets back the task that computes it."""
        self._log.error("stored_result_recomputed", run=run, key=str(key), reason=reason)
        graphs, known, tasks = self._graphs, self._by_key.get(key), self._scheduler.tasks
        if key not in tasks or graphs is None or known is None or key not in graphs.tasks:
            return {}
        known.ledger.failed(key, 0.0)
        needs = set(graphs.tasks[key].dependencies)
        if needs:
            store = await self._opened()
            names = await self._beside(store.names, run)
            places = {name: (store.url, run) for name in names if name != name_of(key)}
            await self._again(known, needs, graphs, places, [], but={key})
        ts = tasks.get(key)
        stimulus = f"swarm-damaged-{time.time()}"
        if ts is not None:
            ts.run_spec = graphs.tasks[key]
            for need in needs:
                ts.add_dependency(tasks[need])
            self._scheduler.transitions({key: "released"}, stimulus_id=stimulus)
        if needs:
            self._scheduler.client_releases_keys(keys=needs, client=known.client, stimulus_id=stimulus)
        return {}

    # -- Dask's hooks ----------------------------------------------------------------------------------------------

    def update_graph(
        self, scheduler: Scheduler, *, client: str, keys: Collection[Key], tasks: Collection[Key], **kwargs: Any
    ) -> None:
        known = self._arriving.get((client, frozenset(keys)))
        if known is not None:
            # Dask names the tasks of other graphs too on which this one rests; they stay with the run that came first.
            known.needs.update({self._by_key.setdefault(key, known).run for key in tasks} - {known.run})

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        known = self._by_key.get(key)
        if known is None:
            return
        if finish == "memory":
            if start == "processing" and not known.off and self._guard.is_on(PART):
                with self._guard(PART):
                    self._finished(known, self._scheduler.tasks[key], kwargs)
        elif finish == "forgotten":
            known.ledger.forgotten(key)
            del self._by_key[key]

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._writing.worker_left(worker)
        self._rest()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        for known in [each for each in self.durable.values() if each.client == client]:
            self._end(known, "its client left")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _finished(self, known: DurableRun, ts: TaskState, details: Mapping[str, Any]) -> None:
        spans = details.get("startstops") or ()
        took_s = sum(span["stop"] - span["start"] for span in spans if span["action"] == "compute")
        worker, size_bytes = details.get("worker"), max(ts.nbytes, 0)
        if worker is None or ts.actor or not self._members.runs_agent(worker, Storing.name):
            return
        if known.ledger.finished(ts.key, took_s, size_bytes, self._writing.backlog_s):
            self._writing.order(worker, Order(known.run, ts.key, size_bytes, took_s))

    def on_stored(self, worker: str, run: str, key: Key, failure: str, reason: str, **_: Any) -> None:
        """A worker has stored a result, or not; `failure` is what is to blame: `store`, `value`, or it is `gone`."""
        order = self._writing.answered(worker, run, key)
        self._rest()
        known = self.durable.get(run)
        if known is None or order is None:
            return
        if not failure:
            known.stored += 1
            return
        self._on_lost(order)
        if failure == "store":
            self._give_up(known, reason)
        elif failure == "value":
            known.unstorable += 1
            if known.unstorable & (known.unstorable - 1) == 0:  # 1, 2, 4, 8, …
                self._log.warning("result_unstorable", run=run, key=str(key), reason=reason, count=known.unstorable)

    def _on_lost(self, order: Order) -> None:
        known = self.durable.get(order.run)
        if known is not None:
            known.ledger.failed(order.key, order.took_s)

    async def _to_dask(self, known: DurableRun, client: str, keys: set[Key], message: Message) -> None:
        arriving = (client, frozenset(keys))
        self._arriving[arriving] = known
        try:
            await self._scheduler.update_graph(client=client, **{**message, "keys": keys})
        finally:
            self._arriving.pop(arriving, None)

    async def _again(
        self,
        known: DurableRun,
        keys: set[Key],
        graphs: Graphs,
        places: Mapping[str, tuple[str, str]],
        messages: Sequence[Message],
        but: Collection[Key] = (),
    ) -> dict[str, int]:
        """Send what is left to do for some keys. `places`: name of a file → URL of the store and run there."""
        there = KnownKeys(self._scheduler.tasks, but)
        plan, expr = await self._beside(culled, graphs, keys, places, there)
        known.ledger.stored.update(plan.load)
        known.stored += len(plan.load)
        if messages and self._guard.is_on("runs"):
            with self._guard("runs"):
                self._runs.announced(known.run, known.name, known.client, keys, time.time())
        message = {
            "expr_ser": expr,
            "span_metadata": messages[0]["span_metadata"] if messages else {"collections": []},
            "internal_priority": None,
            "submitting_task": None,
            "annotations": annotations_of(messages),
        }
        await self._to_dask(known, known.client, keys, message)
        self._log.warning("durable_run_resumed", run=known.run, loads=len(plan.load), runs_again=len(plan.run))
        return {"load": len(plan.load), "run": len(plan.run)}

    async def _keep_graph(self, known: DurableRun, number: int, graph: KeptGraph) -> None:
        try:
            store = await self._opened()
            await self._beside(lambda: store.write_graph(known.run, number, packed(graph)))
        except SwarmError as error:
            self._give_up(known, str(error))
        except Exception as error:  # noqa: BLE001 - what can't be pickled raises what it likes
            self._give_up(known, f"its graph can't be stored ({type(error).__name__}: {error})")

    def _give_up(self, known: DurableRun, reason: str) -> None:
        """The run goes on without durability, and everybody hears of it."""
        if not known.off:
            known.off = reason
            self._writing.called_off(known.run)
            self._log.critical("run_not_durable", run=known.run, reason=reason, consequence="it goes on without")
            self._guard.switch_off(f"{PART} of run {known.run}", reason)

    def _begun(self, run: str, name: str, client: str) -> DurableRun:
        tasks = self._scheduler.tasks

        def parents(key: Key) -> list[Key]:
            ts = tasks.get(key)
            return [] if ts is None else [other.key for other in ts.dependencies]

        def children(key: Key) -> list[Any]:
            ts = tasks.get(key)
            if ts is None:
                return []
            needed_by: list[Any] = [other.key for other in ts.dependents]
            return [*needed_by, ITS_CLIENT] if ts.who_wants else needed_by

        known = self.durable[run] = DurableRun(run, name, client, Ledger(self._policy, parents, children))
        if self.name not in self._scheduler.plugins:
            self._scheduler.add_plugin(self, name=self.name)
        return known

    def _end(self, known: DurableRun, why: str) -> None:
        """Let go of a run; what is stored of it stays."""
        known.off = known.off or why
        self._writing.called_off(known.run)
        self._by_key = {key: owner for key, owner in self._by_key.items() if owner is not known}
        self.durable.pop(known.run, None)
        if not self.durable:
            self._graphs = None
        self._rest()

    def _rest(self) -> None:
        """Plain work pays nothing, once no worker writes any more."""
        if not self.durable and not len(self._writing):
            self._detach()

    async def _remove(self, store: ResultStore, run: str) -> None:
        """Remove what is stored of a run that is over, and what workers are still writing of it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WRITTEN_S):
                await self._writing.carried_out(run)
        await self._beside(store.remove, run)
        if any(self._writing.of(run)):
            self._scheduler._ongoing_background_tasks.call_soon(self._remove_late, store, run)

    async def _remove_late(self, store: ResultStore, run: str) -> None:
        await self._writing.carried_out(run)
        try:
            await self._beside(store.remove, run)
        except SwarmError as error:
            self._log.warning("stored_results_left", run=run, reason=str(error))

    def _summary(self, run: str) -> dict[str, Any]:
        """What a client sees of a run that is under way; msgpack types only."""
        known = self.durable.get(run)
        if known is None:
            return {}
        return {
            "name": known.name,
            "client": known.client,
            "off": known.off,
            "stored": known.stored,
            "unstorable": known.unstorable,
            "exposed_s": known.ledger.exposed_s,
            "waiting": sum(1 for _ in self._writing.of(run)),
        }


def _refusal(error: SwarmError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}
