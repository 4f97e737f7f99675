"""What `swarm resume` does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from swarm.client import connect
from swarm.deploy.signals import stopping_on_signals
from swarm.errors import SwarmError

if TYPE_CHECKING:
    from rich.console import Console


def show(out: Console, err: Console, address: str | None) -> None:
    """List the durable runs that the store of a scheduler has."""
    from rich.table import Table

    with _connected(err, address, None) as cluster:
        found = cluster.durable_runs()
    if not found["runs"]:
        out.print(f"{found['url']} has no durable runs", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table("run", "stored", "last change", "state")
    for row in found["runs"]:
        changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["changed_at_s"]))
        state = "" if "client" not in row else row["off"] or "under way"
        table.add_row(row["run"], f"{row['size_bytes'] / 1e6:,.1f} MB", changed, state)
    out.print(table)


def resume(
    out: Console,
    err: Console,
    run: str,
    *,
    address: str | None,
    workers: int | None,
    timeout: float | None,
    output: Path | None,
    keep: bool,
) -> Any:
    """Go on with a run, and show its result or write it to a file; returns what was heard of signals."""
    with stopping_on_signals() as stop, _connected(err, address, workers) as cluster:
        resumed = cluster.resume(run).progress(err, timeout=timeout)
        resumed.is_durable = not keep  # else it is removed when the result is fetched
        result = resumed.result(timeout=0.1 if timeout is not None else None)
        if output is not None:
            try:
                output.write_bytes(pickle.dumps(result))
            except OSError as error:
                raise SwarmError(f"{output} can't be written ({error.strerror})") from None
            err.print(f"written to {output}", style="dim", markup=False, highlight=False, soft_wrap=True)
        else:
            workload = resumed.workload
            summary = workload.summary(result) if hasattr(workload, "summary") else repr(result)
            out.print(summary, markup=False, highlight=False, soft_wrap=True)
    return stop


def _connected(err: Console, address: str | None, workers: int | None) -> Any:
    if address is None:
        err.print("starting a local cluster …", style="dim")
    return connect(address, workers=workers)
