"""The gate: so many at once, in order, and nobody waits in line for a store that is away."""

import asyncio

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.store.gate import Gate
from starlette_realtime.testing import settle


class Visits:
    """Those who go through a gate, each until it is told to leave."""

    def __init__(self, width: int, count: int) -> None:
        self.gate = Gate(width)
        self.inside: list[int] = []
        self.leave = [asyncio.get_running_loop().create_future() for _ in range(count)]
        self.tasks = [asyncio.ensure_future(self._visit(number)) for number in range(count)]

    async def _visit(self, number: int) -> None:
        async with self.gate:
            self.inside.append(number)
            try:
                await self.leave[number]
            finally:
                self.inside.remove(number)


async def test_so_many_are_in_at_once_and_the_others_follow_in_order() -> None:
    visits = Visits(2, 5)
    await settle()
    assert visits.inside == [0, 1]
    visits.leave[1].set_result(None)
    await settle()
    assert visits.inside == [0, 2]
    for future in visits.leave:
        if not future.done():
            future.set_result(None)
    await asyncio.gather(*visits.tasks)
    async with visits.gate, visits.gate:
        pass


async def test_when_one_finds_the_store_away_those_in_line_hear_of_it() -> None:
    visits = Visits(2, 5)
    await settle()
    visits.leave[0].set_exception(StoreError("no answer"))
    await settle()
    assert visits.inside == [1]
    for task in visits.tasks[2:]:
        with pytest.raises(StoreError, match="no answer"):
            await task
    with pytest.raises(StoreError):
        await visits.tasks[0]
    visits.leave[1].set_result(None)
    await visits.tasks[1]
    again = Visits(1, 1)
    await settle()
    assert again.inside == [0]
    again.leave[0].set_result(None)
    await again.tasks[0]


async def test_another_failure_is_nobody_elses() -> None:
    visits = Visits(1, 2)
    await settle()
    visits.leave[0].set_exception(ValueError("a bug"))
    await settle()
    assert visits.inside == [1]
    with pytest.raises(ValueError, match="a bug"):
        await visits.tasks[0]
    visits.leave[1].set_result(None)
    await visits.tasks[1]


@pytest.mark.parametrize("in_turn", [False, True])
async def test_who_gives_up_in_line_takes_nobodys_place(in_turn: bool) -> None:
    visits = Visits(1, 3)
    await settle()
    if in_turn:  # it has got its turn and does not know yet
        visits.leave[0].set_result(None)
        await asyncio.sleep(0)
    visits.tasks[1].cancel()
    await settle()
    if not in_turn:
        visits.leave[0].set_result(None)
        await settle()
    assert visits.tasks[1].cancelled()
    assert visits.inside == [2]
    visits.leave[2].set_result(None)
    await visits.tasks[2]
    async with visits.gate:
        pass
