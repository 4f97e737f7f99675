"""The agents of a worker, for `dask worker --preload swarm.agents`.

Dask runs this file also for an import of any module below, so everything heavy is imported inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Worker


async def dask_setup(worker: Worker) -> None:
    """Start the agents once the worker has joined. A refusal is logged, and the worker is plain Dask."""
    from swarm.agents.starting import start_later

    await start_later(worker)


async def install(dask_worker: Worker) -> None:
    """Start the agents on a worker that already runs; the scheduler sends this with Dask's `run`.

    A worker with the preload starts its own, which are waited for: the scheduler knows whether it has refused them.
    Raises `swarm.errors.SwarmError` when it refuses these.
    """
    from swarm.agents.starting import starts_by_itself

    if not await starts_by_itself(dask_worker):
        from swarm.agents.host import start

        await start(dask_worker)


def _check_at_command_line() -> None:
    from swarm.preloaded import check_settings

    check_settings()


_check_at_command_line()
