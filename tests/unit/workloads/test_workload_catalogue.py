"""Finding and making workloads; every refusal is one line that says what is allowed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest
from dask.local import get_sync

from swarm.errors import SwarmError, UnknownWorkloadError, WorkloadParameterError
from workloads import catalogue
from workloads.workload import Graph

BUILT_IN = {"heat", "kmeans", "options"}
TOTAL = """
    from typing import Literal
    from pydantic import Field, model_validator
    from workloads import Verification, Workload

    class Total(Workload):
        '''Sum of the first whole numbers.

        More about it.
        '''
        name = "total"
        up_to: int = Field(ge=1, le=1000, description="the last number")
        scale: float = Field(1.0, gt=0)
        method: Literal["formula", "loop"] = "loop"
        label: str | None = None
        sizes: tuple[int, ...] = (1, 2)

        @model_validator(mode="after")
        def _even(self):
            if self.method == "formula" and self.scale != 1:
                raise ValueError("method=formula needs scale=1")
            return self

        def graph(self):
            return {"total": (sum, range(self.up_to + 1))}

        def verify(self, result):
            return Verification(result == self.up_to * (self.up_to + 1) // 2, f"sum {result}")
"""
PLAIN = """
    class Plain:
        name = "plain"
        def __init__(self, size: int, depth=2):
            if int(size) < 1:
                raise ValueError("size must be at least 1")
            self.size = size
        def graph(self):
            return {"x": self.size}
        def verify(self, result):
            raise NotImplementedError
"""

Install = Callable[..., str]
serial = itertools.count()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package on `sys.path` as pip would: a module, and a dist-info folder with its entry points."""
    modules = []

    def install(name: str, attribute: str, source: str) -> str:
        module = f"offered_{next(serial)}"
        modules.append(module)
        site = tmp_path / module
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[swarm.workloads]\n{name} = {module}:{attribute}\n")
        monkeypatch.syspath_prepend(site)
        return module

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def refusal(name: str, **parameters: object) -> str:
    with pytest.raises((UnknownWorkloadError, WorkloadParameterError)) as caught:
        catalogue.create(name, **parameters)
    said = str(caught.value)
    assert isinstance(caught.value, SwarmError)
    assert caught.value.exit_code == 2
    assert "\n" not in said
    return said


def test_what_comes_with_swarm() -> None:
    assert set(catalogue.names()) >= BUILT_IN
    for name in BUILT_IN:
        assert catalogue.load(name).name == name
        summary, parameters = catalogue.describe(name)
        assert summary.endswith(".")
        assert all(p.description and p.allowed and not p.required for p in parameters)


def test_a_workload_of_another_package(install: Install) -> None:
    install("total", "Total", TOTAL)
    assert set(catalogue.names()) == BUILT_IN | {"total"}
    total = catalogue.create("total", up_to="100", scale="1", sizes="3, 4")
    assert total.model_dump()["sizes"] == (3, 4)
    assert get_sync(cast("Graph", total.graph()), "total") == 5050
    assert total.verify(5050).passed
    assert not total.verify(5051).passed


def test_the_description_says_what_is_allowed(install: Install) -> None:
    install("total", "Total", TOTAL)
    summary, parameters = catalogue.describe("total")
    assert summary == "Sum of the first whole numbers."
    assert [(p.name, p.allowed, p.default, p.required, p.description) for p in parameters] == [
        ("up_to", "a whole number from 1 to 1000", None, True, "the last number"),
        ("scale", "a number greater than 0", 1.0, False, ""),
        ("method", "formula or loop", "loop", False, ""),
        ("label", "a text or nothing", None, False, ""),
        ("sizes", "one or more, with commas between: a whole number", (1, 2), False, ""),
    ]


def test_a_class_that_only_fits_the_protocol(install: Install) -> None:
    install("plain", "Plain", PLAIN)
    assert catalogue.create("plain", size=3).graph() == {"x": 3}
    assert [(p.name, p.allowed, p.required) for p in catalogue.describe("plain")[1]] == [
        ("size", "a whole number", True),
        ("depth", "anything", False),
    ]
    assert refusal("plain", size=0) == "plain: size must be at least 1"
    assert refusal("plain", siz=1) == "plain has no parameter 'siz'; did you mean size? it has: size, depth"
    assert "size" in refusal("plain")


def test_an_unknown_name() -> None:
    known = ", ".join(catalogue.names())
    assert refusal("kmean") == f"there is no workload 'kmean'; did you mean kmeans? known are: {known}"
    assert refusal("zzz") == f"there is no workload 'zzz'; known are: {known}"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "total: up_to is missing: a whole number from 1 to 1000"),
        ({"up_to": 0}, "total: up_to = 0 is not allowed: a whole number from 1 to 1000"),
        (
            {"up_to": 1, "sizes": "3,x"},
            "total: sizes = 'x' is not allowed: one or more, with commas between: a whole number",
        ),
        ({"up_to": "ten"}, "total: up_to = 'ten' is not allowed: a whole number from 1 to 1000"),
        ({"up_to": 1, "scale": "nan"}, "total: scale = 'nan' is not allowed: a number greater than 0"),
        ({"up_to": 1, "scale": 0}, "total: scale = 0 is not allowed: a number greater than 0"),
        (
            {"up_to": 0, "scale": 0},
            (
                "total: up_to = 0 is not allowed: a whole number from 1 to 1000; "
                "scale = 0 is not allowed: a number greater than 0"
            ),
        ),
        (
            {"up_to": 1, "method": "lop"},
            "total: method = 'lop' is not allowed: formula or loop; did you mean loop?",
        ),
        ({"up_to": 1, "method": "formula", "scale": 2}, "total: method=formula needs scale=1"),
        ({"upto": 1}, "total has no parameter 'upto'; did you mean up_to? it has: up_to, scale, method, label, sizes"),
        ({"zzz": 1}, "total has no parameter 'zzz'; it has: up_to, scale, method, label, sizes"),
    ],
)
def test_a_parameter_that_is_not_allowed(install: Install, parameters: dict[str, object], said: str) -> None:
    install("total", "Total", TOTAL)
    assert refusal("total", **parameters) == said


@pytest.mark.parametrize(
    ("attribute", "source", "reason"),
    [
        ("Total", "import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("Total", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("Total", "x = 1", "AttributeError: module '{module}' has no attribute 'Total'"),
        ("total", "def total(): ...", "it is not a class"),
        ("Total", "class Total:\n    name = 'total'\n    def graph(self): ...", "it does not define verify"),
        (
            "Total",
            "from workloads import Workload\nclass Total(Workload):\n    name = 'total'",
            "it does not define graph, verify",
        ),
    ],
)
def test_a_package_that_is_broken(install: Install, attribute: str, source: str, reason: str) -> None:
    module = install("total", attribute, source)
    assert "total" in catalogue.names()
    assert refusal("total") == (
        f"workload 'total' of package {module} can't be used: {reason.format(module=module)} ({module}:{attribute})"
    )


def test_two_packages_with_one_name(install: Install) -> None:
    other = install("kmeans", "Total", TOTAL)
    assert refusal("kmeans") == (
        f"workload 'kmeans' is offered by several packages: dask-swarm, {other}; uninstall all but one"
    )
