"""How a wrong setting ends `dask scheduler` and `dask worker`: with a line, an exit code, and no traceback."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny, Worker

REASON = "swarm-settings"


def check_settings() -> None:
    """Stop `dask scheduler` and `dask worker` before they start, with one line, when a setting is wrong.

    Dask imports a preload while its command line is parsed, in the process that a person started: the one place
    where a mistake can end everything cleanly. What a preload raises later is only logged by Dask, and behind a nanny
    it is a traceback of a hundred lines. Does nothing, and imports nothing, in any other import.
    """
    if not _is_dask_server():
        return
    import click

    from swarm import config_sources
    from swarm.errors import SwarmError

    try:
        config_sources.load()
    except SwarmError as error:
        wrong = click.ClickException(str(error))
        wrong.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance
        raise wrong from None


def _is_dask_server() -> bool:
    """Is this the process, and the thread, of a `dask scheduler` or `dask worker`?"""
    click = sys.modules.get("click")
    context = click.get_current_context(silent=True) if click else None
    callback = getattr(context and context.command, "callback", None)
    return getattr(callback, "__module__", "") in {"distributed.cli.dask_scheduler", "distributed.cli.dask_worker"}


async def end(worker: Worker, exit_code: int) -> None:
    """End a worker that has joined, and the process that it was started for, if that is `dask worker`.

    Behind a nanny it is the nanny that has to end, for it would start the worker again and again.
    """
    if worker.nanny is None:
        await worker.close(reason=REASON)
        _exit(exit_code)
        return
    from distributed.protocol import pickle

    async with worker.rpc(str(worker.nanny)) as nanny:
        await nanny.run(function=pickle.dumps(_end_nanny), kwargs=pickle.dumps({"exit_code": exit_code}), wait=False)


async def _end_nanny(dask_worker: Nanny, exit_code: int) -> None:
    """Runs in the nanny, which Dask hands over by this name. In this module, whose import checks no settings."""
    await dask_worker.close(reason=REASON)
    _exit(exit_code)


def _exit(exit_code: int) -> None:
    """End this process, if a person started it as `dask worker`."""
    if _is_dask_server():
        asyncio.get_running_loop().call_soon(sys.exit, exit_code)  # raised in a task it would be logged as lost
