from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.core import get_dependencies
from dask.local import get_sync
from dask.utils import key_split
from PIL import Image

from swarm.errors import UnreadableInputError, WorkloadParameterError
from workloads import create
from workloads.graphs import kmeans
from workloads.graphs.kmeans import KMeans, Quantised, State
from workloads.images import read_rgb

SMALL: dict[str, Any] = {
    "clusters": 6,
    "iterations": 30,
    "restarts": 3,
    "chunk_pixels": 4000,
    "megapixels": 0.01,
    "seed": 5,
}


def compute(workload: KMeans) -> Quantised:
    graph = dict(workload.graph())
    (sink,) = sinks(graph)
    result: Quantised = get_sync(graph, sink)
    return result


def sinks(graph: dict[Any, Any]) -> set[Any]:
    return set(graph) - {needed for key in graph for needed in get_dependencies(graph, key)}


@pytest.fixture(scope="module")
def small() -> KMeans:
    return KMeans(**SMALL)


@pytest.fixture(scope="module")
def result(small: KMeans) -> Quantised:
    return compute(small)


def test_the_result_stands_up_to_scikit_learn(small: KMeans, result: Quantised) -> None:
    verdict = small.verify(result)
    assert verdict.passed, verdict.summary
    assert "scikit-learn" in verdict.summary
    assert "\n" not in verdict.summary
    assert verdict.measures["inertia"] == result.inertia
    assert result.converged
    assert result.iterations < small.iterations


def test_the_picture_has_the_few_colours(small: KMeans, result: Quantised) -> None:
    picture, original = result.image(), small.pixels()
    assert picture.dtype == np.uint8
    assert picture.shape == original.shape
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == small.clusters
    assert np.abs(picture.astype(int) - original).mean() < np.abs(original.mean(axis=(0, 1)) - original).mean() / 2


def test_the_summary_is_one_line(small: KMeans, result: Quantised) -> None:
    height, width = result.labels.shape
    assert small.summary(result).startswith(f"{width} x {height} pixels in 6 colours, inertia ")
    assert f"converged after {result.iterations} iterations (restart " in small.summary(result)


def wrong_label(result: Quantised) -> Quantised:
    labels = result.labels.copy()
    labels[0, 0] = (labels[0, 0] + 1) % 6
    return dataclasses.replace(result, labels=labels)


def poor_but_consistent(result: Quantised) -> Quantised:
    shifted = result.centroids + 8
    pixels = KMeans(**SMALL).pixels().reshape(-1, 3)
    inertia = float(np.square(pixels - shifted[result.labels.reshape(-1)]).sum())
    return dataclasses.replace(result, centroids=shifted, inertia=inertia)


def one_replaced(name: str, value: Callable[[Any], Any]) -> Callable[[Quantised], Quantised]:
    return lambda result: dataclasses.replace(result, **{name: value(getattr(result, name))})


@pytest.mark.parametrize(
    ("corrupt", "said"),
    [
        (wrong_label, "labels and colours make"),
        (poor_but_consistent, "% above scikit-learn's"),
        (one_replaced("inertia", lambda inertia: inertia * 0.9), "labels and colours make"),
        (one_replaced("centroids", lambda centroids: centroids[::-1]), "labels and colours make"),
        (one_replaced("centroids", lambda centroids: centroids[:5]), "not (6, 3)"),
        (one_replaced("centroids", lambda centroids: centroids * np.nan), "not a finite number"),
        (one_replaced("labels", lambda labels: labels[:-1]), "the labels have the shape"),
        (one_replaced("labels", lambda labels: labels + 1), "label 6 stands for no colour: there are 6"),
        (lambda result: result.labels, "the result is a ndarray, not a quantised image"),
    ],
)
def test_a_wrong_result_is_found_out(
    small: KMeans, result: Quantised, corrupt: Callable[[Quantised], Any], said: str
) -> None:
    verdict = small.verify(corrupt(result))
    assert not verdict.passed
    assert said in verdict.summary


