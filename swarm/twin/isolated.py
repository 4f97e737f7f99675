"""Simulations in processes of their own, each with a given hash seed: the same trace everywhere, and in parallel."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, Any

from distributed.protocol import pickle as dask_pickle

from swarm.errors import TwinError
from swarm.twin.outcome import Outcome
from swarm.twin.progress import Progress

LENGTH = struct.Struct(">Q")
Tell = Callable[[int, Progress], object]
"""Is told, in a thread of its own, how far the job of this number is."""
WATCH_S = 0.5
"""So often a child looks whether its parent is there."""


@dataclass(frozen=True)
class Job:
    """A call of `simulate`, and the hash seed under which it runs."""

    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    hash_seed: int = 0
    """`PYTHONHASHSEED`: Dask's decisions depend on the order of sets of strings."""


def simulate_isolated(
    *arguments: Any, hash_seed: int = 0, on_progress: Callable[[Progress], object] | None = None, **options: Any
) -> Outcome:
    """`simulate` in a process of its own: the same arguments give the same trace, here and anywhere."""
    tell: Tell | None = None if on_progress is None else lambda _, seen: on_progress(seen)
    (answer,) = simulate_all([Job(arguments, options, hash_seed)], processes=1, on_progress=tell)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def simulate_all(
    jobs: Iterable[Job], processes: int | None = None, on_progress: Tell | None = None
) -> Generator[Outcome | TwinError]:
    """Run simulations in parallel; yields what each gave, in the order of the jobs.

    Parameters
    ----------
    jobs
        What to run. Functions and classes in them travel as Dask sends them.
    processes
        How many run at a time, by default as many as there are CPUs.
    on_progress
        Called with the number of a job and how far it is, a few times a second while it runs.

    What goes wrong with a simulation or its process is yielded, not raised.
    """
    waiting: SimpleQueue[tuple[int, Job]] = SimpleQueue()
    answers: dict[int, SimpleQueue[Outcome | TwinError]] = {}
    for number, job in enumerate(jobs):
        waiting.put((number, job))
        answers[number] = SimpleQueue()
    over = threading.Event()
    count = min(processes or os.cpu_count() or 1, len(answers))
    children: list[subprocess.Popen[bytes]] = []
    shared = (waiting, answers, over, children, on_progress)
    threads = [threading.Thread(target=_work_off, args=shared, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for queue in answers.values():
            yield queue.get()
    finally:
        over.set()
        for child in children:  # whoever stops early does not wait for a long simulation
            child.kill()
        for thread in threads:
            thread.join()


def _work_off(
    waiting: SimpleQueue[tuple[int, Job]],
    answers: Mapping[int, SimpleQueue[Outcome | TwinError]],
    over: threading.Event,
    children: list[subprocess.Popen[bytes]],
    on_progress: Tell | None,
) -> None:
    """Take jobs one after another, with a child process that is kept while the hash seed stays the same."""
    child: subprocess.Popen[bytes] | None = None
    child_seed = None
    try:
        while not over.is_set():
            try:
                number, job = waiting.get_nowait()
            except Empty:
                return
            if child is None or child_seed != job.hash_seed:
                _close(child)
                child, child_seed = _start(job.hash_seed), job.hash_seed
                children.append(child)
                if over.is_set():
                    return
            try:
                answers[number].put(_ask(child, job, on_progress and partial(on_progress, number)))
            except (OSError, EOFError) as error:
                _close(child)
                code, child = child.returncode, None
                answers[number].put(TwinError(f"the process of a simulation ended with code {code} ({error})"))
            except Exception as error:  # noqa: BLE001 — whoever waits for the answer must not wait for ever
                _close(child)
                child = None
                answers[number].put(TwinError(f"the simulation can't be sent: {type(error).__name__}: {error}"))
    finally:
        _close(child)


def _start(hash_seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 — ourselves
        [sys.executable, "-m", "swarm.twin.isolated", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        process_group=0,  # Ctrl-C reaches the parent alone, which ends its children
    )


def _close(child: subprocess.Popen[bytes] | None) -> None:
    if child is not None:
        with child:
            if child.stdin is not None:
                child.stdin.close()
            child.kill()


def _ask(
    child: subprocess.Popen[bytes], job: Job, on_progress: Callable[[Progress], object] | None
) -> Outcome | TwinError:
    assert child.stdin is not None
    assert child.stdout is not None
    _write(child.stdin, dask_pickle.dumps((job.arguments, dict(job.options), on_progress is not None)))
    while isinstance(answer := pickle.loads(_read(child.stdout)), Progress):  # noqa: S301 — from our own child
        if on_progress is not None:
            on_progress(answer)
    assert isinstance(answer, Outcome | TwinError)
    return answer


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise EOFError("no answer")
    (length,) = LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("half an answer")
    return data


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended, also amid a simulation."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _serve() -> None:
    """What the child process does: a simulation per request, until its input ends."""
    warnings.filterwarnings("ignore", "Sending large graph")  # Dask's advice to who wrote it; here nothing is sent
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints must not get into the answers
    from swarm.twin.simulation import simulate

    def tell(answer: object) -> None:
        try:
            _write(answers, dask_pickle.dumps(answer))
        except BrokenPipeError:  # the parent ended while we worked
            os._exit(1)

    while True:
        try:
            arguments, options, tells = pickle.loads(_read(requests))  # noqa: S301 — from our own parent
        except EOFError:
            return
        answer: Outcome | TwinError
        try:
            answer = simulate(*arguments, **{"on_progress": tell if tells else None} | options)
        except TwinError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 — a defect of the twin or of a policy, told by name
            answer = TwinError(f"{type(error).__name__}: {error}")
        tell(answer)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    _serve()
