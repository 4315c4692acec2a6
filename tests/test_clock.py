"""The clock and its fake: timers in order, one handle of the event loop for all, nothing left behind."""

import asyncio
import time

import pytest

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.testing import FakeClock, settle


async def test_timers_fire_in_order_at_their_own_time() -> None:
    clock = FakeClock()
    start, heard = clock.now(), list[tuple[str, float]]()
    for name, delay in (("c", 3.0), ("a", 0.25), ("b", 1.0)):
        clock.call_later(delay, lambda name=name: heard.append((name, clock.now() - start)))
    await clock.advance(1.0)
    assert heard == [("a", 0.25), ("b", 1.0)]
    await clock.advance(10.0)
    assert heard == [("a", 0.25), ("b", 1.0), ("c", 3.0)]
    assert clock.now() == start + 11.0
    assert clock.timers == 0


async def test_both_times_move_together() -> None:
    clock = FakeClock(now=5.0, time=1_000.0)
    await clock.advance(0.125)
    assert (clock.now(), clock.time()) == (5.125, 1_000.125)
    with pytest.raises(ValueError, match="backwards"):
        await clock.advance(-1.0)


async def test_a_timer_set_by_a_timer_fires_within_the_same_advance() -> None:
    clock = FakeClock()
    beats: list[float] = []

    def beat() -> None:
        beats.append(clock.now())
        clock.call_later(0.5, beat)

    start = clock.now()
    timer = clock.call_later(0.5, beat)
    await clock.advance(2.0)
    assert beats == [start + 0.5, start + 1.0, start + 1.5, start + 2.0]
    assert not timer.active
    assert clock.timers == 1


async def test_tasks_run_between_two_timers() -> None:
    clock = FakeClock()
    heard: list[str] = []

    async def sleeper() -> None:
        await clock.sleep(1.0)
        heard.append("first")
        await clock.sleep(1.0)
        heard.append("second")

    task = asyncio.ensure_future(sleeper())
    await clock.advance(3.0)
    assert heard == ["first", "second"]
    await task
    assert clock.timers == 0


async def test_a_cancelled_timer_does_not_fire_and_leaves_nothing() -> None:
    clock = FakeClock()
    heard: list[int] = []
    timers = [clock.call_later(1.0, heard.append, number) for number in range(1_000)]
    for timer in timers[1:]:
        timer.cancel()
        timer.cancel()
    assert clock.timers == 1
    assert len(clock._heap) <= 2  # swept, not kept until they are due
    await clock.advance(1.0)
    timers[0].cancel()
    assert heard == [0]
    assert clock.timers == 0
    assert clock._heap == []


async def test_a_timer_may_cancel_another_that_is_due_with_it() -> None:
    clock = FakeClock()
    heard: list[str] = []
    later: list[Timer] = []

    def first() -> None:
        heard.append("first")
        later[0].cancel()

    clock.call_later(1.0, first)
    later.append(clock.call_later(1.0, heard.append, "second"))
    clock.call_later(1.0, heard.append, "third")
    await clock.advance(1.0)
    assert heard == ["first", "third"]
    assert clock.timers == 0


async def test_a_failing_callback_harms_no_other() -> None:
    clock = FakeClock()
    heard: list[str] = []
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    try:
        clock.call_later(1.0, lambda: 1 / 0)
        clock.call_later(1.0, heard.append, "heard")
        await clock.advance(1.0)
    finally:
        loop.set_exception_handler(before)
    assert heard == ["heard"]
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


async def test_a_timeout_cancels_the_block() -> None:
    clock = FakeClock()

    async def wait(delay: float | None) -> str:
        async with clock.timeout(delay):
            await clock.sleep(0.2)
        return "done"

    slow, quick, patient = (asyncio.ensure_future(wait(delay)) for delay in (0.1, 0.3, None))
    await clock.advance(0.5)
    with pytest.raises(TimeoutError):
        await slow
    assert await quick == "done"
    assert await patient == "done"
    assert clock.timers == 0


async def test_settle_is_bounded() -> None:
    spins = 0

    async def spin() -> None:
        nonlocal spins
        while True:
            spins += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(spin())
    await settle(20)
    assert 0 < spins <= 25
    task.cancel()
    await settle()
    assert task.cancelled()


async def test_the_event_loop_holds_one_handle_for_all_timers() -> None:
    clock, loop = Clock(), asyncio.get_running_loop()
    before = len([handle for handle in loop._scheduled if not handle.cancelled()])  # type: ignore[attr-defined]
    timers = [clock.call_later(60.0 - number / 100, lambda: None) for number in range(500)]
    after = len([handle for handle in loop._scheduled if not handle.cancelled()])  # type: ignore[attr-defined]
    assert after == before + 1
    assert clock.timers == 500
    for timer in timers:
        timer.cancel()
    assert clock.timers == 0
    left = len([handle for handle in loop._scheduled if not handle.cancelled()])  # type: ignore[attr-defined]
    assert left == before


async def test_the_real_clock_keeps_sub_second_times_in_order() -> None:
    clock, heard, done = Clock(), list[str](), asyncio.Event()
    started = time.monotonic()
    clock.call_later(0.06, done.set)
    clock.call_later(0.04, heard.append, "later")
    clock.call_later(0.02, heard.append, "sooner")
    async with asyncio.timeout(10):
        await done.wait()
    assert heard == ["sooner", "later"]
    assert time.monotonic() - started >= 0.06
    assert abs(clock.time() - time.time()) < 5


async def test_the_real_timeout_raises() -> None:
    clock = Clock()
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.01):
            await asyncio.Event().wait()
    assert clock.timers == 0


def test_a_clock_serves_one_event_loop_at_a_time() -> None:
    clock = Clock()

    async def arm() -> None:
        clock.call_later(60.0, lambda: None)

    asyncio.run(arm())
    asyncio.run(arm())  # the first loop is closed: its timers are gone with it
    assert clock.timers == 1

    async def meddle() -> None:
        other = asyncio.new_event_loop()
        try:
            clock.call_later(60.0, lambda: None)
            with pytest.raises(ConfigurationError, match="one event loop"):
                await asyncio.to_thread(other.run_until_complete, arm())
        finally:
            other.close()

    asyncio.run(meddle())