def test_too_few_iterations_are_said_and_fail() -> None:
    hasty = KMeans(**{**SMALL, "clusters": 24, "iterations": 1, "restarts": 1})
    verdict = hasty.verify(compute(hasty))
    assert not verdict.passed
    assert verdict.summary.endswith("not converged after 1 iterations")


def test_a_large_image_is_compared_on_some_pixels_and_says_so(
    small: KMeans, result: Quantised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "REFERENCE_PIXELS", 4000)
    verdict = small.verify(result)
    assert verdict.passed, verdict.summary
    assert "(on every 3th pixel)" in verdict.summary
    assert verdict.measures["compared_pixels"] == -(-result.labels.size // 3)


def test_the_same_parameters_give_the_same_graph_and_result(small: KMeans, result: Quantised) -> None:
    again = compute(KMeans(**SMALL))
    assert set(small.graph()) == set(KMeans(**SMALL).graph())
    np.testing.assert_array_equal(result.centroids, again.centroids)
    np.testing.assert_array_equal(result.labels, again.labels)
    assert result.inertia == again.inertia


@pytest.mark.parametrize("change", [{"seed": 6}, {"clusters": 7}, {"image": "flower"}, {"megapixels": 0.02}])
def test_other_parameters_or_another_image_give_other_keys(small: KMeans, change: dict[str, Any]) -> None:
    assert not set(small.graph()) & set(KMeans(**{**SMALL, **change}).graph())


def test_the_chunks_do_not_matter(result: Quantised) -> None:
    in_one = compute(KMeans(**{**SMALL, "chunk_pixels": 10_000}))
    np.testing.assert_array_equal(result.centroids, in_one.centroids)
    np.testing.assert_array_equal(result.labels, in_one.labels)


def test_restarts_only_improve(result: Quantised) -> None:
    single = compute(KMeans(**{**SMALL, "restarts": 1}))
    assert result.inertia <= single.inertia


def test_keys_are_readable_and_there_is_one_sink(small: KMeans) -> None:
    graph = dict(small.graph())
    (sink,) = sinks(graph)
    assert key_split(sink) == "kmeans-quantised"
    chunks = 3  # of 10,000 pixels with at most 4,000 each
    assert {name: sum(key_split(key) == name for key in graph) for name in map(key_split, graph)} == {
        "kmeans-pixels": chunks,
        "kmeans-sample": 1,
        "kmeans-seed": 3,
        "kmeans-assign": 3 * 30 * chunks,
        "kmeans-move": 3 * 30,
        "kmeans-best": 1,
        "kmeans-label": chunks,
        "kmeans-quantised": 1,
    }


def test_the_default_fits_below_dasks_warning_for_large_graphs() -> None:
    graph = KMeans(megapixels=3).graph()
    assert 100 <= len(graph) <= 600
    assert sum(value.nbytes for value in graph.values() if isinstance(value, np.ndarray)) < 1e6
    assert KMeans.model_fields["megapixels"].default * 3e6 + 3 * kmeans.SEEDING_PIXELS < 10e6


def test_iterations_after_convergence_cost_nothing() -> None:
    settled = State(np.zeros((2, 3)), inertia=1.0, iterations=4, converged=True)
    assert kmeans.assign_chunk(np.zeros((5, 3), np.uint8), settled) is None
    assert kmeans.move_centroids(settled, [None, None], 0.0) is settled


def test_a_centroid_without_pixels_stays() -> None:
    state = State(np.array([[0.0, 0, 0], [200, 200, 200], [90, 90, 90]]))
    part = kmeans.assign_chunk(np.array([[1, 2, 3], [3, 2, 1]], np.uint8), state)
    moved = kmeans.move_centroids(state, [part], 0.0)
    assert moved.centroids.tolist() == [[2, 2, 2], [200, 200, 200], [90, 90, 90]]
    assert (moved.iterations, moved.inertia, moved.converged) == (1, 28.0, False)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[np.ndarray[Any, Any]], str]:
    def save(pixels: np.ndarray[Any, Any]) -> str:
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        return str(tmp_path / "picture.png")

    return save


