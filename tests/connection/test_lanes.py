"""Lanes: in order within one, side by side across them, barriers alone, and bounded."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.connection import Lanes
from starlette_realtime.testing import settle


class Work:
    """Pieces of work that go on when told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def __call__(self, name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            self.begun.append(name)
            await self.gates.setdefault(name, asyncio.Event()).wait()
            self.ended.append(name)

        return work

    async def finish(self, *names: str) -> None:
        for name in names:
            self.gates.setdefault(name, asyncio.Event()).set()
        await settle()


@pytest.fixture
def work() -> Work:
    return Work()


async def test_a_lane_is_in_order_and_lanes_are_side_by_side(work: Work) -> None:
    lanes = Lanes(8)
    for lane, name in (("x", "x1"), ("x", "x2"), ("y", "y1"), (None, "n1"), ("y", "y2")):
        lanes.put(lane, work(name))
    await settle()
    assert work.begun == ["x1", "y1", "n1"]
    await work.finish("y1", "x2")
    assert work.begun == ["x1", "y1", "n1", "y2"]
    await work.finish("x1", "y2", "n1")
    assert sorted(work.ended) == ["n1", "x1", "x2", "y1", "y2"]
    assert (lanes.held, lanes.tasks) == (0, set())


async def test_a_barrier_runs_alone(work: Work) -> None:
    lanes = Lanes(8)
    lanes.put("x", work("before"))
    lanes.barrier(work("first"))
    lanes.barrier(work("second"))
    lanes.put("x", work("after"))
    lanes.put("y", work("beside"))
    await settle()
    assert work.begun == ["before"]
    await work.finish("before")
    assert work.begun == ["before", "first"]
    await work.finish("first")
    assert work.begun == ["before", "first", "second"]
    await work.finish("second")
    assert work.begun == ["before", "first", "second", "after", "beside"]
    await work.finish("after", "beside")
    assert lanes.held == 0


async def test_what_is_full_has_room_when_work_ends(work: Work) -> None:
    lanes = Lanes(2)
    lanes.put("x", work("a"))
    assert (lanes.held, lanes.full) == (1, False)
    lanes.put("x", work("b"))
    assert (lanes.held, lanes.full) == (2, True)
    waiting = asyncio.ensure_future(lanes.changed())
    await settle()
    assert not waiting.done()
    await work.finish("a")
    assert waiting.done()
    assert (lanes.held, lanes.full) == (1, False)
    await work.finish("b")


async def test_a_poke_wakes_whoever_waits(work: Work) -> None:
    lanes = Lanes(1)
    waiting = [asyncio.ensure_future(lanes.changed()) for _ in range(2)]
    await settle()
    lanes.poke()
    await asyncio.gather(*waiting)


async def test_after_closing_nothing_begins_and_what_runs_ends(work: Work) -> None:
    lanes = Lanes(8)
    lanes.put("x", work("runs"))
    lanes.put("x", work("waits"))
    lanes.barrier(work("barrier"))
    lanes.put("y", work("held"))
    await settle()
    lanes.close()
    lanes.put("z", work("late"))
    lanes.barrier(work("late"))
    ended = asyncio.ensure_future(lanes.ended())
    await settle()
    assert not ended.done()
    await work.finish("runs")
    assert ended.done()
    assert (work.begun, work.ended) == (["runs"], ["runs"])


async def test_cancelled_work_is_gone_and_its_lane_goes_on(work: Work) -> None:
    lanes = Lanes(8)
    lanes.put("x", work("a"))
    lanes.put("x", work("b"))
    await settle()
    lanes.cancel()
    await settle()
    assert work.begun == ["a", "b"]
    await work.finish("b")
    assert work.ended == ["b"]
    assert lanes.held == 0


@pytest.mark.parametrize("barrier", [False, True])
async def test_work_that_fails_is_told_to_the_event_loop_and_the_rest_goes_on(work: Work, barrier: bool) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def broken() -> None:
        raise ZeroDivisionError

    lanes = Lanes(8)
    if barrier:
        lanes.barrier(broken)
    else:
        lanes.put("x", broken)
    lanes.put("x", work("next"))
    await settle()
    assert work.begun == ["next"]
    assert isinstance(told[0]["exception"], ZeroDivisionError)
    await work.finish("next")
    assert lanes.held == 0
    asyncio.get_running_loop().set_exception_handler(None)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None, "barrier"]), st.integers(0, 4)), max_size=20))
def test_any_schedule_keeps_order_barriers_and_count(schedule: list[tuple[str | None, int]]) -> None:
    async def run() -> None:
        lanes = Lanes(100)
        running: set[int] = set()
        done: list[int] = []

        def piece(number: int, spins: int) -> Callable[[], Awaitable[None]]:
            async def work() -> None:
                lane = schedule[number][0]
                for other in running:
                    assert "barrier" not in (lane, schedule[other][0])
                    assert schedule[other][0] != lane
                for other in range(number):
                    if schedule[other][0] == lane or "barrier" in (lane, schedule[other][0]):
                        assert other in done, "overtaken"
                running.add(number)
                for _ in range(spins):
                    await asyncio.sleep(0)
                running.discard(number)
                done.append(number)

            return work

        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        for number, (lane, spins) in enumerate(schedule):
            if lane == "barrier":
                lanes.barrier(piece(number, spins))
            else:
                lanes.put(lane, piece(number, spins))
            if spins == 4:
                await asyncio.sleep(0)
        await settle()
        assert not failures, failures
        assert sorted(done) == list(range(len(schedule)))
        assert lanes.held == 0

    asyncio.run(run())
