"""A cluster of real worker processes with nannies, its scheduler in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client, LocalCluster, Nanny

from tests.support.waiting import wait_until


@contextmanager
def processes(
    workers: int, threads: int = 1, memory_limit: str = "2GiB", *, timeout_s: float = 60.0
) -> Iterator[tuple[Any, Client]]:
    """(cluster, client), once each nanny has its witness: one that has none yet can't say how its worker ended."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=memory_limit,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"preload": ["scheduler_plugins"]},
            preload=["swarm.agents"],
        ) as cluster,
        Client(cluster) as client,
    ):
        scheduler = cluster.scheduler
        members = scheduler.plugins["swarm"].members
        wait_until(
            lambda: all(members.has_witness(address) for address in scheduler.workers),
            "every nanny has a witness",
            timeout_s=timeout_s,
        )
        yield cluster, client


async def new_worker(scheduler: str, number: int, memory_limit: str = "2GiB") -> Nanny:
    """One more worker process for such a cluster."""
    return await Nanny(
        scheduler, nthreads=1, name=number, memory_limit=memory_limit, preload=["swarm.agents"], dashboard=False
    )
