"""Who writes which result to the store: orders to workers, not more at a time than they can hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from scheduler_plugins.decide.recovery import Key, Policy
from swarm.agents.storing import STORE

if TYPE_CHECKING:
    from distributed import Scheduler

MOST_ON_THE_WAY_BYTES = 64_000_000
"""Of results that a worker holds because they are to be written; the others wait their turn."""


class Order(NamedTuple):
    """To store a result."""

    run: str
    key: Key
    size_bytes: int
    took_s: float
    """To compute it."""


class Writing:
    """Orders that workers have, and those that wait until there is room.

    Parameters
    ----------
    on_lost
        Told of an order that nobody will carry out.
    """

    def __init__(self, scheduler: Scheduler, policy: Policy, on_lost: Callable[[Order], None]) -> None:
        self.url = ""
        """Of the store."""
        self.backlog_s = 0.0
        """Writing that is ordered or waits."""
        self._scheduler = scheduler
        self._policy = policy
        self._on_lost = on_lost
        self._sent: dict[str, dict[tuple[str, Key], Order]] = {}
        self._sent_bytes: dict[str, int] = {}
        self._waiting: dict[str, deque[Order]] = {}
        self._next_end = asyncio.Event()
        """Set, and replaced, when a worker has answered or is gone."""

    def __len__(self) -> int:
        return sum(map(len, self._sent.values())) + sum(map(len, self._waiting.values()))

    def order(self, worker: str, order: Order) -> None:
        """Have a worker store what it has just computed."""
        self.backlog_s += self._policy.store_s(order.size_bytes)
        waiting = self._waiting.setdefault(worker, deque())
        if waiting or not self._has_room(worker, order):
            waiting.append(order)
        else:
            self._send(worker, order)

    def answered(self, worker: str, run: str, key: Key) -> Order | None:
        """A worker has carried out an order, or failed to; None for one that it was not given."""
        order = self._sent.get(worker, {}).pop((run, key), None)
        if order is not None:
            self._sent_bytes[worker] -= order.size_bytes
            self._over(order)
        waiting = self._waiting.get(worker)
        while waiting and self._has_room(worker, waiting[0]):
            following = waiting.popleft()
            if self._has(worker, following.key):
                self._send(worker, following)
            else:
                self._over(following)
                self._on_lost(following)
        self._something_ended()
        return order

    def worker_left(self, worker: str) -> None:
        for order in [*self._sent.pop(worker, {}).values(), *self._waiting.pop(worker, ())]:
            self._over(order)
            self._on_lost(order)
        self._sent_bytes.pop(worker, None)
        self._something_ended()

    async def carried_out(self, run: str) -> None:
        """Returns when nothing of a run is under way any more."""
        while any(self.of(run)):
            await self._next_end.wait()

    def _something_ended(self) -> None:
        self._next_end.set()
        self._next_end = asyncio.Event()

    def called_off(self, run: str) -> None:
        """Forget what waits of a run."""
        for worker, waiting in self._waiting.items():
            for order in waiting:
                if order.run == run:
                    self._over(order)
            self._waiting[worker] = deque(order for order in waiting if order.run != run)

    def of(self, run: str) -> Iterator[Order]:
        """What is under way of a run."""
        for sent in self._sent.values():
            yield from (order for order in sent.values() if order.run == run)
        for waiting in self._waiting.values():
            yield from (order for order in waiting if order.run == run)

    def _has_room(self, worker: str, order: Order) -> bool:
        sent = self._sent_bytes.get(worker, 0)
        return not sent or sent + order.size_bytes <= MOST_ON_THE_WAY_BYTES

    def _has(self, worker: str, key: Key) -> bool:
        ts = self._scheduler.tasks.get(key)
        return ts is not None and any(holder.address == worker for holder in ts.who_has or ())

    def _send(self, worker: str, order: Order) -> None:
        self._sent.setdefault(worker, {})[order.run, order.key] = order
        self._sent_bytes[worker] = self._sent_bytes.get(worker, 0) + order.size_bytes
        self._scheduler.worker_send(worker, {"op": STORE, "run": order.run, "key": order.key, "url": self.url})

    def _over(self, order: Order) -> None:
        self.backlog_s = max(0.0, self.backlog_s - self._policy.store_s(order.size_bytes))
