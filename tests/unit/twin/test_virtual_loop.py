"""The virtual clock: order and time of events, what asyncio and tornado see of it, and that all is as before after."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Iterator

import distributed.metrics
import distributed.scheduler
import pytest
from tornado.ioloop import IOLoop, PeriodicCallback

from swarm import twin
from swarm.errors import TwinError
from swarm.twin.clock import EPOCH_S, EmptyTimelineError, VirtualLoop, running_loop, virtual_time


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with running_loop() as it:
        yield it


def test_a_thousand_seconds_take_no_time(loop: VirtualLoop) -> None:
    async def main() -> float:
        await asyncio.sleep(1000.0)
        return loop.elapsed_s()

    began_s = time.perf_counter()
    assert loop.run_until_complete(main()) == 1000.0
    assert time.perf_counter() - began_s < 10.0


def test_time_stands_still_while_callbacks_run(loop: VirtualLoop) -> None:
    async def main() -> set[float]:
        return {loop.time() for _ in range(1000)} | {await asyncio.sleep(0, loop.time()) for _ in range(10)}

    assert loop.run_until_complete(main()) == {EPOCH_S}


def test_events_of_equal_time_run_in_the_order_in_which_they_were_made(loop: VirtualLoop) -> None:
    seen: list[int] = []
    for number in range(100):
        if number % 2:
            loop.call_at(EPOCH_S + 1.0, seen.append, number)
        else:
            loop.schedule(EPOCH_S + 1.0, seen.append, number)
    loop.run_until_complete(asyncio.sleep(2.0))
    assert seen == list(range(100))


def test_earlier_events_come_first_and_none_goes_back_in_time(loop: VirtualLoop) -> None:
    seen: list[float] = []
    for delay in (3.0, 1.0, 2.0, -5.0):
        loop.call_later(delay, lambda: seen.append(loop.elapsed_s()))
    loop.run_until_complete(asyncio.sleep(4.0))
    assert seen == [0.0, 1.0, 2.0, 3.0]


def test_a_timer_that_is_cancelled_does_not_fire_and_does_not_move_the_clock(loop: VirtualLoop) -> None:
    timer = loop.call_later(50.0, pytest.fail, "a cancelled timer fired")
    timer.cancel()
    loop.run_until_complete(asyncio.sleep(1.0))
    loop.call_later(0.0, lambda: None)
    assert loop.elapsed_s() == 1.0


def test_a_timeout_fires_at_its_virtual_time(loop: VirtualLoop) -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 30.0)
        return loop.elapsed_s()

    assert loop.run_until_complete(main()) == 30.0


def test_an_executor_runs_inline_and_its_errors_reach_who_awaits(loop: VirtualLoop) -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, max, 3, 4)

    assert loop.run_until_complete(main()) == 4


def test_what_is_called_from_a_thread_runs_soon(loop: VirtualLoop) -> None:
    async def main() -> float:
        done = loop.create_future()
        loop.call_soon_threadsafe(done.set_result, 1)
        await done
        return loop.elapsed_s()

    assert loop.run_until_complete(main()) == 0.0


def test_a_periodic_callback_of_tornado_keeps_virtual_time(loop: VirtualLoop) -> None:
    seen: list[float] = []

    async def main() -> None:
        callback = PeriodicCallback(lambda: seen.append(loop.elapsed_s()), 500)
        callback.start()
        await asyncio.sleep(2.1)
        callback.stop()
        await asyncio.sleep(5.0)

    loop.run_until_complete(main())
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_when_nothing_is_left_to_happen_it_says_so(loop: VirtualLoop) -> None:
    with pytest.raises(EmptyTimelineError):
        loop.run_until_complete(loop.create_future())


def test_what_a_scheduled_call_raises_ends_the_loop(loop: VirtualLoop) -> None:
    loop.schedule(EPOCH_S + 1.0, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(asyncio.sleep(2.0))


# -- clocks of modules -------------------------------------------------------------------------------------------


def test_distributed_reads_the_virtual_clock_and_its_own_one_afterwards() -> None:
    before = (distributed.scheduler.time, distributed.metrics.time, distributed.metrics.monotonic)
    with running_loop() as loop, virtual_time(loop, lambda: 7.0):
        loop.run_until_complete(asyncio.sleep(12.0))
        assert distributed.scheduler.time() == EPOCH_S + 12.0
        assert distributed.metrics.time() == distributed.metrics.monotonic() == EPOCH_S + 12.0
    assert (distributed.scheduler.time, distributed.metrics.time, distributed.metrics.monotonic) == before
    assert distributed.scheduler.time() == pytest.approx(time.time(), abs=60.0)


def test_clocks_are_as_before_also_after_an_error() -> None:
    before = distributed.scheduler.time
    with pytest.raises(ZeroDivisionError), running_loop() as loop, virtual_time(loop, lambda: 7.0):
        raise ZeroDivisionError
    assert distributed.scheduler.time is before


def test_a_preload_reads_the_virtual_clock_and_may_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    users = types.ModuleType("users_preload.rules")
    users.__dict__.update(time=time, clock=time.monotonic, cpu=time.process_time, tau=6.28)
    monkeypatch.setitem(__import__("sys").modules, "users_preload.rules", users)
    with running_loop() as loop, virtual_time(loop, lambda: 7.0, ("users_preload",)):
        names = vars(users)
        assert names["time"].time() == names["clock"]() == EPOCH_S
        assert names["time"].process_time() == names["cpu"]() == 7.0
        assert names["time"].strftime is time.strftime
        with pytest.raises(RuntimeError, match=r"time\.sleep would block the simulated scheduler"):
            names["time"].sleep(1.0)
    assert names["time"] is time
    assert names["clock"] is time.monotonic


def test_modules_that_are_imported_meanwhile_can_be_patched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    late = types.ModuleType("distributed.late")
    late.__dict__.update(now=time.time)
    with running_loop() as loop, virtual_time(loop, lambda: 0.0) as patch:
        monkeypatch.setitem(__import__("sys").modules, "distributed.late", late)
        patch()
        assert vars(late)["now"]() == EPOCH_S
    assert vars(late)["now"] is time.time


# -- one loop at a time ------------------------------------------------------------------------------------------


def test_the_loop_is_closed_and_forgotten() -> None:
    with running_loop() as loop:
        assert IOLoop.current().asyncio_loop is loop  # type: ignore[attr-defined]
    assert loop.is_closed()
    assert loop not in IOLoop._ioloop_for_asyncio


async def test_a_simulation_inside_a_running_loop_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(TwinError, match=r"can't run inside a running event loop.*simulate_isolated"):
        twin.simulate(twin.independent(1), twin.uniform(1))
