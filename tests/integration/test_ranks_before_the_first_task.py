"""A graph is ranked before its first tasks are given to workers, also where that takes more than one slice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from dask.delayed import delayed
from distributed import Client, Scheduler, Worker

from scheduler_plugins.on_dask import ranking as module
from scheduler_plugins.on_dask.plugin import SwarmPlugin
from tests.support.clusters import ANYWHERE


def number(value: int, *_: Any) -> int:
    return value


@pytest.mark.parametrize("hold_s", [30.0, 0.0])
async def test_nothing_is_given_before_it_is_ranked(monkeypatch: pytest.MonkeyPatch, hold_s: float) -> None:
    """The first of a graph went to slow workers, though all else hung on them: nobody had looked yet."""
    monkeypatch.setattr(module, "SLICE_S", 0.0)  # a slice is sixteen tasks
    monkeypatch.setattr(module, "HOLD_S", hold_s)
    async with Scheduler(preload=["scheduler_plugins"], **ANYWHERE) as scheduler:
        (plugin,) = (each for each in scheduler.plugins.values() if isinstance(each, SwarmPlugin))
        placing = plugin.mind.placing
        given: list[bool] = []
        told = placing._on_choice

        def note(choice: Any, now_s: float) -> None:
            given.append(placing.ranking.is_under_way)
            told(choice, now_s)

        placing._on_choice = note
        async with Worker(scheduler.address, nthreads=1), Client(scheduler.address, asynchronous=True) as client:
            roots = [delayed(number)(i) for i in range(40)]
            total = delayed(sum)([delayed(number)(i, root) for i, root in enumerate(roots)])
            began_s = time.monotonic()
            assert await client.compute(total) == sum(range(40))
            assert time.monotonic() - began_s < 20.0, "it waits no longer than it must"
    assert given[0] is (hold_s == 0.0)
