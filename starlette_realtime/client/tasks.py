"""Tasks: what runs on behalf of one client, and the order in which its listeners are told."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

__all__ = ["Handler", "Tasks", "Told", "call", "report"]

NOTICES: Final = 1_024
"""Notices that wait for their handlers."""

T = TypeVar("T")
Handler: TypeAlias = Callable[[T], object]
"""A function, or a coroutine function, of one argument."""


def report(error: Exception) -> None:
    """An error of a handler: it must be seen, and must harm nobody else."""
    context = {"message": "a handler of the realtime client failed", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)


async def call(handler: Handler[Any], value: object) -> Any:
    """Call a handler, whichever kind it is."""
    result = handler(value)
    return await result if isinstance(result, Awaitable) else result


class Tasks:
    """The tasks of one client: none outlives it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.running = False
        """Whether the client has started, and not ended."""
        self.answering = 0
        """How many questions of the server are being answered."""

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run until it ends, or `cancel`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "the realtime client failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    async def cancel(self) -> None:
        """Cancel all but the current one, and wait for their end."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Told:
    """Notices for plain listeners, told in order by one task: a slow handler delays those behind it, nothing else."""

    def __init__(self, tasks: Tasks, overflow: Callable[[], None]) -> None:
        self._tasks = tasks
        self._overflow = overflow
        self._waiting: deque[Callable[[], Awaitable[object]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> "set[asyncio.Task[Any]]":
        """The one that tells, while there is something to tell."""
        return set() if self._task is None else {self._task}

    def tell(self, handlers: Sequence[Handler[Any]], value: object) -> None:
        """Call `handlers` with `value`, later."""
        for handler in handlers:
            self.later(partial(call, handler, value))

    def later(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Do this after what is told before; whether it will be done."""
        if len(self._waiting) >= NOTICES:
            self._overflow()
            return False
        self._waiting.append(work)
        if self._task is None:
            self._task = self._tasks.start(self._run())
        return True

    async def _run(self) -> None:
        try:
            while self._waiting:
                work = self._waiting.popleft()
                try:
                    await work()
                except Exception as exc:
                    report(exc)
        finally:
            self._task = None
            self._waiting.clear()
