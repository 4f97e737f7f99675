"""Lets the faults of a script happen to the simulated workers and their network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from swarm.errors import TwinError
from swarm.twin import faults as f
from swarm.twin.fleet import Fleet
from swarm.twin.worker import SimulatedWorker

Undo = Callable[[], object]


class Injector:
    """Plays a list of faults."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._fabric = fleet.fabric

    def inject(self, faults: Sequence[f.Fault]) -> None:
        """Plan faults; their times count from now."""
        now_s = self._fabric.loop.now_s
        for number, fault in enumerate(faults):
            self._fleet.to_come += 1
            self._fabric.loop.schedule(now_s + fault.at_s, self._begin, number, fault)

    def _begin(self, number: int, fault: f.Fault) -> None:
        self._fleet.to_come -= 1
        names = getattr(fault, "worker", None) or ",".join(getattr(fault, "workers", ())) or "scheduler"
        self._fleet.record.event(type(fault).__name__, names)
        undo = self._inflict(number, fault)
        if undo is not None and fault.ends_at_s is not None:
            self._fleet.to_come += 1
            for_s = fault.ends_at_s - fault.at_s
            self._fabric.loop.schedule(self._fabric.loop.now_s + for_s, self._end_fault, fault, names, undo)

    def _end_fault(self, fault: f.Fault, names: str, undo: Undo) -> None:
        self._fleet.to_come -= 1
        self._fleet.record.event(f"{type(fault).__name__} is over", names)
        undo()

    def _inflict(self, number: int, fault: f.Fault) -> Undo | None:
        """Begin a fault; returns what ends it."""
        match fault:
            case f.Join(model=model):
                self._fleet.start(model)
                return None
            case f.SchedulerLag(for_s=for_s):
                self._fabric.charge_scheduler(for_s)
                return None
            case f.Partition(workers=names):
                return self._partition(number, names)
        worker = self._fleet.by_name.get(getattr(fault, "worker", ""))
        if worker is None or not worker.is_alive:
            return None  # what is gone has no faults
        return self._inflict_on(worker, number, fault)

    def _inflict_on(self, worker: SimulatedWorker, number: int, fault: f.Fault) -> Undo | None:
        undo: Undo | None = None
        match fault:
            case f.Crash():
                worker.end("killed")
            case f.Hang():
                worker.stopped += 1
                undo = partial(self._go_on, worker, self._freeze(worker, number, 0.0))
            case f.HoldGil():
                worker.let_one_hold_the_gil(number)
                undo = self._freeze(worker, number, 0.0)
            case f.BlockLoop():
                undo = self._freeze(worker, number, 1.0)
            case f.SlowDown(factor=factor):
                worker.brake(number, factor)
                undo = partial(worker.release_brake, number)
            case f.LoseHeartbeats():
                worker.heartbeats_lost += 1
                undo = worker.hear_heartbeats_again
            case f.Leave():
                self._retire(worker)
            case f.Preempt():
                self._preempt(worker, fault)
            case _:
                raise TwinError(f"no simulation can inflict a {type(fault).__name__}; see swarm.twin.faults for others")
        return undo

    def _preempt(self, worker: SimulatedWorker, fault: f.Preempt) -> None:
        if fault.retire:
            self._retire(worker)
        self._fleet.to_come += 1
        self._fabric.loop.schedule(self._fabric.loop.now_s + fault.notice_s, self._taken_away, worker)

    def _freeze(self, worker: SimulatedWorker, number: int, factor: float) -> Undo:
        self._fabric.freeze(worker.process)
        worker.brake(number, factor)

        def thaw() -> None:
            worker.release_brake(number)
            self._fabric.thaw(worker.process)

        return thaw

    @staticmethod
    def _go_on(worker: SimulatedWorker, thaw: Undo) -> None:
        worker.stopped -= 1
        thaw()

    def _taken_away(self, worker: SimulatedWorker) -> None:
        self._fleet.to_come -= 1
        worker.close("retired: preempted")

    def _retire(self, worker: SimulatedWorker) -> None:
        loop = self._fabric.loop
        loop.create_task(
            self._fleet.scheduler.retire_workers(
                workers=[worker.address], close_workers=True, stimulus_id=f"retire-{loop.now_s}"
            )
        )

    def _partition(self, number: int, names: tuple[str, ...]) -> Undo:
        self._fleet.cut[number] = names
        cut = [self._fleet.by_name[name] for name in names if name in self._fleet.by_name]
        self._fabric.cut([process for worker in cut for process in self._fleet.processes_of(worker)], number)
        self._fleet.to_come += 1
        breaks_s = self._fabric.loop.now_s + self._fabric.model.break_after_s
        self._fabric.loop.schedule(breaks_s, self._give_up, number, cut)

        def heal() -> None:
            del self._fleet.cut[number]
            self._fabric.heal(list(self._fabric.processes.values()), number)  # also those that have ended meanwhile

        return heal

    def _give_up(self, number: int, cut: Sequence[SimulatedWorker]) -> None:
        """Both ends close a connection that has been silent for too long."""
        self._fleet.to_come -= 1
        if number not in self._fleet.cut:
            return
        for worker in cut:
            for process in self._fleet.processes_of(worker):
                self._fabric.give_up(process)  # with the news of its end, if it has ended meanwhile
            self._fleet.stream_lost(worker.address)
            for peer in self._fleet.by_address.values():
                if peer.process.cut_off != worker.process.cut_off:
                    peer.peers.lost(worker.address)
                    worker.peers.lost(peer.address)
            worker.close("worker-handle-scheduler-connection-broken")
            self._fabric.give_up(worker.process)
