"""`/metrics` of a scheduler and of a worker, as Prometheus reads them."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient

import swarm
from swarm.telemetry import prometheus
from tests.support.clusters import cluster

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Echo(swarm.BaseAgent):
    cycles = 0

    async def execute_cycle(self) -> None:
        self.cycles += 1

    async def handle_message(self, message: Any) -> Any:
        return message.payload if message.kind == "say" else self.cycles


async def scraped(server: Any) -> Metrics:
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{server.http_server.port}/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics[name, frozenset(labels.items())]


async def test_what_a_scheduler_and_a_worker_tell() -> None:
    async with cluster(workers=0) as running:
        worker = await running.join(agents=True)
        orchestrator = (await running.swarm()).orchestrator
        await orchestrator.create_agent(Echo, "echo")
        for number in range(5):
            told = await orchestrator.communicator.send_message("echo", "say", number, wait_for_answer=True)
            assert told == number
        cycles = await orchestrator.communicator.send_message("echo", "cycles", wait_for_answer=True)
        for server in (running.scheduler, worker):
            metrics = await scraped(server)  # one process has one registry
            assert any(name.startswith("dask_") for name, _ in metrics), "Dask's own are still there"
            assert of(metrics, "swarm_workers_lost_total") == 0
            assert of(metrics, "swarm_agents", kind="custom", state="running") == 1
            assert of(metrics, "swarm_agent_restarts_total", agent="echo", kind="custom") == 0
            assert of(metrics, "swarm_agent_messages_total", agent="echo") == 6
            assert of(metrics, "swarm_agent_cycles_total", agent="echo") >= cycles
            assert of(metrics, "swarm_agent_mailbox_fill_ratio", agent="echo") == 0
            assert of(metrics, "swarm_messages_received_total") >= 6
            assert of(metrics, "swarm_messages_refused_total") == 0
            assert of(metrics, "swarm_channel_callers_refused_total") == 0
            assert of(metrics, "swarm_ledger_cores") >= 1
            assert of(metrics, "swarm_ledger_cores_lent") == 0
            sent = {labels for name, labels in metrics if name == "swarm_channel_bytes_total"}
            assert all({key for key, _ in labels} == {"direction", "transport", "priority"} for labels in sent)
    after = {metric.name for metric in prometheus._COLLECTORS["home"].collect()}
    assert not after, "what is closed is not asked any more"


async def test_a_failure_of_ours_takes_nothing_from_dask() -> None:
    def failing() -> list[Any]:
        raise ZeroDivisionError("on purpose")

    async with cluster(workers=1, agents=True) as running:
        end = prometheus.connect("failing", failing)
        try:
            for _ in range(3):
                metrics = await scraped(running.scheduler)
            assert of(metrics, "dask_scheduler_clients") == 0
            assert of(metrics, "swarm_workers_lost_total") == 0
        finally:
            end()
