"""What is gone from distributed switches off the feature that needs it, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.on_dask import selftest
from tests.support.clusters import ANYWHERE


class Installed:
    """Stands before the scheduler of the installed distributed, with some names taken away or replaced."""

    def __init__(self, scheduler: Scheduler, **replaced: Any) -> None:
        self._scheduler = scheduler
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced:
            if self._replaced[name] is None:
                raise AttributeError(name)
            return self._replaced[name]
        return getattr(self._scheduler, name)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with Scheduler(**ANYWHERE) as running:
        yield running


def test_nothing_is_missing_in_the_installed_distributed(scheduler: Scheduler) -> None:
    assert selftest.missing(scheduler) == {}


@pytest.mark.parametrize(
    ("feature", "name", "replacement"),
    [
        ("membership", "handlers", None),
        ("membership", "task_metadata", None),
        ("membership", "broadcast", None),
        ("membership", "broadcast", lambda message, to: None),
        ("membership", "_ongoing_background_tasks", None),
        ("telemetry", "extensions", None),
        ("telemetry", "extensions", []),
        ("telemetry", "heartbeat_worker", lambda address, metrics: None),
        ("events", "log_event", None),
        ("events", "log_event", lambda name, message: None),
        ("runs", "tasks", None),
        ("samples", "queued", None),
        ("samples", "task_groups", None),
        ("samples", "total_nthreads", None),
        ("samples", "total_nthreads", lambda: 4),
        ("dashboard", "http_application", None),
    ],
)
def test_the_feature_that_needs_it_is_named(scheduler: Scheduler, feature: str, name: str, replacement: Any) -> None:
    found = selftest.missing(Installed(scheduler, **{name: replacement}))  # type: ignore[arg-type]
    alike = {"placement", "copies", "strategy", "durability", "scaling"}  # they need much of what others need
    assert found.keys() - alike == {feature}
    assert found[feature].startswith("this version of distributed lacks Scheduler.")
    assert name in found[feature]


def test_a_changed_hook_of_plugins_is_noticed(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SchedulerPlugin, "transition", lambda self, key, before, after: None)
    found = selftest.missing(scheduler)
    assert found["runs"] == "this version of distributed lacks SchedulerPlugin.transition(key, start, finish)"


def test_every_feature_is_a_part_that_can_be_switched_off() -> None:
    parts = {"membership", "telemetry", "events", "runs", "samples", "dashboard"}
    assert selftest.NEEDS.keys() == parts | {"placement", "copies", "faults", "strategy", "durability", "scaling"}
