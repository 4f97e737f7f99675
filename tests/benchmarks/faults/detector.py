"""The fault detector alone: how soon a hang is seen and how often a worker is suspected that is well, by threshold.

    python -m tests.benchmarks.faults.detector --json detector.json --picture detector.png

The very detector of `scheduler_plugins.decide.faults` hears of heartbeats that were drawn (`weather`), and looks as
`scheduler_plugins.on_dask.detecting` does. Beside it, on the same heartbeats: fixed time-outs, and Dask's `worker-ttl`.
A suspicion removes nobody. What does, is the verdict on a witness's report; its figures stand beside the detector's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Label, Legend, LegendItem
from bokeh.plotting import figure
from distributed.scheduler import heartbeat_interval
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from scheduler_plugins.decide.faults import CONDEMNED, DEFAULT, Detector, Report, Rules, verdict
from scheduler_plugins.on_dask.detecting import ASK_AGAIN_S, LONGEST_PAUSE_S, LOOK_S, LOOKS
from swarm.agents.watch.process_state import LOOK_AGAIN_S
from swarm.agents.watch.witness import TICKS_S
from swarm.errors import SwarmError
from swarm.twin.matrix import versions
from swarm.twin.pictures import INK, LEGEND, OKABE_ITO, plain, save
from tests.benchmarks.faults.weather import Hours, hours_of, in_order, is_within, looks_of

THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 12.0, 25.0)
FIXED = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""Time-outs, in intervals of heartbeats."""
TTLS = (300.0, 30.0)
"""Of Dask (`distributed.scheduler.worker-ttl`): its default, and one that is often set."""
HANGS = 480
"""Of all workers together, planned."""

Row = dict[str, Any]
"""Of a rule: name, value, detection times, false suspicions."""


# -- the rules ---------------------------------------------------------------------------------------------------------


def by_phi(hours: Hours, phi: float) -> list[Row]:
    """Whom `Detecting` suspects, and whom it removes."""
    rules = DEFAULT._replace(phi=phi)
    detector = Detector(LOOK_S, rules)
    for worker in range(hours.workers):
        detector.join(worker, 0.0, hours.interval_s)
    beats = in_order(hours)
    beat = next(beats, None)
    replaced = sorted((float(end), worker) for worker, life in enumerate(hours.lives) for end in life.hangs[:, 1])
    replaced.reverse()
    suspected: list[tuple[float, int]] = []
    removed: list[tuple[float, int]] = []
    asking = Asking(hours, rules)
    next_look_s = 0.0
    for now_s in looks_of(hours, LOOK_S).tolist():
        detector.tick(now_s)
        removed += [(now_s, worker) for worker in asking.condemned(detector, now_s)]
        if now_s < next_look_s:
            continue
        next_look_s = now_s + hours.interval_s / LOOKS
        while replaced and replaced[-1][0] <= now_s:
            end_s, worker = replaced.pop()
            detector.leave(worker)
            detector.join(worker, end_s, hours.interval_s)
            asking.over(worker)
        seen: dict[int, float] = {}
        while beat is not None and beat[0] <= now_s:
            seen[beat[1]] = beat[0]
            beat = next(beats, None)
        for worker, at_s in seen.items():
            detector.heard(worker, at_s, hours.interval_s)
        for change in detector.look(now_s):
            if change.is_suspected:
                suspected.append((now_s, change.worker))
                asking.begins(change.worker, now_s)
            else:
                asking.over(change.worker)
    return [judged("phi", phi, hours, suspected), judged("witness", phi, hours, removed)]


