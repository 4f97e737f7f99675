"""Facts about tasks and workers in words: complete, on the right worker, and without what is not known."""

from __future__ import annotations

import ast
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scheduler_plugins.decide import placement
from swarm.explain import RULES, Account, span

NAMES = {"tcp://a:1": "w1", "tcp://b:1": "w2"}
READY = {"what": "ready", "at_s": 100.0, "last_input": "load-7"}
GIVEN = {
    "what": "given", "at_s": 100.4, "worker": "tcp://a:1", "rule": "local", "p50_s": 0.5, "p99_s": 0.75, "samples": 38,
    "model": "table",
}  # fmt: skip
DONE = {
    "what": "done", "at_s": 101.1, "worker": "tcp://b:1", "start_s": 100.5, "stop_s": 101.0, "transfer_s": 0.05,
    "transfers": 2, "output_bytes": 2048,
}  # fmt: skip
ASKED = {
    "what": "asked back", "at_s": 100.45, "worker": "tcp://a:1", "behind": "other-1", "behind_for_s": 4.0,
    "behind_p99_s": 0.7, "free_in_s": 4.1,
}  # fmt: skip
BACK = {"what": "left", "at_s": 100.46, "worker": "tcp://a:1", "state": "released", "reason": "swarm-recall-x"}


def task(*events: dict[str, Any], **facts: Any) -> Account:
    return Account({"kind": "task", "key": "sum-1", "state": "memory", "events": events, "names": NAMES, **facts})


def test_a_task_that_is_done() -> None:
    head, ready, given, done, parts = task(READY, GIVEN, DONE).lines()
    assert head == "sum-1 took 500 ms on w2; predicted 500 ms, 99 of 100 within 750 ms (table of 38 tasks)."
    assert ready == "   +0.000 s  ready          it waits for a worker since the last of its inputs came: load-7"
    assert "to w1 by the rule local: its inputs lie there; predicted 500 ms" in given
    assert done.endswith("on w2, in 500 ms; its inputs took 50 ms to get there; the result has 2.00 kiB")
    assert parts == (
        "1.10 s from ready to done: in the pool 400 ms, moving inputs 50 ms, on the way and waiting there 50 ms, "
        "computing 500 ms, on the way back 100 ms"
    )


def test_a_strategy_is_named_where_there_was_a_choice() -> None:
    words = task(READY, GIVEN | {"strategy": "gravity=4"}, DONE).lines()[2]
    assert "to w1 by the rule local of the strategy gravity=4: its inputs lie there" in words


def test_a_recall_is_told_once() -> None:
    account = task(READY, GIVEN, ASKED, BACK, DONE)
    assert [event.what for event in account.happened()] == ["ready", "given", "asked back", "done"]
    assert account.happened()[2].words == (
        "from w1, where it waits behind other-1, which has run 4.00 s, longer than the 700 ms that were "
        "expected at most; a thread there would be free in 4.10 s"
    )


def test_clocks_that_differ_make_no_time_negative() -> None:
    early = DONE | {"start_s": 90.0, "stop_s": 90.5}
    assert all(part.seconds > 0 for part in task(READY, GIVEN, early).parts())
    assert "-" not in task(READY, GIVEN, early).lines()[-1].replace("sum-1", "")


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (
            {"for": "inputs", "count": 12, "some": [
                {"key": "x-1", "state": "processing", "worker": "tcp://a:1", "runs_s": 2.0, "p50_s": 0.5},
                {"key": "x-2", "state": "queued", "worker": None, "runs_s": None, "p50_s": None},
            ]},
            "sum-1 waits for 12 inputs: x-1 (runs on w1 for 2.00 s of 500 ms), x-2 (queued) and 10 more.",
        ),
        (
            {"for": "a worker", "ahead": 3, "ahead_s": 1.5, "pool": 9, "unfit": 0, "would_go_to": "tcp://b:1",
             "free_in_s": 0.25, "p50_s": 0.5, "inputs_on": "tcp://a:1"},
            ("sum-1 waits for a worker; 3 of the 9 tasks in the pool go before it (1.50 s of work for all workers); as "
             "things are it would go to w2, free in 250 ms, and take 500 ms there; its inputs lie on w1."),
        ),
        (
            {"for": "a worker", "ahead": 0, "ahead_s": None, "pool": 1, "unfit": 2, "would_go_to": None,
             "free_in_s": None, "p50_s": None, "inputs_on": None},
            "sum-1 waits for a worker; it is the next; 2 workers can't take it now.",
        ),
        (
            {"for": "a worker that it may run on", "allowed": {"workers": ["tcp://c:1"], "hosts": [], "resources": []}},
            "sum-1 waits for a worker that it may run on (workers tcp://c:1).",
        ),
        (
            {"for": "its result", "worker": "tcp://a:1", "runs_s": 3.0, "p50_s": 0.5, "p99_s": 1.0, "is_known": True},
            "sum-1 runs on w1 for 3.00 s; predicted 500 ms, 99 of 100 within 1.00 s: 2.00 s beyond.",
        ),
        (
            {"for": "its result", "worker": "tcp://a:1", "runs_s": 3.0, "p50_s": 0.5, "p99_s": 1.0, "is_known": False},
            "sum-1 runs on w1 for 3.00 s; a guess of 500 ms, for none of its function had ended.",
        ),
        (
            {"for": "its result", "worker": "tcp://z:1", "runs_s": None},
            "sum-1 is on tcp://z:1, which has not said yet that it runs.",
        ),
        (
            {"for": "a thread", "worker": "tcp://a:1", "behind": 1, "free_in_s": 0.2, "since_s": 0.1, "p50_s": 0.5,
             "p99_s": 1.0, "is_known": True},
            ("sum-1 waits on w1 for a thread behind 1 task, one is free in 200 ms, 100 ms so far; predicted 500 ms, 99 "
             "of 100 within 1.00 s."),
        ),
    ],
)  # fmt: skip
def test_what_a_task_waits_for(waits: dict[str, Any], said: str) -> None:
    assert task(state="waiting", waits=waits).heads == [said]


