"""The clock of tests moves by the second, to a condition, or along with what waits for it."""

import asyncio
import threading

import pytest

from starlette_realtime.testing import FakeClock, settle


async def test_it_moves_until_a_condition_is_true_and_no_further() -> None:
    clock, beats = FakeClock(), list[float]()

    async def beat() -> None:
        while True:
            await clock.sleep(0.5)
            beats.append(clock.now())

    beating = asyncio.ensure_future(beat())
    await clock.until(lambda: len(beats) == 3)
    assert clock.now() == 1_001.5
    await clock.until(lambda: beats)
    assert clock.now() == 1_001.5
    with pytest.raises(TimeoutError, match=r"within 2\.25 s of the clock"):
        await clock.until(lambda: False, within=2.25)
    assert clock.now() == 1_003.75
    beating.cancel()


async def test_a_condition_on_the_time_itself_needs_no_timer() -> None:
    clock = FakeClock()
    await clock.until(lambda: clock.now() >= 1_010.0, within=10.0)
    assert clock.now() == 1_010.0


async def test_it_moves_along_with_what_waits_for_it() -> None:
    clock = FakeClock()

    async def work() -> str:
        await clock.sleep(1.0)
        await clock.sleep(1.0)
        return "done"

    clock.call_later(5.0, lambda: None)
    assert await clock.run(work()) == "done"
    assert clock.now() == 1_002.0

    async def fail() -> None:
        await clock.sleep(1.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await clock.run(fail())


async def test_what_takes_too_long_is_cancelled() -> None:
    clock = FakeClock()
    sleeping = asyncio.ensure_future(clock.sleep(100.0))
    with pytest.raises(TimeoutError, match=r"10\.0 s of the clock"):
        await clock.run(sleeping, within=10.0, timeout=0.01)
    assert sleeping.cancelled()
    assert clock.timers == 0


async def test_a_thread_is_waited_for_when_no_timer_is_left() -> None:
    clock, gate = FakeClock(), threading.Event()
    asyncio.get_running_loop().call_later(0.01, gate.set)
    assert await clock.run(asyncio.to_thread(gate.wait, 5.0))


async def test_the_next_timer_is_told() -> None:
    clock = FakeClock()
    assert not clock.next_timer
    first, _ = clock.call_later(1.0, lambda: None), clock.call_later(3.0, lambda: None)
    dues = [clock.next_timer]
    first.cancel()
    dues.append(clock.next_timer)
    await clock.advance(3.0)
    dues.append(clock.next_timer)
    assert dues == [1.0, 3.0, None]
    assert clock.timers == 0


async def test_settling_goes_on_until_nothing_is_ready() -> None:
    rounds = 0

    async def busy() -> None:
        nonlocal rounds
        for _ in range(200):
            await asyncio.sleep(0)
            rounds += 1

    task = asyncio.ensure_future(busy())
    await settle(10)
    assert rounds < 20
    await settle()
    assert task.done()
