"""Tasks: work in the background that somebody answers for, and whose failure is seen, a cancellation included."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

__all__ = ["Tasks", "finish"]

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """
    Await what the application wrote, and tell its result.

    Raises what it raises, but `RuntimeError` where it awaited something that somebody else had cancelled: that
    `CancelledError` is its failure, and not the end of the task that runs it.
    """
    try:
        return await work
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("what it waited for was cancelled by somebody else") from exc


class Tasks:
    """
    What runs on behalf of one object, which bounds how much that is.

    `failed` is what `logger` says of a task that ends with an error, other than those `expected`.
    """

    def __init__(self, failed: str, *, logger: logging.Logger, expected: tuple[type[Exception], ...] = ()) -> None:
        self._failed = failed
        self._logger = logger
        self._expected = expected
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run it until it ends, or `cancel`, whatever becomes of who asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def ended(self) -> None:
        """Wait until nothing runs, nor what is started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Give up whatever runs."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, self._expected):
            self._logger.error("%s", self._failed, exc_info=error)
