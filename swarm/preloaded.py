"""What happens when Dask's command line imports one of the two preloads."""

from __future__ import annotations

import sys


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
