"""The first step of a coroutine, taken at once in the name of a task that sleeps; the task does the rest.

To wake a task takes a turn of the event loop. Who is in a callback of the loop, and has something for a task that
sleeps, need not wait for that. asyncio names `_enter_task` and `_leave_task` for those who step tasks themselves
(https://docs.python.org/3/library/asyncio-extending.html).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


class FirstStep:
    """A coroutine that has begun; unless it `is_over`, the task has to await this.

    Parameters
    ----------
    task
        It sleeps, and no task runs: what is called is called by the loop.
    context
        The task's.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None], task: asyncio.Task[Any], context: Context) -> None:
        self._coroutine = coroutine
        self._pause: Any = None
        self._error: BaseException | None = None
        self._cancelled: asyncio.CancelledError | None = None
        self.is_over = False
        loop = task.get_loop()
        asyncio.tasks._enter_task(loop, task)
        try:
            self._pause = context.run(coroutine.send, None)
        except StopIteration:
            self.is_over = True
        except BaseException as error:  # noqa: BLE001 - it is the task's
            self._error = error
        finally:
            asyncio.tasks._leave_task(loop, task)

    def cancel(self, error: asyncio.CancelledError) -> None:
        """The task was cancelled before it could await this."""
        self._cancelled = error

    def __await__(self) -> Generator[Any, Any, None]:
        if self._error is not None:
            raise self._error
        pause, thrown = self._pause, self._thrown()
        while True:
            if thrown is None:
                try:
                    yield pause
                except BaseException as error:  # noqa: BLE001 - cancellation, on its way to the coroutine
                    thrown = error
            try:
                pause = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
            except StopIteration:
                return
            thrown = None

    def _thrown(self) -> BaseException | None:
        """As `asyncio.Task.cancel`: what is waited for is cancelled; if it can't be, the coroutine is told."""
        if self._cancelled is None or (self._pause is not None and self._pause.cancel(*self._cancelled.args)):
            return None
        return self._cancelled
