"""Which task fits on which worker, and what the death of a worker teaches.  PURE

A worker is given only what fits beside what runs there. Before anything is known of a function, nothing is held back.
When a worker dies, what ran there and is not known to be harmless is suspect: it runs alone on its worker until one
task of it has got through, and with that either its peak is known, or at least that fewer must run at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import nlargest
from typing import Any, NamedTuple

Task = Any
"""As whoever uses this names it; hashable. So are workers and functions."""
Worker = Any
Function = Any

BUDGET = 0.9
"""Share of what a worker may use before it is killed that is given away. Peaks are predicted high (nine of ten are
lower), and do not come all at once."""
SMALL = 0.01
"""Share of its limit below which a worker need not count what a task takes: a pause by Dask is early enough."""
PATIENCE_S = 1.0
"""A task that nothing had room for so long has the next worker that it asks for to itself, once that is empty enough:
smaller ones would take each bit of room for ever."""
PROOF = 0.9
"""Of what a worker has: a task that had so much and died is too large for it. Idle workers do not all take the same."""
MOST_EXCUSES = 8
"""Deaths for which a task that ran beside others is not blamed: it must end some time, should all this be wrong."""
RESULTS = 0.5
"""Share of what a worker has that results must take for them to be what it died of."""
STALE_S = 2.0
"""Who has not asked for room so long wants none."""


class Reading(NamedTuple):
    """What a worker said of its memory, in bytes."""

    at_s: float
    process: float
    idle: float
    """Of the process without results, when least ran."""
    results: float
    """That are in memory."""


class _Given(NamedTuple):
    function: Function
    nbytes: float
    is_known: bool
    at_s: float


class Room:
    """The memory of one worker."""

    __slots__ = (
        "budget_bytes",
        "claim",
        "ended_bytes",
        "given",
        "kill_bytes",
        "least_idle_bytes",
        "reading",
        "threads",
        "worker",
    )

    def __init__(self, worker: Worker, threads: int, kill_bytes: float) -> None:
        self.worker = worker
        self.threads = threads
        self.kill_bytes = kill_bytes
        """From which on it is killed; 0: it has no limit."""
        self.budget_bytes = BUDGET * kill_bytes
        self.given: dict[Task, _Given] = {}
        self.reading = Reading(0.0, 0.0, 0.0, 0.0)
        self.least_idle_bytes = kill_bytes
        self.ended_bytes = 0.0
        """What tasks took that have ended since the reading."""
        self.claim: Function | None = None
        """Nothing else starts here until this has."""

    @property
    def most_bytes(self) -> float:
        """What it has for a task when nothing else is there."""
        return self.kill_bytes - self.least_idle_bytes

    def read(self, reading: Reading) -> None:
        self.reading = reading
        self.ended_bytes = 0.0
        self.least_idle_bytes = min(self.least_idle_bytes, reading.idle)

    def used_bytes(self, results_bytes: float, one_more_bytes: float) -> float:
        """Of the process, when all that it was given takes its peak, and one task more."""
        reading = self.reading
        before = sum(given.nbytes for given in self.given.values() if given.at_s <= reading.at_s)
        # Somebody's of whom nothing is known, or who takes more than was thought.
        unexplained = reading.process - reading.idle - reading.results - before - self.ended_bytes
        return reading.idle + results_bytes + self._promised_bytes(one_more_bytes) + max(unexplained, 0.0)

    def _promised_bytes(self, one_more_bytes: float) -> float:
        """No more runs at a time than it has threads."""
        sizes = [one_more_bytes, *(given.nbytes for given in self.given.values())]
        return sum(sizes if len(sizes) <= self.threads else nlargest(self.threads, sizes))


class Lesson:
    """What deaths have taught about a function."""

    __slots__ = ("at_least_bytes", "deaths", "is_alone")

    def __init__(self) -> None:
        self.is_alone = True
        """It runs alone on its worker until one task of it has finished."""
        self.at_least_bytes = 0.0
        """What one of its tasks takes on average, at least."""
        self.deaths = 0


class Verdict(NamedTuple):
    """On a death."""

    suspects: frozenset[Function]
    excused: tuple[Task, ...]
    """Lost tasks that were merely beside it, or can't be told from the one whose fault it was."""
    proven: Task | None
    """The task that needs more than this worker had: it was alone, and memory was what the worker died of."""


