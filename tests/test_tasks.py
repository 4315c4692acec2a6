"""Tasks: kept until they end, waited for, given up, and never failing unseen."""

import asyncio
import logging

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.tasks import Tasks

logger = logging.getLogger("starlette_realtime.tests")


@pytest.fixture
def tasks() -> Tasks:
    return Tasks("the work failed", logger=logger, expected=(StoreError,))


async def fail(error: Exception) -> None:
    raise error


async def test_a_task_counts_until_it_ends_and_its_result_is_there(tasks: Tasks) -> None:
    async def answer() -> int:
        return 42

    task = tasks.start(answer())
    assert len(tasks) == 1
    assert await task == 42
    await tasks.ended()
    assert len(tasks) == 0


async def test_waiting_for_the_end_includes_what_a_task_starts(tasks: Tasks) -> None:
    done: list[int] = []

    async def count(number: int) -> None:
        await asyncio.sleep(0)
        if number:
            tasks.start(count(number - 1))
        done.append(number)

    tasks.start(count(3))
    await tasks.ended()
    assert sorted(done) == [0, 1, 2, 3]


async def test_what_runs_can_be_given_up(tasks: Tasks) -> None:
    waiting = [tasks.start(asyncio.Event().wait()) for _ in range(3)]
    tasks.cancel()
    await tasks.ended()
    assert all(task.cancelled() for task in waiting)


async def test_a_failure_is_logged_unless_it_is_expected(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    tasks.start(fail(StoreError("away")))
    tasks.start(fail(ValueError("wrong")))
    await tasks.ended()
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert record.getMessage() == "the work failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "wrong"
