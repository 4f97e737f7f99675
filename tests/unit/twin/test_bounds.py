"""Lower bounds and HEFT against answers that are known: the example of the paper, and cases done by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest

from swarm.errors import TwinError
from swarm.twin.bounds import Array, Slot, heft, list_schedule, lower_bound_s, upward_ranks
from swarm.twin.models import (
    ClusterModel,
    Cost,
    Drifting,
    Fixed,
    Key,
    Link,
    LogNormal,
    Network,
    Sudden,
    WorkerModel,
    uniform,
)
from swarm.twin.work import Work, independent, layered, made_up

FAR = Network(default=Link(latency_s=1.0, bytes_per_s=100.0))


class TopcuogluExample:
    """Figure 2 of Topcuoglu, Hariri and Wu (2002): ten tasks, three processors that are not related."""

    lanes = 3
    SECONDS = (
        (14, 16, 9),
        (13, 19, 18),
        (11, 13, 19),
        (13, 8, 17),
        (12, 13, 10),
        (13, 16, 9),
        (7, 15, 11),
        (5, 11, 14),
        (18, 12, 20),
        (21, 7, 16),
    )
    EDGES: ClassVar = {
        (1, 2): 18,
        (1, 3): 12,
        (1, 4): 9,
        (1, 5): 11,
        (1, 6): 14,
        (2, 8): 19,
        (2, 9): 16,
        (3, 7): 23,
        (4, 8): 27,
        (4, 9): 23,
        (5, 9): 13,
        (6, 8): 15,
        (7, 10): 17,
        (8, 10): 11,
        (9, 10): 13,
    }

    def __init__(self) -> None:
        self.order = tuple(range(1, 11))
        self.dependencies = {k: frozenset(a for a, b in self.EDGES if b == k) for k in self.order}
        self.dependents = {k: tuple(b for a, b in self.EDGES if a == k) for k in self.order}

    def least_s(self, key: Key) -> Array:
        return np.array(self.SECONDS[key - 1], float)

    def mean_s(self, key: Key) -> float:
        return float(self.least_s(key).mean())

    def stop_s(self, key: Key, lanes: Sequence[int] | slice, start_s: Array) -> Array:
        stops: Array = start_s + self.least_s(key)[lanes]
        return stops

    def mean_transfer_s(self, need: Key, key: Key) -> float:
        return float(self.EDGES[need, key])

    def transfer_s(self, need: Key, lane: int, key: Key) -> Array:
        took = np.full(3, float(self.EDGES[need, key]))
        took[lane] = 0.0
        return took


def schedule(work: Work, cluster: ClusterModel) -> dict[Key, Slot]:
    slots = heft(work.order, work.dependencies, work.dependents, work.costs, cluster)
    assert sorted(slot.key for slot in slots) == sorted(work.costs)
    return {slot.key: slot for slot in slots}


def span_s(slots: dict[Key, Slot]) -> float:
    return max(slot.stop_s for slot in slots.values())


def test_upward_ranks_of_the_papers_example() -> None:
    example = TopcuogluExample()
    ranks = upward_ranks(example.order, example.dependents, example)
    expected = [108, 77, 80, 80, 69, 63 + 1 / 3, 42 + 2 / 3, 35 + 2 / 3, 44 + 1 / 3, 14 + 2 / 3]
    assert [ranks[k] for k in range(1, 11)] == pytest.approx(expected)


def test_schedule_of_the_papers_example() -> None:
    example = TopcuogluExample()
    placed = {
        key: (lane + 1, start_s, stop_s)
        for key, lane, start_s, stop_s in list_schedule(
            example.order, example.dependencies, example.dependents, example
        )
    }
    assert placed == {
        1: (3, 0, 9),
        2: (1, 27, 40),
        3: (3, 9, 28),
        4: (2, 18, 26),
        5: (3, 28, 38),
        6: (2, 26, 42),
        7: (3, 38, 49),
        8: (1, 57, 62),
        9: (2, 56, 68),
        10: (2, 73, 80),
    }


def test_a_chain_stays_on_the_fastest_worker() -> None:
    chain = made_up([(i, [i - 1] if i else [], Cost(3.0, 100)) for i in range(5)])
    slots = schedule(chain, uniform(3, speed=lambda i: Fixed(float(i + 1)), network=FAR))
    assert {slot.worker for slot in slots.values()} == {"w2"}
    assert span_s(slots) == pytest.approx(5.0)


def test_a_fork_pays_for_its_transfers() -> None:
    """Root 1 s with 100 bytes, which take 1 + 1 s; two leaves of 3 s: side by side, the second from 3 s on."""
    fork = made_up([("root", [], Cost(1.0, 100)), ("a", ["root"], Cost(3.0)), ("b", ["root"], Cost(3.0))])
    slots = schedule(fork, uniform(2, network=FAR))
    assert sorted(s.start_s for s in slots.values()) == pytest.approx([0, 1, 3])
    assert span_s(slots) == pytest.approx(6.0)
    assert slots["a"].worker != slots["b"].worker


def test_threads_of_a_worker_share_its_data() -> None:
    fork = made_up([("root", [], Cost(1.0, 100)), ("a", ["root"], Cost(3.0)), ("b", ["root"], Cost(3.0))])
    assert span_s(schedule(fork, uniform(1, threads=2, network=FAR))) == pytest.approx(4.0)


def two_ends_and(key: str, work_s: float) -> Work:
    """Two tasks of 4 s, one of 5 s that needs both, one of 4 s that needs the second, and another one."""
    return made_up(
        [
            ("x", [], Cost(4.0, 100)),
            ("y", [], Cost(4.0, 100)),
            ("join", ["x", "y"], Cost(5.0)),
            ("other", ["y"], Cost(4.0)),
            (key, [], Cost(work_s)),
        ]
    )


def test_a_gap_is_filled() -> None:
    """`join` waits for 2 s for the result of `y`; `short`, which ranks last, fits in before it."""
    slots = schedule(two_ends_and("short", 1.5), uniform(2, network=FAR))
    assert (slots["join"].start_s, slots["join"].stop_s) == pytest.approx((6, 11))
    assert (slots["short"].start_s, slots["short"].stop_s) == pytest.approx((4, 5.5))
    assert slots["short"].worker == slots["join"].worker


def test_what_does_not_fit_into_the_gap_goes_elsewhere() -> None:
    slots = schedule(two_ends_and("short", 2.5), uniform(2, network=FAR))
    assert (slots["short"].start_s, slots["short"].stop_s) == pytest.approx((8, 10.5))
    assert slots["short"].worker != slots["join"].worker


def test_a_gap_is_split_and_its_rest_is_used() -> None:
    work = made_up(
        [
            ("x", [], Cost(4.0, 300)),
            ("y", [], Cost(4.0, 300)),
            ("join", ["x", "y"], Cost(9.0)),
            *((f"short-{i}", [], Cost(2.0)) for i in range(4)),
        ]
    )
    slots = schedule(work, uniform(2, network=FAR))
    here = sorted(s.start_s for k, s in slots.items() if k != "join" and s.worker == slots["join"].worker)
    assert here == pytest.approx([0, 4, 6])  # x or y, then two that fill the gap of 4 s to the brim
    assert span_s(slots) == pytest.approx(17.0)


def test_work_goes_on_at_the_new_speed() -> None:
    """4 s of work on a worker that falls to half its speed at 2 s takes 2 + 4 s."""
    slots = schedule(independent(1), uniform(1, speed=Sudden(1.0, 0.5, 0.05)))
    assert span_s(slots) == pytest.approx(0.05 + 0.05 / 0.5)
    one = made_up([("a", [], Cost(4.0))])
    assert span_s(schedule(one, uniform(1, speed=Sudden(1.0, 0.5, 2.0)))) == pytest.approx(6.0)
    assert lower_bound_s(4.0, 1.0, uniform(1, speed=Sudden(1.0, 0.5, 2.0)).workers) == pytest.approx(6.0)


def test_a_worker_that_will_be_slow_is_left_in_time() -> None:
    """Of ten tasks of 1 s the worker that slows down at 3 s gets only what it does before."""
    work = made_up([(f"t-{i}", [], Cost(1.0)) for i in range(10)])
    cluster = uniform(2, speed=lambda i: Sudden(1.0, 0.01, 3.0) if i else Fixed())
    slots = schedule(work, cluster)
    assert sum(slot.worker == "w1" for slot in slots.values()) == 3
    assert span_s(slots) == pytest.approx(7.0)


def test_special_links_are_used() -> None:
    network = Network(default=Link(10.0, 1e9), links={("h0", "h2"): Link(0.5, 1e9)})
    work = made_up([("root", [], Cost(1.0, 0)), *((f"leaf-{i}", ["root"], Cost(4.0)) for i in range(2))])
    slots = schedule(work, uniform(3, network=network))
    assert {slots[f"leaf-{i}"].worker for i in range(2)} == {"w0", "w2"}
    assert span_s(slots) == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("total_s", "path_s", "workers", "expected_s"),
    [
        (100.0, 7.0, uniform(10).workers, 10.0),
        (100.0, 70.0, uniform(10).workers, 70.0),
        (100.0, 7.0, uniform(5, threads=4).workers, 7.0),
        (30.0, 8.0, uniform(2, speed=lambda i: Fixed(1.0 + i)).workers, 10.0),
        (30.0, 30.0, uniform(2, speed=lambda i: Fixed(1.0 + i)).workers, 15.0),
        (10.0, 1.0, uniform(1, speed=Sudden(1.0, 4.0, 2.0)).workers, 4.0),
        (1.5, 0.1, uniform(1, speed=Sudden(1.0, 4.0, 2.0)).workers, 1.5),
        (0.0, 0.0, uniform(1).workers, 0.0),
    ],
)
def test_lower_bound(total_s: float, path_s: float, workers: list[WorkerModel], expected_s: float) -> None:
    assert lower_bound_s(total_s, path_s, workers) == pytest.approx(expected_s)


def test_lower_bound_of_a_drift_is_its_integral() -> None:
    """From speed 1 to 3 in 10 s: 20 s of work are done by then, give or take the steps."""
    workers = uniform(1, speed=Drifting(1.0, 3.0, 10.0)).workers
    assert lower_bound_s(20.0, 1.0, workers) == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_keeps_its_promises(seed: int) -> None:
    """No lane does two things at a time, inputs arrive first, and the bound holds."""
    work = layered(8, 12, LogNormal(0.2, 1.0), inputs=3, seed=seed, output_bytes=50)
    cluster = uniform(4, threads=2, speed=lambda i: Fixed(1.0 + 0.5 * i), network=FAR)
    slots = schedule(work, cluster)
    lanes: dict[tuple[str, int], list[Slot]] = {}
    for slot in slots.values():
        lanes.setdefault((slot.worker, slot.lane), []).append(slot)
        for need in work.dependencies[slot.key]:
            arrives_s = slots[need].stop_s + (1.5 if slots[need].worker != slot.worker else 0.0)
            assert slot.start_s >= arrives_s - 1e-9
    for on_lane in lanes.values():
        on_lane.sort(key=lambda s: s.start_s)
        assert all(a.stop_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(on_lane))
    assert span_s(slots) >= lower_bound_s(work.total_s, work.critical_path_s, cluster.workers) - 1e-9


def test_no_workers_no_bound() -> None:
    with pytest.raises(TwinError, match="workers"):
        lower_bound_s(1.0, 1.0, [])
    with pytest.raises(TwinError, match="workers"):
        schedule(independent(1), uniform(0))
