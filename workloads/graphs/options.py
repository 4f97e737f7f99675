"""Monte Carlo prices of European and Asian options, checked against closed formulas.

Every contract (strike, maturity, volatility) has its own random numbers, keyed by seed, contract and path. Sums are
taken over batches of fixed length and combined in fixed order, so a seed gives the same prices to the last bit, however
many workers there are and however the paths are divided into tasks.

An Asian option here pays on the arithmetic mean of the price over equally spaced dates. That has no closed formula;
the option on the geometric mean has one (Kemna and Vorst 1990; discrete dates as in Glasserman 2003, section 3.2.2).
It serves as control variate, which cuts the standard error by a factor of 20 or more, and as a check.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from workloads.kernels import montecarlo
from workloads.workload import Verification, Workload

if TYPE_CHECKING:
    from workloads.workload import Graph

Kind: TypeAlias = Literal["call", "put"]
KINDS: tuple[Kind, Kind] = ("call", "put")
Sums: TypeAlias = npt.NDArray[np.float64]

BATCH = 4096
"""Paths whose payoffs are summed up before anything is combined: the granule of reproducibility."""
ALLOWED_ERRORS = 4.0
"""Standard errors that a price may be off. A right program fails this once in 16,000 prices."""

STRIKES_PERCENT = (90.0, 110.0)
"""Lowest and highest strike, relative to the price today."""
MATURITIES_YEARS = (0.5, 2.0)
VOLATILITIES = (0.15, 0.45)


@dataclass(frozen=True, slots=True)
class Contract:
    """Terms of an option; `number` keys its random numbers."""

    number: int
    spot: float
    rate_per_year: float
    strike: float
    maturity_years: float
    volatility: float
    """Per square root of a year."""
    dates: int
    """Equally spaced dates of the mean; the last is the maturity."""


@dataclass(frozen=True, slots=True)
class Quote:
    """Estimated prices of a call or a put with their standard errors, in units of the spot price."""

    contract: Contract
    kind: Kind
    paths: int
    european: float
    european_error: float
    asian: float
    asian_error: float
    geometric: float
    """The option on the geometric mean, estimated from the same paths."""
    geometric_error: float


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Quotes of all contracts, a call and a put for each, in order of their numbers."""

    quotes: tuple[Quote, ...]

    def __repr__(self) -> str:
        return f"<PriceBook of {len(self.quotes)} quotes: {self.quotes[:1]!r:.200} ...>"


class Exact(NamedTuple):
    """Price by a closed formula, and standard deviation of the discounted payoff of one path."""

    price: float
    deviation: float


