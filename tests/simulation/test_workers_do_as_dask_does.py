"""Where a simulated worker, nanny or network could easily do otherwise than a real one: each seen on a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from swarm import twin
from swarm.errors import TwinError
from swarm.twin.clock import EPOCH_S
from swarm.twin.faults import Fault, Hang, LoseHeartbeats, Partition, SchedulerLag
from swarm.twin.models import MIB, Constant, Cost, Link, Memory, Network
from swarm.twin.peers import Peers
from swarm.twin.policies import POLICIES, Policy
from tests.support.twin_runs import SOON_S, ends, ideal, joins, of, pinned

GIB = 1024 * MIB
BASELINE = 120 * MIB

Act = Callable[[Scheduler], Awaitable[object]]


class Actor(SchedulerPlugin):
    """Does one thing at a time of a simulation, as a policy would; tells what came of it and when."""

    name = "actor"

    def __init__(self, at_s: float, act: Act) -> None:
        self._at_s = at_s
        self._act = act
        self.answer: Any = None
        self.answered_at_s = -1.0
        self.scheduler: Scheduler

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        if self._at_s > 0:
            self._task = asyncio.get_running_loop().create_task(self._later())
        else:
            await self._act(scheduler)

    async def _later(self) -> None:
        await asyncio.sleep(self._at_s)
        try:
            self.answer = await self._act(self.scheduler)
        except OSError as error:
            self.answer = error
        self.answered_at_s = asyncio.get_running_loop().time() - EPOCH_S

    @property
    def policy(self) -> Policy:
        return Policy("stock and an actor", plugins=lambda _: (self,))


def address_of(scheduler: Scheduler, name: str) -> str:
    return str(next(ws.address for ws in scheduler.workers.values() if ws.name == name))


# -- workers that go ---------------------------------------------------------------------------------------------


def test_a_fetch_from_a_worker_that_is_removed_fails_at_once() -> None:
    """`Worker._handle_remove_worker` closes its connections: nobody waits for one that hangs (real cluster: 45 ms)."""
    tasks = [("a", (), Cost(0.1, 1000)), ("c", (), Cost(2.0, 10)), ("b", ("a", "c"), Cost(0.1))]
    loose: dict[str, dict[Any, Any]] = {
        "workers": {"a": ["w0"], "b": ["w1"], "c": ["w1"]},
        "allow_other_workers": {"a": True},
    }
    evict = Actor(3.0, lambda s: s.remove_worker(address_of(s, "w0"), stimulus_id="evict"))
    outcome = twin.simulate(
        twin.made_up(tasks, annotations=loose), ideal(2), policy=evict.policy, faults=[Hang(worker="w0", at_s=1.0)]
    )
    assert outcome.makespan_s == pytest.approx(3.2, abs=SOON_S)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Partition(workers=("w1",), at_s=1.1, for_s=40.0), "worker-handle-scheduler-connection-broken"),
        (LoseHeartbeats(worker="w1", at_s=1.1, for_s=1000.0), "killed by its nanny"),
    ],
)
def test_a_nanny_starts_again_what_was_killed_but_not_what_closed_itself(fault: Fault, why: str) -> None:
    """`Worker.close` tells the nanny to end too, whatever the reason: a real one with a broken stream was gone."""
    outcome = twin.simulate(twin.independent(4, Constant(650.0)), ideal(2, nanny=True), faults=[fault])
    ((_, what),) = ends(outcome, "w1")
    assert what == f"ended ({why})"
    assert len(joins(outcome, "w1")) == (why == "killed by its nanny")


def test_a_worker_that_missed_its_own_removal_closes_itself() -> None:
    removed = Actor(1.0, lambda s: s.remove_worker(address_of(s, "w1"), stimulus_id="test", close=False))
    outcome = twin.simulate(twin.independent(40, Constant(1.0)), ideal(4, nanny=True), policy=removed.policy)
    ((at_s, what),) = ends(outcome, "w1")
    assert what == "ended (worker-heartbeat-missing)"
    assert at_s < 1.6
    assert not joins(outcome, "w1")


@pytest.mark.parametrize(("work_s", "lingers_s"), [(100.0, 4.0), (2.0, 1.0)])
def test_a_nanny_waits_four_seconds_for_the_threads_of_a_worker(work_s: float, lingers_s: float) -> None:
    """Real cluster: `restart_workers` answered after 0.3 s when the worker was idle, after 4.0 s when it was busy."""

    async def restart(scheduler: Scheduler) -> None:
        await scheduler.restart_workers([address_of(scheduler, "w0")], wait_for_workers=False, stimulus_id="test")

    actor = Actor(1.0, restart)
    outcome = twin.simulate(twin.independent(1, Constant(work_s)), ideal(1, nanny=True), policy=actor.policy)
    ((at_s, what),) = ends(outcome)
    assert at_s == pytest.approx(1.0, abs=SOON_S)
    assert what == "ended (killed by its nanny)"
    assert actor.answered_at_s == pytest.approx(1.0 + lingers_s, abs=SOON_S)
    assert joins(outcome, "w0") == [pytest.approx(1.0 + lingers_s + 2.0, abs=SOON_S)]


# -- partitions --------------------------------------------------------------------------------------------------


def test_a_partition_is_around_the_nanny_too() -> None:
    async def kill(scheduler: Scheduler) -> None:
        nanny: Any = scheduler.rpc(next(ws.nanny for ws in scheduler.workers.values() if ws.name == "w1"))
        await nanny.kill(reason="test")

    actor = Actor(3.0, kill)
    faults = [Partition(workers=("w1",), at_s=1.0, for_s=9.0)]
    outcome = twin.simulate(
        twin.independent(40, Constant(1.0)), ideal(2, nanny=True), policy=actor.policy, faults=faults
    )
    ((at_s, what),) = ends(outcome, "w1")
    assert at_s == pytest.approx(10.0, abs=SOON_S)
    assert what == "ended (killed by its nanny)"


def test_who_waits_for_an_answer_from_behind_a_partition_is_told_when_the_connection_breaks() -> None:
    async def ask(scheduler: Scheduler) -> object:
        worker: Any = scheduler.rpc(address_of(scheduler, "w1"))
        await worker.ping()
        await asyncio.sleep(2.0)
        return await worker.keys()

    actor = Actor(0.5, ask)
    twin.simulate(
        twin.independent(80, Constant(1.0)),
        ideal(2),
        policy=actor.policy,
        faults=[Partition(workers=("w1",), at_s=1.0)],
    )
    assert isinstance(actor.answer, OSError)
    assert actor.answered_at_s == pytest.approx(31.0, abs=SOON_S)


# -- heartbeats --------------------------------------------------------------------------------------------------


def beats_of(*faults: Fault) -> list[float]:
    """When heartbeats of w0 were handled."""
    at_s: list[float] = []

    async def listen(scheduler: Scheduler) -> None:
        handle = scheduler.handlers["heartbeat_worker"]

        def heard(address: str, **message: Any) -> Any:
            if scheduler.workers[address].name == "w0":
                at_s.append(asyncio.get_running_loop().time() - EPOCH_S)
            return handle(address=address, **message)

        scheduler.handlers["heartbeat_worker"] = heard

    outcome = twin.simulate(
        twin.independent(40, Constant(1.0)), ideal(2), policy=Actor(0.0, listen).policy, faults=faults
    )
    assert outcome.status == "finished"
    return at_s


def test_a_worker_has_one_heartbeat_under_way() -> None:
    """The next one waits for the answer to the last one (Tornado's `PeriodicCallback`), so that none pile up."""
    during_s = [at_s for at_s in beats_of(SchedulerLag(at_s=3.0, for_s=8.0)) if 3.01 < at_s < 11.5]
    assert len(during_s) <= 2
    after_s = [at_s for at_s in beats_of(Partition(workers=("w0",), at_s=3.0, for_s=8.0)) if 3.01 < at_s < 11.4]
    assert len(after_s) == 1
    assert after_s == [pytest.approx(11.0, abs=SOON_S)]


def test_a_worker_that_goes_on_sends_the_heartbeat_that_was_due_at_once() -> None:
    beats_s = beats_of(Hang(worker="w0", at_s=3.0, for_s=5.3))
    assert [at_s for at_s in beats_s if 3.01 < at_s < 8.7] == [pytest.approx(8.3, abs=SOON_S)]


# -- memory ------------------------------------------------------------------------------------------------------


def test_a_peak_between_two_looks_of_the_nanny_is_survived() -> None:
    def run(peak_s: float) -> list[tuple[float, str]]:
        work = twin.made_up([("wait", (), Cost(1.01)), ("peak", ("wait",), Cost(peak_s, 0, 880 * MIB))])
        return ends(twin.simulate(work, ideal(1, memory=Memory(GIB), nanny=True), time_limit_s=1.5))

    assert run(0.05) == []
    assert [what for _, what in run(0.15)] == ["ended (memory)"]


def test_a_worker_pauses_at_the_next_look_of_its_monitor() -> None:
    big = [(f"big-{i}", (), Cost(3.0, 1000, 250 * MIB)) for i in range(3)]
    small = [("tick", (), Cost(0.02, 0)), *((f"small-{i}", ("tick",), Cost(0.02, 0)) for i in range(20))]
    outcome = twin.simulate(twin.made_up([*big, *small]), ideal(1, 4, memory=Memory(GIB)))
    early = [e for e in outcome.executions if str(e.key).startswith("small") and e.start_s < 2.9]
    assert 1 <= len(early) <= 5  # one after another in the tenth of a second before the worker pauses
    assert max(entry.start_s for entry in early) < 0.1


def test_results_are_spilled_down_to_the_target_and_the_ones_in_use_last() -> None:
    """`SpillBuffer`: what is beyond 60 % of the limit, of results alone; first what was not used for longest."""
    parts = [(f"part-{i}", (), Cost(0.1, 100 * MIB), "") for i in range(7)]
    first = ("first", ["part-0"], Cost(0.1, 0), "")
    work = pinned(
        [*parts, first, ("again", ["first", "part-0"], Cost(1.0, 0), "")],
        wanted=[*(part[0] for part in parts), "again"],
    )
    memory = Memory(GIB, baseline_bytes=MIB, disk_bytes_per_s=100 * MIB)
    outcome = twin.simulate(work, ideal(1, memory=memory))
    # 614 of 700 MiB stay: one part is read back, and another one goes in its place.
    again = of(outcome, "again")
    assert again.stop_s - again.start_s == pytest.approx(1.0, abs=SOON_S)


def test_reading_from_disk_is_not_taken_for_computing() -> None:
    parts = [(f"part-{i}", (), Cost(0.1, 100 * MIB), "") for i in range(10)]
    work = pinned([*parts, ("last-0", [f"part-{i}" for i in range(10)], Cost(1.0, 28), "")])
    actor = Actor(100.0, lambda _: asyncio.sleep(0))
    memory = Memory(int(1.4 * GIB), disk_bytes_per_s=100 * MIB)
    outcome = twin.simulate(work, ideal(1, memory=memory), policy=actor.policy)
    last = of(outcome, "last-0")
    assert last.stop_s - last.start_s > 1.9
    group = actor.scheduler.task_prefixes["last"]
    assert group.duration_average == pytest.approx(1.0, abs=SOON_S)
    assert group.all_durations["disk-read"] > 0.9


def test_a_paused_worker_sends_to_one_peer_at_a_time_even_on_its_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[str] = []
    answer = Peers._busy

    def noted(self: Peers, transfer: Any) -> None:
        busy.append(transfer.peer)
        answer(self, transfer)

    monkeypatch.setattr(Peers, "_busy", noted)
    tasks = [
        ("a", (), Cost(0.1, 10 * MIB), "w0"),
        ("b", (), Cost(0.1, 10 * MIB), "w0"),
        ("fill", ("a", "b"), Cost(30.0, 0, 740 * MIB), "w0"),
        ("late", (), Cost(1.0, 0), "w1"),
        ("on-1", ("a", "late"), Cost(0.1), "w1"),
        ("on-2", ("b", "late"), Cost(0.1), "w2"),
    ]
    cluster = twin.uniform(3, 2, workers_per_host=3, memory=Memory(GIB), network=Network(same_host=Link(0.0, 10 * MIB)))
    outcome = twin.simulate(pinned(tasks), cluster)
    assert outcome.status == "finished"
    assert busy


# -- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda s: s.broadcast(msg={"op": "run"}), "the simulated worker w0 can't answer 'run'"),
        (lambda s: s.get_worker_logs(), "the simulated worker w0 can't answer 'get_logs'"),
        (lambda s: s.broadcast(msg={"op": "run"}, nanny=True), "the simulated nanny w0 can't answer 'run'"),
    ],
)
def test_a_request_that_needs_a_real_worker_ends_the_simulation(act: Act, what: str) -> None:
    with pytest.raises(TwinError, match=what):
        twin.simulate(twin.independent(8, Constant(1.0)), ideal(1, nanny=True), policy=Actor(1.0, act).policy)