class Memory:
    """What fits where."""

    def __init__(self) -> None:
        self.rooms: dict[Worker, Room] = {}
        self.lessons: dict[Function, Lesson] = {}
        self.proven_bytes: dict[Task, float] = {}
        """Task → what it needs at least, as its death alone has shown."""
        self._excuses: dict[Task, int] = {}
        """Task → deaths that it was not blamed for."""
        self._on: dict[Task, Room] = {}
        self._refused_s: dict[Function, tuple[float, float]] = {}
        """When a task of it first found no room, and when last."""
        self._claims: dict[Function, Room] = {}

    def join(self, worker: Worker, threads: int, kill_bytes: float) -> None:
        """A worker that is killed when its process takes so many bytes; 0: it has no limit."""
        self.rooms[worker] = Room(worker, threads, kill_bytes)

    def worker(self, task: Task) -> Worker | None:
        """Which worker was given a task and has it still."""
        room = self._on.get(task)
        return None if room is None else room.worker

    def leave(self, worker: Worker) -> None:
        room = self.rooms.pop(worker, None)
        if room is None:
            return
        for task in room.given:
            self._on.pop(task, None)
        if room.claim is not None:
            self._claims.pop(room.claim, None)

    def need_bytes(self, task: Task, function: Function, predicted_bytes: float | None) -> float:
        """What a task takes at its peak beside what is there before it, as far as is known.

        Parameters
        ----------
        predicted_bytes
            None where its peak has never been seen.
        """
        proven = self.proven_bytes.get(task, 0.0)
        lesson = self.lessons.get(function)
        if lesson is not None and (predicted_bytes is None or lesson.deaths > 1):
            return max(predicted_bytes or 0.0, lesson.at_least_bytes, proven)
        return max(predicted_bytes or 0.0, proven)

    def fits(
        self,
        task: Task,
        worker: Worker,
        function: Function,
        need_bytes: float,
        results_bytes: float,
        now_s: float,
    ) -> bool:
        """Whether the worker may be given the task now.

        Parameters
        ----------
        need_bytes
            By `need_bytes`, with the inputs that it must fetch.
        results_bytes
            That the worker has in memory now.
        """
        room = self.rooms.get(worker)
        if room is None:
            return True
        if self.proven_bytes and room.kill_bytes and self.proven_bytes.get(task, 0.0) >= PROOF * room.most_bytes:
            return False
        if not room.given:
            return room.claim is None or room.claim == function
        lesson = self.lessons.get(function)
        must_be_alone = lesson is not None and lesson.is_alone
        is_taken = room.claim is not None and room.claim != function
        if is_taken or must_be_alone or (self.lessons and self._is_with_one_alone(room)):
            has_room = False
        else:
            is_small = need_bytes < SMALL * room.kill_bytes and room.reading.process < room.budget_bytes
            has_room = (
                is_small or not room.kill_bytes or room.used_bytes(results_bytes, need_bytes) <= room.budget_bytes
            )
        return has_room or self._refuse(function, room, now_s)

    def _is_with_one_alone(self, room: Room) -> bool:
        """Whether something runs there that must be alone."""
        lessons = self.lessons
        return any((lesson := lessons.get(given.function)) and lesson.is_alone for given in room.given.values())

    def _refuse(self, function: Function, room: Room, now_s: float) -> bool:
        since_s, _ = self._refused_s.get(function, (now_s, now_s))
        self._refused_s[function] = since_s, now_s
        if room.claim is None and function not in self._claims and now_s - since_s > PATIENCE_S:
            room.claim = function
            self._claims[function] = room
        return False

    def given(
        self, task: Task, worker: Worker, function: Function, need_bytes: float, is_known: bool, now_s: float
    ) -> None:
        """A worker was sent a task, by these rules or by Dask's."""
        room = self.rooms.get(worker)
        if room is None:
            return
        room.given[task] = _Given(function, need_bytes, is_known, now_s)
        self._on[task] = room
        self._is_served(function)

    def _is_served(self, function: Function) -> None:
        if not self._refused_s and not self._claims:
            return
        self._refused_s.pop(function, None)
        claimed = self._claims.pop(function, None)
        if claimed is not None:
            claimed.claim = None

    def withdraw(self, now_s: float) -> None:
        """Give up what is claimed for functions of which no task has asked for room lately."""
        for function in [each for each, (_, last_s) in self._refused_s.items() if now_s - last_s > STALE_S]:
            self._is_served(function)

    @property
    def refused(self) -> Collection[Function]:
        """Functions of which a task found no room."""
        return self._refused_s.keys()

    @property
    def is_wary(self) -> bool:
        """Whether workers have died, or tasks found no room."""
        return bool(self.lessons or self._refused_s or self.proven_bytes)

    def ended(self, task: Task, *, is_done: bool) -> None:
        """The worker that was given a task has it no more: it has a result, or it failed or was taken away."""
        room = self._on.pop(task, None)
        if room is None:
            return
        given = room.given.pop(task)
        if given.at_s <= room.reading.at_s:
            room.ended_bytes += given.nbytes
        if is_done:
            self.proven_bytes.pop(task, None)
            if (lesson := self.lessons.get(given.function)) is not None:
                lesson.is_alone = False

    def died(
        self,
        worker: Worker,
        lost: Collection[Task],
        running: Collection[Task],
        *,
        results_bytes: float,
        by_memory: bool,
    ) -> Verdict:
        """A worker has died that was not meant to.

        Parameters
        ----------
        lost
            What it had been given.
        running
            Those of them that probably ran.
        results_bytes
            That it had in memory. Where they took most of it, tasks are not to blame for what they took.
        by_memory
            Whether it is certain that it died of its memory; else that may be so.
        """
        room = self.rooms[worker]
        ran = {task: room.given[task] for task in running if task in room.given}
        if not ran:
            return Verdict(frozenset(), self._excused(lost), None)
        if by_memory and results_bytes > RESULTS * room.most_bytes:
            beside = self._excused(task for task in lost if len(ran) > 1 or task not in ran)
            return Verdict(frozenset(), beside, None)
        unknown = {task: given for task, given in ran.items() if not given.is_known} or ran
        explained = sum(given.nbytes for task, given in ran.items() if task not in unknown)
        share = max(room.kill_bytes - room.reading.idle - explained, 0.0) / len(unknown)
        for function in {given.function for given in unknown.values()}:
            lesson = self.lessons.setdefault(function, Lesson())
            lesson.is_alone = True
            lesson.deaths += 1
            if by_memory:
                lesson.at_least_bytes = max(lesson.at_least_bytes, share)
        proven = next(iter(ran)) if len(ran) == 1 else None
        if proven is not None and by_memory:
            had_bytes = room.kill_bytes - room.reading.idle - results_bytes
            self.proven_bytes[proven] = max(self.proven_bytes.get(proven, 0.0), had_bytes)
        excused = self._excused(task for task in lost if task is not proven)
        return Verdict(frozenset(given.function for given in unknown.values()), excused, proven if by_memory else None)

    def _excused(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        excused = []
        for task in tasks:
            self._excuses[task] = self._excuses.get(task, 0) + 1
            if self._excuses[task] <= MOST_EXCUSES:
                excused.append(task)
        return tuple(excused)

    def most_bytes(self) -> float | None:
        """What the largest worker has for a task when nothing else is there; None: as much as it takes."""
        if not self.rooms or any(room.kill_bytes == 0.0 for room in self.rooms.values()):
            return None
        return max(room.most_bytes for room in self.rooms.values())

    def too_large(self) -> list[Task]:
        """Tasks that no worker can ever run: each had about as much to itself as the largest has, and died of it."""
        most_bytes = self.most_bytes()
        if most_bytes is None:
            return []
        return [task for task, nbytes in self.proven_bytes.items() if nbytes >= PROOF * most_bytes]

    def forget(self, task: Task) -> None:
        """The task is over, in whatever way."""
        if self._excuses or self.proven_bytes:
            self.proven_bytes.pop(task, None)
            self._excuses.pop(task, None)
