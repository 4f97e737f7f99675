"""The death of a worker on Dask's scheduler: its nanny says how it ended, and then it is judged whose fault it was.

The post-mortem is some milliseconds behind the broken connection, on a connection of its own. So what it had is held
back until it has come: a task that ends its worker the moment it starts would end the next one meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from distributed.scheduler import KilledWorker

from scheduler_plugins.decide.blame import Blame, Cause, cause_of
from scheduler_plugins.on_dask.admission import Death
from scheduler_plugins.on_dask.failing import fail
from swarm.agents.watch.black_box import shown
from swarm.protocol import POST_MORTEM, Event, WorkerDied

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.on_dask.admission import Admission

PATIENCE_S = 3.0
"""For a post-mortem: the nanny may be busy, or dead as well."""
MOST_KEPT = 1000
"""Post-mortems that are kept, for `explain`."""
MOST_NAMED = 20
"""Running tasks that an event names."""


class Deaths:
    """Judges deaths.

    Parameters
    ----------
    has_witness
        Whether the nanny of a worker has an agent of ours.
    expects_witness
        Whether it has one, or will: no nanny answers before its worker is up.
    why_condemned
        Address → why we removed it, once; None where we did not.
    hold_back, let_go
        Of a ready task: it may not run yet; it may.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        has_witness: Callable[[str], bool],
        expects_witness: Callable[[WorkerState], bool],
        why_condemned: Callable[[str], str | None],
        hold_back: Callable[[TaskState], None],
        let_go: Callable[[TaskState], None],
        publish: Callable[[Event], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._scheduler = scheduler
        self._admission = admission
        self._has_witness = has_witness
        self._expects_witness = expects_witness
        self._why_condemned = why_condemned
        self._hold_back = hold_back
        self._let_go = let_go
        self._publish = publish
        self._on_failure = on_failure
        self.blame = Blame()
        self._pending: dict[str, Death] = {}
        """Address → a death that nobody has explained yet."""
        self._held: set[TaskState] = set()
        self.records: dict[str, dict[str, Any]] = {}
        """Address → what is known of the end of the worker that was there."""
        self._early: dict[str, Mapping[str, Any]] = {}
        """Address → a post-mortem that came before the scheduler knew of the death."""
        self._idle: dict[str, Death] = {}
        """Address → of a worker that has left with nothing to do: perhaps it was meant to."""
        self.on_idle_death: Callable[[], None] = lambda: None
        """Is told that it was not."""

    # -- told ----------------------------------------------------------------------------------------------------------

    def happened(self, death: Death) -> None:
        """A worker was lost that was not meant to leave, with what it had been given."""
        address = death.worker.address
        if (why := self._why_condemned(address)) is not None:
            self._judge(death, Cause("stopped", why), {})
        elif death.by_memory or not self._has_witness(address):
            self._judge(death, cause_of(None, None, by_nanny=death.by_memory), {})
        elif (report := self._early.pop(address, None)) is not None:
            self._explained(death, report)
        else:
            self._pending[address] = death
            self._admission.excuse(death)
            for task in death.lost:
                if task.state == "queued":
                    self._hold_back(task)
            self._held.update(death.lost)
            loop = self._scheduler.loop.asyncio_loop  # type: ignore[attr-defined]
            loop.call_later(PATIENCE_S, self._give_up_waiting, death)

    def left(self, worker: WorkerState) -> None:
        """A worker has left that had nothing to do; whether it was meant to, its nanny says."""
        address, death = worker.address, Death(worker, {}, set(), by_memory=False)
        if (why := self._why_condemned(address)) is not None:
            self._idle_died(death, Cause("stopped", why), {})
        elif (report := self._early.pop(address, None)) is not None:
            self._idle_explained(death, report)
        elif self._has_witness(address):
            self._idle[address] = death
            if len(self._idle) > MOST_KEPT:
                del self._idle[next(iter(self._idle))]

    def log_event(self, topic: str, message: Any) -> None:
        """Hear what nannies say."""
        if topic != POST_MORTEM or not isinstance(message, Mapping):
            return
        address = str(message.get("worker"))
        if (death := self._pending.pop(address, None)) is not None:
            self._explained(death, message)
        elif (death := self._idle.pop(address, None)) is not None:
            self._idle_explained(death, message)
        elif address in self._scheduler.workers:
            self._early[address] = message
            if len(self._early) > MOST_KEPT:
                del self._early[next(iter(self._early))]

    def transition(self, task: TaskState, start: str, finish: str) -> None:
        """After each transition, while anything is in quarantine."""
        if finish in ("memory", "erred", "forgotten"):
            self.blame.over(task)
        elif start == "processing":
            self.blame.taken(task)

    def holds(self, task: TaskState) -> bool:
        """Whether a ready task waits for a verdict."""
        return task in self._held

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def _give_up_waiting(self, death: Death) -> None:
        address = death.worker.address
        if self._pending.get(address) is death:
            del self._pending[address]
            self._judge(death, cause_of(None, None, by_nanny=False), {})

    def _idle_explained(self, death: Death, report: Mapping[str, Any]) -> None:
        exitcode, oom_kills = report.get("exitcode"), report.get("oom_kills")
        if isinstance(exitcode, int) and exitcode:  # one that is retired ends with 0
            cause = cause_of(exitcode, oom_kills if isinstance(oom_kills, int) else None, by_nanny=False)
            self._idle_died(death, cause, report)

    def _idle_died(self, death: Death, cause: Cause, report: Mapping[str, Any]) -> None:
        self._tell(death, cause, report)
        self.on_idle_death()

    def _explained(self, death: Death, report: Mapping[str, Any]) -> None:
        exitcode, oom_kills = report.get("exitcode"), report.get("oom_kills")
        death = self._as_seen(death, report.get("running"))
        self._judge(
            death,
            cause_of(
                exitcode if isinstance(exitcode, int) else None,
                oom_kills if isinstance(oom_kills, int) else None,
                by_nanny=death.by_memory,
            ),
            report,
        )

    @staticmethod
    def _as_seen(death: Death, running: object) -> Death:
        """What ran there by the worker's own books: ours are behind by what it had not reported yet."""
        if not isinstance(running, list | tuple):
            return death
        keys = {str(key) for key in running}
        return death._replace(ran={task for task in death.lost if shown(task.key) in keys})

    def _judge(self, death: Death, cause: Cause, report: Mapping[str, Any]) -> None:
        try:
            self._tell(death, cause, report)
            self._admission.excuse(death)
            given_up = None
            if cause.kind in ("memory", "unknown"):
                self._admission.died(death, by_memory=cause.kind == "memory")
                if cause.kind == "unknown" and self._expects_witness(death.worker) and len(death.ran) == 1:
                    self.blame.suspected(death.ran, cause.words, time.time())
            else:
                self._admission.leave(death.worker, death.ran)
                if cause.kind == "crash":
                    given_up = self.blame.crashed(death.ran, cause.words, time.time())
            if given_up is not None:
                self._fail(given_up, death.worker)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        finally:
            for task in [task for task in death.lost if task in self._held]:
                self._held.discard(task)
                if task.state == "queued":
                    self._let_go(task)

    def _fail(self, task: TaskState, worker: WorkerState) -> None:
        """As Dask gives up a task, with what it does not know: how its workers ended."""
        deaths = self.blame.crashes[task]
        self.blame.over(task)
        error = KilledWorker(task.key, worker.clean(), len(deaths) - 1)
        error.add_note(
            f"swarm: nothing else ran there, and both times the worker's process ended with it: {'; '.join(deaths)}"
        )
        fail(self._scheduler, task, error)

    def _tell(self, death: Death, cause: Cause, report: Mapping[str, Any]) -> None:
        memory = report.get("memory") or []
        exitcode = report.get("exitcode")
        now_s, address, name = time.time(), death.worker.address, str(death.worker.name)
        self.records[address] = {
            "worker": address,
            "name": name,
            "died_at_s": now_s,
            "cause": cause.words,
            "running": sorted(str(task.key) for task in death.ran)[:MOST_NAMED],
            "memory": [[float(at_s), int(nbytes)] for at_s, nbytes in memory],
            "memory_limit": death.worker.memory_limit,
            "last_lines": [str(line) for line in (report.get("last_lines") or [])],
            "stacks": [str(line) for line in (report.get("stacks") or [])],
        }
        if len(self.records) > MOST_KEPT:
            del self.records[next(iter(self.records))]
        self._publish(
            WorkerDied(
                at_s=now_s,
                worker=address,
                name=name,
                cause=cause.words,
                exitcode=exitcode if isinstance(exitcode, int) else None,
                running=tuple(sorted(str(task.key) for task in death.ran))[:MOST_NAMED],
                memory_bytes=int(memory[-1][1]) if memory else None,
                last_lines=tuple(str(line) for line in (report.get("last_lines") or [])),
            )
        )
