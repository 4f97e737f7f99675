"""The cluster's mind, for `dask scheduler --preload scheduler_plugins`.

Dask runs this file also for an import of any module below, so everything heavy is imported inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Scheduler


def dask_setup(scheduler: Scheduler) -> None:
    """Add the plugin. Dask calls its `start` next, and a wrong setting stops the scheduler there."""
    from scheduler_plugins.on_dask.plugin import SwarmPlugin

    scheduler.add_plugin(SwarmPlugin(), idempotent=True)


def _check_at_command_line() -> None:
    """Stop `dask scheduler --preload scheduler_plugins` with one line when a setting is wrong.

    Dask imports a preload while it parses its command line, and only logs what goes wrong later.
    """
    from swarm.preloaded import check_settings

    check_settings()


_check_at_command_line()
