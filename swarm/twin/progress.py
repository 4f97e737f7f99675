"""How far a simulation is, for whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a simulation."""

    done: int
    """Tasks that have a result, or had one."""
    tasks: int
    virtual_s: float
    """Since the submission."""


@contextmanager
def telling(tell: Callable[[Progress], object] | None, look: Callable[[], Progress | None]) -> Iterator[None]:
    """Hand what `look` sees to `tell`, four times a second, from a thread of its own.

    By the real clock, so that silent virtual weeks show that they go on, and the simulation itself is not touched.
    """
    if tell is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            if (seen := look()) is not None:
                tell(seen)

    thread = threading.Thread(target=watch, name="twin-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def span(seconds: float) -> str:
    """A time in the unit that suits it, as `dask.utils.parse_timedelta` reads it.

    >>> span(90.0), span(9000.0), span(1e7), span(1e18)
    ('90 s', '2.5 h', '115.74 days', '1.1574e+13 days')
    """
    if seconds < 3600.0:
        return f"{seconds:.4g} s"
    if seconds < 172_800.0:
        return f"{seconds / 3600.0:.4g} h"
    return f"{seconds / 86_400.0:.5g} days"
