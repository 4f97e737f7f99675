"""A simulation that can't end says so: which tasks are stuck and why, at once and not after hours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import dask
import pytest
from dask import delayed

from swarm import twin
from swarm.errors import DeadlockError, TwinError
from swarm.twin.faults import Crash, Fault, Hang, LoseHeartbeats, Partition
from swarm.twin.models import MIB, ClusterModel, Constant, Cost, Memory
from swarm.twin.policies import Policy
from tests.support.twin_runs import ideal, pinned

NO_TTL = Policy("no ttl", config={"distributed.scheduler.worker-ttl": None})


def stuck(work: twin.Work, cluster: ClusterModel, faults: Sequence[Fault] = (), policy: str | Policy = "stock") -> str:
    began_s = time.process_time()
    with pytest.raises(DeadlockError) as caught:
        twin.simulate(work, cluster, faults=faults, policy=policy)
    assert time.process_time() - began_s < 10.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_workers_are_left() -> None:
    told = stuck(twin.independent(8, Constant(1.0)), ideal(1), [Crash(worker="w0", at_s=1.5)])
    assert told.startswith("nothing has moved for 7")
    assert "8 tasks hold up the rest: 'task-0': there are no workers" in told
    assert told.endswith("and 3 more")


def test_nobody_has_the_resource() -> None:
    with dask.annotate(resources={"GPU": 2}):
        asks = delayed(abs)(1, dask_key_name="asks")
    work = twin.from_graph(delayed(abs)(asks, dask_key_name="waits"), Constant(1.0))
    told = stuck(work, ideal(2, resources={"w0": {"GPU": 1.0}}))
    assert "'asks': it is no-worker: no worker has the resources {'GPU': 2} that it asks for" in told


def test_the_only_worker_that_a_task_may_run_on_is_gone() -> None:
    told = stuck(pinned([("a", (), Cost(5.0), "w1")]), ideal(2), [Crash(worker="w1", at_s=1.0)])
    assert "'a': it is no-worker: no worker has the workers ['sim://h1:40002'] that it asks for" in told


def test_a_worker_that_hangs_for_ever_without_a_ttl() -> None:
    told = stuck(twin.independent(8, Constant(1.0)), ideal(2), [Hang(worker="w1", at_s=0.5)], NO_TTL)
    assert "it is with worker w1, which stands still" in told


@pytest.mark.parametrize("nanny", [False, True])
@pytest.mark.parametrize("policy", ["stock", NO_TTL, "swarm"])
def test_a_partition_for_ever_around_all_workers(nanny: bool, policy: str | Policy) -> None:
    cut = [Partition(workers=("w0", "w1"), at_s=0.5)]
    told = stuck(twin.independent(8, Constant(1.0)), ideal(2, nanny=nanny), cut, policy)
    assert "there are no workers" in told


def test_workers_that_stay_paused() -> None:
    full = Memory(1024 * MIB, baseline_bytes=850 * MIB)
    told = stuck(twin.independent(8, Constant(0.1)), ideal(1, memory=full))
    assert "it is queued: 0 of 1 workers take tasks, and none has room" in told


def test_the_root_of_the_waiting_is_told_not_what_waits_for_it() -> None:
    chain = [
        ("first", (), Cost(5.0), "w1"),
        ("second", ("first",), Cost(1.0), ""),
        ("third", ("second",), Cost(1.0), ""),
    ]
    told = stuck(pinned(chain), ideal(2), [Crash(worker="w1", at_s=1.0)])
    assert "1 tasks hold up the rest: 'first': " in told
    assert "'third'" not in told


def test_long_tasks_are_no_standstill() -> None:
    outcome = twin.simulate(twin.independent(2, Constant(2000.0)), ideal(1))
    assert outcome.makespan_s == pytest.approx(4000.0, abs=1.0)


def test_what_will_still_happen_is_waited_for() -> None:
    """A worker that comes back after 20 minutes, in which nothing moves."""
    slow_start = twin.WorkerModel("w0", nanny=True, restart_s=1200.0)
    outcome = twin.simulate(
        twin.independent(1, Constant(1.0)), ClusterModel([slow_start]), faults=[Crash(worker="w0", at_s=0.5)]
    )
    assert outcome.makespan_s == pytest.approx(1201.5, abs=0.1)


def test_a_worker_that_is_silent_for_an_hour_is_waited_for_without_a_ttl() -> None:
    outcome = twin.simulate(
        twin.independent(1, Constant(1.0)),
        ideal(1),
        faults=[Hang(worker="w0", at_s=0.5, for_s=3600.0), LoseHeartbeats(worker="w0", at_s=0.0)],
        policy=NO_TTL,
    )
    assert outcome.makespan_s == pytest.approx(3601.0, abs=0.1)


def test_a_cluster_without_workers_is_refused() -> None:
    with pytest.raises(TwinError, match="the cluster has no workers, and none joins"):
        twin.simulate(twin.independent(1), ideal(0))


def test_a_fault_of_nobody_is_refused() -> None:
    with pytest.raises(TwinError, match="names worker 'w9', which does not exist"):
        twin.simulate(twin.independent(1), ideal(2), faults=[Crash(worker="w9", at_s=1.0)])


def test_a_policy_of_no_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(TwinError, match=r"policy 'swrm' is not known.*did you mean 'swarm'"):
        twin.simulate(twin.independent(1), ideal(1), policy="swrm")


def test_the_error_brings_the_simulation_along() -> None:
    with pytest.raises(DeadlockError) as caught:
        twin.simulate(twin.independent(1), ideal(1), faults=[Crash(worker="w0", at_s=0.0)], seed=5)
    case = caught.value.case
    assert case is not None
    assert (case.ends, case.seed, case.faults) == ("deadlock", 5, [Crash(worker="w0", at_s=0.0)])
    assert any("error.case.save(" in note for note in caught.value.__notes__)


def test_a_fault_that_nobody_can_inflict_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fault, "KINDS", dict(Fault.KINDS))  # where the new class enters itself

    @dataclass(frozen=True, kw_only=True)
    class Flood(Fault):
        worker: str

    with pytest.raises(TwinError, match="no simulation can inflict a Flood"):
        twin.simulate(twin.independent(2), twin.uniform(1), faults=[Flood(worker="w0", at_s=0.05)])
