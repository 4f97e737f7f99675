"""The machine of a simulated worker does as Dask's own: same instructions, same counts, same order of its tasks."""

from __future__ import annotations

from typing import Any

import distributed.worker_state_machine as wsm
import pytest
from distributed.worker_state_machine import Instruction, StateMachineEvent, WorkerState

from swarm import twin
from swarm.twin import worker
from swarm.twin.faults import Crash, Fault
from swarm.twin.machine import Machine
from swarm.twin.models import LogNormal
from swarm.twin.surroundings import same_for_every_run

OURS = ("startstops",)
"""What a simulated worker writes into the tasks of its own machine."""


def told(instruction: Instruction) -> dict[str, Any]:
    slots = [name for kind in type(instruction).__mro__ for name in getattr(kind, "__slots__", ())]
    return {"": type(instruction)} | {name: getattr(instruction, name) for name in slots if name not in OURS}


class Beside(Machine):
    """A machine with Dask's own beside it, which is told the same."""

    handled: list[str]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dasks = WorkerState(**options | {"data": {}})

    def handle_stimulus(self, *stims: StateMachineEvent) -> list[Instruction]:
        self.handled.extend(type(stim).__name__ for stim in stims)
        ours, theirs = super().handle_stimulus(*stims), self.dasks.handle_stimulus(*stims)
        assert [told(each) for each in ours] == [told(each) for each in theirs]
        for by_prefix in (True, False):
            assert self.task_counter.current_count(by_prefix) == self.dasks.task_counter.current_count(by_prefix)
        return ours


CRASHES: list[Fault] = [Crash(worker=f"w{i}", at_s=0.2 + 0.15 * i) for i in range(4)]


@pytest.mark.parametrize("faults", [[], CRASHES], ids=["quiet", "crashes"])
def test_it_says_what_dasks_own_says(faults: list[Fault], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Machine", Beside)
    Beside.handled = []
    work = twin.layered(12, 24, LogNormal(0.1, 1.0), output_bytes=500_000_000)
    assert twin.simulate(work, twin.uniform(8), faults=faults).status == "finished"
    expected = {"Compute", "Success", "Gathered", "FreeKeysEvent"}
    if faults:
        expected |= {"GatherDepNetworkFailureEvent", "RemoveWorkerEvent"}
    assert expected <= set(Beside.handled)


@pytest.mark.parametrize("key", ["task-1", ("task", 1, 2), 7, b"task"])
def test_tasks_hash_as_their_keys_do_and_are_told_apart(key: Any) -> None:
    with same_for_every_run(0):
        task, again = wsm.TaskState(key), wsm.TaskState(key)
        assert hash(task) == hash(again) == hash(key)
        assert len({task, again}) == 2
    assert hash(wsm.TaskState(key)) != hash(wsm.TaskState(key))