def test_plugins_of_workers_and_nannies_end_the_simulation() -> None:
    async def install_worker(scheduler: Scheduler) -> None:
        scheduler.worker_plugins["of-a-worker"] = b""

    async def install_nanny(scheduler: Scheduler) -> None:
        scheduler.nanny_plugins["of-a-nanny"] = b""

    for act, what in (
        (install_worker, "w0 can't have the plugin of-a-worker"),
        (install_nanny, "w0 can't have the plugin of-a-nanny"),
    ):
        with pytest.raises(TwinError, match=what):
            twin.simulate(twin.independent(1), ideal(1, nanny=True), policy=Actor(0.0, act).policy)


def test_data_can_be_replicated_and_deleted() -> None:
    async def spread(scheduler: Scheduler) -> list[int]:
        task = next(task for task in scheduler.tasks.values() if task.who_has)
        copies = []
        for wanted in (3, 1):
            await scheduler.replicate(keys=[task.key], n=wanted)
            copies.append(len(task.who_has or ()))
        return copies

    actor = Actor(2.5, spread)
    outcome = twin.simulate(twin.independent(16, Constant(1.0)), ideal(4), policy=actor.policy, validate=True)
    assert outcome.status == "finished"
    assert actor.answer == [3, 1]


# -- pages -------------------------------------------------------------------------------------------------------


def test_swarm_says_truly_why_it_has_no_page() -> None:
    actor = Actor(0.5, lambda _: asyncio.sleep(0))
    swarm = POLICIES["swarm"]
    policy = Policy("swarm", swarm.preload, swarm.config, lambda _: (actor,), swarm.agents)
    twin.simulate(twin.independent(8, Constant(1.0)), ideal(2), policy=policy)
    (plugin,) = [p for p in actor.scheduler.plugins.values() if type(p).__name__ == "SwarmPlugin"]
    assert plugin.page.reason.startswith("the scheduler runs without Dask's dashboard")  # type: ignore[attr-defined]
