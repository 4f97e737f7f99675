"""`swarm explain`: the facts about one task or one worker, in words.

The facts come from a scheduler (`scheduler_plugins.on_dask.explaining`) or from the journal; they are plain dicts, and
what is missing in them is left out of the words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dask.utils import format_bytes

from swarm.errors import ConnectError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, ConsoleOptions, RenderResult

Facts = Mapping[str, Any]

RULES = {
    "probe": "the first of its kind, of which many will follow",
    "critical": "so much hangs on it that it could not wait",
    "longest": "it is long, and nothing waits for it: the longest of such begin first",
    "order": "the next in Dask's order",
    "local": "its inputs lie there",
    "moved": "away from its inputs, whose worker has more to do",
    "filler": "the longest that this slow worker ends before the others are done",
    "prefetch": "its inputs can come while the worker is busy",
}
"""Rules of `scheduler_plugins.decide.placement`."""
REASONS = {
    "handle-worker-cleanup": "that worker left",
    "swarm-timeout": "it ran longer than its swarm_timeout",
    "client-releases-keys": "nobody wants it any more",
}
"""What Dask or swarm calls the cause of a transition (the stimulus) → in words."""
CALLED_BACK = ("swarm-recall", "swarm-taken")
"""Causes of which the event before tells."""
STYLES = {
    "ready": "dim",
    "given": "cyan",
    "given by Dask": "cyan",
    "done": "green",
    "left": "red",
    "asked back": "yellow",
    "given back": "yellow",
    "taken back": "yellow",
    "kept": "yellow",
    "copied": "magenta",
    "copy ended": "magenta",
    "waits": "yellow",
    "changed": "blue",
}
BAR = 48
"""Characters of the bar that shows where the time went."""


class Happened(NamedTuple):
    """A line of what happened."""

    at_s: float
    what: str
    words: str


class Part(NamedTuple):
    """Of the time from ready to done."""

    name: str
    seconds: float
    style: str


@dataclass(frozen=True)
class Account:
    """Why a task went where it went, or a worker has what it has: print it, or read `facts`."""

    facts: Facts

    def __str__(self) -> str:
        return "\n".join(self.lines())

    @property
    def heads(self) -> list[str]:
        """The sentences that say most."""
        words = list(_of_worker(self.facts) if self.facts["kind"] == "worker" else _of_task(self.facts))
        if off := self.facts.get("placement_off"):
            words.append(f"Dask places tasks by its own rules here: {off}.")
        return words

    def happened(self) -> list[Happened]:
        """What happened, in order; with a worker, to its tasks."""
        tell = _Teller(self.facts.get("names", {}))
        if self.facts["kind"] == "worker":
            found = [(event, f"{event['key']}: {tell(event)}") for event in self.facts["recent"]]
        else:
            events = self.facts["events"]
            found = [(e, tell(e)) for e in events if not str(e.get("reason") or "").startswith(CALLED_BACK)]
        happened = [Happened(event["at_s"], event["what"], words) for event, words in found]
        happened += [
            Happened(change["at_s"], "changed", tell.change(change)) for change in self.facts.get("changes", ())
        ]
        return sorted(happened, key=lambda each: each.at_s) if self.facts.get("changes") else happened

    def parts(self) -> list[Part]:
        """Where the time went between ready and done; empty for what is not done."""
        return [part for part in _parts(self.facts.get("events", ())) if part.seconds > 0.0]

    def lines(self) -> list[str]:
        """The account as text."""
        happened, parts = self.happened(), self.parts()
        lines = self.heads
        if happened:
            began_s = happened[0].at_s
            lines += [f"  {_ago(event.at_s - began_s):>9}  {event.what:<13}  {event.words}" for event in happened]
        if parts:
            lines.append(_sum(parts) + ", ".join(f"{part.name} {span(part.seconds)}" for part in parts))
        return lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        head, *more = self.heads
        yield Text(head, style="bold")
        yield from map(Text, more)
        if happened := self.happened():
            began_s = happened[0].at_s
            table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
            table.add_column(time.strftime("%H:%M:%S", time.localtime(began_s)), justify="right", no_wrap=True)
            table.add_column("", no_wrap=True)
            table.add_column("", overflow="fold")
            for event in happened:
                style = STYLES.get(event.what, "")
                words = Text(event.words)
                table.add_row(Text(_ago(event.at_s - began_s), style="dim"), Text(event.what, style=style), words)
            yield Text()
            yield table
        if parts := self.parts():
            total_s = sum(part.seconds for part in parts)
            bar, legend = Text(), Text(_sum(parts), style="dim")
            for part in parts:
                bar.append("━" * max(1, round(BAR * part.seconds / total_s)), style=part.style)
                legend.append("━ ", style=part.style).append(f"{part.name} {span(part.seconds)}   ")
            yield Text()
            yield bar
            yield legend


# -- words -----------------------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """A time for people.

    >>> span(0.00042), span(0.41), span(2.345), span(42.3), span(200), span(7500)
    ('0.42 ms', '410 ms', '2.35 s', '42.3 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 0.001:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _ago(seconds: float) -> str:
    return f"+{max(0.0, seconds):.3f} s"


def _sum(parts: Sequence[Part]) -> str:
    return f"{span(sum(part.seconds for part in parts))} from ready to done: "


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _predicted(facts: Facts) -> str:
    """What was predicted, or that nothing was."""
    p50_s, p99_s, samples = facts.get("p50_s"), facts.get("p99_s"), facts.get("samples")
    if p50_s is None:
        return "nothing was predicted"
    if samples == 0 or facts.get("is_known") is False:
        return f"a guess of {span(p50_s)}, for none of its function had ended"
    most = "" if p99_s is None else f", 99 of 100 within {span(p99_s)}"
    rests = f" ({facts.get('model') or 'model'} of {_counted(samples, 'task')})" if samples else ""
    return f"predicted {span(p50_s)}{most}{rests}"


class _Teller:
    """Puts what happened to a task into words."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def name(self, address: str | None) -> str:
        return self._names.get(address or "", address or "a worker that left")

    def __call__(self, event: Facts) -> str:
        worker = self.name(event.get("worker"))
        tell = getattr(self, f"_{event['what'].replace(' ', '_').lower()}", None)
        return str(event.get("reason", "") if tell is None else tell(event, worker))

    def change(self, change: Facts) -> str:
        """What an agent has changed."""
        details = ", ".join(f"{name} {value}" for name, value in change["details"].items())
        who = change["agent"] or "swarm"
        return f"{change['what']} by {who} on {self.name(change['place'])}{f': {details}' if details else ''}"

    def _ready(self, event: Facts, worker: str) -> str:
        last = event["last_input"]
        return "it waits for a worker" + (f" since the last of its inputs came: {last}" if last else "")

    def _given(self, event: Facts, worker: str) -> str:
        rule = event["rule"]
        strategy = f" of the strategy {event['strategy']}" if event.get("strategy") else ""
        return f"to {worker} by the rule {rule}{strategy}: {RULES.get(rule, rule)}; {_predicted(event)}"

    def _given_by_dask(self, event: Facts, worker: str) -> str:
        return f"to {worker} by Dask's own rule: it may not run on every worker, or was not for the pool"

    def _left(self, event: Facts, worker: str) -> str:
        last = (event["reason"].strip().splitlines() or [""])[-1]
        why = f" ({REASONS.get(last, last)})" if last else ""
        return f"{worker} has it no more, it is {event['state']}{why}"

    def _given_back(self, event: Facts, worker: str) -> str:
        return f"{worker} let it go"

    def _taken_back(self, event: Facts, worker: str) -> str:
        return f"{worker} did not answer, and lost it"

    def _kept(self, event: Facts, worker: str) -> str:
        return f"{worker} had begun it"

    def _copied(self, event: Facts, worker: str) -> str:
        ran = f"it ran on {worker} for {span(event['elapsed_s'])}"
        return f"to {self.name(event['to'])} as well: {ran}, {_predicted(event)}"

    def _copy_ended(self, event: Facts, worker: str) -> str:
        return f"the copy on {self.name(event['to'])} {event['how']} after {span(event['copied_s'])}"

    def _done(self, event: Facts, worker: str) -> str:
        words = f"on {worker}"
        if event["start_s"] is not None:
            words += f", in {span(max(0.0, event['stop_s'] - event['start_s']))}"
        if event["transfers"]:
            words += f"; its inputs took {span(event['transfer_s'])} to get there"
        if event["output_bytes"] >= 0:
            from dask.utils import format_bytes

            words += f"; the result has {format_bytes(event['output_bytes'])}"
        return words

    def _asked_back(self, event: Facts, worker: str) -> str:
        words = f"from {worker}, where it waits"
        if event["behind"] is not None:
            ran, most = span(event["behind_for_s"]), span(event["behind_p99_s"])
            is_late = event["behind_for_s"] > event["behind_p99_s"]
            ran += f", longer than the {most} that were expected at most" if is_late else f" of at most {most}"
            words += f" behind {event['behind']}, which has run {ran}"
        free_s = event["free_in_s"]
        return words + ("" if free_s is None else f"; a thread there would be free in {span(free_s)}")


# -- a task ----------------------------------------------------------------------------------------------------------


def _of_task(facts: Facts) -> Iterator[str]:
    tell = _Teller(facts.get("names", {}))
    key, waits = facts["key"], facts.get("waits")
    events: Sequence[Facts] = facts["events"]
    function = facts.get("function")
    what = key if not function or key.startswith(function) else f"{key} ({function})"
    done = next((event for event in reversed(events) if event["what"] == "done"), None)
    if facts["state"] == "erred":
        last = (facts.get("error") or "").strip().splitlines()
        yield f"{what} failed{f': {last[-1]}' if last else ''}"
    elif waits is not None:
        yield f"{what} {_waits(waits, tell)}."
    elif done is not None:
        given = next((event for event in reversed(events) if event["what"] == "given"), {})
        took = ""
        if done["start_s"] is not None:
            took = f" took {span(max(0.0, done['stop_s'] - done['start_s']))}"
        yield f"{what}{took or ' ran'} on {tell.name(done['worker'])}; {_predicted(given)}."
    elif facts["state"] == "memory":
        where = ", ".join(map(tell.name, facts.get("held_by", ())))
        yield f"{what} has its result{f' on {where}' if where else ''}; how it came about is not remembered."
    else:
        yield f"{what} is {facts['state']}: nobody waits for it."


def _waits(waits: Facts, tell: _Teller) -> str:
    """What a task that is not done waits for."""
    on = tell.name(waits.get("worker"))
    match waits["for"]:
        case "inputs":
            words = f"waits for {_counted(waits['count'], 'input')}: {_inputs(waits, tell)}"
        case "a worker" if "pool" in waits:
            words = _in_pool(waits, tell)
        case "a worker that it may run on":
            allowed = [f"{name} {', '.join(map(str, some))}" for name, some in waits["allowed"].items() if some]
            words = f"waits for a worker that it may run on ({'; '.join(allowed) or 'there is none'})"
        case "its result" if waits["runs_s"] is None:
            words = f"is on {on}, which has not said yet that it runs"
        case "its result":
            words = f"runs on {on} for {span(waits['runs_s'])}; {_beyond(waits)}"
        case "its inputs to be moved":
            words = f"waits on {on} for its inputs to come, {span(waits['left_s'])} more; {_predicted(waits)}"
        case "a thread":
            soon = "" if waits["free_in_s"] is None else f", one is free in {span(waits['free_in_s'])}"
            behind = f" behind {_counted(waits['behind'], 'task')}" if waits["behind"] else ""
            so_far = f"{span(waits['since_s'])} so far"
            words = f"waits on {on} for a thread{behind}{soon}, {so_far}; {_predicted(waits)}"
        case what:
            words = f"waits for {what}"
    return words


def _inputs(waits: Facts, tell: _Teller) -> str:
    words = []
    for need in waits["some"]:
        if need["runs_s"] is not None:
            predicted = "" if need["p50_s"] is None else f" of {span(need['p50_s'])}"
            words.append(f"{need['key']} (runs on {tell.name(need['worker'])} for {span(need['runs_s'])}{predicted})")
        else:
            where = f" on {tell.name(need['worker'])}" if need["worker"] else ""
            words.append(f"{need['key']} ({need['state']}{where})")
    more = waits["count"] - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _in_pool(waits: Facts, tell: _Teller) -> str:
    ahead, ahead_s = waits["ahead"], waits["ahead_s"]
    work = f" ({span(ahead_s)} of work for all workers)" if ahead and ahead_s is not None else ""
    before = f"{ahead} of the {waits['pool']} tasks in the pool go before it{work}" if ahead else "it is the next"
    words = f"waits for a worker; {before}"
    unfit = f"; {_counted(waits['unfit'], 'worker')} can't take it now" if waits["unfit"] else ""
    if waits["would_go_to"] is None:
        return f"{words}{unfit or '; there is no worker that takes tasks'}"
    free_s, there = waits["free_in_s"], tell.name(waits["would_go_to"])
    when = (
        "free now"
        if free_s == 0
        else "busy with what is not known yet"
        if free_s is None
        else f"free in {span(free_s)}"
    )
    words += f"{unfit}; as things are it would go to {there}, {when}, and take {span(waits['p50_s'])} there"
    return words + (f"; its inputs lie on {tell.name(waits['inputs_on'])}" if waits["inputs_on"] else "")


def _beyond(facts: Facts) -> str:
    """What was predicted for a task that runs, and how far beyond it is."""
    words = _predicted(facts)
    if facts.get("p99_s") is None or facts.get("is_known") is False:
        return words
    if (late_s := facts["runs_s"] - facts["p99_s"]) > 0:
        return f"{words}: {span(late_s)} beyond"
    left_s = facts["p50_s"] - facts["runs_s"]
    return f"{words}: {span(left_s)} to go" if left_s > 0 else f"{words}: any moment now"


def _parts(events: Sequence[Facts]) -> Iterator[Part]:
    """Between the first time that it was ready and its result. Clocks of machines differ, so nothing is below 0."""
    done = next((event for event in reversed(events) if event["what"] == "done"), None)
    ready = next((event for event in events if event["what"] == "ready"), None)
    if done is None or ready is None or done["start_s"] is None:
        return
    before = events[: events.index(done)]
    last_ready = next(event for event in reversed([*before, ready]) if event["what"] == "ready")
    last_given = next((event for event in reversed(before) if event["what"].startswith("given")), last_ready)
    moved_s = min(done["transfer_s"], max(0.0, done["start_s"] - last_given["at_s"]))
    yield Part("elsewhere before", last_ready["at_s"] - ready["at_s"], "red")
    yield Part("in the pool", last_given["at_s"] - last_ready["at_s"], "yellow")
    yield Part("moving inputs", moved_s, "blue")
    yield Part("on the way and waiting there", done["start_s"] - last_given["at_s"] - moved_s, "magenta")
    yield Part("computing", done["stop_s"] - done["start_s"], "green")
    yield Part("on the way back", done["at_s"] - done["stop_s"], "dim")


# -- a worker --------------------------------------------------------------------------------------------------------


def _of_worker(facts: Facts) -> Iterator[str]:
    if facts["status"] == "dead":
        yield from _of_death(facts, facts["at_s"])
        return
    where = f"{facts['name']} ({facts['worker']}, {_counted(facts['threads'], 'thread')}, {facts['status']})"
    factor = facts.get("factor")
    if factor is None:
        yield f"{where} has {_counted(facts['has'], 'task')}."
    else:
        if 0.95 < factor < 1.05:
            speed = "is as fast as the average worker"
        elif factor > 1:
            speed = f"takes {factor:.3g} times as long as the average worker"
        else:
            speed = f"is {1 / factor:.3g} times as fast as the average worker"
        sure = f"give or take a factor of {facts['doubt']:.2g}; " if facts["doubt"] > 1.01 else ""
        yield f"{where} {speed} ({sure}{_counted(facts['ended'], 'task')} ended there)."
        waiting = f", {facts['waiting']} wait for a thread" if facts["waiting"] else ""
        waiting += f", {facts['fetching']} for their inputs" if facts["fetching"] else ""
        free_s = facts["free_in_s"]
        free = "a thread is free" if free_s == 0 else "" if free_s is None else f"a thread is free in {span(free_s)}"
        held = f"{_counted(facts['held'], 'thread')} busy with what nobody wants any more" if facts["held"] else ""
        states = "; ".join(filter(None, (f"{len(facts['runs'])} of its tasks run{waiting}", free, held)))
        yield f"{states[0].upper()}{states[1:]}."
    for run in facts["runs"]:
        known = f"; {_beyond(run)}" if "p50_s" in run else ""
        yield f"  {run['key']} runs for {span(run['runs_s'])}{known}"
    if counts := facts["counts"]:
        yield f"Of its tasks: {', '.join(f'{number} {what}' for what, number in counts.items())}."
    if before := facts.get("before"):
        yield ""
        yield "Before it, there was another of that name:"
        yield from _of_death(before, facts["at_s"])


def _of_death(death: Facts, now_s: float) -> Iterator[str]:
    """The post-mortem of a worker."""
    ago = span(max(now_s - death["died_at_s"], 0.0))
    yield f"{death['name']} ({death['worker']}) died {ago} ago: {death['cause']}."
    ran = death["running"]
    yield f"What ran there: {', '.join(ran)}." if ran else "Nothing ran there."
    if memory := death["memory"]:
        least, most = (format_bytes(pick(nbytes for _, nbytes in memory)) for pick in (min, max))
        of = f" of {format_bytes(death['memory_limit'])}" if death["memory_limit"] else ""
        last, lasted = format_bytes(memory[-1][1]), span(max(memory[-1][0] - memory[0][0], 0.0))
        yield f"Its memory was {last}{of} when last seen, and between {least} and {most} in the {lasted} before."
    for title, lines in (("The last lines of its log", death["last_lines"]), ("Its stacks", death["stacks"])):
        if lines:
            yield f"{title}:"
            yield from (f"  {line}" for line in lines)


# -- where the facts come from -----------------------------------------------------------------------------------------

TIMEOUT_S = 10.0


def fetch(what: str, address: str | None = None) -> Account:
    """Ask the scheduler at `address`, by default Dask's configured one or port 8786 here; changes nothing there.

    Raises
    ------
    ConnectError
        No scheduler answers, or it runs without swarm, or with one that cannot explain.
    UnknownKeyError
        It knows no such task or worker.
    """
    import dask

    where = address or dask.config.get("scheduler-address", None) or "tcp://127.0.0.1:8786"
    return Account(asyncio.run(_ask(what, where)))


async def _ask(what: str, address: str) -> dict[str, Any]:
    from swarm.agents.host import settings_of
    from swarm.reach import scheduler_at

    async with scheduler_at(address, timeout_s=TIMEOUT_S) as (scheduler, _):
        async with asyncio.timeout(TIMEOUT_S):
            found: dict[str, Any] | None = await scheduler.swarm_explain(what=what)
    if found is None:  # what Dask answers when it has no such handler
        raise ConnectError(
            f'the scheduler at {address} is plain Dask and can\'t explain: run swarm.connect("{address}") once, or '
            "start it with --preload scheduler_plugins"
        )
    if "error" in found and "message" in found:  # the facts about a task have an "error" too
        settings_of(found, address)  # raises
    return found


def recorded(what: str, run: str, journal: Path) -> Account:
    """From the journal, after the scheduler is gone.

    Raises
    ------
    JournalError
        It can't be read, or has no such run.
    UnknownKeyError
        The run has no such task.
    """
    from scheduler_plugins.io import recorded as journals

    return Account(journals.explain(journal, run, what))
