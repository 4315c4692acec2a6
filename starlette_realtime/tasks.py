"""Tasks: work in the background that somebody waits for or gives up, and whose failure is seen."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Tasks"]

T = TypeVar("T")


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
