"""Waiting for something to change, for so many seconds of real time and no longer."""

import asyncio
import math
from collections.abc import Callable

from starlette_realtime.testing.clock import standstill

__all__ = ["Changes"]


class Changes:
    """
    What wakes those who wait for a condition.

    `timeout` is in seconds of real time, whatever clock the application is given. `instead` tells what came in place
    of what was awaited: "" where there is nothing to tell.
    """

    def __init__(self, timeout: float, instead: Callable[[], str] = str) -> None:
        self.timeout = timeout
        self.instead = instead
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def change(self) -> None:
        """Wait for the next change, however long it takes."""
        await self._changed.wait()

    async def until(self, condition: Callable[[], object], what: str, timeout: float | None = None) -> None:
        """
        Wait until `condition()` is true; raises `TimeoutError` that says `what` did not happen.

        `timeout` of `math.inf` waits for ever.
        """
        if condition():
            return
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if limit == math.inf else limit):
                while not condition():
                    await self.change()
        except TimeoutError:
            instead = self.instead()
            came = f"; what came instead: {instead}" if instead else ""
            raise TimeoutError(f"{what} within {limit} s{came}{standstill()}") from None
