"""Memory admission: what fits beside what, what the death of a worker teaches, and who is not to blame."""

from __future__ import annotations

import pytest

from scheduler_plugins.decide.memory import MOST_EXCUSES, PATIENCE_S, STALE_S, Memory, Reading, Verdict

GB = 1e9
KILL = 1.0 * GB
IDLE = 0.1 * GB
BUDGET = 0.9 * GB
BIG = 0.35 * GB


class Cluster:
    """Workers of 1 GB that take 0.1 GB when idle; functions are the first letters of tasks."""

    def __init__(self, *workers: str, threads: int = 4, kill_bytes: float = KILL) -> None:
        self.memory = Memory()
        self.peaks: dict[str, float] = {}
        """Function → what is known of its peak."""
        self.now_s = 0.0
        self.results: dict[str, float] = {}
        for worker in workers or ("w",):
            self.join(worker, threads, kill_bytes)

    def join(self, worker: str, threads: int = 4, kill_bytes: float = KILL) -> None:
        self.memory.join(worker, threads, kill_bytes)
        self.read(worker)

    def read(self, worker: str = "w", process: float = IDLE) -> None:
        self.memory.rooms[worker].read(Reading(self.now_s, process, IDLE, self.results.get(worker, 0.0)))

    def fits(self, task: str, worker: str = "w") -> bool:
        need = self.memory.need_bytes(task, task[0], self.peaks.get(task[0]))
        return self.memory.fits(task, worker, task[0], need, self.results.get(worker, 0.0), self.now_s)

    def give(self, *tasks: str, worker: str = "w") -> None:
        self.now_s += 1e-3
        for task in tasks:
            need = self.memory.need_bytes(task, task[0], self.peaks.get(task[0]))
            self.memory.given(task, worker, task[0], need, task[0] in self.peaks, self.now_s)

    def take(self, *tasks: str, worker: str = "w") -> list[str]:
        """Those of the tasks that the worker takes, one after the other."""
        taken = []
        for task in tasks:
            if self.fits(task, worker):
                self.give(task, worker=worker)
                taken.append(task)
        return taken

    def end(self, *tasks: str) -> None:
        for task in tasks:
            self.memory.ended(task, is_done=True)

    def die(self, worker: str = "w", *, by_memory: bool = True, waiting: tuple[str, ...] = ()) -> Verdict:
        """It dies, and its nanny starts another."""
        lost = list(self.memory.rooms[worker].given)
        running = [task for task in lost if task not in waiting]
        verdict = self.memory.died(
            worker, lost, running, results_bytes=self.results.get(worker, 0.0), by_memory=by_memory
        )
        for task in lost:
            self.memory.ended(task, is_done=False)
        self.memory.leave(worker)
        self.join(worker)
        return verdict


def tasks(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(count)]


# -- what fits -------------------------------------------------------------------------------------------------------


def test_a_worker_takes_as_many_as_fit() -> None:
    cluster = Cluster()
    cluster.peaks["b"] = BIG
    assert cluster.take(*tasks("b", 4)) == ["b0", "b1"]  # 0.1 + 2 × 0.35 of 0.9 GB
    cluster.end("b0")
    assert cluster.take("b2", "b3") == ["b2"]


def test_what_is_small_is_not_counted_and_what_is_unknown_is_not_held_back() -> None:
    cluster = Cluster()
    cluster.peaks["s"] = 1e6
    assert len(cluster.take(*tasks("s", 2000))) == 2000
    assert len(cluster.take(*tasks("u", 8))) == 8


def test_a_worker_without_a_limit_takes_all() -> None:
    cluster = Cluster(kill_bytes=0.0)
    cluster.peaks["b"] = 1e15
    assert len(cluster.take(*tasks("b", 8))) == 8
    assert cluster.memory.most_bytes() is None


def test_an_empty_worker_takes_what_does_not_fit() -> None:
    """The prediction may be wrong, and nowhere is there more room."""
    cluster = Cluster()
    cluster.peaks["h"] = 5 * GB
    assert cluster.take("h0", "h1") == ["h0"]


