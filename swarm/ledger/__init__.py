"""What the processes of one host share: its cores, memory and watts, in a table in shared memory.

    from swarm import ledger

    with ledger.cores(up_to=4) as lease:   # numba and BLAS run on as many threads as were granted
        numpy.linalg.svd(matrix)

`table` is the layout and the rules, `shared` the file, `leases` a seat at it, `lending` what the threads of a process
share, `threads` what a grant does to the thread pools of numba and BLAS. Importing it loads neither NumPy nor numba
nor Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.ledger.leases import Lease, Ledger
    from swarm.ledger.lending import CoresInUse, lend, using
    from swarm.ledger.table import Budget
    from swarm.ledger.threads import cores

__all__ = ["Budget", "CoresInUse", "Lease", "Ledger", "cores", "lend", "using"]

_HOMES = {
    "Budget": "swarm.ledger.table",
    "CoresInUse": "swarm.ledger.lending",
    "Lease": "swarm.ledger.leases",
    "Ledger": "swarm.ledger.leases",
    "cores": "swarm.ledger.threads",
    "lend": "swarm.ledger.lending",
    "using": "swarm.ledger.lending",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swarm.ledger' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
