"""How hot a host will be, and how many of its cores it may use meanwhile.  PURE

`Trend` forecasts a reading, `Governor` keeps it below a limit by choosing a whole number of cores. The same rule serves
for temperature and for power: both follow the number of busy cores, one late and one at once.

The rule, in one paragraph. While the forecast is above the limit, cores are taken: the more the further it is above,
between an eighth and a half of them, and then none until the effect can be seen. Cores come back one at a time (a
quarter where there is much room), slowly, and only while forecast and reading are below the limit by the dead band. The
number of cores at which it was too much last is remembered as the ceiling, and not tried again before a while, which
doubles each time that it was too much again: so cores do not go back and forth. Near the trip point of the hardware
itself there is one core at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL_S, TREND_S = 2.0, 6.0
"""Time constants of the smoothing: a spike of one sample hardly counts, a climb does after some seconds."""
FADE_S = 20.0
"""A trend is not believed for ever: heat approaches an end point (damped trend, Gardner and McKenzie 1985)."""
BLIND_S = 60.0
"""Without a reading for so long, nothing is known, and no cores are withheld for it any more."""
TRIP_CELSIUS = 3.0
"""Nearer than that to the trip point at which the hardware stops itself, a host has one core."""


class Trend:
    """Level and slope of a reading, by Holt's double exponential smoothing at uneven intervals, and how far it erred.

    Source: Holt 1957; Wright 1986 for uneven intervals, here with gains of 1 - exp(-step / time constant).

    >>> trend = Trend(horizon_s=10.0)
    >>> for second in range(60):
    ...     trend.learn_one(float(second), 40.0 + 0.5 * second)
    >>> round(trend.forecast(0.0), 1), round(trend.slope_per_s, 2)
    (69.5, 0.5)
    """

    __slots__ = ("_due", "_horizon_s", "_seen_s", "error", "level", "slope_per_s")

    def __init__(self, horizon_s: float) -> None:
        self.level: float | None = None
        self.slope_per_s = 0.0
        self.error: float | None = None
        """Mean size of the error of recent forecasts over the horizon, in the unit of the reading; None: none yet."""
        self._horizon_s = horizon_s
        self._seen_s = 0.0
        self._due: deque[tuple[float, float]] = deque()

    def learn_one(self, now_s: float, reading: float) -> None:
        """A reading; `now_s` is of a clock that never goes back."""
        step_s, self._seen_s = now_s - self._seen_s, now_s
        if self.level is None or step_s > BLIND_S:
            self.level, self.slope_per_s = reading, 0.0
            self._due.clear()
        elif step_s > 0:
            before = self.level
            expected = before + self.slope_per_s * step_s
            self.level = expected + _gain(step_s, LEVEL_S) * (reading - expected)
            self.slope_per_s += _gain(step_s, TREND_S) * ((self.level - before) / step_s - self.slope_per_s)
        self._check(now_s, reading)

    def forecast(self, horizon_s: float) -> float:
        """The reading so many seconds after the last; raises ValueError before the first."""
        if self.level is None:
            raise ValueError("nothing was read yet")
        return self.level + self.slope_per_s * FADE_S * (1 - math.exp(-horizon_s / FADE_S))

    def _check(self, now_s: float, reading: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            error = abs(self._due.popleft()[1] - reading)
            self.error = error if self.error is None else self.error + 0.1 * (error - self.error)
        if self._horizon_s > 0:
            self._due.append((now_s + self._horizon_s, self.forecast(self._horizon_s)))


def _gain(step_s: float, constant_s: float) -> float:
    return 1 - math.exp(-step_s / constant_s)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a governor keeps, and how fast it acts. Units are those of the reading, in the names of who makes one."""

    what: str
    """What is read, for a person: "temperature"."""
    unit: str
    limit: float
    band: float
    """Cores come back only below `limit - band`."""
    slack: float
    """A forecast is above the limit if it is by more than that: at the limit the noise of a sensor takes no cores."""
    span: float
    """A forecast so far above the limit takes the most that is taken at once."""
    horizon_s: float
    settle_s: float
    """From one cut to the next: tasks end, and the sensor notices."""
    grow_s: float
    """From any change to the next growth."""
    retry_s: float = 60.0
    longest_retry_s: float = 480.0