def test_results_in_memory_leave_less_room() -> None:
    cluster = Cluster()
    cluster.peaks["b"] = BIG
    cluster.give("u0")
    cluster.results["w"] = 0.5 * GB
    assert cluster.take("b0") == []
    cluster.results["w"] = 0.4 * GB
    assert cluster.take("b0") == ["b0"]


def test_heartbeats_lag_behind_what_was_given_and_what_has_ended() -> None:
    cluster = Cluster()
    cluster.peaks["b"] = BIG
    cluster.give("b0", "b1")
    assert cluster.take("b2") == []  # the last reading is from before
    cluster.now_s += 0.5
    cluster.read(process=IDLE + 2 * BIG)
    assert cluster.take("b2") == []  # but what it has taken is not counted twice
    cluster.end("b0", "b1")
    assert cluster.take("b2", "b3", "b4") == ["b2", "b3"]  # nor is what is over


def test_memory_that_nobody_accounts_for_is_counted_while_it_lasts() -> None:
    cluster = Cluster()
    cluster.peaks["b"] = BIG
    cluster.give("u0")
    cluster.now_s += 0.5
    cluster.read(process=0.7 * GB)
    assert cluster.take("b0") == []
    cluster.read(process=0.2 * GB)
    assert cluster.take("b0") == ["b0"]


def test_no_more_than_its_threads_run_at_a_time() -> None:
    cluster = Cluster(threads=2)
    cluster.peaks["m"] = 0.3 * GB
    assert len(cluster.take(*tasks("m", 10))) == 10  # they wait for its two threads


def test_a_large_task_is_not_passed_over_for_ever() -> None:
    """Small ones would take each bit of room that comes free."""
    cluster = Cluster(threads=64)
    cluster.peaks.update(b=0.6 * GB, m=0.1 * GB)
    small = iter(tasks("m", 1000))
    running = cluster.take(*(next(small) for _ in range(7)))
    for _ in range(200):
        cluster.now_s += 0.1
        if cluster.take("b0"):
            break
        cluster.end(running.pop(0))
        running += cluster.take(next(small))
    assert cluster.memory.worker("b0") == "w"
    assert cluster.now_s < PATIENCE_S + 1.0


def test_a_claim_ends_with_the_wish() -> None:
    """The large task was cancelled: nobody must wait for it."""
    cluster = Cluster()
    cluster.peaks.update(b=0.6 * GB, m=0.3 * GB)
    cluster.give("m0")
    for _ in range(20):
        assert not cluster.fits("b0")
        cluster.now_s += 0.1
    assert not cluster.fits("m1")
    cluster.now_s += STALE_S + 0.1
    cluster.memory.withdraw(cluster.now_s)
    assert cluster.fits("m1")


# -- what a death teaches --------------------------------------------------------------------------------------------


def test_after_a_death_what_ran_unknown_runs_alone_until_one_has_got_through() -> None:
    cluster = Cluster("w", "v")
    cluster.give(*tasks("u", 4))
    assert cluster.die().suspects == {"u"}
    assert cluster.take(*tasks("u", 4)) == ["u0"]
    assert cluster.take("x0") == []  # alone means alone
    assert cluster.take("u1", "u2", worker="v") == ["u1"]
    cluster.end("u0")
    cluster.peaks["u"] = BIG  # its peak was seen
    assert cluster.take("u2", "u3") == ["u2", "u3"]


def test_a_task_that_must_be_alone_gets_an_empty_worker() -> None:
    cluster = Cluster("w", "v")
    cluster.give(*tasks("u", 4))
    cluster.die()
    cluster.peaks["s"] = 1e6
    running = cluster.take(*tasks("s", 4)) + cluster.take(*tasks("r", 4), worker="v")
    small = iter(tasks("s", 1000)[4:])
    for _ in range(100):
        cluster.now_s += 0.1
        if cluster.take("u0"):
            break
        cluster.end(running.pop(0))
        running += cluster.take(next(small))
    assert cluster.memory.worker("u0") == "w"


