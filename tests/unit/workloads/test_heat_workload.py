"""Heat: the graph computes what theory says, whatever the blocks; a wrong result and wrong parameters are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync

from swarm.errors import WorkloadParameterError
from workloads import create
from workloads.graphs.heat import MODES, Box, Convergence, Heat, decay_in_steps, modes, step_block
from workloads.kernels.stencil import heat_steps

SMALL: dict[str, Any] = {"points": 31, "steps": 32, "steps_per_task": 5, "chunks": 3}


def computed(heat: Heat, get: Any = get_sync) -> Convergence:
    graph = dict(heat.graph())
    (sink,) = (key for key in graph if key.startswith("heat-convergence-"))
    result: Convergence = get(graph, sink)
    return result


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fourier", [1 / 6, 1 / 12, 1 / 18])  # at the last two the errors of one mode cancel
def test_passes_with_order_two(fourier: float, dtype: str) -> None:
    heat = Heat(**SMALL, fourier=fourier, dtype=dtype)
    result = computed(heat)
    verification = heat.verify(result)
    assert verification.passed, verification.summary
    assert verification.measures["order"] == pytest.approx(2, abs=0.15)
    assert "order 2." in heat.summary(result)


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_blocks_with_halos_equal_one_block_to_the_last_bit(chunks: int) -> None:
    heat = Heat(points=27, steps=16, steps_per_task=4, chunks=chunks, diffusivity=0.5)
    grid = heat.grids()[-1]
    boxes = grid.blocks()
    graph = dict(heat.graph())
    keys = [f"heat-step-{heat.token()}-27-12-{i}.{j}.{k}" for i, j, k in boxes]
    assembled = np.zeros((29, 29, 29))
    everywhere = Box((-1, -1, -1), (28, 28, 28))
    for box, values in zip(boxes.values(), get_sync(graph, keys), strict=True):
        assembled[box.within(everywhere)] = values
    start = np.zeros((29, 29, 29))
    start[1:-1, 1:-1, 1:-1] = modes(Box((0, 0, 0), (27, 27, 27)), grid.spacing_m, [1, 1])
    np.testing.assert_array_equal(assembled, heat_steps(start, heat.fourier, 16, (False,) * 6))


def test_each_mode_shrinks_as_the_difference_equations_say() -> None:
    heat = Heat(points=27, steps=16, steps_per_task=16, chunks=1)
    grid, cube = heat.grids()[-1], Box((0, 0, 0), (27, 27, 27))
    block = step_block(modes(cube, grid.spacing_m, [1, 1]), cube, [], [], 27, 16, heat.fourier)
    factors = decay_in_steps(grid, heat.fourier)
    np.testing.assert_allclose(block, modes(cube, grid.spacing_m, factors), atol=1e-14)
    # the same factors, by the eigenvalues of the second difference as a matrix
    second = 2 * np.eye(27) - np.eye(27, k=1) - np.eye(27, k=-1)
    eigenvalues = np.sort(np.linalg.eigvalsh(second))
    expected = [(1 - heat.fourier * sum(eigenvalues[k - 1] for k in waves)) ** 16 for waves, _ in MODES]
    np.testing.assert_allclose(factors, expected, rtol=1e-12)


def test_a_missing_face_leaves_a_hole_that_verify_sees() -> None:
    heat = Heat(**SMALL)
    graph = dict(heat.graph())
    task = next(key for key in graph if key.startswith("heat-step-") and "-31-5-" in key)
    function, block, box, faces, halo, *rest = graph[task]
    graph[task] = (function, block, box, faces[1:], halo[1:], *rest)
    result = get_sync(graph, f"heat-convergence-{heat.token()}")
    assert not heat.verify(result).passed


def test_a_stale_face_makes_verify_fail() -> None:
    heat = Heat(**SMALL)
    graph = dict(heat.graph())
    token = heat.token()
    face = next(key for key in graph if key.startswith(f"heat-face-{token}-31-15-"))
    graph[face] = (graph[face][0], graph[face][1].replace("-10-", "-5-"), *graph[face][2:])
    assert not heat.verify(get_sync(graph, f"heat-convergence-{token}")).passed


@pytest.mark.parametrize("factor", [0.5, 1.5, 100.0, 0.0, float("nan")])
def test_an_error_that_is_off_makes_verify_fail(factor: float) -> None:
    heat = Heat(**SMALL)
    result = computed(heat)
    *coarser, finest = result.grids
    wrong = replace(
        finest, rms_error_kelvin=finest.rms_error_kelvin * factor, max_error_kelvin=finest.max_error_kelvin * factor
    )
    assert heat.verify(result).passed
    assert not heat.verify(Convergence((*coarser, wrong))).passed


@pytest.mark.parametrize("result", [None, 3, Convergence(())])
def test_something_else_is_no_result(result: Any) -> None:
    verification = Heat(**SMALL).verify(result)
    assert not verification.passed
    assert verification.summary.startswith("the result does not belong to these parameters")


def test_threads_change_nothing_and_keys_tell_the_content() -> None:
    heat = Heat(**SMALL)
    assert computed(heat) == computed(heat, dask.threaded.get)
    assert heat.graph().keys() == Heat(**SMALL).graph().keys()
    assert not heat.graph().keys() & Heat(**SMALL | {"fourier": 0.1}).graph().keys()


def test_blocks_never_travel() -> None:
    graph = dict(Heat(**SMALL).graph())
    for key, task in graph.items():
        if key.startswith("heat-step-"):
            assert task[1].startswith(("heat-start-", "heat-step-"))
            assert task[1].rsplit("-", 1)[1] == key.rsplit("-", 1)[1]
            assert all(face.startswith("heat-face-") for face in task[3])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"points": 100},
            "points = 100 is not allowed: three grids nest only in a multiple of 4 less 1: take 99 or 103",
        ),
        ({"points": 3}, "points = 3 is not allowed: a whole number from 23 to 1023"),
        (
            {"steps": 100},
            "steps = 100 is not allowed: three grids end together only after a multiple of 16: take 96 or 112",
        ),
        ({"fourier": "0.2"}, "fourier = '0.2' is not allowed: explicit steps in three dimensions are stable up to 1/6"),
        ({"fourier": "nan"}, "fourier = 'nan' is not allowed: "),
        ({"chunks": 16, "points": 63}, "steps_per_task = 16 needs halos deeper than the blocks of 3 points"),
        (
            {"points": 23, "steps_per_task": 8},
            "after steps = 256 too little heat is left to measure: take steps = 224 or fewer",
        ),
        ({"dtype": "float16"}, "dtype = 'float16' is not allowed: float64 or float32"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadParameterError) as caught:
        create("heat", **parameters)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_parameters_that_a_refusal_proposes_work() -> None:
    assert Heat(points=23, steps=224, steps_per_task=8).steps == 224
    assert Heat(points=99).points == 99
