"""Which tasks belong to which run, when a run is over, and that nothing of it is kept but its tallies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler_plugins.on_dask.runs import KEPT_RUNS, Runs
from swarm.protocol import Event, RunEnded, RunProgressed, RunSubmitted
from tests.support.builders import telemetry

CLIENT = "Client-1"
CHAIN = {"a": "waiting", "b": "waiting", "c": "waiting"}
"""Three tasks, of which "c" is wanted."""


def submitted(
    runs: Runs,
    run: str = "r1",
    *,
    wanted: Collection[Any] = ("c",),
    states: Mapping[Any, str] = CHAIN,
    client: str = CLIENT,
    at_s: float = 100.0,
) -> list[Event]:
    runs.announced(run, "chain", client, wanted, at_s)
    return runs.graph_arrived(client, wanted, states, at_s)


def finishes(runs: Runs, *keys: Any, worker: str = "w1", took_s: float = 1.0, at_s: float = 105.0) -> list[Event]:
    return [e for key in keys for e in runs.task_finished(key, str(key)[0], worker, took_s, 8, at_s)]


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def the_end(events: list[Event]) -> RunEnded:
    (ended,) = (event for event in events if isinstance(event, RunEnded))
    return ended


def summary(runs: Runs, run: str = "r1", now_s: float = 200.0) -> dict[str, Any]:
    known = runs.get(run)
    assert known is not None
    return known.summary(now_s)


def test_a_run_from_its_announcement_to_its_end() -> None:
    runs = Runs()
    runs.announced("r1", "chain", CLIENT, ["c"], 100.0)
    assert summary(runs)["status"] == "pending"
    (sent,) = runs.graph_arrived(CLIENT, {"c"}, CHAIN, 101.0)
    assert sent == RunSubmitted(at_s=101.0, run="r1", name="chain", tasks=3, client=CLIENT)
    assert summary(runs)["status"] == "running"
    assert finishes(runs, "a", "b") == []
    events = finishes(runs, "c", at_s=110.0)
    assert kinds(events) == ["RunProgressed", "RunEnded"]
    assert the_end(events) == RunEnded(at_s=110.0, run="r1", status="finished", elapsed_s=10.0)
    assert summary(runs)["finished"] == 3
    assert summary(runs, now_s=999.0)["elapsed_s"] == 10.0


def test_a_graph_that_nobody_announced_is_plain_dask() -> None:
    runs = Runs()
    assert not runs.awaits(CLIENT, {"c"})
    assert runs.graph_arrived(CLIENT, {"c"}, CHAIN, 100.0) == []
    assert not runs.by_key


def test_an_announcement_after_its_graph_waits_for_the_next_one() -> None:
    runs = Runs()
    assert runs.graph_arrived(CLIENT, {"c"}, CHAIN, 100.0) == []
    runs.announced("r1", "chain", CLIENT, ["c"], 101.0)
    assert summary(runs)["status"] == "pending"
    assert kinds(runs.graph_arrived(CLIENT, {"c"}, CHAIN, 102.0)) == ["RunSubmitted"]


@pytest.mark.parametrize(("client", "wanted"), [("Client-2", {"c"}), (CLIENT, {"b"}), (CLIENT, {"b", "c"})])
def test_the_graph_of_somebody_else_or_for_something_else_is_not_the_runs(client: str, wanted: set[str]) -> None:
    runs = Runs()
    runs.announced("r1", "chain", CLIENT, ["c"], 100.0)
    assert not runs.awaits(client, wanted)
    assert runs.graph_arrived(client, wanted, CHAIN, 101.0) == []
    assert runs.awaits(CLIENT, {"c"})


def test_two_clients_that_want_the_same_at_the_same_time_have_a_run_each() -> None:
    runs = Runs()
    runs.announced("r1", "chain", "Client-1", ["c"], 100.0)
    runs.announced("r2", "chain", "Client-2", ["c"], 100.0)
    runs.graph_arrived("Client-1", {"c"}, CHAIN, 101.0)
    runs.graph_arrived("Client-2", {"c"}, CHAIN, 101.0)
    events = finishes(runs, "a", "b", "c")
    assert {event.run: event.status for event in events if isinstance(event, RunEnded)} == dict.fromkeys(
        ["r1", "r2"], "finished"
    )


def test_announcements_may_overtake_the_graphs_of_the_same_client() -> None:
    runs = Runs()
    runs.announced("r1", "chain", CLIENT, ["c"], 100.0)
    runs.announced("r2", "chain", CLIENT, ["c"], 100.0)
    for _ in range(2):
        runs.graph_arrived(CLIENT, {"c"}, CHAIN, 101.0)
    assert not runs.awaits(CLIENT, {"c"})
    finishes(runs, "a", "b", "c")
    assert summary(runs, "r1")["status"] == summary(runs, "r2")["status"] == "finished"


def test_a_graph_that_got_lost_does_not_shift_those_that_follow() -> None:
    runs = Runs()
    runs.announced("lost", "chain", CLIENT, ["c"], 100.0)
    runs.announced("r1", "chain", CLIENT, ["c"], 101.0)
    runs.graph_arrived(CLIENT, {"c"}, CHAIN, 102.0)
    assert summary(runs, "r1")["status"] == "running"
    assert summary(runs, "lost")["status"] == "pending"


def test_what_is_there_already_counts() -> None:
    runs = Runs()
    submitted(runs, states={"a": "memory", "b": "released", "c": "waiting"})
    assert summary(runs)["finished"] == 1


def test_a_run_whose_results_are_all_there_is_over_at_once() -> None:
    runs = Runs()
    events = submitted(runs, states={"a": "released", "b": "released", "c": "memory"})
    assert kinds(events) == ["RunSubmitted", "RunProgressed", "RunEnded"]
    assert the_end(events).status == "finished"
    assert not runs.by_key


def test_a_run_whose_result_has_failed_before_is_over_at_once() -> None:
    assert the_end(submitted(Runs(), states={"c": "erred"})).status == "error"


def test_several_results_must_all_be_there() -> None:
    runs = Runs()
    submitted(runs, wanted=["b", "c"])
    assert finishes(runs, "a", "b") == []
    assert the_end(finishes(runs, "c")).status == "finished"


def test_two_runs_share_keys() -> None:
    runs = Runs()
    submitted(runs, "r1", wanted=["c"])
    submitted(runs, "r2", wanted=["d"], states={**CHAIN, "d": "waiting"}, client="Client-2")
    finishes(runs, "a", "b")
    assert the_end(finishes(runs, "c")).run == "r1"
    assert summary(runs, "r2")["finished"] == 3
    assert set(runs.by_key) == {"a", "b", "c", "d"}
    assert the_end(finishes(runs, "d")).run == "r2"
    assert not runs.by_key


def test_tallies() -> None:
    runs = Runs()
    submitted(runs, states={"a1": "waiting", "a2": "waiting", "c": "waiting"})
    runs.task_finished("a1", "a", "w1", 1.0, 100, 101.0)
    runs.task_finished("a2", "a", "w2", 3.0, 50, 103.0)
    runs.task_erred("c", "c", "w2", "KeyError('x')", 104.0)
    found = summary(runs)
    assert found["functions"] == {
        "a": {"tasks": 2, "erred": 0, "total_s": 4.0, "longest_s": 3.0, "output_bytes": 150},
        "c": {"tasks": 0, "erred": 1, "total_s": 0.0, "longest_s": 0.0, "output_bytes": 0},
    }
    assert found["workers"] == {"w1": {"tasks": 1, "busy_s": 1.0}, "w2": {"tasks": 1, "busy_s": 3.0}}
    assert (found["finished"], found["erred"], found["failed_on"]) == (2, 1, "w2")


def test_what_is_computed_again_is_counted_apart() -> None:
    runs = Runs()
    submitted(runs)
    finishes(runs, "a", "a", "a", "b")
    assert (summary(runs)["finished"], summary(runs)["recomputed"]) == (2, 2)


def test_a_failure_of_a_wanted_task_ends_the_run_with_the_first_reason() -> None:
    runs = Runs()
    submitted(runs)
    assert runs.task_erred("a", "a", "w1", "ValueError('bad')", 101.0) == []
    ended = the_end(runs.task_erred("c", "c", "", "ValueError('bad')", 101.0))
    assert (ended.status, ended.reason) == ("error", "ValueError('bad')")
    assert summary(runs)["failed_on"] == "w1"


def test_a_task_that_is_tried_again_is_no_longer_failed() -> None:
    runs = Runs()
    submitted(runs)
    runs.task_erred("a", "a", "w1", "ValueError('bad')", 101.0)
    finishes(runs, "a")
    assert (summary(runs)["finished"], summary(runs)["erred"]) == (1, 0)


def test_a_wanted_key_that_is_forgotten_cancels_the_run() -> None:
    runs = Runs()
    submitted(runs)
    assert runs.task_forgotten("a", 101.0) == []
    ended = the_end(runs.task_forgotten("c", 102.0))
    assert (ended.status, ended.reason) == ("cancelled", "nobody wants its result any more")


def test_a_wanted_key_that_is_forgotten_after_its_result_was_there_cancels_nothing() -> None:
    runs = Runs()
    submitted(runs, wanted=["b", "c"])
    finishes(runs, "b")
    assert runs.task_forgotten("b", 102.0) == []
    assert summary(runs)["status"] == "running"


def test_the_first_end_counts() -> None:
    runs = Runs()
    submitted(runs)
    assert the_end(runs.ended("r1", "cancelled", "by hand", 101.0)).status == "cancelled"
    assert runs.ended("r1", "finished", "", 102.0) == []
    assert finishes(runs, "a", "b", "c") == []
    assert runs.task_forgotten("c", 103.0) == []
    assert summary(runs)["status"] == "cancelled"


def test_the_end_of_a_run_that_nobody_knows_is_nothing() -> None:
    assert Runs().ended("r9", "cancelled", "", 1.0) == []


def test_a_run_that_is_cancelled_before_its_graph_comes_does_not_take_it() -> None:
    runs = Runs()
    runs.announced("r1", "chain", CLIENT, ["c"], 100.0)
    runs.ended("r1", "cancelled", "", 100.5)
    assert not runs.awaits(CLIENT, {"c"})
    assert runs.graph_arrived(CLIENT, {"c"}, CHAIN, 101.0) == []


def test_all_runs_of_a_client_end_when_it_leaves() -> None:
    runs = Runs()
    submitted(runs, "r1")
    runs.announced("r2", "chain", CLIENT, ["x"], 100.0)
    submitted(runs, "r3", wanted=["z"], states={"z": "waiting"}, client="Client-2")
    ends = [event for event in runs.client_left(CLIENT, 101.0) if isinstance(event, RunEnded)]
    assert {end.run: end.reason for end in ends} == dict.fromkeys(["r1", "r2"], "its client left")
    assert summary(runs, "r3")["status"] == "running"


def test_progress_is_told_when_it_changed() -> None:
    runs = Runs()
    submitted(runs)
    (none_yet,) = runs.progressed({"r1": 2}, 101.0)
    assert none_yet == RunProgressed(at_s=101.0, run="r1", tasks=3, finished=0, erred=0, processing=2)
    assert runs.progressed({"r1": 2}, 102.0) == []
    finishes(runs, "a")
    (one,) = runs.progressed({}, 103.0)
    assert isinstance(one, RunProgressed)
    assert (one.finished, one.processing) == (1, 0)
    finishes(runs, "b", "c")
    assert runs.progressed({}, 104.0) == []


def test_peaks_are_those_while_the_run_was_under_way() -> None:
    runs = Runs()
    runs.telemetry_arrived(telemetry(host_cpu_percent=100.0))
    submitted(runs)
    assert summary(runs)["peak_host_cpu_percent"] is None
    for cpu, memory in ((50.0, None), (None, 30.0), (40.0, 20.0)):
        runs.telemetry_arrived(telemetry(host_cpu_percent=cpu, memory_percent=memory))
    finishes(runs, "a", "b", "c")
    runs.telemetry_arrived(telemetry(host_cpu_percent=100.0, memory_percent=100.0))
    assert (summary(runs)["peak_host_cpu_percent"], summary(runs)["peak_worker_memory_percent"]) == (50.0, 30.0)


def test_a_bounded_number_of_ended_runs_is_kept_and_only_their_tallies() -> None:
    runs = Runs()
    submitted(runs, "live", wanted=["live"], states={"live": "waiting"})
    for i in range(KEPT_RUNS + 50):
        submitted(runs, f"r{i}", wanted=[f"c{i}"], states={f"a{i}": "waiting", f"c{i}": "waiting"})
        finishes(runs, f"a{i}", f"c{i}")
    runs.announced("next", "chain", CLIENT, ["n"], 300.0)
    kept = [run for run in runs._runs.values() if run.is_over]
    assert len(kept) == KEPT_RUNS
    assert {run.run for run in kept} == {f"r{i}" for i in range(50, KEPT_RUNS + 50)}
    assert not any(run.tasks or run.finished or run.erred or run.wanted for run in kept)
    assert all(run.summary(400.0)["finished"] == 2 for run in kept)
    assert set(runs.by_key) == {"live"}


KEYS = st.sampled_from([*"abcdef", ("x", 0), 7])


class AnyOrder(RuleBasedStateMachine):
    """Dask's hooks in any order, also in orders that should not be."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = Runs()
        self.now_s = 0.0
        self.announced: dict[str, tuple[str, frozenset[Any]]] = {}
        self.submissions: list[str] = []
        self.ends: list[str] = []

    def note(self, events: list[Event]) -> None:
        self.now_s += 1.0
        for event in events:
            if isinstance(event, RunSubmitted):
                assert event.run not in self.ends
                self.submissions.append(event.run)
            elif isinstance(event, RunEnded):
                assert event.elapsed_s >= 0
                self.ends.append(event.run)

    @rule(client=st.sampled_from("AB"), wanted=st.frozensets(KEYS, min_size=1, max_size=3))
    def announce(self, client: str, wanted: frozenset[Any]) -> None:
        run = f"r{len(self.announced)}"
        self.announced[run] = (client, wanted)
        self.runs.announced(run, "any", client, wanted, self.now_s)

    @precondition(lambda self: self.announced)
    @rule(data=st.data(), states=st.dictionaries(KEYS, st.sampled_from(["waiting", "memory", "erred", "released"])))
    def graph(self, data: st.DataObject, states: dict[Any, str]) -> None:
        client, wanted = self.announced[data.draw(st.sampled_from(sorted(self.announced)))]
        self.note(self.runs.graph_arrived(client, wanted, dict.fromkeys(wanted, "waiting") | states, self.now_s))

    @rule(key=KEYS, worker=st.sampled_from("vw"))
    def finish(self, key: Any, worker: str) -> None:
        self.note(self.runs.task_finished(key, "f", worker, 0.5, 1, self.now_s))

    @rule(key=KEYS)
    def err(self, key: Any) -> None:
        self.note(self.runs.task_erred(key, "f", "w", "why", self.now_s))

    @rule(key=KEYS)
    def forget(self, key: Any) -> None:
        self.note(self.runs.task_forgotten(key, self.now_s))

    @precondition(lambda self: self.announced)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.announced)))
        self.note(self.runs.ended(run, "cancelled", "", self.now_s))

    @rule(client=st.sampled_from("AB"))
    def leave(self, client: str) -> None:
        self.note(self.runs.client_left(client, self.now_s))

    @rule()
    def cycle(self) -> None:
        self.note(self.runs.progressed({}, self.now_s))

    @invariant()
    def each_run_is_submitted_and_ends_at_most_once(self) -> None:
        assert len(self.ends) == len(set(self.ends))
        assert len(self.submissions) == len(set(self.submissions))

    @invariant()
    def keys_belong_to_runs_under_way(self) -> None:
        owners = {run.run for runs in self.runs.by_key.values() for run in runs}
        assert owners <= set(self.submissions) - set(self.ends)
        assert all(self.runs.by_key.values())

    @invariant()
    def counts_fit(self) -> None:
        for name in self.announced:
            found = summary(self.runs, name, self.now_s)
            assert 0 <= found["finished"] <= found["tasks"]
            assert found["finished"] + found["erred"] <= found["tasks"]

    def teardown(self) -> None:
        for client in "AB":
            self.note(self.runs.client_left(client, self.now_s))
        assert sorted(self.ends) == sorted(self.announced)
        assert not self.runs.by_key
        assert not self.runs._awaited


AnyOrder.TestCase.settings = settings(stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase
