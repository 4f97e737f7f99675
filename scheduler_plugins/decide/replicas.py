"""Which results are worth a second copy on another worker, now that workers die so often.  PURE

A copy costs a transfer, memory, and a few messages. It pays when the worker dies before the result has been used: then
the task need not run again, nor what led to it, which Dask has let go of. So it is a bet on the rate at which workers
die, which is learned: in calm weather next to nothing is copied; after a death, what is costly to redo.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, expm1

PRIOR_DEATHS, PRIOR_S = 1e-4, 100.0
"""Deaths, and seconds of one worker's life in which they fell, before any was seen: one in twelve days; and so weak a
belief that one death changes it ten thousandfold."""
FORGET_S = 1800.0
"""Deaths and lives count for less with age, with this time constant: a bad night is over in the morning."""
OVERHEAD_S = 0.001
"""Of scheduler and workers, to copy one result, whatever its size."""
SHARED = 4.0
"""A dead worker takes its share of a whole generation, and each of those results needs most of what led to them all.
So a loss costs about so many times the result's own share of the work before it (layers of random graphs, measured)."""
IN_USE_S, WANTED_S = 5.0, 60.0
"""How long a result is needed that other tasks wait for, and one that a client has asked for."""


class Hazard:
    """How often workers die.

    >>> hazard = Hazard()
    >>> hazard.passed(10.0, workers=4)
    >>> calm = hazard.rate
    >>> hazard.died()
    >>> hazard.rate > 5000 * calm
    True
    """

    def __init__(self) -> None:
        self._deaths = 0.0
        self._lived_s = 0.0

    def passed(self, seconds: float, workers: int) -> None:
        """Time has passed, and so many workers lived."""
        keep = exp(-seconds / FORGET_S)
        self._deaths *= keep
        self._lived_s = self._lived_s * keep + seconds * workers

    def died(self) -> None:
        self._deaths += 1.0

    @property
    def rate(self) -> float:
        """Deaths per second of a worker's life."""
        return (PRIOR_DEATHS + self._deaths) / (PRIOR_S + self._lived_s)


def redo_s(took_s: float, inputs: Iterable[tuple[float, int]]) -> float:
    """Seconds of work that a result stands for: its own, and its share of those of its inputs.

    Parameters
    ----------
    inputs
        Of each input that will be let go of: its `redo_s`, and how many tasks share it.

    >>> redo_s(1.0, [(4.0, 2), (3.0, 1)])
    6.0
    """
    return took_s + sum(share_s / max(users, 1) for share_s, users in inputs)


def least_share_s(rate: float) -> float:
    """Results that stand for no more work are not worth a copy, however small they are and whoever wants them."""
    return OVERHEAD_S / (SHARED * -expm1(-rate * WANTED_S))


def is_worth_a_copy(share_s: float, nbytes: float, rate: float, bytes_per_s: float, *, is_wanted: bool) -> bool:
    """Whether to copy a result that one worker has.

    Parameters
    ----------
    share_s
        By `redo_s`.
    rate
        Deaths per second of a worker's life.
    is_wanted
        Whether a client has asked for it, so that it stays.
    """
    risk = 1.0 - exp(-rate * (WANTED_S if is_wanted else IN_USE_S))
    return risk * SHARED * share_s > OVERHEAD_S + nbytes / max(bytes_per_s, 1.0)
