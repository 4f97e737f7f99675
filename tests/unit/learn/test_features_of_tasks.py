"""What is read from a task: names that are stable, numbers that matter, and nothing that runs or takes long."""

from __future__ import annotations

import functools
import importlib
import math
import operator
import time
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef, fuse_linear_task_spec
from dask.utils import apply, methodcaller
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.learn.features import LONGEST_NAME, MOST_TERMS, features_of, name_of
from scheduler_plugins.learn.protocol import magnitude

toolz = importlib.import_module("toolz")  # a part of Dask, not a requirement of ours


class Hostile:
    """Every method is a trap."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was touched")

    def __len__(self) -> int:
        raise AssertionError("len was called")

    def __repr__(self) -> str:
        raise AssertionError("repr was called")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("eq was called")

    def __hash__(self) -> int:
        raise AssertionError("hash was called")

    def __bool__(self) -> bool:
        raise AssertionError("bool was called")

    def __call__(self) -> None:
        raise AssertionError("it was called")


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError(f"{name} of a class was touched")


class OfHostileMeta(metaclass=HostileMeta):
    pass


class HostileInt(int):
    def __float__(self) -> float:
        raise AssertionError("float was called")

    def __gt__(self, other: object) -> bool:
        raise AssertionError("> was called")


class HostileList(list[Any]):
    def __len__(self) -> int:
        raise AssertionError("len was called")

    def __iter__(self) -> Any:
        raise AssertionError("iter was called")


def work(*args: Any, **kwargs: Any) -> None:
    """Never called."""


def read(*args: Any, **kwargs: Any) -> dict[str, float]:
    features = features_of(Task("key", work, *args, **kwargs))
    assert features.function.endswith(".work")
    return dict(zip(features.names, features.terms, strict=True))


def test_numbers_and_sizes_by_name() -> None:
    assert read(3, 0.5, True, "abc", np.int16(7), n=-2, data=np.zeros(10), many=[0] * 9) == {
        "0": magnitude(3),
        "1": magnitude(0.5),
        "2": magnitude(1),
        "len 3": math.log1p(3),
        "4": magnitude(7),
        "n": -magnitude(2),
        "len data": math.log1p(80),
        "len many": math.log1p(9),
    }


def test_short_containers_are_looked_into() -> None:
    assert read((100, 200), {"n": 3, "deep": [[4]]}) == {
        "0.0": magnitude(100),
        "0.1": magnitude(200),
        "1.n": magnitude(3),
        "1.deep.0.0": magnitude(4),
    }


def test_containers_of_dask_are_looked_into_and_inputs_are_not() -> None:
    assert read(TaskRef("x"), List(TaskRef("y"), 5), Dict({"n": 6}), DataNode("d", 7), Alias("z")) == {
        "1.1": magnitude(5),
        "len 2.0": math.log1p(1),
        "2.1": magnitude(6),
        "3": magnitude(7),
    }


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (range(10**6), 10**6), (range(10, 0, -1), 10), (slice(0, 50), 50), (slice(None, 50, 2), 25),
        (b"12345", 5), (frozenset(range(9)), 9), (bytearray(3), 3),
    ],
)  # fmt: skip
def test_sizes(value: object, length: int) -> None:
    assert read(value) == {"len 0": math.log1p(length)}


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, 1j, object(), ..., np.datetime64(0, "s"), slice(None), slice("a", "b"), int]
)
def test_what_has_neither_number_nor_size_is_left_out(value: object) -> None:
    assert read(value) == {}


def test_numbers_too_large_for_a_float_are_large() -> None:
    terms = read(10**400, -(10**400), range(10**400), slice(-(10**400), 10**400))
    assert list(terms) == ["0", "1", "len 2", "len 3"]
    assert all(map(math.isfinite, terms.values()))
    assert terms["1"] == -terms["0"] < -600


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (len, "builtins.len"), (math.sin, "math.sin"), (operator.add, "_operator.add"),
        ("a".upper, "builtins.str.upper"), (str.upper, "builtins.str.upper"), (dict, "builtins.dict"),
        (np.add, "numpy.add"), (np.sum, "numpy._core.fromnumeric.sum"),
        (functools.lru_cache(math.sin), "math.sin"), (methodcaller("sum"), "sum"),
        (toolz.curry(operator.add, 1), "_operator.add"),
        (toolz.compose(math.sin, math.cos), "composed(math.cos, math.sin)"), (functools.partial(math.sin), "math.sin"),
        (operator.itemgetter(1), "operator.itemgetter"),
    ],
)  # fmt: skip
def test_names_of_callables(func: object, name: str) -> None:
    assert name_of(func) == name


def test_functions_and_methods_have_qualified_names() -> None:
    class Here:
        def method(self) -> None: ...

    assert name_of(work) == f"{__name__}.work"
    assert name_of(Here().method) == name_of(Here.method)
    assert name_of(Here().method).endswith("<locals>.Here.method")


def test_lambdas_are_told_apart_by_their_code() -> None:
    def make(n: int) -> list[Any]:
        return [lambda x: x + 1, lambda x: x + 2, lambda x: x * n]

    first, again = make(1), make(2)
    assert len({*map(name_of, first)}) == 3
    assert [*map(name_of, first)] == [*map(name_of, again)], "what a lambda closes over is not its code"


def test_a_partial_is_its_function_with_all_arguments() -> None:
    features = features_of(Task("key", functools.partial(work, 3, n=4), 5))
    assert features.function == name_of(work)
    assert features.names == ("partial 0", "partial n", "0")


def test_apply_is_what_it_applies() -> None:
    features = features_of(Task("key", apply, work, [1, 2], {"n": 3}))
    assert features.function == name_of(work)
    assert features.names == ("0", "1", "n")
    assert features_of(Task("key", apply, work, List(1, TaskRef("x")))).names == ("0",)


def test_fused_tasks_are_named_after_all() -> None:
    chain = [Task("t0", operator.add, 1, 2)]
    chain += [Task(f"t{i}", operator.mul, TaskRef(f"t{i - 1}"), i) for i in range(1, 3)]
    fused = fuse_linear_task_spec({task.key: task for task in chain}, {"t2"})
    features = features_of(next(task for task in fused.values() if isinstance(task, Task)))
    assert features.function == "fused(_operator.add, _operator.mul, _operator.mul)"
    assert features.names == ("0: 0", "0: 1", "1: 1", "2: 1")


def test_tasks_of_a_real_collection_have_names() -> None:
    graph = (da.ones((100, 100), chunks=50) + 1).sum().__dask_graph__()
    names = {features_of(task).function for task in dict(graph).values() if isinstance(task, Task)}
    assert any("sum" in name for name in names)
    assert all(len(name) <= LONGEST_NAME for name in names)


def test_data_is_a_function_of_its_own() -> None:
    assert features_of(DataNode("key", 5)).function == "data"
    assert features_of(None).function == "data"


HOSTILE = [Hostile(), OfHostileMeta(), OfHostileMeta, HostileInt(10**400), HostileInt(3), HostileList([1])]


def test_no_code_of_the_users_runs() -> None:
    for trap in HOSTILE:
        task = type("AnyTask", (), {"func": trap, "args": (trap, [trap], {"a": trap}), "kwargs": {"k": trap}})()
        features_of(task)
        features_of(type("AnyTask", (), {"func": apply, "args": (work, [trap], {"a": trap}), "kwargs": {}})())
        features_of(type("AnyTask", (), {"func": work, "args": (slice(trap, trap), range(2)), "kwargs": {}})())


def test_a_function_that_wraps_itself_ends() -> None:
    cached = functools.lru_cache(work)
    cached.__wrapped__ = cached  # type: ignore[attr-defined]
    assert name_of(cached) == "?"


@pytest.mark.parametrize(
    "value",
    [[0] * 10**6, {i: i for i in range(10**6)}, [[[0] * 4] * 4] * 4, ((((((1,),),),),),), "x" * 10**7],
    ids=["list", "dict", "nested", "deep", "text"],
)
def test_large_arguments_take_no_longer_than_small_ones(value: object) -> None:
    task = Task("key", work, 1)
    task.args = (value,) * 100
    quickest_s = math.inf
    for _ in range(20):
        started_s = time.perf_counter()
        features = features_of(task)
        quickest_s = min(quickest_s, time.perf_counter() - started_s)
    assert len(features.terms) <= MOST_TERMS
    assert quickest_s < 1e-3


# Not sampled_from, which looks at what it is given.
traps = st.integers(0, len(HOSTILE) - 1).map(lambda i: HOSTILE[i])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
scalars |= st.slices(10) | st.builds(range, st.integers(), st.integers(), st.integers(1)) | traps
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(st.lists(values), st.dictionaries(st.text(), values), st.sampled_from([work, len, apply]) | traps)
def test_any_arguments_at_all(args: list[Any], kwargs: dict[str, Any], func: Any) -> None:
    task = type("AnyTask", (), {})()
    task.func, task.args, task.kwargs = func, tuple(args), kwargs
    features = features_of(task, worker="w", concurrency=3)
    assert len(features.names) == len(features.terms) <= MOST_TERMS
    assert all(math.isfinite(term) for term in features.terms)
    assert features == features_of(task, worker="w", concurrency=3)
    assert len(features.function) <= LONGEST_NAME
