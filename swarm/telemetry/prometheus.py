"""What swarm adds to Dask's `/metrics`, on the scheduler and on each worker.

Dask answers from `prometheus_client.REGISTRY` (`distributed.http.scheduler.prometheus.core`), so a collector that is
registered there is all it takes. As Dask's own, there is one of each kind for a process: in a process with several
schedulers or workers, the one that started last is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from swarm.ledger.lending import standing
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from scheduler_plugins.decide.agents import Member
    from swarm.agents.home import Home

Collect = Callable[[], Iterable[Metric]]


class _Collector:
    """Answers for whoever was connected last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.collect_now: Collect | None = None
        self.has_failed = False

    def describe(self) -> list[Metric]:
        """Nothing, so that nobody is asked before there is something to tell (`CollectorRegistry.register`)."""
        return []

    def collect(self) -> list[Metric]:
        """All of it, or nothing where something fails: Dask's own figures must not suffer."""
        try:
            return list(self.collect_now()) if self.collect_now is not None else []
        except Exception as error:  # noqa: BLE001 - as above; it is logged once
            if not self.has_failed:
                get_logger(agent="prometheus").error("metrics_failed", of=self.name, exc_info=error)
            self.has_failed = True
            return []


_COLLECTORS: dict[str, _Collector] = {}


def connect(name: str, collect: Collect) -> Callable[[], None]:
    """Have `collect` asked with each look at `/metrics`, in place of what had that name; returns how to end it."""
    collector = _COLLECTORS.get(name)
    if collector is None:
        collector = _COLLECTORS[name] = _Collector(name)
        registry: Any = REGISTRY  # wants a subclass of its own abstract class
        registry.register(collector)
    collector.collect_now = collect

    def end() -> None:
        if collector.collect_now is collect:
            collector.collect_now = None

    return end


def of_scheduler(members: Iterable[Member], lost: int) -> Iterator[Metric]:
    """What only the scheduler knows of all: its agents, and workers that were lost."""
    yield CounterMetricFamily("swarm_workers_lost", "Workers that died or were given up.", value=lost)
    members = list(members)
    agents = GaugeMetricFamily("swarm_agents", "Agents, by kind and state.", labels=["kind", "state"])
    for (kind, state), number in sorted(Counter((each.kind, each.state) for each in members).items()):
        agents.add_metric([kind, state], number)
    yield agents
    restarts = CounterMetricFamily(
        "swarm_agent_restarts", "Times that an agent was started again after it failed.", labels=["agent", "kind"]
    )
    for each in members:
        restarts.add_metric([each.agent, each.kind], each.restarts)
    yield restarts


def of_home(home: Home | None) -> Iterator[Metric]:
    """What a process knows of its own agents, their messages and channels, and of the ledger of its host."""
    yield from _of_ledger()
    if home is None:
        return
    if home.supervisor is not None:
        yield from _of_agents(home.supervisor.status())
    if home.communicator is not None:
        yield from _of_messages(home.communicator.statistics())
    if home.station is not None:
        yield from _of_channels(home.station.status())


def _of_agents(agents: list[dict[str, Any]]) -> Iterator[Metric]:
    families: list[tuple[str, CounterMetricFamily | GaugeMetricFamily]] = [
        ("cycles", CounterMetricFamily("swarm_agent_cycles", "Cycles that an agent has run.", labels=["agent"])),
        (
            "messages_handled",
            CounterMetricFamily("swarm_agent_messages", "Messages that an agent has handled.", labels=["agent"]),
        ),
        (
            "messages_failed",
            CounterMetricFamily(
                "swarm_agent_messages_failed", "Messages of which the handler has raised.", labels=["agent"]
            ),
        ),
        (
            "busy_s",
            CounterMetricFamily("swarm_agent_busy", "Time in cycles and messages.", labels=["agent"], unit="seconds"),
        ),
        (
            "mailbox_fill_ratio",
            GaugeMetricFamily("swarm_agent_mailbox_fill_ratio", "Used share of its fullest mailbox.", labels=["agent"]),
        ),
    ]
    for field, family in families:
        for agent in agents:
            family.add_metric([agent["id"]], agent[field])
        yield family


def _of_messages(statistics: dict[str, Any]) -> Iterator[Metric]:
    for field, what in (
        ("sent", "Messages that agents of this process have sent."),
        ("received", "Messages that came for agents of this process."),
        ("refused", "Messages that were refused: malformed, forged or not allowed."),
        ("failed", "Messages that could not be delivered."),
    ):
        yield CounterMetricFamily(f"swarm_messages_{field}", what, value=statistics[field])


def _of_channels(status: dict[str, Any]) -> Iterator[Metric]:
    labels = ["direction", "transport", "priority"]
    counts: dict[str, Counter[tuple[str, ...]]] = {"messages": Counter(), "bytes": Counter(), "drops": Counter()}
    for flow in status["flows"]:  # one for each peer, of which there may be many, with names that mean nothing
        for field, count in counts.items():
            count[flow["direction"], flow["transport"], str(flow["priority"])] += flow[field]
    for field, name, what in (
        ("messages", "swarm_channel_messages", "Frames over the channels of this host."),
        ("bytes", "swarm_channel_bytes", "Bytes over the channels of this host."),
        ("drops", "swarm_channel_drops", "Frames that were given up: no room in time, the peer lost, or damaged."),
    ):
        family = CounterMetricFamily(name, what, labels=labels)
        for key, number in sorted(counts[field].items()):
            family.add_metric(list(key), number)
        yield family
    what = "Processes that knew no token or were of another user."
    yield CounterMetricFamily("swarm_channel_callers_refused", what, value=status["refused"])


def _of_ledger() -> Iterator[Metric]:
    host = standing()
    if host is None:
        return
    for name, what, value in (
        ("cores", "Cores that the processes of this host share.", host.budget.cores),
        ("cores_in_use", "Cores that their tasks use, without those that are lent.", host.cores_in_use),
        ("cores_lent", "Cores that are lent on top of that.", host.cores_granted),
    ):
        yield GaugeMetricFamily(f"swarm_ledger_{name}", what, value=value)
