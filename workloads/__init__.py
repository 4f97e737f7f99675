"""Plain Dask graphs with tuned kernels, and the catalogue that finds them and those of other packages."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.catalogue import create, load, names
    from workloads.workload import Verification, Workload, WorkloadProtocol

__all__ = ["Verification", "Workload", "WorkloadProtocol", "create", "load", "names"]

_HOME = {
    "Verification": "workloads.workload",
    "Workload": "workloads.workload",
    "WorkloadProtocol": "workloads.workload",
    "create": "workloads.catalogue",
    "load": "workloads.catalogue",
    "names": "workloads.catalogue",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