class Asking:
    """Witnesses are asked about the suspected, with pauses as `Detecting` makes them."""

    def __init__(self, hours: Hours, rules: Rules) -> None:
        self._hours = hours
        self._rules = rules
        self._ticks_since_s: dict[int, float] = {}
        self._due: dict[int, tuple[float, float]] = {}
        """Worker → when the next answer comes, and the pause after it."""

    def begins(self, worker: int, now_s: float) -> None:
        self._due[worker] = (now_s + LOOK_AGAIN_S, ASK_AGAIN_S)

    def over(self, worker: int) -> None:
        self._due.pop(worker, None)
        self._ticks_since_s.pop(worker, None)

    def condemned(self, detector: Detector, now_s: float) -> list[int]:
        """Of whom such an answer came that they are removed."""
        found = []
        for worker, (at_s, pause_s) in list(self._due.items()):
            if at_s > now_s:
                continue
            self._due[worker] = (now_s + pause_s, min(2.0 * pause_s, LONGEST_PAUSE_S))
            report, silence_s = self._report(worker, now_s), detector.silence_s(worker, now_s)
            if report is not None and report.ticks:
                self._ticks_since_s.setdefault(worker, now_s)
            else:
                self._ticks_since_s.pop(worker, None)
            ticked_s = now_s - self._ticks_since_s.get(worker, now_s)
            said = verdict(report, silence_s, self._rules, ticked_s=ticked_s, interval_s=self._hours.interval_s)
            if said in CONDEMNED:
                found.append(worker)
                self.over(worker)
        return found

    def _report(self, worker: int, now_s: float) -> Report | None:
        """Of its nanny's witness: a hang is a stopped process; behind a dead switch nobody answers."""
        life = self._hours.lives[worker]
        if is_within(now_s, self._hours.outages_of(worker)):
            return None
        if is_within(now_s, life.hangs):
            return Report("stopped", is_witnessed=True)
        before = int(np.searchsorted(life.pauses[:, 0], now_s - TICKS_S, side="right")) - 1
        is_blocked = before >= 0 and now_s <= life.pauses[before, 1]
        return Report("runs", ticks=not is_blocked, is_witnessed=True)


def by_time_out(hours: Hours, name: str, value: float, time_out_s: float, period_s: float) -> Row:
    """Who has been silent for longer than `time_out_s`, asked every `period_s`."""
    looks = looks_of(hours, period_s)
    found: list[tuple[float, int]] = []
    for worker, life in enumerate(hours.lives):
        until = np.append(life.arrivals[1:], np.inf)
        first = np.searchsorted(looks, life.arrivals + time_out_s)
        seen = looks[np.minimum(first, len(looks) - 1)]
        is_late = (first < len(looks)) & (seen < until) & (seen > life.arrivals)
        found += [(float(at_s), worker) for at_s in seen[is_late]]
    return judged(name, value, hours, found)


def judged(name: str, value: float, hours: Hours, found: Sequence[tuple[float, int]]) -> Row:
    """How soon the hangs were seen, and who was suspected without one."""
    took_s: dict[tuple[int, float], float] = {}
    paused = well = 0
    for at_s, worker in found:
        life = hours.lives[worker]
        if is_within(at_s, life.hangs):
            began_s = float(life.hangs[np.searchsorted(life.hangs[:, 0], at_s, side="right") - 1, 0])
            took_s.setdefault((worker, began_s), at_s - began_s)
        elif is_within(at_s, life.pauses):
            paused += 1
        else:
            well += 1
    hangs = sum(len(life.hangs) for life in hours.lives)
    times = sorted(took_s.values())
    return {
        "rule": name,
        "value": value,
        "hangs": hangs,
        "seen": len(times),
        "median_s": float(np.median(times)) if times else None,
        "p95_s": float(np.quantile(times, 0.95)) if times else None,
        "max_s": max(times, default=None),
        "paused": paused,
        "well": well,
        "per_worker_hour": (paused + well) / hours.worker_hours,
    }


# -- the runs ----------------------------------------------------------------------------------------------------------


