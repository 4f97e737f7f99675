"""How a wrong setting ends `dask scheduler` and `dask worker`: with a line, an exit code, and no traceback."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny, Worker


def check_settings() -> None:
    """Stop `dask scheduler` and `dask worker` before they start, with one line, when a setting is wrong.

    Dask imports a preload while its command line is parsed, in the process that a person started: the one place
    where a mistake can end everything cleanly. What a preload raises later is only logged by Dask, and behind a nanny
    it is a traceback of a hundred lines. Does nothing, and imports nothing, in any other import.
    """
    click = sys.modules.get("click")
    context = click.get_current_context(silent=True) if click else None
    if click is None or context is None or not _is_dask_server(context.command):
        return
    from swarm import config_sources
    from swarm.errors import SwarmError

    try:
        config_sources.load()
    except SwarmError as error:
        wrong = click.ClickException(str(error))
        wrong.exit_code = error.exit_code
        raise wrong from None


def _is_dask_server(command: object) -> bool:
    callback = getattr(command, "callback", None)
    return getattr(callback, "__module__", "") in {"distributed.cli.dask_scheduler", "distributed.cli.dask_worker"}


async def end(worker: Worker, exit_code: int) -> None:
    """End the process of a worker that is starting; raises `SystemExit` where it has no nanny.

    A nanny would start a worker that ends again and again, so the nanny is what has to end. It takes no calls before
    its worker has registered (`distributed.Worker.close`), so there this returns, and the end comes a moment later.
    """
    if worker.nanny is None:
        raise SystemExit(exit_code)
    worker._ongoing_background_tasks.call_soon(_end_nanny_of, worker, exit_code)


async def _end_nanny_of(worker: Worker, exit_code: int) -> None:
    from distributed.core import Status
    from distributed.protocol import pickle

    while worker.status is Status.init:  # noqa: ASYNC110 — Dask has no event for it
        await asyncio.sleep(0.05)
    async with worker.rpc(str(worker.nanny)) as nanny:
        await nanny.run(function=pickle.dumps(_end), kwargs=pickle.dumps({"exit_code": exit_code}), wait=False)


async def _end(dask_worker: Nanny, exit_code: int) -> None:
    """Runs in the nanny, which Dask hands over by this name. In this module, whose import checks no settings."""
    await dask_worker.close(reason="swarm-refused")
    asyncio.get_running_loop().call_soon(sys.exit, exit_code)  # raised in a task it would be logged as lost