class Options(Workload):
    """Monte Carlo prices of European and Asian options, checked against closed formulas."""

    name: ClassVar[str] = "options"

    strikes: int = Field(5, ge=1, le=100, description="number of strikes, from 90 to 110 % of the spot price")
    maturities: int = Field(3, ge=1, le=100, description="number of maturities, from half a year to two years")
    volatilities: int = Field(3, ge=1, le=100, description="number of volatilities, from 15 to 45 %")
    batches: int = Field(32, ge=2, le=100_000, description=f"paths of a contract, in batches of {BATCH}")
    batches_per_task: int = Field(8, ge=1, le=4096, description="batches that one task simulates")
    dates: int = Field(32, ge=1, le=4096, description="dates at which an Asian option looks at the price")
    spot: float = Field(100.0, gt=0, le=1e6, description="price of the share today")
    rate: float = Field(0.03, ge=0, le=1, description="interest rate per year, without risk")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the random numbers")
    dtype: Literal["float64", "float32"] = Field("float64", description="of the paths; sums are always float64")

    def contracts(self) -> Iterator[Contract]:
        """All contracts: each strike with each maturity and each volatility."""
        low, high = STRIKES_PERCENT
        terms = product(
            np.linspace(low, high, self.strikes) * self.spot / 100,
            np.linspace(*MATURITIES_YEARS, self.maturities),
            np.linspace(*VOLATILITIES, self.volatilities),
        )
        for number, (strike, maturity, volatility) in enumerate(terms):
            yield Contract(number, self.spot, self.rate, float(strike), float(maturity), float(volatility), self.dates)

    def graph(self) -> Graph:
        token = self.token()
        graph: dict[str, Any] = {}
        prices = []
        for contract in self.contracts():
            sums = []
            for first in range(0, self.batches, self.batches_per_task):
                batches = min(self.batches_per_task, self.batches - first)
                sums.append(f"options-paths-{token}-{contract.number}-{first}")
                graph[sums[-1]] = (payoff_sums, contract, self.seed, first, batches, self.dtype)
            prices.append(f"options-price-{token}-{contract.number}")
            graph[prices[-1]] = (price_contract, contract, sums)
        graph[f"options-book-{token}"] = (price_book, prices)
        return graph

    def verify(self, result: Any) -> Verification:
        """Compare with closed formulas and bounds; nothing may be off by more than four standard errors.

        Those of the European and geometric prices are from closed formulas too: a wrong path can't hide behind the
        large error that it brings about itself.

        European prices against Black and Scholes (1973), geometric ones against Kemna and Vorst, arithmetic ones
        against `asian_bounds`.
        """
        contracts = [(contract, kind) for contract in self.contracts() for kind in KINDS]
        if not isinstance(result, PriceBook) or [(q.contract, q.kind) for q in result.quotes] != contracts:
            return Verification(False, f"the result is not a price book of these contracts: {result!r:.100}")
        european, geometric, breaches = [], [], 0
        for q in result.quotes:
            exact_european, exact_geometric = black_scholes(q.contract, q.kind), geometric_asian(q.contract, q.kind)
            european.append((q.european - exact_european.price) / (exact_european.deviation / math.sqrt(q.paths)))
            geometric.append((q.geometric - exact_geometric.price) / (exact_geometric.deviation / math.sqrt(q.paths)))
            slack = ALLOWED_ERRORS * q.asian_error + 1e-6 * q.contract.spot  # in float32 prices round to 1e-7
            low, high = asian_bounds(q.contract, q.kind)
            breaches += not low - slack <= q.asian <= high + slack
        worst_european, worst_geometric = float(np.max(np.abs(european))), float(np.max(np.abs(geometric)))
        off = sum(not abs(z) <= ALLOWED_ERRORS for z in european)
        return Verification(
            off == 0 and worst_geometric <= ALLOWED_ERRORS and breaches == 0,
            f"{len(european)} European prices of {len(european) // 2} contracts against Black-Scholes: largest |z| "
            f"{worst_european:.2f}, {off} above {ALLOWED_ERRORS:g}; geometric Asian: {worst_geometric:.2f}; "
            f"{breaches} Asian prices out of bounds",
            {
                "contracts": len(european) // 2,
                "european_prices": len(european),
                "european_largest_z": worst_european,
                "european_rms_z": float(np.sqrt(np.mean(np.square(european)))),
                "european_prices_off": off,
                "geometric_largest_z": worst_geometric,
                "asian_bounds_broken": breaches,
            },
        )

    def summary(self, result: PriceBook) -> str:
        paths = sum(q.paths for q in result.quotes) // len(KINDS)
        largest = max(q.asian_error for q in result.quotes)
        return f"{len(result.quotes)} quotes from {paths:,} paths, Asian prices to {largest:.2g} (standard error)"


def payoff_sums(contract: Contract, seed: int, first: int, batches: int, dtype: str) -> Sums:
    """Simulate some batches of paths.

    Returns
    -------
    float64 array (2, 7, batches)
        For call and put: sums over each batch of the discounted payoffs e, a and g (European, arithmetic and geometric
        Asian), and of e*e, a*a, g*g and a*g.
    """
    terms = np.array([contract.spot, contract.rate_per_year, contract.volatility, contract.maturity_years], dtype)
    paths = montecarlo.price_paths(terms, seed, contract.number, first * BATCH, batches * BATCH, contract.dates)
    gains = paths.astype(np.float64).reshape(3, batches, BATCH) - contract.strike
    discount = math.exp(-contract.rate_per_year * contract.maturity_years)
    sums = np.empty((2, 7, batches))
    for row, sign in zip(sums, (1, -1), strict=True):
        e, a, g = discount * np.maximum(sign * gains, 0)
        for place, terms_of_sum in enumerate((e, a, g, e * e, a * a, g * g, a * g)):
            row[place] = terms_of_sum.sum(axis=1)
    return sums


