"""Gate: at most so many at the store at once; when it is away, nobody waits in line for that."""

import asyncio
from collections import deque
from types import TracebackType

from starlette_realtime.errors import StoreError

__all__ = ["Gate"]


class Gate:
    """
    An async context manager that lets `width` in at a time, in order.

    When one of them leaves with a `StoreError`, whoever waits gets one too, instead of finding out one by one, each
    for the store's whole time limit.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._line: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._next()
            elif turn in self._line:
                self._line.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, StoreError):
            line, self._line = self._line, deque()
            for turn in line:
                if not turn.done():
                    refusal = StoreError(f"the store is away: {error}")
                    refusal.__cause__ = error
                    turn.set_exception(refusal)
        self._next()

    def _next(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
