"""What this host has to share, and where the table of it lies."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from swarm.errors import LedgerError
from swarm.ledger.table import Budget
from swarm.telemetry.sources.cgroup import cpu_limit, memory_limit_bytes
from swarm.telemetry.sources.parse import ParseError
from swarm.telemetry.sources.source import SourceAbsent

ROOT = Path("/")
SHM = Path("/dev/shm")  # noqa: S108 - the folder that is made in it is checked


@functools.cache
def of_this_host() -> tuple[Budget, str]:
    """The budget that this process lives in, and the name of its table.

    Cores are those that the process may run on, and no more than `cpu.max` of its control group; memory is that of
    the group, else of the host. Nobody tells how many watts there are: that is for `Ledger.limit`.

    Processes with the same budget give the same name. It is worked out once, so that a process may be pinned to a core
    later and still belong to the table of all.

    Raises
    ------
    LedgerError
        Not Linux.
    """
    try:
        cpus = sorted(os.sched_getaffinity(0))
    except AttributeError:
        raise LedgerError("there is no ledger on this system: it needs Linux") from None
    cores, group = len(cpus), 0
    with suppress(SourceAbsent, ParseError, OSError):  # none can be read, so none is known; `swarm doctor` says why
        limit, path = cpu_limit(ROOT)
        if limit is not None and limit < cores:
            # A part of a core is not lent; the inode tells containers apart that see the same path.
            cores, group = max(1, int(limit)), path.stat().st_ino
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(SourceAbsent, ParseError, OSError):
        memory_bytes = min(memory_bytes, memory_limit_bytes(ROOT) or memory_bytes)
    name = hashlib.blake2b(repr((cpus, group)).encode(), digest_size=4).hexdigest()
    return Budget(cores, memory_bytes), f"ledger-{name}"


def private_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_RUNTIME_DIR/swarm` where that is set and ours, else `/dev/shm/swarm-<uid>`; not made, not checked."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute():
        try:
            if runtime.stat().st_uid == os.geteuid():
                return runtime / "swarm"
        except OSError:  # left over from a session that has ended
            pass
    return SHM / f"swarm-{os.geteuid()}"
