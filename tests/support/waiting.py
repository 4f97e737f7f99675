"""Wait for a condition with a deadline, in coroutines; `tests.support.processes.wait_until` is the blocking twin."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from tests.support.processes import wait_until

__all__ = ["eventually", "wait_until"]

T = TypeVar("T")


async def eventually(condition: Callable[[], T] | Callable[[], Awaitable[T]], what: str, timeout_s: float = 10.0) -> T:
    """The first true value of the condition, which may be a coroutine function; fails the test after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return cast("T", value)
        assert time.monotonic() < deadline_s, f"after {timeout_s:g} s still not so: {what}"
        await asyncio.sleep(0.01)