def price_contract(contract: Contract, sums: Sequence[Sums]) -> tuple[Quote, Quote]:
    """Combine the sums of all batches, in order, to the quotes of a call and a put."""
    of_batches = np.concatenate(sums, axis=2)
    paths = of_batches.shape[2] * BATCH
    call, put = (_quote(contract, kind, paths, rows) for kind, rows in zip(KINDS, of_batches, strict=True))
    return call, put


def price_book(prices: Sequence[tuple[Quote, Quote]]) -> PriceBook:
    """Gather the quotes of all contracts."""
    return PriceBook(tuple(quote for pair in prices for quote in pair))


def black_scholes(contract: Contract, kind: Kind) -> Exact:
    """European option (Black and Scholes 1973)."""
    growth = contract.rate_per_year - contract.volatility**2 / 2
    years = contract.maturity_years
    return _lognormal_option(contract, kind, growth * years, contract.volatility**2 * years)


def geometric_asian(contract: Contract, kind: Kind) -> Exact:
    """Option on the geometric mean over the dates (Glasserman 2003, section 3.2.2)."""
    growth, years, m = contract.rate_per_year - contract.volatility**2 / 2, contract.maturity_years, contract.dates
    mean = growth * years * (m + 1) / (2 * m)
    return _lognormal_option(contract, kind, mean, contract.volatility**2 * years * (m + 1) * (2 * m + 1) / (6 * m**2))


def asian_bounds(contract: Contract, kind: Kind) -> tuple[float, float]:
    """Lowest and highest possible price of an option on the arithmetic mean, for which there is no formula.

    On each path the geometric mean is not above the arithmetic one, so neither is its call, and its put is not below.
    Call less put is the discounted mean of what is above the strike, in closed form: each bounds the other one too.
    With interest that is not negative a call is no dearer than the European one.
    """
    at_dates = contract.maturity_years * np.arange(1, contract.dates + 1) / contract.dates
    mean = contract.spot * float(np.exp(contract.rate_per_year * at_dates).mean())
    call_less_put = math.exp(-contract.rate_per_year * contract.maturity_years) * (mean - contract.strike)
    low = geometric_asian(contract, "call").price
    high = min(geometric_asian(contract, "put").price + call_less_put, black_scholes(contract, "call").price)
    return (low, high) if kind == "call" else (low - call_less_put, high - call_less_put)


def _lognormal_option(contract: Contract, kind: Kind, mean: float, variance: float) -> Exact:
    """Moments of the payoff when the log of price / spot is normal."""
    strike, sign = contract.strike, 1 if kind == "call" else -1
    deviation = math.sqrt(variance)
    d2 = (math.log(contract.spot / strike) + mean) / deviation
    # mean of price**power over the paths that pay, for the powers 0, 1 and 2
    m0, m1, m2 = (
        contract.spot**power * math.exp(power * mean + power**2 * variance / 2) * _cdf(sign * (d2 + power * deviation))
        for power in range(3)
    )
    payoff, square = sign * (m1 - strike * m0), m2 - 2 * strike * m1 + strike**2 * m0
    discount = math.exp(-contract.rate_per_year * contract.maturity_years)
    return Exact(discount * payoff, discount * math.sqrt(square - payoff**2))


def _cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _quote(contract: Contract, kind: Kind, paths: int, of_batches: Sums) -> Quote:
    e, a, g, ee, aa, gg, ag = (math.fsum(row) / paths for row in of_batches)
    var_e, var_a, var_g, cov = ee - e * e, aa - a * a, gg - g * g, ag - a * g
    share = cov / var_g if var_g > 0 else 0.0
    return Quote(
        contract=contract,
        kind=kind,
        paths=paths,
        european=e,
        european_error=math.sqrt(max(var_e, 0) / paths),
        asian=a - share * (g - geometric_asian(contract, kind).price),
        asian_error=math.sqrt(max(var_a - share * cov, 0) / paths),
        geometric=g,
        geometric_error=math.sqrt(max(var_g, 0) / paths),
    )