def one(job: tuple[int, float, int, str, float]) -> list[Row]:
    """Of (workers, hours, seed, rule, value)."""
    workers, length, seed, rule, value = job
    interval_s = heartbeat_interval(workers)
    hours = hours_of(workers, length, interval_s, HANGS / (workers * length), seed)
    began_s = time.perf_counter()
    if rule == "phi":
        rows = by_phi(hours, value)
    elif rule == "fixed":
        rows = [by_time_out(hours, rule, value, value * interval_s, max(interval_s / LOOKS, LOOK_S))]
    else:  # as `Scheduler.check_worker_ttl`, which is called every ttl
        rows = [by_time_out(hours, rule, value, max(value, 10.0 * interval_s), value)]
    about = {"workers": workers, "hours": length, "interval_s": interval_s, "worker_hours": hours.worker_hours}
    took_s = time.perf_counter() - began_s
    return [row | about | {"took_s": took_s} for row in rows]


def run_all(clusters: Sequence[tuple[int, float]], seed: int, processes: int) -> Iterator[Row]:
    rules = [("phi", each) for each in THRESHOLDS]
    rules += [("fixed", each) for each in FIXED] + [("ttl", each) for each in TTLS]
    jobs = [(*cluster, seed, *rule) for cluster in clusters for rule in rules]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(one, jobs):
            yield from rows


def table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    title = (
        f"{first['workers']:,} workers, a heartbeat every {first['interval_s']:g} s, {first['worker_hours']:,.0f} "
        f"worker-hours, {first['hangs']} hangs"
    )
    shown = Table(title=title, title_justify="left", box=MARKDOWN)
    headings = ("rule", "seen", "after s, median", "95 %", "longest", "false per worker-hour", "paused", "well")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "rule" else "right", no_wrap=True)
    of_default = [row for row in rows if row["rule"] != "witness" or row["value"] == DEFAULT.phi]
    for row in sorted(of_default, key=lambda row: list(LOOK).index(row["rule"])):
        times = (f"{row[name]:.1f}" if row[name] is not None else "–" for name in ("median_s", "p95_s", "max_s"))
        rate = f"{row['per_worker_hour']:.4f}"
        shown.add_row(words(row), str(row["seen"]), *times, rate, f"{row['paused']:,}", f"{row['well']:,}")
    return shown


def words(row: Mapping[str, Any]) -> str:
    if row["rule"] == "phi":
        return f"suspected at phi {row['value']:g}"
    if row["rule"] == "witness":
        return f"and removed, phi {row['value']:g}"
    if row["rule"] == "fixed":
        return f"time-out of {row['value'] * row['interval_s']:g} s"
    return f"Dask's ttl, {row['value']:g} s"


# -- the picture -------------------------------------------------------------------------------------------------------

LOOK = {
    "phi": ("circle", OKABE_ITO[0]),
    "witness": ("triangle", OKABE_ITO[2]),
    "fixed": ("square", OKABE_ITO[1]),
    "ttl": ("diamond", OKABE_ITO[4]),
}
LABELS = {
    "phi": "swarm suspects: phi from 1 to 25",
    "witness": "swarm removes: a witness was asked",
    "fixed": "fixed time-outs",
    "ttl": "Dask's worker-ttl",
}
NAMED = {"phi": (THRESHOLDS[0], DEFAULT.phi, THRESHOLDS[-1]), "witness": (DEFAULT.phi,), "fixed": FIXED, "ttl": TTLS}
"""Values that the picture tells."""


