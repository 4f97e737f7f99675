from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import pytest
from pydantic import Field, ValidationError

import workloads
from workloads import catalogue, workload
from workloads.workload import Verification, Workload, WorkloadProtocol


class Total(Workload):
    """Sum of the first whole numbers."""

    name = "total"
    up_to: int = Field(10, ge=1, le=1000)

    def graph(self) -> dict[str, Any]:
        return {"total": (sum, range(self.up_to + 1))}

    def verify(self, result: int) -> Verification:
        return Verification(result == self.up_to * (self.up_to + 1) // 2, f"sum {result}")


class Structural:
    name = "structural"

    def graph(self) -> dict[str, Any]:
        return {"x": 1}

    def verify(self, result: object) -> Verification:
        return Verification(True, "fine")


def test_the_instance_is_its_parameters() -> None:
    unknown: dict[str, Any] = {"upto": 5}
    assert Total(up_to=4) == Total(up_to=4) != Total()
    with pytest.raises(ValidationError, match="frozen"):
        Total().up_to = 5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Total(**unknown)


def test_a_workload_must_say_what_to_compute_and_how_to_check_it() -> None:
    with pytest.raises(TypeError, match=r"abstract methods? '?graph'?, '?verify"):
        Workload()  # type: ignore[abstract]


@pytest.mark.parametrize(("candidate", "fits"), [(Total(), True), (Structural(), True), (object(), False)])
def test_the_protocol_is_structural(candidate: object, fits: bool) -> None:
    assert isinstance(candidate, WorkloadProtocol) is fits


def test_the_token_stands_for_parameters_and_inputs() -> None:
    token = Total().token(b"ab", b"c")
    assert token == Total().token(b"ab", b"c")
    assert len(token) == 16
    assert len({token, Total(up_to=4).token(b"ab", b"c"), Total().token(b"a", b"bc"), Total().token()}) == 4


def test_a_long_result_is_summed_up_in_a_short_line() -> None:
    assert len(Total().summary(list(range(10_000)))) < 80


@pytest.mark.parametrize("module", [workload, catalogue])
def test_examples_in_docstrings(module: Any) -> None:
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed


def test_the_package_exports_lazily() -> None:
    for name in workloads.__all__:
        assert getattr(workloads, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        workloads.nonsense  # noqa: B018  # the access is the test


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'dask', 'distributed', 'numpy', 'numba', 'pydantic', 'cupy', 'sklearn', 'PIL'}"
    code = f"import sys, workloads, workloads.kernels; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
