"""What a simulation tells: makespan, executions, what went wrong; saved as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.twin.record import Executed

if TYPE_CHECKING:
    from bokeh.plotting import figure


@dataclass
class Outcome:
    """The end of a simulation. All times are virtual seconds after the submission, but for `cpu_s`."""

    work: str
    policy: str
    seed: int
    status: str
    """finished, failed (a wanted task has an error), or time limit."""
    makespan_s: float
    """Until the client knew of every wanted task."""
    tasks: int
    workers: int
    threads: int
    executions: Sequence[Executed]
    events: Sequence[tuple[float, str, str]]
    """(time, what, worker): workers that joined and ended, faults."""
    failed: Mapping[str, str]
    steals: int
    """Tasks that a worker let go for another one."""
    steal_requests: int
    transfers: int
    transferred_bytes: int
    scheduler_cpu_s: float
    """What the model charged."""
    messages: int
    """To the scheduler."""
    peak_bytes: Mapping[str, int]
    """Worker → most memory of its process, where it has a limit."""
    trace_hash: str
    hash_seed: str
    loop_events: int
    cpu_s: float = 0.0
    """Real CPU seconds that the simulation took."""
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Outcome {self.work} on {self.workers} workers, {self.policy}: {self.status} "
            f"after {self.makespan_s:.3f} s, {len(self.executions)} executions>"
        )

    @property
    def reruns(self) -> int:
        """Executions beyond the first of each task."""
        counts = Counter(entry.key for entry in self.executions)
        return sum(count - 1 for count in counts.values())

    @property
    def tasks_per_cpu_s(self) -> float:
        return self.tasks / self.cpu_s if self.cpu_s else float("inf")

    @property
    def busy_share(self) -> float:
        """Of all threads' time until the makespan, the share in which a task ran."""
        busy_s = sum(max(0.0, min(e.stop_s, self.makespan_s) - e.start_s) for e in self.executions if e.stop_s >= 0)
        return busy_s / (self.threads * self.makespan_s) if self.makespan_s else 0.0

    def gantt(self, *, until_s: float | None = None, width: int = 1000) -> figure:
        """A Bokeh figure: a row per thread of each worker, a bar per execution, faults marked.

        `until_s` is where the time axis ends, so that several runs can be compared.
        """
        from swarm.twin.gantt import gantt

        told = f"{self.status} after {self.makespan_s:.2f} s, threads {self.busy_share:.0%} busy"
        told += f", {self.reruns} executions in vain" if self.reruns else ""
        return gantt(
            self.executions,
            makespan_s=self.makespan_s,
            events=self.events,
            title=f"{self.work} on {self.workers} workers, {self.policy}",
            subtitle=told,
            until_s=until_s,
            width=width,
        )

    def show(self) -> None:
        """Show the Gantt chart: in the notebook after `bokeh.io.output_notebook()`, else in a browser."""
        from bokeh.io import show

        show(self.gantt())

    def to_json(self, *, executions: bool = True) -> dict[str, Any]:
        """Plain types; `executions=False` leaves the bars of the Gantt chart out."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        values["events"] = [list(event) for event in self.events]
        values["peak_bytes"] = dict(self.peak_bytes)
        values["executions"] = [
            [str(e.key), e.worker, e.lane, e.start_s, e.stop_s, e.outcome]
            for e in (self.executions if executions else ())
        ]
        return values

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | Path) -> Outcome:
        """Read what `save` wrote."""
        return cls.from_json(json.loads(Path(path).read_text()))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """Of what `to_json` gave."""
        values = dict(values)
        values["executions"] = [Executed(*entry) for entry in values["executions"]]
        values["events"] = [tuple(event) for event in values["events"]]
        return cls(**values)