def heat_rule(critical_celsius: float, margin_celsius: float = 5.0) -> Rule:
    """Stay below `critical_celsius` by a margin: sensors are a second late, and so are tasks that have to end."""
    return Rule(
        what="temperature",
        unit="°C",
        limit=critical_celsius - margin_celsius,
        band=3.0,
        slack=1.0,
        span=2 * margin_celsius,
        horizon_s=10.0,
        settle_s=4.0,
        grow_s=30.0,
    )


def power_rule(limit_watts: float) -> Rule:
    """Power follows the cores at once, so there is nothing to look ahead for."""
    return Rule(
        what="power",
        unit="W",
        limit=limit_watts,
        band=0.05 * limit_watts,
        slack=0.0,
        span=0.5 * limit_watts,
        horizon_s=0.0,
        settle_s=4.0,
        grow_s=30.0,
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """How many cores, and why: one line for a person, numbers for a program."""

    cores: int
    reason: str
    changed: bool = False
    reading: float | None = None
    forecast: float | None = None
    limit: float | None = None
    ceiling: int | None = None

    def as_dict(self) -> dict[str, float | int | str | None]:
        return {name: getattr(self, name) for name in ("cores", "reason", "reading", "forecast", "limit", "ceiling")}


class Governor:
    """Chooses how many of `cores` a host may use, so that a reading stays below the limit of its rule.

    >>> governor = Governor(heat_rule(critical_celsius=85.0), cores=8)
    >>> governor.decide(0.0, 50.0).cores
    8
    >>> governor.decide(1.0, 99.0).reason
    'temperature 99.0 °C, 92.6 °C forecast in 10 s, limit 80.0 °C: 4 instead of 8 cores'
    """

    def __init__(self, rule: Rule, cores: int, start: int | None = None) -> None:
        self.rule = rule
        self.all_cores = cores
        self.cores = cores if start is None else min(max(start, 1), cores)
        self.trend = Trend(rule.horizon_s)
        self._cut_s = self._changed_s = -math.inf
        self._cut_level = -math.inf
        self._read_s: float | None = None
        self._good: int | None = None
        """As many cores were well for a while."""
        self._ceiling: int | None = None
        self._tried: int | None = None
        """As many were too much, and are tried again."""
        self._retry_s = rule.retry_s
        self._retry_at_s = math.inf

    def decide(
        self, now_s: float, reading: float | None, *, cores_in_use: int | None = None, trip_celsius: float | None = None
    ) -> Decision:
        """Cores from now on.

        Parameters
        ----------
        now_s
            Of a clock that never goes back.
        reading
            None: there is none this time.
        cores_in_use
            By what obeys the budget; fewer than there are allowed: taking those that nobody uses would do nothing.
        trip_celsius
            How far the nearest sensor is from its own trip point.
        """
        rule = self.rule
        if reading is None:
            return self._blind(now_s)
        self._read_s = now_s
        self.trend.learn_one(now_s, reading)
        level, forecast = self.trend.forecast(0.0), self.trend.forecast(rule.horizon_s)
        seen = f"{rule.what} {reading:.1f} {rule.unit}"
        if rule.horizon_s:
            seen += f", {forecast:.1f} {rule.unit} forecast in {rule.horizon_s:g} s"
        seen += f", limit {rule.limit:.1f} {rule.unit}"
        if trip_celsius is not None and trip_celsius <= TRIP_CELSIUS:
            cores, seen = 1, f"{seen}, {trip_celsius:.1f} °C to the trip point of the hardware"
        elif forecast > rule.limit + (rule.band if level < rule.limit - rule.band else rule.slack):
            cores = self._fewer(now_s, level, forecast - rule.limit, cores_in_use)
        elif max(forecast, reading) < rule.limit - rule.band:
            cores = self._more(now_s, rule.limit - max(forecast, reading))
        else:
            cores = self.cores
        return self._enact(now_s, cores, seen, level, reading, forecast)

    def _fewer(self, now_s: float, level: float, excess: float, cores_in_use: int | None) -> int:
        rule = self.rule
        if now_s - self._cut_s < rule.settle_s:
            return self.cores
        if now_s - self._cut_s < 5 * rule.settle_s and level <= self._cut_level + rule.band / 6:
            return self.cores  # the trend is that of before the cut; it rises no more
        used = self.cores if cores_in_use is None else min(self.cores, max(cores_in_use, 1))
        if self._good is not None and self._good < used and excess < rule.span / 2:
            return self._good
        share = min(max(excess / rule.span, 0.25), 1.0) / 2
        return max(1, used - max(1, math.floor(used * share)))

    def _more(self, now_s: float, room: float) -> int:
        if self.cores == self.all_cores or now_s - self._changed_s < self.rule.grow_s:
            return self.cores
        step = max(1, self.cores // 4) if room > 3 * self.rule.band else 1
        most = self.all_cores
        if self._ceiling is not None and now_s < self._retry_at_s:
            most = min(most, max(self.cores, self._ceiling - 1))
        return min(most, self.cores + step)

    def _enact(self, now_s: float, cores: int, seen: str, level: float, reading: float, forecast: float) -> Decision:
        before, rule = self.cores, self.rule
        if cores < before:
            if self._tried is not None and before >= self._tried:
                self._retry_s = min(2 * self._retry_s, rule.longest_retry_s)
            if self._good is not None and self._good >= before:
                self._good = None
            self._ceiling, self._retry_at_s = before, now_s + self._retry_s
            self._cut_s, self._cut_level = now_s, level
            self._changed_s = now_s
        elif cores > before:
            if self._ceiling is not None and cores >= self._ceiling:  # one step, then see
                self._tried, self._ceiling, self._retry_at_s = cores, cores + 1, now_s + rule.retry_s
            self._changed_s = now_s
        elif now_s - self._changed_s > 2 * rule.grow_s and forecast <= rule.limit:
            self._good = before
            if now_s - self._changed_s > 2 * self._retry_s and (self._tried is None or before >= self._tried):
                self._tried, self._retry_s = None, rule.retry_s
        self.cores = cores
        does = f"{cores} instead of {before} cores" if cores != before else f"{cores} of {self.all_cores} cores stay"
        return Decision(cores, f"{seen}: {does}", cores != before, reading, forecast, rule.limit, self._ceiling)

    def _blind(self, now_s: float) -> Decision:
        what = self.rule.what
        if self._read_s is not None and now_s - self._read_s <= BLIND_S:
            return Decision(self.cores, f"no {what} can be read at the moment: {self.cores} cores stay")
        changed = self.cores != self.all_cores
        self.cores, self._ceiling = self.all_cores, None
        return Decision(self.cores, f"no {what} can be read: nothing is known, all {self.cores} cores", changed)


class FanRule:
    """When fans should turn as fast as they can: from the dead band on, until it has been well below for a minute.

    Full speed or the board's own control, nothing between: a speed that we set might be less than what the board would
    choose later, full speed never is.
    """

    CALM_S = 60.0

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.full = False
        self._warm_s = -math.inf

    def decide(self, now_s: float, warmest: float | None) -> bool:
        """True: full speed. `warmest` is the higher of reading and forecast, None when there is no reading."""
        below = math.inf if warmest is None else self.rule.limit - warmest
        if below < self.rule.band:
            self.full = True
        if below < 3 * self.rule.band:
            self._warm_s = now_s
        elif now_s - self._warm_s >= self.CALM_S:
            self.full = False
        return self.full


def power_shares(limit_watts: float, needs: Mapping[str, float | None]) -> dict[str, float]:
    """What each host may draw, so that together they stay within `limit_watts`.

    A host without a meter (None) gets its part of an equal split, since nobody can tell what it draws. The others get
    what they need, and where that is too much together, those who need most get an equal level (max-min fairness by
    water-filling, Bertsekas and Gallager 1992, section 6.5.2). What is then left is split equally among them, for more.

    >>> power_shares(900.0, {"a": 100.0, "b": 500.0, "c": None})
    {'a': 100.0, 'b': 500.0, 'c': 300.0}
    >>> power_shares(600.0, {"a": 100.0, "b": 500.0, "c": 500.0})
    {'a': 100.0, 'b': 250.0, 'c': 250.0}
    """
    found = {host: limit_watts / len(needs) for host, need in needs.items() if need is None}
    left = limit_watts - sum(found.values())
    metered = sorted((need, host) for host, need in needs.items() if need is not None)
    for place, (need, host) in enumerate(metered):
        found[host] = min(max(need, 0.0), left / (len(metered) - place))
        left -= found[host]
    for _, host in metered:
        found[host] += left / len(metered)
    return {host: found[host] for host in needs}
