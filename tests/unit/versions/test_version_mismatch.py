"""One line that names client, scheduler and workers, and only when they differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.versions import mismatch

VERSION = st.sampled_from(["0.1.0", "0.2.0", "1.0.0"])
VERSIONS = st.dictionaries(st.text("abc", min_size=1), VERSION)


@pytest.mark.parametrize(
    ("clients", "workers", "said"),
    [
        ({}, {}, None),
        ({"c": "2"}, {"a": "2", "b": "2"}, None),
        ({"c": "1"}, {}, "client 1, scheduler 2, workers none with swarm"),
        ({"c": "1"}, {"a": "2"}, "client 1, scheduler 2, workers 2"),
        ({}, {"a": "1"}, "client none connected, scheduler 2, workers 1"),
        ({"c": "2"}, {"a": "1", "b": "2", "d": "2"}, "client 2, scheduler 2, workers 1 (a), 2 (2)"),
        ({"c": "1"}, {"a": "3"}, "client 1, scheduler 2, workers 3"),
        (
            {},
            dict.fromkeys("abcd", "1") | {"e": "2"},
            "client none connected, scheduler 2, workers 1 (a, b, c, …), 2 (1)",
        ),
    ],
)
def test_all_three_are_named(clients: dict[str, str], workers: dict[str, str], said: str | None) -> None:
    expected = said and f"versions of swarm differ: {said}; install dask-swarm==2 everywhere"
    assert mismatch("2", clients, workers) == expected


@given(VERSION, VERSIONS, VERSIONS)
def test_there_is_a_line_if_and_only_if_one_differs(
    scheduler: str, clients: dict[str, str], workers: dict[str, str]
) -> None:
    line = mismatch(scheduler, clients, workers)
    everybody = {*clients.values(), *workers.values()}
    assert (line is None) == (everybody <= {scheduler})
    if line is not None:
        assert "\n" not in line
        assert all(version in line for version in everybody | {scheduler})