def test_where_no_peaks_are_seen_fewer_run_at_a_time_after_each_death() -> None:
    """Workers without agents do not say what tasks take."""
    cluster = Cluster()
    at_once = [len(cluster.take(*tasks("u", 4)))]
    while at_once[-1] * BIG + IDLE > KILL:
        cluster.die()
        assert cluster.take(*tasks("u", 4)) == ["u0"]
        cluster.end("u0")
        at_once.append(len(cluster.take(*tasks("u", 4))))
    assert at_once == [4, 3, 2]


def test_what_is_known_to_be_harmless_is_not_suspected() -> None:
    cluster = Cluster()
    cluster.peaks["s"] = 1e6
    cluster.give("s0", "s1", "u0")
    assert cluster.die().suspects == {"u"}
    assert len(cluster.take(*tasks("s", 4))) == 4


def test_what_only_waited_is_not_suspected() -> None:
    cluster = Cluster()
    cluster.give("u0", "v0")
    assert cluster.die(waiting=("v0",)).suspects == {"u"}


def test_where_results_took_the_memory_tasks_are_not_suspected() -> None:
    """To hold back the tasks that would use up the results would only make it worse."""
    cluster = Cluster()
    cluster.results["w"] = 0.6 * GB
    cluster.give("u0", "v0")
    assert cluster.die() == (frozenset(), ("u0", "v0"), None)
    cluster.results["w"] = 0.0
    assert cluster.take("u0", "v0", "u1") == ["u0", "v0", "u1"]


def test_a_death_of_another_cause_is_soon_forgotten() -> None:
    cluster = Cluster()
    cluster.give(*tasks("u", 4))
    cluster.die(by_memory=False)
    assert cluster.take("u0", "u1") == ["u0"]
    cluster.end("u0")
    assert len(cluster.take(*tasks("u", 8)[1:])) == 7


# -- who is to blame -------------------------------------------------------------------------------------------------


def test_several_are_not_blamed_for_what_one_of_them_did_and_one_alone_is() -> None:
    cluster = Cluster()
    cluster.give("u0", "x0", "x1")
    verdict = cluster.die()
    assert set(verdict.excused) == {"u0", "x0", "x1"}
    assert verdict.proven is None
    cluster.give("u0")
    verdict = cluster.die()
    assert (verdict.excused, verdict.proven) == ((), "u0")


def test_nobody_is_excused_for_ever() -> None:
    """Should these rules be wrong, Dask's own count must end it."""
    cluster = Cluster()
    for turn in range(12):
        cluster.give("u0", "x0")
        assert ("u0" in cluster.die().excused) == (turn < MOST_EXCUSES)


def test_what_waited_behind_the_culprit_is_excused() -> None:
    cluster = Cluster()
    cluster.give("u0", "x0")
    verdict = cluster.die(waiting=("x0",))
    assert verdict.excused == ("x0",)


def test_a_task_that_died_alone_is_too_large_unless_there_is_a_larger_worker() -> None:
    cluster = Cluster()
    cluster.give("u0")
    cluster.die()
    assert cluster.memory.too_large() == ["u0"]
    cluster.join("larger", kill_bytes=4 * GB)
    assert cluster.memory.too_large() == []
    assert not cluster.fits("u0", "w")
    assert cluster.fits("u0", "larger")
    assert cluster.fits("u1", "w")  # another of its function may be small


def test_it_is_not_too_large_when_results_had_taken_the_room() -> None:
    cluster = Cluster()
    cluster.results["w"] = 0.5 * GB
    cluster.read(process=0.6 * GB)
    cluster.give("u0")
    cluster.die()
    assert cluster.memory.too_large() == []
    cluster.results["w"] = 0.0
    assert cluster.fits("u0")


def test_nor_when_nobody_knows_what_the_worker_died_of() -> None:
    cluster = Cluster()
    cluster.give("u0")
    assert cluster.die(by_memory=False).proven is None
    assert cluster.memory.too_large() == []
    assert cluster.fits("u0")


@pytest.mark.parametrize("by_memory", [False, True])
def test_a_death_with_nothing_running_teaches_nothing(by_memory: bool) -> None:
    cluster = Cluster()
    assert cluster.memory.died("w", ["x0"], [], results_bytes=0.0, by_memory=by_memory) == (frozenset(), ("x0",), None)
    assert not cluster.memory.lessons
