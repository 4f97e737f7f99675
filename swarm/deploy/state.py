"""Where a cluster that swarm itself starts keeps what is to outlive it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from swarm import config_sources
from swarm.config import Resolved

KEY = "state_directory"


def local_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """`$XDG_STATE_HOME/swarm/local`, by default `~/.local/state/swarm/local`; None for somebody without a home.

    A relative path does not count (XDG Base Directory Specification 0.8).
    """
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:  # neither HOME nor an entry in the password file
            return None
    return base / "swarm" / "local"


def environment(resolved: Resolved) -> dict[str, str]:
    """Environment variables that hand settings to the processes of a local cluster, with its place for state."""
    env = config_sources.as_env(resolved)
    folder = local_directory()
    if KEY not in resolved.explicit and folder is not None:
        env |= config_sources.as_env(Resolved(resolved.settings, {}, {KEY: str(folder)}))
    return env


def journal_directory(resolved: Resolved) -> Path | None:
    """Where `swarm replay` looks for a journal: the folder of the settings, else that of local clusters."""
    if KEY in resolved.explicit:
        folder = resolved.settings.state_directory
        return None if folder is None else Path(folder).expanduser()
    return local_directory()
