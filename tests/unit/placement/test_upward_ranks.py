"""How much work hangs on each task, against ranks computed from scratch."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from scheduler_plugins.decide.ranks import FAR, Ranks


@dataclass(eq=False)
class Node:
    """A task as Dask has it."""

    name: str
    seconds: float = 1.0
    dependencies: set[Node] = field(default_factory=set)
    dependents: set[Node] = field(default_factory=set)
    is_over: bool = False

    def __repr__(self) -> str:
        return self.name

    def needs(self, *others: Node) -> Node:
        for other in others:
            self.dependencies.add(other)
            other.dependents.add(self)
        return self

    def forget(self) -> None:
        """As Dask does: nobody knows any more that it was there."""
        self.is_over = True
        for other in self.dependencies:
            other.dependents.discard(self)
        for other in self.dependents:
            other.dependencies.discard(self)
        self.dependencies, self.dependents = set(), set()


class Ranked:
    """Ranks, and what they told."""

    def __init__(self) -> None:
        self.told: dict[Node, float] = {}
        self.ranks = Ranks(lambda node: node.seconds, self.told.__setitem__, lambda node: node.is_over)

    def visit(self, nodes: Iterable[Node]) -> Ranked:
        for _ in self.ranks.visit(list(nodes)):
            pass
        return self

    def of(self, *nodes: Node) -> list[float]:
        return [self.ranks.rank_s(node) for node in nodes]


def chain(*seconds: float) -> list[Node]:
    nodes = [Node(f"c{i}", each) for i, each in enumerate(seconds)]
    for before, after in pairwise(nodes):
        after.needs(before)
    return nodes


def true_ranks(nodes: Iterable[Node]) -> dict[Node, float]:
    """By recursion, of all that are not over."""
    known: dict[Node, float] = {}

    def rank(node: Node) -> float:
        if node not in known:
            known[node] = node.seconds + max((rank(each) for each in node.dependents if not each.is_over), default=0.0)
        return known[node]

    return {node: rank(node) for node in nodes if not node.is_over}


def drawn(rng: random.Random, count: int, before: Iterable[Node] = (), name: str = "t") -> list[Node]:
    nodes: list[Node] = []
    earlier = list(before)
    for i in range(count):
        pool = earlier + nodes
        needs = rng.sample(pool, min(len(pool), rng.choice([0, 1, 1, 2, 4])))
        nodes.append(Node(f"{name}{i}", rng.choice([0.0, 0.01, 1.0, 100.0])).needs(*needs))
    return nodes


def test_the_longest_path_counts() -> None:
    a, b, c, d = Node("a"), Node("b", 5.0), Node("c", 2.0), Node("d", 3.0)
    b.needs(a)
    c.needs(a)
    d.needs(b, c)
    ranked = Ranked().visit([a, b, c, d])
    assert ranked.of(a, b, c, d) == [9.0, 8.0, 5.0, 3.0]
    assert ranked.told == {a: 9.0, b: 8.0, c: 5.0, d: 3.0}
    assert ranked.ranks.remaining_s == 11.0


def test_a_task_that_was_never_seen_has_none() -> None:
    ranked, node = Ranked(), Node("a", 2.0)
    assert ranked.of(node) == [0.0]
    assert ranked.ranks.seconds(node) == 2.0
    assert node not in ranked.ranks


def test_a_second_graph_makes_the_paths_of_the_first_longer() -> None:
    """A client that keeps futures and builds on them: what the first graph lacks would be started last."""
    first = chain(1.0, 1.0, 1.0)
    ranked = Ranked().visit(first)
    second = Node("more", 10.0).needs(first[-1])
    ranked.visit([second])
    assert ranked.of(*first) == [13.0, 12.0, 11.0]
    assert ranked.told[first[0]] == 13.0


def test_a_path_that_is_hardly_longer_is_not_passed_on() -> None:
    first = chain(100.0, 100.0)
    ranked = Ranked().visit(first)
    ranked.visit([Node("more", 100.0 * FAR / 2).needs(first[-1])])
    assert ranked.of(*first) == [200.0, 100.0]


def test_what_was_learned_meanwhile_counts_when_all_are_ranked_anew() -> None:
    nodes = chain(1.0, 1.0, 1.0)
    ranked = Ranked().visit(nodes)
    nodes[1].seconds = 0.1
    ranked.visit(ranked.ranks.tasks())
    assert ranked.of(*nodes) == pytest.approx([2.1, 1.1, 1.0])
    assert ranked.ranks.remaining_s == pytest.approx(2.1)


def test_a_task_that_ended_before_its_turn_is_not_ranked() -> None:
    """A graph is ranked in slices of a millisecond: what ends meanwhile would count as work that is left, for good."""
    nodes = chain(1.0, 1.0, 1.0)
    ranked = Ranked()
    visit = ranked.ranks.visit(nodes)
    for _ in range(4):  # all are counted, the last is ranked
        next(visit)
    nodes[0].is_over = True
    ranked.ranks.drop(nodes[0])
    list(visit)
    assert nodes[0] not in ranked.ranks
    assert ranked.ranks.remaining_s == 2.0


def test_a_task_whose_dependent_was_forgotten_before_its_turn_is_ranked_nonetheless() -> None:
    nodes = chain(1.0, 1.0, 5.0)
    ranked = Ranked()
    visit = ranked.ranks.visit(nodes)
    for _ in range(3):
        next(visit)
    nodes[2].forget()
    list(visit)
    assert ranked.of(*nodes) == [2.0, 1.0, 0.0]


def test_slices_are_short_where_many_wait_for_one() -> None:
    """All the inputs of one task at once would hold up the scheduler for as long as a graph is wide."""
    inputs = [Node(f"i{i}") for i in range(100)]
    ranked = Ranked().visit(inputs)
    last = Node("last", 10.0).needs(*inputs)
    done = 0
    for _ in ranked.ranks.visit([last, *inputs]):
        now_told = sum(rank_s > 1.0 for rank_s in ranked.told.values())
        assert now_told - done <= 1
        done = now_told
    assert ranked.of(*inputs) == [11.0] * 100


def test_what_is_computed_again_counts_again() -> None:
    nodes = chain(1.0, 2.0)
    ranked = Ranked().visit(nodes)
    ranked.ranks.drop(nodes[0])
    ranked.ranks.drop(nodes[0])
    assert ranked.ranks.remaining_s == 2.0
    ranked.visit([nodes[0]])
    assert ranked.of(*nodes) == [3.0, 2.0]
    assert ranked.ranks.remaining_s == 3.0


@pytest.mark.parametrize("seed", range(30))
def test_one_graph_has_the_ranks_that_it_has_by_recursion(seed: int) -> None:
    rng = random.Random(seed)
    nodes = drawn(rng, 60)
    ranked = Ranked().visit(rng.sample(nodes, len(nodes)))
    true = true_ranks(nodes)
    assert ranked.of(*nodes) == pytest.approx([true[node] for node in nodes])
    assert ranked.told == pytest.approx(true)


@pytest.mark.parametrize("seed", range(60))
def test_graphs_that_build_on_each_other_while_tasks_end(seed: int) -> None:
    """Known is what is left, no more and no less, and so is its sum."""
    rng = random.Random(seed)
    nodes: list[Node] = []
    ranked = Ranked()
    visits = []
    for number in range(4):
        fresh = drawn(rng, 20, rng.sample(nodes, min(len(nodes), 10)), f"g{number}-")
        nodes += fresh
        visits.append(ranked.ranks.visit(fresh))
        for visit in visits:
            for _ in range(rng.randrange(50)):
                next(visit, None)
            _let_some_end(rng, ranked, nodes)
    for visit in visits:
        list(visit)
    left = [node for node in nodes if not node.is_over]
    assert set(ranked.ranks.tasks()) == set(left)
    assert ranked.ranks.remaining_s == pytest.approx(sum(node.seconds for node in left), abs=1e-9)
    ranked.visit(ranked.ranks.tasks())
    true = true_ranks(left)
    assert ranked.of(*left) == pytest.approx([true[node] for node in left])
    assert {node: ranked.told[node] for node in left} == pytest.approx(true)


def _let_some_end(rng: random.Random, ranked: Ranked, nodes: list[Node]) -> None:
    for node in nodes:
        if not node.is_over and all(each.is_over for each in node.dependencies) and rng.random() < 0.1:
            node.is_over = True
            ranked.ranks.drop(node)
        elif not node.dependents and rng.random() < 0.02:
            node.forget()
            ranked.ranks.drop(node)


@pytest.mark.parametrize("seed", range(30))
def test_a_rank_is_too_low_by_a_tenth_at_most_for_each_step_of_the_path(seed: int) -> None:
    rng = random.Random(seed)
    nodes: list[Node] = []
    ranked = Ranked()
    for number in range(5):
        fresh = drawn(rng, 15, rng.sample(nodes, min(len(nodes), 8)), f"g{number}-")
        nodes += fresh
        ranked.visit(fresh)
    true = true_ranks(nodes)
    for node in nodes:
        assert (1 - FAR) ** len(nodes) * true[node] <= ranked.ranks.rank_s(node) <= true[node] + 1e-9
    assert sum(ranked.of(*nodes)) > 0.9 * sum(true.values())


def test_the_sum_does_not_drift() -> None:
    rng = random.Random(3)
    ranked, ever = Ranked(), Node("ever", 1e-3)
    ranked.visit([ever])
    alive: list[Node] = []
    for number in range(20_000):
        if alive and rng.random() < 0.5:
            ranked.ranks.drop(alive.pop(rng.randrange(len(alive))))
        else:
            alive.append(Node(str(number), rng.choice([1e-4, 1.0, 1e5])))
            ranked.visit(alive[-1:])
    for node in alive:
        ranked.ranks.drop(node)
    assert ranked.ranks.remaining_s == pytest.approx(1e-3, abs=1e-4)


def test_what_is_not_passed_on_is_told() -> None:
    """A chain submitted link by link was begun too late: each link fell short by less than a tenth, thirty by half."""
    ranked, links = Ranked(), [Node("0")]
    ranked.visit(links)
    while not ranked.ranks.is_stale:
        links.append(Node(str(len(links))).needs(links[-1]))
        ranked.visit(links[-1:])
        assert len(links) < 30
    assert ranked.ranks.rank_s(links[0]) < len(links)
    ranked.ranks.is_stale = False
    ranked.visit(links)
    assert not ranked.ranks.is_stale
    assert ranked.ranks.rank_s(links[0]) == len(links)