def test_an_image_with_fewer_colours_than_clusters_is_kept_exactly(picture: Callable[[Any], str]) -> None:
    pixels = np.random.default_rng(0).choice(np.array([[0, 0, 0], [255, 0, 9], [7, 80, 9]], np.uint8), (20, 30))
    workload = KMeans(image=picture(pixels), clusters=5, iterations=3)
    result = compute(workload)
    np.testing.assert_array_equal(result.image(), pixels)
    assert workload.verify(result).summary == "exact: the image has no more than 5 colours"


def test_an_image_with_fewer_pixels_than_clusters_is_refused(picture: Callable[[Any], str]) -> None:
    path = picture(np.zeros((3, 5, 3), np.uint8))
    with pytest.raises(WorkloadParameterError) as caught:
        create("kmeans", image=path, clusters=16)
    assert str(caught.value) == f"kmeans: image {path!r} has 15 pixels, fewer than the 16 clusters"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"clusters": 1}, "kmeans: clusters = 1 is not allowed: a whole number from 2 to 256"),
        ({"clusters": "257"}, "kmeans: clusters = '257' is not allowed: a whole number from 2 to 256"),
        ({"tolerance": -1}, "kmeans: tolerance = -1 is not allowed: a number from 0 to 1"),
    ],
)
def test_a_parameter_out_of_range(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadParameterError) as caught:
        create("kmeans", **parameters)
    assert str(caught.value) == said


def test_images_of_all_modes_become_rgb(tmp_path: Path) -> None:
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for mode in ("L", "RGBA", "P", "RGB"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(levels).convert(mode).save(path)
        np.testing.assert_array_equal(read_rgb(str(path), 100), np.repeat(levels[:, :, None], 3, axis=2))


def test_an_image_is_turned_upright_and_scaled_down(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(str(tmp_path / "turned.jpg"), 800).shape == (40, 20, 3)
    assert read_rgb(str(tmp_path / "turned.jpg"), 200).shape == (20, 10, 3)


@pytest.mark.parametrize("name", ["china", "flower", "china.jpg"])
def test_the_samples(name: str) -> None:
    assert read_rgb(name, 10**6).shape == (427, 640, 3)


ENDING = "; give the path of an image, or china or flower"


def test_an_image_that_is_not_there() -> None:
    with pytest.raises(UnreadableInputError) as caught:
        create("kmeans", image="chinna.jpg")
    assert str(caught.value) == (
        f"image 'chinna.jpg' can't be read: there is no such file; did you mean china?{ENDING}"
    )


def test_an_image_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInputError) as caught:
        create("kmeans", image=str(tmp_path))
    assert str(caught.value) == f"image {str(tmp_path)!r} can't be read: Is a directory{ENDING}"


def bomb_header() -> bytes:
    wide = b"P6 60000 60000 255\n"  # Pillow refuses so many pixels before it reads any
    return wide + bytes(100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not an image", "cannot identify image file"),
        (b"", "cannot identify image file"),
        (b"P6 9 9 255\n" + bytes(10), "image file is truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "cannot identify image file"),
        (bomb_header(), "decompression bomb"),
    ],
)
def test_an_image_that_is_damaged(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(UnreadableInputError) as caught:
        create("kmeans", image=str(path))
    line = str(caught.value)
    assert line.startswith(f"image {str(path)!r} can't be read: ")
    assert said in line
    assert line.endswith(ENDING)
    assert "\n" not in line


def test_a_truncated_photograph(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(read_rgb("flower", 10**4)).save(whole)
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UnreadableInputError, match="image file is truncated"):
        create("kmeans", image=str(whole))
