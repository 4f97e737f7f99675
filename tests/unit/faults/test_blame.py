"""Whose fault a death was: what crashes its worker is run alone, then given up; nobody else suffers for it."""

from __future__ import annotations

import signal

import pytest

from scheduler_plugins.decide.blame import PATIENCE_S, Blame, Kind, cause_of


@pytest.mark.parametrize(
    ("exitcode", "oom_kills", "by_nanny", "kind", "word"),
    [
        (-signal.SIGSEGV, 0, False, "crash", "SIGSEGV"),
        (-signal.SIGABRT, None, False, "crash", "SIGABRT"),
        (7, 0, False, "crash", "status 7"),
        (255, 0, False, "crash", "status 255"),
        (-signal.SIGKILL, 0, False, "killed", "SIGKILL"),
        (-signal.SIGKILL, 1, False, "memory", "out of memory"),
        (-signal.SIGKILL, None, False, "killed", "SIGKILL"),
        (-signal.SIGTERM, 3, False, "killed", "SIGTERM"),
        (-signal.SIGTERM, 0, True, "memory", "nanny"),
        (0, 0, False, "killed", "in order"),
        (None, None, False, "unknown", "nobody"),
        (-250, 0, False, "killed", "signal 250"),
    ],
)
def test_cause(exitcode: int | None, oom_kills: int | None, by_nanny: bool, kind: Kind, word: str) -> None:
    cause = cause_of(exitcode, oom_kills, by_nanny=by_nanny)
    assert cause.kind == kind
    assert word in cause.words


def test_what_ran_alone_at_two_crashes_is_given_up() -> None:
    blame = Blame()
    assert blame.crashed(["bad"], "SIGSEGV", 0.0) is None
    assert blame.crashed(["bad"], "exit status 7", 1.0) == "bad"
    assert blame.crashes["bad"] == ["SIGSEGV", "exit status 7"], "for the error"


def test_those_that_ran_beside_it_run_alone_and_are_cleared_when_they_end() -> None:
    blame = Blame()
    for at_s in range(10):
        assert blame.crashed(["bad", "good"], "SIGSEGV", at_s) is None, "which of the two it was is not known"
    assert not blame.fits("good", "w", running=1, has_nothing=True, now_s=10.0)
    assert blame.fits("good", "w", running=0, has_nothing=True, now_s=10.0)
    assert not blame.fits("other", "w", running=0, has_nothing=True, now_s=10.0), "the worker is its own"
    assert not blame.fits("bad", "v", running=0, has_nothing=True, now_s=10.0), "one at a time"
    blame.over("good")
    assert blame.fits("other", "w", running=3, has_nothing=False, now_s=10.0)
    assert blame.fits("bad", "v", running=0, has_nothing=True, now_s=10.0)


def test_it_waits_for_a_worker_with_nothing_to_lose_but_not_for_ever() -> None:
    blame = Blame()
    blame.crashed(["bad"], "SIGSEGV", 0.0)
    assert not blame.fits("bad", "w", running=0, has_nothing=False, now_s=1.0)
    assert not blame.fits("bad", "w", running=2, has_nothing=False, now_s=PATIENCE_S + 1.0)
    assert not blame.fits("other", "w", running=2, has_nothing=False, now_s=PATIENCE_S + 1.0), "it is emptied for it"
    assert blame.fits("bad", "w", running=0, has_nothing=False, now_s=PATIENCE_S + 2.0)


def test_a_worker_that_leaves_or_loses_the_task_is_free_again() -> None:
    blame = Blame()
    blame.crashed(["bad"], "SIGSEGV", 0.0)
    assert blame.fits("bad", "w", running=0, has_nothing=True, now_s=1.0)
    blame.taken("bad")
    assert blame.fits("other", "w", running=0, has_nothing=True, now_s=1.0)
    assert blame.fits("bad", "w", running=0, has_nothing=True, now_s=1.0)
    blame.left("w")
    assert blame.fits("bad", "v", running=0, has_nothing=True, now_s=1.0)
    blame.over("bad")
    assert not blame.crashes
