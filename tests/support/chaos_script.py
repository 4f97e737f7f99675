"""A script of chaos: a graph whose results depend on their inputs, and the faults that happen meanwhile; from a seed.

The same script is played on real processes and in the twin (`chaos_play`). It can be kept as a file, and played again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dask._task_spec import Task, TaskRef

from swarm import twin
from swarm.twin.faults import (
    BlockLoop,
    Crash,
    Fault,
    Hang,
    HoldGil,
    Join,
    Leave,
    LoseHeartbeats,
    Partition,
    Preempt,
    SchedulerLag,
    SlowDown,
    from_json,
    to_json,
)
from swarm.twin.models import WorkerModel

FORMAT = 1
HASH_BYTES = 32

Kind = Literal["mixed", "busy", "moving"]
"""mixed: what goes wrong in processes; busy: only that after which nobody may be evicted; moving: workers that come, or
go, or are taken away after a notice, or are cut off."""
How = Literal["sleep", "spin", "gil", "exit", "segv"]
POISON = ("exit", "segv")
NOTICE_S = 20.0
"""As the setting `notice_period`, since a nanny that is told to stop goes by that."""
CUT_OFF_S = 25.0
"""Longer than the setting `silence_patience`: who is cut off for so long is removed."""


@dataclass(frozen=True)
class Step:
    """A task."""

    needs: tuple[int, ...]
    how: How
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Script:
    """What is played; times of faults in seconds after the submission, workers `w0`…"""

    seed: int
    kind: Kind
    workers: int
    steps: tuple[Step, ...]
    """A step needs only steps before it. The client wants all results that no other step needs, and some others."""
    wanted: tuple[int, ...]
    faults: tuple[Fault, ...]

    @property
    def poison(self) -> frozenset[int]:
        """Steps that end their worker; nothing needs them."""
        return frozenset(number for number, step in enumerate(self.steps) if step.how in POISON)

    @property
    def ideal_s(self) -> float:
        """What it takes at least."""
        return sum(step.seconds for step in self.steps) / self.workers

    # -- as work -------------------------------------------------------------------------------------------------------

    def graph(self, ledger: Path) -> dict[str, Task]:
        """For Dask; each task that begins leaves its number in `ledger`."""
        return {
            key_of(number): Task(
                key_of(number),
                take,
                number,
                step.how,
                step.seconds,
                step.nbytes,
                str(ledger),
                *(TaskRef(key_of(need)) for need in step.needs),
            )
            for number, step in enumerate(self.steps)
        }

    def oracle(self) -> dict[str, bytes]:
        """What comes out, computed one after the other, here and without waiting; poison has no result."""
        results: dict[int, bytes] = {}
        for number, step in enumerate(self.steps):
            if step.how not in POISON:
                results[number] = result_of(number, step.nbytes, *(results[need] for need in step.needs))
        return {key_of(number): results[number] for number in self.wanted if number in results}

    def work(self) -> twin.Work:
        """For the twin, which knows nothing of what a task does: poison and what holds the GIL are plain work there."""
        return twin.made_up(
            [
                (key_of(number), [key_of(need) for need in step.needs], twin.Cost(step.seconds, step.nbytes))
                for number, step in enumerate(self.steps)
            ],
            name=f"chaos {self.seed}",
            wanted=[key_of(number) for number in self.wanted],
        )

    # -- as a file -----------------------------------------------------------------------------------------------------

    def save(self, path: Path, trouble: tuple[str, ...] = ()) -> None:
        """Write it, with what went wrong."""
        told = asdict(replace(self, faults=()))
        told["faults"] = [to_json(fault) for fault in self.faults]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, "trouble": trouble, **told}, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read what `save` wrote; raises `ValueError` for anything else."""
        told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told.get("format") != FORMAT:
            raise ValueError(f"{path}: it is no script of format {FORMAT}")
        return cls(
            seed=told["seed"],
            kind=told["kind"],
            workers=told["workers"],
            steps=tuple(Step(**{**step, "needs": tuple(step["needs"])}) for step in told["steps"]),
            wanted=tuple(told["wanted"]),
            faults=tuple(from_json(fault) for fault in told["faults"]),
        )


def key_of(number: int) -> str:
    return f"step-{number}"


# -- what the tasks do -------------------------------------------------------------------------------------------------


def take(number: int, how: How, seconds: float, nbytes: int, ledger: str, *inputs: bytes) -> bytes:
    """A step, on a worker."""
    handle = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, f"{number}\n".encode())  # one write of a few bytes is never mixed with another's
    finally:
        os.close(handle)
    if how == "spin":
        spin(seconds)
    elif how == "gil":
        hold_gil(seconds)
    else:
        time.sleep(seconds)
    if how == "exit":
        os._exit(7)
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    return result_of(number, nbytes, *inputs)


