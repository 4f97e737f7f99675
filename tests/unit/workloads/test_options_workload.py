"""Options: right prices, the same to the last bit however they are computed, and wrong ones found out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import dask.threaded
import numpy as np
import pytest
from dask.local import get_sync

from swarm.errors import WorkloadParameterError
from workloads import create
from workloads.graphs.options import (
    BATCH,
    KINDS,
    Contract,
    Options,
    PriceBook,
    black_scholes,
    geometric_asian,
    payoff_sums,
    price_contract,
)

SMALL: dict[str, Any] = {"strikes": 2, "maturities": 2, "volatilities": 2, "batches": 5, "dates": 6}
CONTRACT = Contract(0, 100.0, 0.05, 110.0, 1.0, 0.2, 12)


def computed(options: Options, get: Any = get_sync) -> PriceBook:
    result: PriceBook = get(dict(options.graph()), f"options-book-{options.token()}")
    return result


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return computed(Options(**SMALL))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", [0, 1])
def test_passes(seed: int, dtype: str) -> None:
    options = Options(**SMALL, seed=seed, dtype=dtype)
    result = computed(options)
    verification = options.verify(result)
    assert verification.passed, verification.summary
    assert verification.measures["contracts"] == 8
    assert 0.3 < verification.measures["european_rms_z"] < 2  # type: ignore[operator]  # a float
    assert "16 quotes from 163,840 paths" in options.summary(result)
    assert repr(result).startswith("<PriceBook of 16 quotes: ")


@pytest.mark.parametrize("batches_per_task", [1, 2, 8])
def test_the_same_to_the_last_bit_however_it_is_divided_and_run(book: PriceBook, batches_per_task: int) -> None:
    assert computed(Options(**SMALL, batches_per_task=batches_per_task), dask.threaded.get) == book


def test_another_seed_is_another_book_and_keys_tell_the_content(book: PriceBook) -> None:
    other = Options(**SMALL, seed=1)
    assert computed(other) != book
    assert Options(**SMALL).graph().keys() == Options(**SMALL).graph().keys()
    assert not Options(**SMALL).graph().keys() & other.graph().keys()


def test_the_geometric_option_controls_the_variance(book: PriceBook) -> None:
    assert all(quote.asian_error < quote.geometric_error / 5 for quote in book.quotes)


@pytest.mark.parametrize("field", ["european", "asian", "geometric"])
@pytest.mark.parametrize("change", [5.0, -5.0, float("nan")])
@pytest.mark.parametrize("place", [0, 15])
def test_one_wrong_price_makes_verify_fail(book: PriceBook, field: str, change: float, place: int) -> None:
    quotes = list(book.quotes)
    wrong: Any = {field: getattr(quotes[place], field) + change}
    quotes[place] = replace(quotes[place], **wrong)
    assert Options(**SMALL).verify(book).passed
    assert not Options(**SMALL).verify(PriceBook(tuple(quotes))).passed


def test_one_wild_batch_can_not_hide_behind_its_own_error() -> None:
    options = Options(**SMALL)
    graph = dict(options.graph())
    token = options.token()
    sums = get_sync(graph, f"options-paths-{token}-3-0")
    sums[:, :3, 1] *= 30
    sums[:, 3:, 1] *= 900
    graph[f"options-paths-{token}-3-0"] = sums
    assert not options.verify(get_sync(graph, f"options-book-{token}")).passed


@pytest.mark.parametrize("result", [None, PriceBook(())])
def test_something_else_is_no_result(result: Any) -> None:
    assert Options(**SMALL).verify(result).summary.startswith("the result is not a price book of these contracts")


def test_closed_formulas_give_published_prices() -> None:
    # Hull, "Options, futures and other derivatives", example 15.6: 4.76 and 0.81
    hull = Contract(0, 42.0, 0.1, 40.0, 0.5, 0.2, 1)
    assert [round(black_scholes(hull, kind).price, 2) for kind in KINDS] == [4.76, 0.81]
    assert [geometric_asian(hull, kind).price for kind in KINDS] == pytest.approx(
        [black_scholes(hull, kind).price for kind in KINDS]
    )


@pytest.mark.parametrize("formula", [black_scholes, geometric_asian])
@pytest.mark.parametrize("kind", KINDS)
def test_closed_moments_agree_with_integration(formula: Any, kind: Any) -> None:
    m = CONTRACT.dates
    geometric = formula is geometric_asian
    mean = 0.03 * ((m + 1) / (2 * m) if geometric else 1)
    deviation = 0.2 * math.sqrt((m + 1) * (2 * m + 1) / (6 * m * m) if geometric else 1)
    z = np.linspace(-9, 9, 200_001)
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    sign = 1 if kind == "call" else -1
    payoff = math.exp(-0.05) * np.maximum(sign * (100 * np.exp(mean + deviation * z) - 110), 0)
    price = float((payoff * weight).sum())
    spread = math.sqrt(float((np.square(payoff) * weight).sum()) - price**2)
    assert formula(CONTRACT, kind) == pytest.approx((price, spread), rel=1e-6)


def test_sums_combine_to_plain_means_and_errors() -> None:
    sums = payoff_sums(CONTRACT, 7, 0, 2, "float64")
    assert sums.shape == (2, 7, 2)
    call, put = price_contract(CONTRACT, [sums[:, :, :1], sums[:, :, 1:]])
    assert (call.kind, put.kind, call.paths) == ("call", "put", 2 * BATCH)
    assert call.european == pytest.approx(sums[0, 0].sum() / call.paths)
    forward = call.european - put.european  # of the same paths: exactly the discounted mean of price - strike
    assert forward == pytest.approx(100 - 110 * math.exp(-0.05), abs=1.5)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"strikes": 0}, "strikes = 0 is not allowed: a whole number from 1 to 100"),
        ({"rate": -0.1}, "rate = -0.1 is not allowed: a number from 0"),
        ({"spot": "nan"}, "spot = 'nan' is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed: a whole number from 0 to 4294967295"),
        ({"path": 5}, "options has no parameter 'path'"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadParameterError) as caught:
        create("options", **parameters)
    assert said in str(caught.value)
