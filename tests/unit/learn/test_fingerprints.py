from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from dask.utils import key_split

from scheduler_plugins.learn.fingerprints import (
    THRESHOLD,
    Fingerprint,
    Library,
    Shape,
    distance,
    fingerprint,
    shape_in_slices,
    shape_of,
)
from swarm.twin import Cost
from swarm.twin.work import Work, fan_out, independent, layered, made_up, tree


def map_reduce(count: int, draw: Random) -> Work:
    reducers = max(2, count // 8)
    loads = [(f"load-{i}", [], _cost(draw, 0.4)) for i in range(count)]
    maps = [(f"parse-{i}", [f"load-{i}"], _cost(draw, 0.2)) for i in range(count)]
    reduces = [(f"merge-{i}", [f"parse-{j}" for j in range(count)], _cost(draw, 0.5)) for i in range(reducers)]
    return made_up([*loads, *maps, *reduces])


def chains(count: int, draw: Random) -> Work:
    length = max(4, count // 6)
    return made_up(
        [
            (f"step-{chain}-{i}", [f"step-{chain}-{i - 1}"] if i else [], _cost(draw, 0.1))
            for chain in range(6)
            for i in range(length)
        ]
    )


def wavefront(count: int, draw: Random) -> Work:
    side = max(3, round(count**0.5))
    cells = [(i, j) for i in range(side) for j in range(side)]
    return made_up(
        [
            (
                f"cell-{i}-{j}",
                [f"cell-{a}-{b}" for a, b in ((i - 1, j), (i, j - 1)) if min(a, b) >= 0],
                _cost(draw, 0.1),
            )
            for i, j in cells
        ]
    )


def _cost(draw: Random, typical_s: float) -> Cost:
    return Cost(typical_s * draw.lognormvariate(0.0, 0.5), draw.randint(1_000, 100_000))


KINDS: dict[str, Callable[[int, Random], Work]] = {
    "independent": lambda count, draw: independent(count, seed=draw.randrange(99)),
    "layered": lambda count, draw: layered(max(3, count // 12), 12, seed=draw.randrange(99)),
    "tree": lambda count, draw: tree(count, seed=draw.randrange(99)),
    "fan-out": lambda count, draw: fan_out(count, roots=3, seed=draw.randrange(99)),
    "map-reduce": map_reduce,
    "chains": chains,
    "wavefront": wavefront,
}


def print_of(kind: str, count: int, seed: int, *, anonymous: bool = False, has_run: bool = True) -> Fingerprint:
    """As one run left it on hosts that are up to three times slower than others."""
    draw = Random(f"{kind} {count} {seed}")
    work, slow = KINDS[kind](count, draw), draw.uniform(1.0, 3.0)
    functions: dict[str, tuple[int, float, float]] = {}
    for key, cost in work.costs.items():
        function = "work" if anonymous else key_split(key)
        tasks, total_s, nbytes = functions.get(function, (0, 0.0, 0.0))
        took_s = cost.work_s * slow if has_run else 0.0
        functions[function] = tasks + 1, total_s + took_s, nbytes + cost.output_bytes
    return fingerprint(f"{kind}-{count}-{seed}", kind, functions, shape_of(work.dependencies))


SIZES = (40, 90, 200, 400)


def right_ratio(*, anonymous: bool, has_run: bool) -> float:
    """Runs that are told by another size and seed."""
    library = Library()
    for kind in KINDS:
        for size in SIZES[::2]:
            library.add(print_of(kind, size, 0, anonymous=anonymous))
    asked = [
        print_of(kind, size, seed, anonymous=anonymous, has_run=has_run)
        for kind in KINDS
        for size in SIZES
        for seed in (1, 2, 3)
    ]
    found = [library.nearest(each) for each in asked]
    assert all(found)
    return sum(like.known.name == each.name for like, each in zip(found, asked, strict=True) if like) / len(asked)


@pytest.mark.parametrize(
    ("anonymous", "has_run", "least"),
    [(False, True, 0.98), (False, False, 0.98), (True, True, 0.9), (True, False, 0.9)],
)
def test_runs_are_told_whatever_their_size_and_seed(anonymous: bool, has_run: bool, least: float) -> None:
    """Also where all tasks are called the same, by the shape of the graph alone; and before they have run."""
    assert right_ratio(anonymous=anonymous, has_run=has_run) >= least


def test_work_that_was_never_seen_is_close_to_nothing() -> None:
    wrong = []
    for stranger in KINDS:
        library = Library()
        for kind in KINDS.keys() - {stranger}:
            for size in SIZES:
                library.add(print_of(kind, size, 0))
        like = library.nearest(print_of(stranger, 120, 5))
        assert like is not None
        wrong += [stranger] if like.is_close else []
        known = [library.nearest(print_of(kind, 120, 5)) for kind in KINDS.keys() - {stranger}]
        assert sum(each is not None and each.is_close for each in known) >= len(known) - 1
    assert {*wrong} <= {"independent", "fan-out"}  # which are the same but for three roots


def test_the_distance_is_symmetric_and_zero_for_the_same() -> None:
    prints = [print_of(kind, 90, 1) for kind in KINDS]
    for one in prints:
        assert distance(one, one) == pytest.approx(0.0)
        for other in prints:
            assert distance(one, other) == pytest.approx(distance(other, one))
            assert 0.0 <= distance(one, other) <= 1.0


def test_shapes_are_measured_in_slices() -> None:
    work = layered(100, 12)
    *pauses, shape = shape_in_slices(work.dependencies)
    assert shape == Shape(tasks=1200, edges=2 * 99 * 12, depth=100, width=12, fan_in=2, sources=12)
    assert pauses == [None] * 4
    assert shape_of({}) == Shape(0, 0, 0, 0, 0, 0)
    assert shape_of({"b": ["done before"]}) == Shape(1, 0, 1, 1, 0, 1)


def test_a_library_survives_and_forgets_the_oldest() -> None:
    library = Library(most=3)
    for seed in range(5):
        library.add(print_of("tree", 40, seed))
    assert len(library) == 3
    assert library.get("tree-40-1") is None
    other = Library()
    other.restore(library.to_state())
    assert other.to_state() == library.to_state()
    with pytest.raises((ValueError, TypeError)):
        other.restore([["run"]])
    assert len(other) == 3


def test_alone_a_run_is_like_none_and_few_runs_teach_no_threshold() -> None:
    library = Library()
    run = print_of("tree", 40, 0)
    assert library.nearest(run) is None
    library.add(run)
    assert library.nearest(run) is None
    assert library.threshold == THRESHOLD


def test_what_is_alike_comes_with_its_work_the_nearest_first() -> None:
    library = Library()
    this = print_of("tree", 40, 9)
    for number, kind in enumerate(("tree", "chains", "tree")):
        made = print_of(kind, 40 + 10 * number, number)
        library.add(replace(made, work=f"work {number}"))
    library.add(this)
    alike = library.alike(this)
    assert [like.known.work for like in alike] == ["work 0", "work 2"]
    assert alike[0].distance <= alike[1].distance <= library.threshold
    other = Library()
    other.restore([state[:6] for state in library.to_state()])  # as before there was work
    assert [like.known.work for like in other.alike(this)] == ["", ""]
