"""Rings in shared memory beside their peers: round trips, messages and bytes per second, between two processes.

    python -m tests.benchmarks.channels.rings --json rings.json --picture rings.png

All of them wait blocking, and are measured in turn, round after round, on the same two cores. Times are of the Python
call, from the moment before it is sent until the answer is there as `bytes`; "compiled" is the same loop without
Python around it. What the first import costs is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from bokeh.models import FixedTicker, Range1d
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure
from numpy.typing import NDArray
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from swarm.channels.atomics import monotonic_ns
from swarm.channels.layout import AT_HEAD, AT_READER_STATE
from swarm.channels.objects import bytes_size, bytes_start, drop
from swarm.channels.receiving import _come, _free, _take
from swarm.channels.sending import _send
from swarm.channels.waiting import OWN_POSITION, OWN_RING, SENT, own, wait, wake
from swarm.errors import SwarmError
from swarm.twin.matrix import versions
from swarm.twin.pictures import LEGEND, OKABE_ITO, plain, save
from tests.benchmarks.channels.transports import BATCH, TRANSPORTS, Rings, Transport

ROUND_TRIP_BYTES = 256
LENGTHS = (64, 256, 65536)
COMPILED, MANY = "ring, compiled", f"ring, {BATCH} at once"
STOP, BURST, BURST_MANY, COMPILED_ECHO = b"stop", b"burst", b"BURST", b"compiled"
"""What the other process is told; everything else it sends back."""

Row = dict[str, Any]
"""Of a transport in a round: name, round, round_trip_ns (all of them), per_s by length."""


# -- the other process -------------------------------------------------------------------------------------------------


def other_process(transport: Transport) -> None:
    send, receive = transport.open(1)
    while (message := receive()) != STOP:
        if message == COMPILED_ECHO:
            assert isinstance(transport, Rings)
            warm = np.zeros(1, np.int64)
            send(b"ready")
            compiled_echo(transport.writer._own, transport.reader._own, int(receive()), warm)
        elif message.startswith((BURST, BURST_MANY)):
            count, length = map(int, message[len(BURST) :].split())
            if message.startswith(BURST):
                payload = bytes(length)
                for _ in range(count):
                    send(payload)
            else:
                many = transport.many(1)
                assert many is not None
                batch = [bytes(length)] * BATCH
                for _ in range(count // BATCH):
                    many[0](batch)
        else:
            send(message)
    transport.close()


@numba.njit
def _next(me: int) -> int:
    """The next message, as `receive` gets it, with the GIL given away while there is none."""
    ring = own(me, OWN_RING)
    while _come(me, ring) != SENT:
        wait(me, ring + AT_HEAD, own(me, OWN_POSITION) + 1, ring + AT_READER_STATE, monotonic_ns() + 1_000_000_000)
    message = _take(me, ring)
    _free(me, ring)
    return message


@numba.njit
def _answer(writer: int, message: int) -> None:
    _send(writer, bytes_start(message), bytes_size(message), monotonic_ns() + 1_000_000_000)
    wake(own(writer, OWN_RING) + AT_READER_STATE)


@numba.njit
def compiled_echo(writer: int, reader: int, count: int, times_ns: NDArray[np.int64]) -> None:
    for _ in range(count):
        message = _next(reader)
        _answer(writer, message)
        drop(message)


@numba.njit
def compiled_round_trips(writer: int, reader: int, payload: int, times_ns: NDArray[np.int64]) -> None:
    for i in range(len(times_ns)):
        began_ns = monotonic_ns()
        _answer(writer, payload)
        drop(_next(reader))
        times_ns[i] = monotonic_ns() - began_ns


# -- this process ------------------------------------------------------------------------------------------------------


def run_all(rounds: int, seconds: float, cores: Sequence[int]) -> Iterator[Row]:
    """All transports in turn, as often as asked for."""
    for round_ in range(rounds):
        for kind in TRANSPORTS:
            if not kind.absent():
                yield from measure(kind, round_, seconds, cores)


def measure(kind: type[Transport], round_: int, seconds: float, cores: Sequence[int]) -> Iterator[Row]:
    """One transport, in two processes, each on a core of its own."""
    transport = kind()
    affinity = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.sched_setaffinity(0, {cores[1]})
            gc.disable()
            other_process(transport)
            code = 0
        finally:
            os._exit(code)
    os.sched_setaffinity(0, {cores[0]})
    gc.disable()
    try:
        send, receive = transport.open(0)
        row: Row = {"transport": kind.name, "round": round_}
        row["round_trip_ns"] = round_trips(send, receive, seconds)
        row["per_s"] = {length: one_way(send, receive, length, seconds) for length in LENGTHS}
        yield row
        if kind is Rings:
            yield {"transport": COMPILED, "round": round_, "round_trip_ns": round_trips_compiled(transport, seconds)}
            many = transport.many(0)
            assert many is not None
            per_s = {length: one_way_many(send, many[1], length, seconds) for length in LENGTHS}
            yield {"transport": MANY, "round": round_, "per_s": per_s}
        send(STOP)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the other process of {kind.name} ended with {status}"
    finally:
        gc.enable()
        os.sched_setaffinity(0, affinity)
        transport.close()


def round_trips(send: Any, receive: Any, seconds: float) -> list[int]:
    payload, clock = os.urandom(ROUND_TRIP_BYTES), time.perf_counter_ns
    for _ in range(200):
        send(payload)
        receive()
    times: list[int] = []
    end = clock() + int(seconds * 1e9)
    while (began := clock()) < end:
        send(payload)
        receive()
        times.append(clock() - began)
    return times


def round_trips_compiled(transport: Any, seconds: float) -> list[int]:
    payload = os.urandom(ROUND_TRIP_BYTES)
    writer, reader = transport.writer, transport.reader
    writer.send(COMPILED_ECHO, 60.0)
    assert reader.receive(60.0) == b"ready"
    count = int(100_000 * seconds)
    writer.send(b"%d" % count, 60.0)
    times_ns = np.zeros(count, np.int64)
    compiled_round_trips(writer._own, reader._own, id(payload), times_ns)
    return times_ns[100:].tolist()


def one_way(send: Any, receive: Any, length: int, seconds: float) -> float:
    """Messages per second that arrive; the first, which is waited for, does not count."""
    count = 500
    while True:
        send(BURST + b"%d %d" % (count, length))
        receive()
        began_s = time.perf_counter()
        for _ in range(count - 1):
            receive()
        took_s = time.perf_counter() - began_s
        if took_s >= seconds / 2:
            return (count - 1) / took_s
        count = int(count * min(20.0, 1.1 * seconds / max(took_s, 1e-6)))


def one_way_many(send: Any, receive: Any, length: int, seconds: float) -> float:
    count = 64 * BATCH
    while True:
        send(BURST_MANY + b"%d %d" % (count, length))
        first = got = len(receive())
        began_s = time.perf_counter()
        while got < count:
            got += len(receive())
        took_s = time.perf_counter() - began_s
        if took_s >= seconds / 2:
            return (count - first) / took_s
        count = BATCH * int(count / BATCH * min(20.0, 1.1 * seconds / max(took_s, 1e-6)))


def what_it_costs() -> dict[str, dict[str, float]]:
    """Seconds and MB of resident memory of a fresh Python, of numba in it, and of rings on top of that."""
    script = (
        "import time, psutil\nbegan = time.perf_counter()\n{}\n"
        "print(time.perf_counter() - began, psutil.Process().memory_info().rss / 1e6)"
    )
    found = {}
    for name, lines in {
        "Python": "",
        "numba": "import numba",
        "rings": "import swarm.channels.ring as ring; ring.warm_up()",
    }.items():
        runs = [
            subprocess.run([sys.executable, "-c", script.format(lines)], capture_output=True, text=True, check=True)
            for _ in range(3)
        ]
        seconds, megabytes = min(tuple(map(float, run.stdout.split())) for run in runs)
        found[name] = {"s": round(seconds, 3), "mb": round(megabytes, 1)}
    return found


# -- figures -----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[Row]:
    """Of each transport: the median of the rounds, and the spread of their medians."""
    told = []
    for name in dict.fromkeys(row["transport"] for row in rows):
        mine = [row for row in rows if row["transport"] == name]
        line: Row = {"transport": name}
        trips = [np.array(row["round_trip_ns"]) / 1e3 for row in mine if "round_trip_ns" in row]
        if trips:
            for percent in (50, 99, 99.9):
                of_each = [float(np.percentile(times, percent)) for times in trips]
                line[f"p{percent}_us"] = float(np.median(of_each))
                line[f"p{percent}_us_of_rounds"] = of_each
            line["round_trips"] = sum(map(len, trips))
        for length in LENGTHS:
            of_each = [row["per_s"][length] for row in mine if "per_s" in row]
            if of_each:
                line[f"per_s_{length}"] = float(np.median(of_each))
                line[f"per_s_{length}_of_rounds"] = of_each
        told.append(line)
    return told


def table(lines: Sequence[Row]) -> Table:
    shown = Table(box=MARKDOWN)
    for title in ("", "p50, µs", "p99, µs", "p99.9, µs", "64 B, 1,000/s", "256 B, 1,000/s", "64 KiB, GB/s"):
        shown.add_column(title, justify="right" if title else "left")
    for line in lines:
        cells = [f"{line[key]:.1f}" if key in line else "" for key in ("p50_us", "p99_us", "p99.9_us")]
        cells += [f"{line[key] / 1e3:,.0f}" if key in line else "" for key in ("per_s_64", "per_s_256")]
        cells += [f"{line['per_s_65536'] * 65536 / 1e9:.1f}" if "per_s_65536" in line else ""]
        shown.add_row(line["transport"], *cells)
    return shown


def draw(rows: Sequence[Row]) -> figure:
    """How many round trips took how long, by transport, on a logarithmic axis."""
    edges = np.geomspace(0.5, 1000.0, 133)
    picture = figure(
        width=1000,
        height=360,
        x_axis_type="log",
        x_range=Range1d(start=float(edges[0]), end=float(edges[-1])),
        tools="",
        toolbar_location=None,
        title=f"Round trips of {ROUND_TRIP_BYTES} bytes between two processes, blocking wait",
        x_axis_label="µs",
        y_axis_label="share of round trips, %",
    )
    plain(picture)
    picture.xaxis.ticker = FixedTicker(ticks=[0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000])
    items = []
    names = list(dict.fromkeys(row["transport"] for row in rows if "round_trip_ns" in row))
    for i, name in enumerate(names):
        times_us = np.concatenate([row["round_trip_ns"] for row in rows if row["transport"] == name and len(row) > 2])
        shares = np.histogram(np.clip(times_us / 1e3, edges[0], edges[-1]), edges)[0] / len(times_us) * 100
        line: Any = picture.step(
            np.sqrt(edges[1:] * edges[:-1]),
            shares,
            mode="center",
            line_color=OKABE_ITO[i % len(OKABE_ITO)],
            line_width=2,
            line_dash="dashed" if i >= len(OKABE_ITO) else "solid",
        )
        items.append(LegendItem(label=name, renderers=[line]))
    picture.add_layout(Legend(items=items, orientation="horizontal", ncols=4, **{**LEGEND, "spacing": 18}), "above")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.channels.rings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--picture", type=Path, help="draw there: .html or .png")
    given = parser.parse_args()
    console = Console(width=140)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed, one for each process")
    one = np.zeros(1, np.int64)
    compiled_echo(0, 0, 0, one)  # compile before the fork
    compiled_round_trips(0, 0, 0, one[:0])
    load = os.getloadavg()[0]
    rows = list(run_all(given.rounds, given.seconds, cores))
    lines, costs = summary(rows), what_it_costs()
    absent = {kind.name: why for kind in TRANSPORTS if (why := kind.absent())}
    console.print(table(lines))
    console.print(f"to load: {costs}; absent: {absent or 'none'}; load of the machine before: {load:.1f}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        told = {"versions": versions(), "load": load, "absent": absent, "costs": costs, "transports": lines}
        given.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    try:
        if given.picture is not None:
            given.picture.parent.mkdir(parents=True, exist_ok=True)
            save(draw(rows), given.picture, title="swarm: rings in shared memory")
    except SwarmError as error:
        sys.exit(f"swarm: error: {error}")


if __name__ == "__main__":
    main()
