"""Simulations that found a bug, run again: each must end as its file says, and keep the rules of every run.

A file is written by `error.case.save("tests/replays/NAME.json")` after a `DeadlockError` or an `InvariantError`, or by
`swarm.twin.saved.Case(...).save(path)`. Say in its `note` what it shows, and in `ends` how it must end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.errors import DeadlockError, TwinError
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.outcome import Outcome
from swarm.twin.saved import Case, load_case

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.json"))

Ran = dict[str, tuple[Case, Outcome | TwinError]]


@pytest.fixture(scope="module")
def ran() -> Ran:
    """All of them, in child processes with the hash seeds that they had."""
    cases = [load_case(path) for path in FILES]
    jobs = [Job(*case.arguments(), case.hash_seed) for case in cases]
    return {path.stem: pair for path, pair in zip(FILES, zip(cases, simulate_all(jobs, 2), strict=True), strict=True)}


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_it_ends_as_it_should(name: str, ran: Ran) -> None:
    case, answer = ran[name]
    assert case.note, "a saved run says what it shows"
    if isinstance(answer, DeadlockError):
        assert case.ends == "deadlock", answer
        return
    if isinstance(answer, TwinError):
        raise answer
    assert answer.status == case.ends
    if case.trace_hash:
        assert answer.trace_hash == case.trace_hash
