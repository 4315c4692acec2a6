"""Lanes: the commands of one connection, in order per lane, with barriers across all of them, bounded."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Work = Callable[[], Awaitable[None]]


class Lanes:
    """
    Runs work in order within a lane, lanes side by side, and a barrier alone, after all that came before it.

    At most `size` pieces of work are held, running ones included; `free()` waits for room. Work must not raise:
    what it raises goes to the event loop's exception handler.
    """

    __slots__ = ("_barrier", "_change", "_held", "_lanes", "_tasks", "closed", "held", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self.closed = False
        self._lanes: dict[str | None, deque[Work]] = {}
        self._held: deque[tuple[str | None, Work, bool]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._barrier = False
        self._change: asyncio.Event | None = None

    @property
    def full(self) -> bool:
        """Whether work should wait for `free`."""
        return self.held >= self.size

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that run now."""
        return self._tasks

    def put(self, lane: str | None, work: Work) -> None:
        """Run `work` after what its lane holds, and after every barrier that came before."""
        if self.closed:
            return
        self.held += 1
        if self._barrier or self._held:
            self._held.append((lane, work, False))
        else:
            self._start(lane, work)

    def barrier(self, work: Work) -> None:
        """Run `work` when everything before it has ended; what comes later waits for it."""
        if self.closed:
            return
        self.held += 1
        self._held.append((None, work, True))
        self._advance()

    async def changed(self) -> None:
        """Wait until `poke`, or until a piece of work has ended."""
        if self._change is None:
            self._change = asyncio.Event()
        await self._change.wait()

    def poke(self) -> None:
        """Wake whoever waits in `changed`."""
        if self._change is not None:
            self._change.set()
            self._change = None

    def close(self) -> None:
        """Forget what has not begun, and take nothing more; what runs goes on."""
        self.closed = True
        self._held.clear()
        for waiting in self._lanes.values():
            waiting.clear()
        self.poke()

    async def ended(self) -> None:
        """Wait until nothing runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cancel what runs."""
        for task in self._tasks:
            task.cancel()

    def _start(self, lane: str | None, work: Work) -> None:
        waiting = self._lanes.get(lane)
        if waiting is not None:
            waiting.append(work)
            return
        self._lanes[lane] = deque((work,))
        self._spawn(self._drain(lane))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a command's work failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    async def _drain(self, lane: str | None) -> None:
        waiting = self._lanes[lane]
        try:
            while waiting:
                await self._run(waiting.popleft())
        finally:
            del self._lanes[lane]
            if waiting and not self.closed:
                # the work before was cancelled or failed: what follows it is still owed
                self._lanes[lane] = waiting
                self._spawn(self._drain(lane))
            else:
                self._advance()

    async def _run(self, work: Work) -> None:
        try:
            await work()
        finally:
            self.held -= 1
            self.poke()

    async def _alone(self, work: Work) -> None:
        try:
            await self._run(work)
        finally:
            self._barrier = False
            self._advance()

    def _advance(self) -> None:
        while self._held and not self._barrier and not self.closed:
            lane, work, is_barrier = self._held[0]
            if is_barrier:
                if self._lanes:
                    return
                self._barrier = True
                self._held.popleft()
                self._spawn(self._alone(work))
            else:
                self._held.popleft()
                self._start(lane, work)
