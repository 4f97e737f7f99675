"""The agents of a worker, for `dask worker --preload swarm.agents`.

Dask runs this file also for an import of any module below, so everything heavy is imported inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Worker


async def dask_setup(worker: Worker) -> None:
    """Start the agents on a worker that is about to register. A refusal is logged, and the worker is plain Dask."""
    from swarm.agents.host import start_as_preload

    await start_as_preload(worker)


async def install(dask_worker: Worker) -> None:
    """Start the agents on a worker that already runs; the scheduler sends this with Dask's `run`.

    Raises `swarm.errors.SwarmError` when the scheduler refuses them.
    """
    from swarm.agents.host import start

    await start(dask_worker)


def _check_at_command_line() -> None:
    from swarm.preloaded import check_settings

    check_settings()


_check_at_command_line()
