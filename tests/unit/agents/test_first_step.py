"""What is begun in the name of a task that sleeps goes on in that task, as if it had begun there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from swarm.agents.life.first_step import FirstStep

SEEN: ContextVar[str] = ContextVar("SEEN", default="nothing")


class Sleeper:
    """A task that sleeps until something was begun for it, and does the rest."""

    def __init__(self) -> None:
        self.context = copy_context()
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.step: FirstStep | None = None
        self.task = asyncio.create_task(self._live(), context=self.context)

    async def _live(self) -> str:
        try:
            await self.woken
        except asyncio.CancelledError as error:
            assert self.step is not None
            self.step.cancel(error)
        assert self.step is not None
        await self.step
        return SEEN.get()

    async def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> FirstStep:
        """Begin it from a callback of the loop."""
        await asyncio.sleep(0)  # the sleeper falls asleep
        begun: asyncio.Future[FirstStep] = asyncio.get_running_loop().create_future()

        def now() -> None:
            self.step = FirstStep(work(), self.task, self.context)
            if not self.step.is_over:
                self.woken.set_result(None)
            begun.set_result(self.step)

        asyncio.get_running_loop().call_soon(now)
        return await begun


async def test_it_is_in_the_task_and_its_context_from_first_to_last() -> None:
    sleeper, tasks, go_on = Sleeper(), [], asyncio.Event()

    async def work() -> None:
        tasks.append(asyncio.current_task())
        SEEN.set("the first step")
        await go_on.wait()
        tasks.append(asyncio.current_task())

    step = await sleeper.begin(work)
    assert not step.is_over
    assert SEEN.get() == "nothing"
    go_on.set()
    assert await sleeper.task == "the first step"
    assert tasks == [sleeper.task] * 2


async def test_what_never_pauses_is_over_at_once_and_its_task_sleeps_on() -> None:
    sleeper, done = Sleeper(), []

    async def work() -> None:
        done.append(asyncio.current_task())

    assert (await sleeper.begin(work)).is_over
    assert done == [sleeper.task]
    await asyncio.sleep(0)
    assert not sleeper.task.done()
    sleeper.task.cancel()
    await asyncio.wait({sleeper.task})


async def test_what_it_raises_is_raised_in_the_task() -> None:
    sleeper = Sleeper()

    async def work() -> None:
        raise OSError("at the first step")

    assert not (await sleeper.begin(work)).is_over
    with pytest.raises(OSError, match="at the first step"):
        await sleeper.task


@pytest.mark.parametrize("seconds", [0.0, 0.01])
async def test_a_deadline_that_begins_in_the_first_step_holds(seconds: float) -> None:
    sleeper, late = Sleeper(), []

    async def work() -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            late.append(True)

    await sleeper.begin(work)
    await sleeper.task
    assert late == [True]
    assert not sleeper.task.cancelling()


@pytest.mark.parametrize("turns", [0, 3])
async def test_to_cancel_the_task_cancels_what_it_waits_for(turns: int) -> None:
    sleeper = Sleeper()
    inner = asyncio.create_task(asyncio.Event().wait())

    async def work() -> None:
        await inner

    await sleeper.begin(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    sleeper.task.cancel()
    await asyncio.wait({sleeper.task, inner}, timeout=5.0)
    assert sleeper.task.cancelled()
    assert inner.cancelled()


async def test_a_bare_pause_can_be_cancelled() -> None:
    sleeper, told = Sleeper(), []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            told.append(True)
            raise

    await sleeper.begin(work)
    sleeper.task.cancel()
    await asyncio.wait({sleeper.task}, timeout=5.0)
    assert sleeper.task.cancelled()
    assert told == [True]
