"""What a workload is: validated parameters, a plain Dask graph, and a check of the result."""

from __future__ import annotations

import hashlib
import reprlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from dask.typing import DaskCollection

Graph: TypeAlias = Mapping[Any, Any]
"""A Dask graph as https://docs.dask.org/en/stable/spec.html has it, with exactly one sink: the result."""


@dataclass(frozen=True)
class Verification:
    """The verdict on a result, reached by means other than those that computed it."""

    passed: bool
    summary: str
    """One line for a table: what was compared with what, and how it came out."""
    measures: Mapping[str, float | int | str] = field(default_factory=dict)
    """The numbers behind the verdict, by name, with the unit in the name."""


@runtime_checkable
class WorkloadProtocol(Protocol):
    """What swarm needs of a workload; any object that has these is one. `Workload` is the convenient base."""

    @property
    def name(self) -> str: ...

    def graph(self) -> Graph | DaskCollection:
        """What to compute: a graph with exactly one sink, or any Dask collection (a Delayed too)."""

    def verify(self, result: Any) -> Verification:
        """Check the computed result."""


class Workload(BaseModel):
    """Base of workloads: the instance *is* its validated parameters.

    A subclass sets `name`, declares its parameters as pydantic fields with bounds and a description (the command
    line and its help are made from them) and writes `graph` and `verify`.

    >>> from pydantic import Field
    >>> class Total(Workload):
    ...     '''Sum of the first whole numbers.'''
    ...     name = "total"
    ...     up_to: int = Field(10, ge=1, le=1000, description="the last number")
    ...     def graph(self):
    ...         return {"total": (sum, range(self.up_to + 1))}
    ...     def verify(self, result):
    ...         expected = self.up_to * (self.up_to + 1) // 2
    ...         return Verification(result == expected, f"{result}, by formula {expected}")
    >>> Total(up_to=4).verify(10).passed
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]

    @abstractmethod
    def graph(self) -> Graph | DaskCollection:
        """What to compute: a graph with exactly one sink, or any Dask collection (a Delayed too).

        Runs on the client. Equal parameters and inputs give equal keys (`token`), as Dask wants it of pure work.
        """

    @abstractmethod
    def verify(self, result: Any) -> Verification:
        """Check the computed result, by other means than those that computed it."""

    def summary(self, result: Any) -> str:
        """One line about the result for people."""
        return reprlib.repr(result)

    def token(self, *inputs: bytes) -> str:
        """16 hex digits that stand for the name, the parameters and the given inputs: for the keys of the graph."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (type(self).name.encode(), self.model_dump_json().encode(), *inputs):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()
