"""A steady mixed load of known results: small tasks, batches with a reduction, graphs and arrays through swarm.

The workers import this module for the functions of the tasks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import dask.array as da

from swarm.client import Swarm

SMALL_PERIOD_S = 0.1
BATCH_PERIOD_S = 1.0
GRAPH_PERIOD_S = 2.0
ARRAY_PERIOD_S = 5.0
NAP_S = 0.01
"""Most tasks sleep: 32 workers on a laptop would otherwise measure its cores."""
CHUNKS = 8
CHUNK_ELEMENTS = 25_000
"""Of the array: 200 kB per chunk, and each chunk is needed where its mirror image is."""
DRAIN_S = 30.0
"""What has not come this long after the end counts as lost."""


def square(n: int) -> int:
    return n * n


def nap_and_square(n: int) -> int:
    time.sleep(NAP_S)
    return n * n


def add(*numbers: int) -> int:
    return sum(numbers)


@dataclass
class Tally:
    """What was asked for, and what came of it."""

    sent: int = 0
    right: int = 0
    tasks: int = 0
    """In the answers that were right."""
    wrong: list[str] = field(default_factory=list)
    """One line for each answer that is wrong, late by more than `DRAIN_S`, or an error."""
    latencies_s: list[float] = field(default_factory=list)
    """Of small tasks, from the moment at which each was due (so that a stall is not hidden by what it holds up)."""

    @property
    def under_way(self) -> int:
        return self.sent - self.right - len(self.wrong)


class SteadyLoad:
    """Sends work at fixed periods and checks every answer.

    Parameters
    ----------
    swarm
        An asynchronous connection; its `client` is used for plain Dask.
    workers
        The batches and graphs have a task for each.
    """

    def __init__(self, swarm: Swarm, workers: int) -> None:
        self.tally = Tally()
        self._swarm = swarm
        self._client = swarm.client
        self._workers = workers

    async def prepare(self) -> None:
        """Let every worker import this module, and NumPy with it; so does the scheduler, which unpickles graphs."""
        answers = await self._client.run(square, 3)
        assert set(answers.values()) == {9}
        await self._client.run_on_scheduler(square, 3)

    async def run(self, duration_s: float) -> None:
        """Load the cluster for a while, then wait for what is still under way."""
        streams = (
            (SMALL_PERIOD_S, self._small_task),
            (BATCH_PERIOD_S, self._batch),
            (GRAPH_PERIOD_S, self._graph),
            (ARRAY_PERIOD_S, self._array),
        )
        async with asyncio.TaskGroup() as group:
            for period_s, send in streams:
                group.create_task(self._stream(period_s, send, duration_s))

    async def _stream(self, period_s: float, send: Callable[[int, float], Awaitable[None]], duration_s: float) -> None:
        """Call `send` with its number and the time at which it is due, whether or not the one before is back."""
        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(int(duration_s / period_s)):
                due_s = start_s + n * period_s
                await asyncio.sleep(due_s - time.perf_counter())
                self.tally.sent += 1
                group.create_task(self._checked(send(n, due_s), f"{send.__name__.strip('_')} {n}"))

    async def _checked(self, sending: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                await sending
        except Exception as error:  # noqa: BLE001 — whatever went wrong is the finding
            self.tally.wrong.append(f"{what}: {type(error).__name__}: {error}")
        else:
            self.tally.right += 1

    async def _small_task(self, n: int, due_s: float) -> None:
        value = await self._client.submit(square, n, pure=False)
        self.tally.latencies_s.append(time.perf_counter() - due_s)
        self._expect(value, n * n, tasks=1)

    async def _batch(self, n: int, due_s: float) -> None:
        numbers = range(n, n + self._workers)
        futures = self._client.map(nap_and_square, numbers, pure=False)
        value = await self._client.submit(sum, futures, pure=False)
        self._expect(value, sum(i * i for i in numbers), tasks=len(numbers) + 1)

    async def _graph(self, n: int, due_s: float) -> None:
        leaves = [f"leaf-{n}-{i}" for i in range(self._workers)]
        graph: dict[str, Any] = {leaf: (nap_and_square, i) for i, leaf in enumerate(leaves)}
        graph[f"sum-{n}"] = (add, *leaves)
        run = await self._swarm.submit(graph, name="graph")
        self._expect(await run.result(), sum(i * i for i in range(self._workers)), tasks=len(graph))

    async def _array(self, n: int, due_s: float) -> None:
        size = CHUNKS * CHUNK_ELEMENTS
        numbers = da.arange(n, n + size, chunks=CHUNK_ELEMENTS)
        run = await self._swarm.submit((numbers + numbers[::-1]).sum(), name="array")
        self._expect(int(await run.result()), size * (2 * n + size - 1), tasks=(await run.info())["tasks"])

    def _expect(self, value: int, expected: int, tasks: int) -> None:
        if value != expected:
            raise ValueError(f"result is {value}, expected {expected}")
        self.tally.tasks += tasks
