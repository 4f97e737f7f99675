"""A version of distributed that the twin does not know is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Scheduler
from distributed.worker_state_machine import WorkerState

from swarm import twin
from swarm.errors import TwinError
from swarm.twin import selftest


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    selftest.changed.cache_clear()
    yield
    selftest.changed.cache_clear()


def test_the_pinned_version_has_all() -> None:
    assert selftest.changed() == ()


def test_a_method_that_takes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle_worker(self: Scheduler, stream: object) -> None: ...

    monkeypatch.setattr(Scheduler, "handle_worker", handle_worker)
    monkeypatch.delattr(WorkerState, "handle_stimulus")
    with pytest.raises(TwinError) as caught:
        twin.simulate(twin.independent(1), twin.uniform(1))
    message = str(caught.value)
    assert "Scheduler.handle_worker(comm, worker)" in message
    assert "WorkerState.handle_stimulus" in message
    assert "install the version that swarm pins" in message
    assert "\n" not in message
