"""Do client, scheduler and workers run the same swarm?  PURE"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping


def mismatch(scheduler: str, clients: Mapping[str, str], workers: Mapping[str, str]) -> str | None:
    """One line that names the versions of all three when they differ, else None.

    Parameters
    ----------
    scheduler
        Version of swarm on the scheduler.
    clients, workers
        Identity → version of swarm, of those that have swarm at all.

    Examples
    --------
    >>> mismatch("0.2.0", {"c": "0.2.0"}, {"tcp://a": "0.2.0"}) is None
    True
    >>> print(mismatch("0.2.0", {"c": "0.1.0"}, {"tcp://a": "0.2.0"}))
    versions of swarm differ: client 0.1.0, scheduler 0.2.0, workers 0.2.0; install dask-swarm==0.2.0 everywhere
    """
    if {scheduler, *clients.values(), *workers.values()} == {scheduler}:
        return None
    client, worker = _listed(clients, scheduler, "none connected"), _listed(workers, scheduler, "none with swarm")
    differ = f"client {client}, scheduler {scheduler}, workers {worker}"
    return f"versions of swarm differ: {differ}; install dask-swarm=={scheduler} everywhere"


def _listed(versions: Mapping[str, str], scheduler: str, nobody: str) -> str:
    """`0.2.0 (3), 0.1.0 (tcp://10.0.0.5:4000)`: those that differ are named, at most three of a version."""
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for identity, version in versions.items():
        holders[version].append(identity)
    if len(holders) <= 1:
        return next(iter(holders), nobody)
    parts = []
    for version, who in sorted(holders.items()):
        listed = ", ".join([*who[:3], "…"] if len(who) > 3 else who)
        parts.append(f"{version} ({len(who) if version == scheduler else listed})")
    return ", ".join(parts)
