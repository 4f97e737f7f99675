"""A worker on which tasks raise that end well elsewhere is told of."""

from __future__ import annotations

import time

from distributed import get_worker

from swarm.protocol import AlertCleared, AlertRaised
from tests.support.clusters import cluster
from tests.support.waiting import eventually


def raises_on(ill: str, number: int) -> int:
    if get_worker().name == ill:
        raise OSError("a bad disk")
    return number


async def test_it_is_an_alert_until_it_is_over() -> None:
    async with cluster(workers=3, swarm=True, settings={"load_balancing": False}) as running:
        client = await running.client()
        addresses = [worker.address for worker in running.workers]
        futures = [
            client.submit(raises_on, "w1", n, workers=[addresses[n % 3]], pure=False, key=f"raises_on-{n}")
            for n in range(60)
        ]
        await eventually(lambda: all(future.done() for future in futures), "all have ended")
        assert sum(future.status == "error" for future in futures) == 20
        plugin = running.plugin
        now_s = time.time() + 10.0
        (raised,) = plugin.erring.look(now_s)
        assert isinstance(raised, AlertRaised)
        assert (raised.worker, raised.resource, raised.value) == (addresses[1], "errors", 20.0)
        assert raised.reason.startswith("on worker w1 20 tasks raised of late")
        assert plugin.erring.look(now_s + 10.0) == []
        (cleared,) = plugin.erring.look(now_s + 2000.0)
        assert isinstance(cleared, AlertCleared)
        assert cleared.alert == raised.alert