def test_a_task_that_failed_and_one_that_is_not_remembered() -> None:
    assert task(state="erred", error="Traceback\nKeyError: 'x'").heads == ["sum-1 failed: KeyError: 'x'"]
    assert task(held_by=["tcp://a:1"]).heads == ["sum-1 has its result on w1; how it came about is not remembered."]
    assert task(state="released", placement_off="it failed").heads == [
        "sum-1 is released: nobody waits for it.",
        "Dask places tasks by its own rules here: it failed.",
    ]


def test_a_worker() -> None:
    run = {"key": "x-1", "runs_s": 2.0, "p50_s": 0.5, "p99_s": 1.0, "is_known": True}
    facts = {
        "kind": "worker", "worker": "tcp://a:1", "name": "w1", "threads": 2, "status": "running", "has": 3,
        "counts": {"asked back": 2, "copied": 1}, "recent": [{"key": "x-3", **ASKED}], "runs": [run], "waiting": 2,
        "fetching": 0, "factor": 9.8, "doubt": 1.1, "ended": 12, "held": 1, "free_in_s": 0.2, "names": NAMES,
    }  # fmt: skip
    speed, has, runs, counts, last = Account(facts).lines()
    assert speed == (
        "w1 (tcp://a:1, 2 threads, running) takes 9.8 times as long as the average worker (give or take a factor of "
        "1.1; 12 tasks ended there)."
    )
    assert has == (
        "1 of its tasks run, 2 wait for a thread; a thread is free in 200 ms; 1 thread busy with what nobody wants "
        "any more."
    )
    assert runs == "  x-1 runs for 2.00 s; predicted 500 ms, 99 of 100 within 1.00 s: 1.00 s beyond"
    assert counts == "Of its tasks: 2 asked back, 1 copied."
    assert "x-3: from w1, where it waits behind other-1" in last
    plain = {name: facts[name] for name in ("kind", "worker", "name", "threads", "status", "has", "counts", "recent")}
    assert Account({**plain, "runs": []}).heads[0] == "w1 (tcp://a:1, 2 threads, running) has 3 tasks."


def test_the_terminal_shows_what_the_text_says() -> None:
    account = task(READY, GIVEN, ASKED, BACK, DONE)
    to = StringIO()
    Console(file=to, width=200).print(account)
    for words in [account.heads[0], *(event.words for event in account.happened())]:
        assert words in to.getvalue()
    assert "━━━" in to.getvalue()


def test_every_rule_of_placement_has_words() -> None:
    source = ast.parse(Path(placement.__file__).read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Choice"]
    rules = {part.value for call in calls for part in ast.walk(call.args[2]) if isinstance(part, ast.Constant)}
    assert {"order", "local"} <= rules == set(RULES)


def test_spans_that_round_up_take_the_next_unit() -> None:
    assert [span(seconds) for seconds in (0.9996, 9.996, 99.96, 59.99)] == ["1.00 s", "10.0 s", "1 min 40 s", "60.0 s"]