def draw(rows: Sequence[Row]) -> figure:
    """Detection time to the right, false suspicions upwards: the lower left is best."""
    first = rows[0]
    none = 0.3 / first["worker_hours"]
    times = [row["median_s"] for row in rows if row["median_s"]]
    x_range = Range1d(start=min(times) * 0.75, end=max(times) * 1.6)
    rates = [max(row["per_worker_hour"], none) for row in rows]
    picture = figure(
        width=1000,
        height=360,
        x_axis_type="log",
        y_axis_type="log",
        x_range=x_range,
        y_range=Range1d(start=none * 0.4, end=max(rates) * 3.0),
        tools="",
        toolbar_location=None,
        title=f"{first['workers']:,} workers, a heartbeat every {first['interval_s']:g} s, "
        f"{first['worker_hours']:,.0f} worker-hours, {first['hangs']} hangs",
        x_axis_label="seconds until a hang is suspected, or removed (median; line: to the 95 % quantile)",
        y_axis_label="false ones per worker-hour",
    )
    plain(picture)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if x_range.start < tick < x_range.end]
    picture.xaxis.ticker = FixedTicker(ticks=ticks)
    picture.xaxis.formatter = NumeralTickFormatter(format="0[.]0")
    powers = [10.0**power for power in range(-5, 3) if 2.0 * none < 10.0**power < max(rates) * 3.0]
    picture.yaxis.ticker = FixedTicker(ticks=[none, *powers])
    picture.yaxis.major_label_overrides = {none: "none", **{power: f"{power:g}" for power in powers}}
    items = []
    for rule, (marker, colour) in LOOK.items():
        mine = [row for row in rows if row["rule"] == rule and row["median_s"] is not None]
        mine = [row for row in mine if rule != "witness" or row["value"] == DEFAULT.phi]
        x = [row["median_s"] for row in mine]
        y = [max(row["per_worker_hour"], none) for row in mine]
        if rule != "ttl":
            picture.line(x, y, line_color=colour, line_width=2, line_alpha=0.5)
        ends = [min(row["p95_s"], x_range.end) for row in mine]
        picture.segment(x, y, ends, y, line_color=colour, line_width=1.5, line_alpha=0.6)
        fill = ["white" if rule == "phi" and row["value"] != DEFAULT.phi else colour for row in mine]
        size = {"ttl": 14, "witness": 12}.get(rule, 10)
        dots: Any = picture.scatter(x, y, marker=marker, size=size, fill_color=fill, line_color=colour, line_width=2)
        items.append(LegendItem(label=LABELS[rule], renderers=[dots]))
        for row, at_x, at_y in zip(mine, x, y, strict=True):
            if row["value"] in NAMED[rule]:
                picture.add_layout(_told(row, at_x, at_y))
    picture.add_layout(Legend(items=items, orientation="horizontal", **{**LEGEND, "spacing": 18}), "above")
    return picture


def _told(row: Row, x: float, y: float) -> Label:
    """Beside its dot: time-outs on the right, above; the others on the left, below."""
    rule, value = row["rule"], row["value"]
    text = {
        "phi": f"phi {value:g}",
        "witness": f"phi {value:g}",
        "fixed": f"{value * row['interval_s']:g} s",
        "ttl": f"ttl {value:g} s",
    }[rule]
    is_above = rule in ("fixed", "ttl")
    return Label(
        x=x,
        y=y,
        text=text,
        x_offset=5 if is_above else -8,
        y_offset=5 if is_above else -1,
        text_align="left" if is_above else "right",
        text_baseline="bottom" if is_above else "top",
        text_color=INK,
        text_font_size="11px",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.faults.detector",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cluster",
        action="append",
        metavar="WORKERSxHOURS",
        help="how many workers for how many hours; may be repeated (1000x24 and 10x60)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="to simulate with (2)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--picture", type=Path, help="draw there: .html or .png")
    given = parser.parse_args()
    console = Console(width=140)
    try:
        clusters = [(int(n), float(h)) for n, h in (each.split("x") for each in given.cluster or ("1000x24", "10x60"))]
    except ValueError:
        parser.error("--cluster must be WORKERSxHOURS, such as 1000x24")
    rows = list(run_all(clusters, given.seed, given.processes))
    of_each = [[row for row in rows if (row["workers"], row["hours"]) == cluster] for cluster in clusters]
    try:
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps({"versions": versions(), "rows": rows}), encoding="utf-8")
        for mine in of_each:
            console.print(table(mine))
        if given.picture is not None:
            given.picture.parent.mkdir(parents=True, exist_ok=True)
            save(column([draw(mine) for mine in of_each]), given.picture, title="swarm: the fault detector")
    except SwarmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