def result_of(number: int, nbytes: int, *inputs: bytes) -> bytes:
    """Every bit of it depends on all of the inputs and their order."""
    digest = hashlib.sha256(str(number).encode())
    for each in inputs:
        digest.update(hashlib.sha256(each).digest())
    return (digest.digest() * (nbytes // HASH_BYTES + 1))[:nbytes]


def spin(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def hold_gil(seconds: float) -> None:
    """Sleep in C without letting go of the interpreter."""
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))


# -- drawn -------------------------------------------------------------------------------------------------------------


def drawn(seed: int, kind: Kind = "mixed", *, length_s: float = 5.0, workers: int = 4) -> Script:
    """A script that takes about `length_s`, were it not for the faults."""
    rng = random.Random(f"chaos {kind} {seed}")
    steps = _steps(rng, length_s * workers * 0.75)
    needed = {need for step in steps for need in step.needs}
    wanted = [number for number in range(len(steps)) if number not in needed or rng.random() < 0.1]
    if kind == "mixed" and rng.random() < 0.5:
        wanted.append(len(steps))
        steps.append(Step((), rng.choice(("exit", "segv")), 0.05, HASH_BYTES))
    names = [f"w{number}" for number in range(workers)]
    faults = {"mixed": _mixed, "busy": _busy, "moving": _moving}[kind](rng, names, length_s)
    faults.sort(key=lambda fault: fault.at_s)
    return Script(seed, kind, workers, tuple(steps), tuple(wanted), tuple(faults))


def _steps(rng: random.Random, total_s: float) -> list[Step]:
    """Layers, trees or anything, until there is enough to do."""
    steps: list[Step] = []
    shape, width = rng.choice(("layered", "tree", "any")), rng.choice((4, 8, 16))
    while total_s > 0:
        first, before = len(steps), rng.choice((5, 20, 60))
        for _ in range(width):
            if shape == "layered":
                layer = range(max(0, first - width), first)
                needs = rng.sample(layer, min(len(layer), rng.randint(1, 3)))
            elif shape == "tree":
                needs = _two_loose(steps) if rng.random() < 0.5 else []
            else:
                near = range(max(0, first - before), first)
                needs = rng.sample(near, min(len(near), rng.choice((0, 0, 1, 2, 4))))
            how: How = rng.choices(("sleep", "spin", "gil"), (80, 17, 3))[0]
            seconds = rng.choice((0.01, 0.05, 0.1, 0.2, 0.4)) * (1.0 if how != "spin" else 0.3)
            steps.append(Step(tuple(sorted(needs)), how, seconds, rng.choice((64, 10_000, 10_000, 500_000))))
            total_s -= seconds
    return steps


def _two_loose(steps: list[Step]) -> list[int]:
    """The two oldest steps that nothing needs yet: pairs are joined, as in a reduction."""
    needed = {need for step in steps for need in step.needs}
    return [number for number in range(len(steps)) if number not in needed][:2]


def _mixed(rng: random.Random, names: list[str], length_s: float) -> list[Fault]:
    made: list[Fault] = []
    for _ in range(max(3, round(length_s * rng.uniform(0.6, 1.2)))):
        at_s, worker = rng.uniform(0.2, 1.2 * length_s), rng.choice(names)
        made.append(
            rng.choices(
                (
                    Crash(at_s=at_s, worker=worker),
                    Hang(at_s=at_s, worker=worker, for_s=rng.choice((None, 0.3, 3.0, 8.0))),
                    HoldGil(at_s=at_s, worker=worker, for_s=rng.choice((0.5, 2.0, 4.0))),
                    BlockLoop(at_s=at_s, worker=worker, for_s=rng.choice((0.5, 1.5, 3.0))),
                    SlowDown(at_s=at_s, worker=worker, factor=0.3, for_s=3.0),
                    SchedulerLag(at_s=at_s, for_s=rng.choice((0.2, 0.8, 1.5))),
                    LoseHeartbeats(at_s=at_s, worker=worker, for_s=rng.choice((1.0, 4.0))),
                ),
                (4, 3, 2, 2, 1, 1, 1),
            )[0]
        )
    return made


def _busy(rng: random.Random, names: list[str], length_s: float) -> list[Fault]:
    """On average, a worker has such a fault half of the time."""
    made: list[Fault] = []
    for worker in names:
        at_s = rng.uniform(0.2, 4.0)
        while at_s < length_s:
            for_s = rng.choice((0.5, 1.0, 2.0, 4.0, 8.0))
            kind = rng.choices(("gil", "loop", "blocks", "cpu", "mute"), (3, 2, 2, 3, 1))[0]
            if kind == "gil":
                made.append(HoldGil(at_s=at_s, worker=worker, for_s=for_s))
            elif kind == "loop":
                made.append(BlockLoop(at_s=at_s, worker=worker, for_s=for_s))
            elif kind == "blocks":  # one second of each 1.5, as a task that logs too much may do
                made += [BlockLoop(at_s=at_s + 1.5 * n, worker=worker, for_s=1.0) for n in range(round(for_s / 1.5))]
            elif kind == "cpu":
                made.append(SlowDown(at_s=at_s, worker=worker, factor=0.5, for_s=for_s))
            else:
                made.append(LoseHeartbeats(at_s=at_s, worker=worker, for_s=for_s))
            at_s += for_s + rng.expovariate(1.0 / 3.0)
    at_s = rng.expovariate(0.1)
    while at_s < length_s:
        made.append(SchedulerLag(at_s=at_s, for_s=rng.choice((0.2, 0.5, 1.0))))
        at_s += rng.expovariate(0.1)
    return made


def _moving(rng: random.Random, names: list[str], length_s: float) -> list[Fault]:
    """The last two workers go for good, new ones come; of the others one is cut off, once for longer than patience."""
    *stay, leaves, is_taken = names

    def soon() -> float:
        return rng.uniform(0.2, length_s)

    made: list[Fault] = [
        Leave(at_s=soon(), worker=leaves),
        Preempt(at_s=soon(), worker=is_taken, notice_s=NOTICE_S, retire=True),
        *(Partition(at_s=soon(), workers=(rng.choice(stay),), for_s=rng.choice((1.0, 4.0))) for _ in range(2)),
        *(Join(at_s=soon(), model=WorkerModel(f"w{len(names) + n}", nanny=True)) for n in range(rng.randint(1, 2))),
    ]
    if rng.random() < 0.25:
        made.append(Partition(at_s=soon(), workers=(rng.choice(stay),), for_s=CUT_OFF_S))
    if rng.random() < 0.5:
        made.append(Crash(at_s=soon(), worker=rng.choice(stay)))
    return made
