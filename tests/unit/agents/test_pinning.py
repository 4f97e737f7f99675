from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.agents.kinds.pinning import Claims, Pinning, cpu_limit_cores, cpu_list, numa_nodes, plan
from swarm.errors import AgentError


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host of two nodes with the cores of this one, and without control groups."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    for node, mine in enumerate((cores[:half], cores[half:])):
        folder = tmp_path / "sys/devices/system/node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(map(str, mine)) + "\n")
    return tmp_path


class Threads:
    def __init__(self) -> None:
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> int:
        thread = threading.Thread(target=self.over.wait, args=(30,))
        thread.start()
        self.threads.append(thread)
        assert thread.native_id is not None
        return thread.native_id

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def threads() -> Iterator[Threads]:
    some = Threads()
    yield some
    some.end()


def pinning(host: Path, threads: int, audited: list[Any], pin: Any = "cores") -> Pinning:
    claims = Claims(host / "claims")
    return Pinning(pin, threads, lambda what, **about: audited.append((what, about)), root=host, claims=claims)


@pytest.mark.parametrize(("text", "cores"), [("0\n", {0}), ("0-3,8-9\n", {0, 1, 2, 3, 8, 9}), ("\n", set())])
def test_lists_of_cores_are_read(text: str, cores: set[int]) -> None:
    assert cpu_list(text) == cores


def test_all_threads_go_to_the_node_that_has_room() -> None:
    nodes = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}
    claimed = plan(3, {2, 3, 4, 5, 6}, nodes, "cores")
    assert claimed == [(core, frozenset({core})) for core in (4, 5, 6)]
    assert plan(3, {2, 3, 4, 5, 6}, nodes, "numa") == [(core, nodes[1]) for core in (4, 5, 6)]
    assert plan(6, {2, 3, 4, 5, 6}, nodes, "numa") is None


def test_threads_are_pinned_and_unpinned(host: Path, threads: Threads) -> None:
    audited: list[Any] = []
    it = pinning(host, 1, audited)
    allowed = os.sched_getaffinity(0)
    thread = threads.start()
    it.look([thread])
    assert os.sched_getaffinity(thread) == it.pinned[thread]
    assert len(it.pinned[thread]) == 1
    it.look([thread])
    assert [what for what, _ in audited] == ["pin_thread"]
    it.look([thread, threads.start()])  # more than it has claimed cores for: not pinned
    assert len(it.pinned) == 1
    it.undo()
    it.undo()
    assert os.sched_getaffinity(thread) == allowed
    assert [what for what, _ in audited] == ["pin_thread", "unpin_thread"]


def test_what_a_thread_had_goes_to_the_next(host: Path, threads: Threads) -> None:
    it = pinning(host, 1, [])
    first, second = threads.start(), threads.start()
    it.look([first])
    had = it.pinned[first]
    it.look([second])
    assert it.pinned == {second: had}
    it.undo()


def test_two_workers_of_a_host_get_different_cores(host: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    first = pinning(host, cores, [])
    with pytest.raises(AgentError, match="is refused: this worker has 1 threads, and 0 of"):
        pinning(host, 1, [])
    first.undo()
    pinning(host, 1, []).undo()


def test_it_is_refused_where_there_are_fewer_cores_than_threads(host: Path) -> None:
    with pytest.raises(AgentError, match="start it with fewer threads"):
        pinning(host, 4097, [], "numa")
    pinning(host, 1, [], "numa").undo()


def test_it_is_refused_below_a_limit_of_cpu_time(host: Path) -> None:
    group = host / "sys/fs/cgroup/swarm"
    group.mkdir(parents=True)
    (host / "proc/self").mkdir(parents=True)
    (host / "proc/self/cgroup").write_text("0::/swarm\n")
    (host / "proc/self/mountinfo").write_text("30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "cpu.max").write_text("50000 100000\n")
    assert cpu_limit_cores(host) == 0.5
    with pytest.raises(AgentError, match=r"limits this worker to 0\.5 cores of time"):
        pinning(host, 1, [])
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu_limit_cores(host) is None


def test_the_nodes_of_a_host_are_read(host: Path) -> None:
    assert frozenset().union(*numa_nodes(host).values()) == os.sched_getaffinity(0)
    assert numa_nodes(host / "nowhere") == {}
