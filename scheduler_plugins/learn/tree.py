"""Hoeffding trees of river, grown away from the event loop.

A tree of river takes 20 µs to learn a task, 1 ms when it splits, and 5 µs to predict. So the loop only puts tasks into
a queue; whoever calls `Nursery.learn_pending`, on any one thread, grows the trees and hands over each as nested tuples,
which take 0.3 µs to read, are replaced in one assignment, and fit in a snapshot.
Domingos, Hulten: "Mining high-speed data streams", KDD 2000; Ikonomovska et al. for regression, 2011.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scheduler_plugins.learn.models import Average, Vector, finite, natural

if TYPE_CHECKING:
    from river.tree import HoeffdingTreeRegressor

Node = float | tuple[int, float, Any, Any]
"""A leaf's value, or (term, threshold, node if the term is at most that, node if it is more)."""

DEPTH = 6


class Tree:
    """The last tree that was handed over; until there is one, the average."""

    __slots__ = ("_average", "_nursery", "epoch", "node")
    name = "tree"
    handicap = 0.0

    def __init__(self, nursery: Nursery) -> None:
        self.node: Node | None = None
        self.epoch = 0
        """Raised when what has been learned is in doubt: river's tree then starts anew."""
        self._average = Average()
        self._nursery = nursery

    def predict(self, x: Vector) -> float:
        node = self.node
        if node is None:
            return self._average.predict(x)
        while type(node) is tuple:
            node = node[2] if x[node[0]] <= node[1] else node[3]
        return node  # type: ignore[return-value]

    def learn(self, x: Vector, y: float) -> None:
        self._average.learn(x, y)
        self._nursery.put(self, x, y)

    def doubt(self) -> None:
        self._average.doubt()
        self.node = None
        self.epoch += 1

    def to_state(self) -> Any:
        return [self._average.to_state(), self.node]

    def restore(self, state: Any) -> None:
        average, node = state
        self._average.restore(average)
        self.node = None if node is None else _read(node, DEPTH + 1)


class Nursery:
    """The queue, and the trees that grow: the 64 used last, at some 100 kB each. What does not fit is dropped."""

    _MOST_TREES = 64
    _MOST_PENDING = 10_000
    _GROWN = 200
    """Tasks that a tree has seen before it is handed over."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Tree, int, Vector, float]] = deque(maxlen=self._MOST_PENDING)
        self._growing: OrderedDict[Tree, tuple[int, HoeffdingTreeRegressor, list[int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, tree: Tree, x: Vector, y: float) -> None:
        """Learn this later. The oldest is forgotten when 10,000 wait."""
        self._pending.append((tree, tree.epoch, x, y))

    def learn_pending(self, budget_s: float, clock: Callable[[], float]) -> int:
        """Learn what waits, until the budget is spent; the number of tasks learned. For one thread at a time."""
        until_s = clock() + budget_s
        learned = 0
        changed: dict[Tree, None] = {}
        while self._pending and clock() < until_s:
            tree, epoch, x, y = self._pending.popleft()
            if epoch != tree.epoch:
                continue
            grown, seen = self._river(tree)
            grown.learn_one(dict(enumerate(x)), y)
            seen[0] += 1
            learned += 1
            changed[tree] = None
        for tree in changed:
            if tree not in self._growing:
                continue
            epoch, grown, (count,) = self._growing[tree]
            if count >= self._GROWN and epoch == tree.epoch:
                tree.node = _written(grown._root)
        return learned

    def _river(self, tree: Tree) -> tuple[HoeffdingTreeRegressor, list[int]]:
        epoch, grown, seen = self._growing.get(tree, (-1, None, [0]))
        if epoch != tree.epoch or grown is None:
            from river.tree import HoeffdingTreeRegressor  # on this thread, not on the event loop: it takes a second

            grown, seen = HoeffdingTreeRegressor(grace_period=50, max_depth=DEPTH, leaf_prediction="mean"), [0]
            self._growing[tree] = (tree.epoch, grown, seen)
            if len(self._growing) > self._MOST_TREES:
                self._growing.popitem(last=False)
        self._growing.move_to_end(tree)
        return grown, seen


def _written(node: Any) -> Node:
    if hasattr(node, "children"):
        low, high = node.children
        return (int(node.feature), float(node.threshold), _written(low), _written(high))
    return float(node.stats.mean.get())


def _read(node: Any, depth: int) -> Node:
    if not isinstance(node, list | tuple):
        return finite(node)
    if depth == 0:
        raise ValueError("a tree is deeper than trees grow")
    term, threshold, low, high = node
    return (natural(term), finite(threshold), _read(low, depth - 1), _read(high, depth - 1))
