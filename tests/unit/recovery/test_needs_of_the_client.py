"""Durable runs replace private methods of Dask's client; when one has changed they are refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from distributed import Client
from distributed.client import FutureState

from swarm import keeper


def test_the_installed_version_has_it_all() -> None:
    assert keeper.missing() == ""


async def _reconnect(self: Client, patience: float) -> None:
    """With another parameter."""


async def _handle_report(self: Client) -> None:
    """Which does not reconnect."""


def _graph_to_futures(self: Client, expr: Any, keys: Any) -> None:
    """Which sends nothing."""


@pytest.mark.parametrize(
    ("name", "now", "what"),
    [
        ("_reconnect", _reconnect, "Client._reconnect()"),
        ("_handle_report", _handle_report, "_reconnect in Client._handle_report"),
        ("_graph_to_futures", _graph_to_futures, "_send_to_scheduler in Client._graph_to_futures"),
        ("_gather_remote", None, "Client._gather_remote(direct, local_worker)"),
    ],
)
def test_what_has_changed_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, now: Callable[..., Any] | None, what: str
) -> None:
    monkeypatch.setattr(Client, name, now)
    assert keeper.missing().startswith("this version of distributed lacks ")
    assert what in keeper.missing()


def test_a_state_of_futures_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FutureState, "reset")
    assert keeper.missing() == "this version of distributed lacks FutureState.reset"
