"""Signals that ask a foreground command to stop, turned into an orderly way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKS_TO_STOP = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP; nothing of this package runs there, but it can be imported."""


class StopRequested(BaseException):
    """A signal asked to stop. Not an `Exception`, so that no handler of errors takes it for one."""


class Stop:
    """Which signal asked to stop, or None."""

    signal: signal.Signals | None = None


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Leave the block in good order on SIGINT, SIGTERM or SIGHUP; the main thread only.

    The first signal raises `StopRequested` in the block, so that its context managers close; a second one raises
    again, which makes `LocalProcesses.close` kill instead of wait; from then on signals are ignored, because
    nothing is faster than that. The exception ends here, the handlers of before come back, and `Stop.signal`
    tells what happened. A signal that is ignored already (nohup) stays ignored.

    Raises
    ------
    ValueError
        Outside the main thread (`signal.signal`).
    """
    stop = Stop()
    seen = 0

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        nonlocal seen
        seen += 1
        if seen <= 2:
            stop.signal = signal.Signals(number)
            raise StopRequested

    before = {number: signal.getsignal(number) for number in ASKS_TO_STOP}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in mine:
            signal.signal(number, on_signal)
        yield stop
    except StopRequested:
        pass
    finally:
        seen = 2
        for number in mine:
            signal.signal(number, before[number])
