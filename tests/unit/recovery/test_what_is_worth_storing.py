"""What is stored, what is lost in the worst case, and what runs again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.recovery import Ledger, Policy, plan

Graph = dict[int, set[int]]


def ledger_of(parents: dict, policy: Policy | None = None, wanted: set = frozenset()) -> Ledger:  # type: ignore[type-arg,assignment]
    def children(key: object) -> list[object]:
        found: list[object] = [child for child, needs in parents.items() if key in needs]
        return [*found, "its client"] if key in wanted else found

    return Ledger(policy or Policy(), lambda key: parents.get(key, ()), children)


def test_what_is_dear_is_stored_and_what_is_cheap_is_not() -> None:
    ledger = ledger_of({"a": (), "b": ()}, wanted={"a", "b"})
    assert ledger.finished("a", 0.050, 1_000_000)
    assert not ledger.finished("b", 0.005, 1_000_000)
    assert ledger.stored == {"a"}
    assert ledger.exposed_s == 0.005


def test_a_large_result_must_be_dearer() -> None:
    policy = Policy()
    assert policy.is_worth(0.3, 1_000_000)
    assert not policy.is_worth(0.3, 100_000_000)
    assert policy.is_worth(0.4, 100_000_000)


def test_the_cost_of_what_led_to_a_result_counts() -> None:
    """Ten steps of 4 ms each: none is worth a file, but a few of them are."""
    chain = {n: (n - 1,) if n else () for n in range(10)}
    ledger = ledger_of(chain, wanted={9})
    stored = [n for n in range(10) if ledger.finished(n, 0.004, 1000)]
    assert stored == [3, 7]
    # What leads to 7 is never needed again.
    assert ledger.exposed_s == 0.004 + 0.004


def test_no_more_than_a_bound_is_exposed_when_results_are_many_and_cheap() -> None:
    policy = Policy(exposed_s=1.0)
    ledger = ledger_of(dict.fromkeys(range(3000), ()), policy, wanted={*range(3000)})
    worst_s = 0.0
    for n in range(3000):
        ledger.finished(n, 0.002, 1_000_000)
        worst_s = max(worst_s, ledger.exposed_s)
    assert worst_s <= 1.002
    assert 2400 < len(ledger.stored) < 2600


def test_cheap_results_are_left_alone_while_the_writers_are_behind() -> None:
    ledger = ledger_of(dict.fromkeys(range(9), ()), Policy(exposed_s=0.0), wanted={*range(9)})
    assert ledger.finished(0, 0.001, 10, backlog_s=4.9)
    assert not ledger.finished(1, 0.001, 10, backlog_s=5.1)
    assert ledger.finished(2, 1.0, 10, backlog_s=5.1)


def test_what_could_not_be_stored_is_exposed_again_with_all_it_rests_on() -> None:
    ledger = ledger_of({"a": (), "b": ("a",), "c": ("b",)}, wanted={"c"})
    assert not ledger.finished("a", 0.002, 10)
    assert not ledger.finished("b", 0.002, 10)
    assert ledger.finished("c", 1.0, 10)
    assert ledger.exposed_s == pytest.approx(0, abs=1e-12)
    for _ in range(2):
        ledger.failed("c", 1.0)
        assert ledger.exposed_s == pytest.approx(1.004)


def test_a_root_that_many_need_is_looked_at_once_for_each() -> None:
    looks = 0

    def children(key: object) -> list[object]:
        nonlocal looks
        looks += 1
        return [*range(1, 5000)] if key == 0 else ["its client"]

    ledger = Ledger(Policy(), lambda key: () if key == 0 else (0,), children)
    ledger.finished(0, 0.001, 10)
    for n in range(1, 5000):
        assert ledger.finished(n, 0.1, 10)
    assert looks == 5000
    assert ledger.exposed_s == pytest.approx(0, abs=1e-12)


def test_only_what_is_needed_runs_again() -> None:
    graph = {"a": [], "b": ["a"], "c": ["b"], "d": ["b", "c"], "e": ["a"]}
    found = plan(["d", "e"], graph.get, stored={"b"}, known={"a"})
    assert (found.load, found.run, found.known, found.lost) == ({"b"}, {"c", "d", "e"}, {"a"}, set())


def test_what_is_in_no_graph_is_lost() -> None:
    assert plan(["b"], {"b": ["scattered"]}.get, stored=()).lost == {"scattered"}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 14))
    return {n: draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(size)}


@given(graphs(), st.data())
def test_a_plan_is_complete_and_has_nothing_too_much(graph: Graph, data: st.DataObject) -> None:
    nodes = st.sets(st.sampled_from(sorted(graph)))
    wanted, stored = data.draw(nodes), data.draw(nodes)
    found = plan(wanted, graph.get, stored)
    assert wanted <= found.run | found.load
    assert found.load <= stored
    assert not found.run & stored
    for key in found.run:
        assert graph[key] <= found.run | found.load
    needed = wanted | {need for key in found.run for need in graph[key]}
    assert found.run | found.load == needed


@given(graphs(), st.data())
def test_the_exposure_is_what_a_crash_would_cost(graph: Graph, data: st.DataObject) -> None:
    """All has run, and some of it could not be stored: what the ledger says is what would run again."""
    wanted = data.draw(st.sets(st.sampled_from(sorted(graph)), min_size=1))
    took_s = {n: data.draw(st.sampled_from([1.0, 64.0])) for n in graph}
    ledger = ledger_of(graph, Policy(file_s=16.0, bytes_per_s=1e30, times=1.0, exposed_s=1e9), wanted)
    for n in sorted(graph):
        ledger.finished(n, took_s[n], 0)
    for n in data.draw(st.sets(st.sampled_from(sorted(graph)))):
        ledger.failed(n, took_s[n])
    again = plan(wanted, graph.get, ledger.stored).run
    assert ledger.exposed_s == sum(took_s[n] for n in again)
