"""Phi-accrual: who is suspected, who is not, and what a witness's report makes of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_plugins.decide.faults import CONDEMNED, DEFAULT, Detector, Report, verdict

PERIOD_S = 0.1


class Cluster:
    """Workers that send heartbeats, and a scheduler that looks ten times a second."""

    def __init__(self, *workers: str, interval_s: float = 0.5, jitter_s: float = 0.01, seed: int = 0) -> None:
        self.detector = Detector(PERIOD_S)
        self.rng = random.Random(seed)
        self.interval_s, self.jitter_s = interval_s, jitter_s
        self.now_s = 1000.0
        self.next_s = dict.fromkeys(workers, self.now_s + interval_s)
        self.silent: set[str] = set()
        self.log: list[tuple[float, str, bool]] = []
        for worker in workers:
            self.detector.join(worker, self.now_s, interval_s)

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += PERIOD_S
            for worker, at_s in self.next_s.items():
                if at_s <= self.now_s and worker not in self.silent:
                    self.detector.heard(worker, at_s, self.interval_s)
                    self.next_s[worker] = at_s + self.interval_s + abs(self.rng.gauss(0.0, self.jitter_s))
            self.look()

    def look(self) -> None:
        self.detector.tick(self.now_s)
        for change in self.detector.look(self.now_s):
            self.log.append((round(self.now_s - 1000.0, 1), change.worker, change.is_suspected))

    @property
    def suspected(self) -> set[str]:
        return set(self.detector.suspected)


def test_a_silent_worker_is_suspected_within_two_intervals_and_cleared_when_it_is_heard() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.run(30.0)
    assert not cluster.log
    cluster.silent.add("b")
    cluster.run(1.0)
    assert cluster.suspected == {"b"}
    cluster.silent.clear()
    cluster.next_s["b"] = cluster.now_s
    cluster.run(0.2)
    assert not cluster.suspected
    assert [is_suspected for _, _, is_suspected in cluster.log] == [True, False]


def test_the_first_heartbeats_may_be_late() -> None:
    """A worker that has just started imports what its first tasks need, and holds the GIL meanwhile."""
    cluster = Cluster("a")
    cluster.silent.add("a")
    cluster.run(1.2)
    assert not cluster.suspected


def test_an_irregular_worker_is_given_more_time_than_a_regular_one() -> None:
    regular, irregular = Cluster("a"), Cluster("a", jitter_s=0.4)
    for cluster in (regular, irregular):
        cluster.run(60.0)
        cluster.silent.add("a")
        cluster.log.clear()
        cluster.run(30.0)
    assert regular.log[0][0] + 0.5 < irregular.log[0][0]


def test_the_schedulers_own_lag_is_nobodys_silence() -> None:
    """The event loop stood still for 20 s: whatever the workers have sent waits in its sockets."""
    cluster = Cluster("a", "b", "c")
    cluster.run(20.0)
    cluster.now_s += 20.0
    cluster.look()
    assert not cluster.log
    cluster.next_s = dict.fromkeys(cluster.next_s, cluster.now_s + 0.05)
    cluster.run(10.0)
    assert not cluster.log


def test_a_clock_that_is_set_back_or_forward_suspects_nobody() -> None:
    for jump_s in (-3600.0, 3600.0):
        cluster = Cluster("a", "b")
        cluster.run(20.0)
        cluster.now_s += jump_s
        cluster.next_s = {worker: at_s + jump_s for worker, at_s in cluster.next_s.items()}
        cluster.run(20.0)
        assert not cluster.log, jump_s


def test_when_most_are_silent_at_once_it_is_rather_the_network() -> None:
    cluster = Cluster(*"abcdef")
    cluster.run(20.0)
    cluster.silent.update("abcde")
    cluster.run(1.5)
    assert len(cluster.suspected) <= 3, "the first could not be told from any other"
    cluster.run(5.0)
    assert cluster.suspected == set("abcde"), "but not for ever"


def test_heartbeats_that_come_less_often_as_the_cluster_grows_are_no_reason() -> None:
    """Dask asks for one each 0.5 s up to 10 workers, and for one each 2 s from 50 on."""
    cluster = Cluster(*"abc")
    cluster.run(20.0)
    cluster.interval_s = 2.0
    cluster.run(60.0)
    assert not cluster.log


def test_a_worker_that_left_is_forgotten() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.run(20.0)
    cluster.silent.add("b")
    cluster.run(2.0)
    cluster.detector.leave("b")
    cluster.run(1.0)
    assert not cluster.suspected
    cluster.detector.heard("b", cluster.now_s, 0.5)  # a message that was still under way
    assert cluster.detector.silence_s("b", cluster.now_s) == 0.0


@settings(max_examples=60)
@given(
    interval_s=st.sampled_from([0.5, 1.0, 2.0, 6.0]),
    jitter_ratio=st.floats(0.0, 0.15),
    seed=st.integers(0, 1000),
)
def test_steady_workers_are_never_suspected_and_dead_ones_always(
    interval_s: float, jitter_ratio: float, seed: int
) -> None:
    workers = [f"w{i}" for i in range(5)]
    cluster = Cluster(*workers, interval_s=interval_s, jitter_s=jitter_ratio * interval_s, seed=seed)
    cluster.run(40 * interval_s)
    assert not cluster.log
    cluster.silent.add("w3")
    cluster.run(4 * interval_s + 1.0)
    assert cluster.suspected == {"w3"}


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "silence_s", "expected"),
    [
        (Report("stopped", is_witnessed=True), 1.0, "stopped"),
        (Report("gone", is_witnessed=True), 1.0, "gone"),
        (Report("runs", cpu_s=0.15, ticks=False, is_witnessed=True), 3600.0, "busy"),  # holds the GIL and computes
        (Report("runs", cpu_s=0.0, ticks=False, is_witnessed=True), 3600.0, "busy"),  # holds the GIL and sleeps
        (Report("blocked", is_witnessed=True), 3600.0, "busy"),  # swaps, or reads from a disk that hangs
        (Report("runs", ticks=True, is_witnessed=True), 5.0, "busy"),
        (Report("runs", ticks=True, is_witnessed=True), DEFAULT.patience_s + 1.0, "cut off"),
        (Report("runs"), 3600.0, "busy"),  # its host takes connections for it, which says nothing of the process
        (None, DEFAULT.patience_s - 1.0, "busy"),
        (None, DEFAULT.patience_s + 1.0, "unreachable"),
    ],
)
def test_verdict(report: Report | None, silence_s: float, expected: str) -> None:
    said = verdict(report, silence_s, ticked_s=5.0, interval_s=0.5)
    assert said == expected
    assert (said in CONDEMNED) == (said != "busy")


def test_who_was_just_let_go_by_a_task_that_held_the_gil_is_not_cut_off() -> None:
    """Its event loop turns again, and its heartbeat is under way: on a thousand workers it is heard a second later."""
    report = Report("runs", 0.1, True, is_witnessed=True)
    assert verdict(report, 25.0, ticked_s=0.0, interval_s=6.0) == "busy"
    assert verdict(report, 31.0, ticked_s=6.0, interval_s=6.0) == "busy"
    assert verdict(report, 38.0, ticked_s=13.0, interval_s=6.0) == "cut off"
