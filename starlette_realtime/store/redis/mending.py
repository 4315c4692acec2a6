"""Mending: bring what the server has of named things in line with what this process wants, until it is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError

__all__ = ["Mending"]

logger = logging.getLogger("starlette_realtime.store")

AT_ONCE = 16
"""How many things are mended at the same time."""


class Mending:
    """
    A set of names, for each of which `mend` is called until it doesn't raise `StoreError`.

    A name that is added while it is being mended is mended once more. `retry`: seconds to wait after a failure.
    """

    def __init__(self, mend: Callable[[str], Awaitable[None]], *, clock: Clock, retry: float) -> None:
        self._mend = mend
        self._clock = clock
        self._retry = retry
        self._names: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._names)

    def soon(self, names: Iterable[str]) -> None:
        """Mend these, unless the last attempt has just failed: then a little later."""
        self._names.update(dict.fromkeys(names))
        if self._timer is None:
            self._begin()

    async def end(self) -> None:
        """Forget them all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        self._names.clear()

    def _begin(self) -> None:
        self._timer = None
        if self._names and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        failed: list[str] = []
        try:
            while self._names and not failed:
                some = list(islice(self._names, AT_ONCE))
                for name in some:
                    del self._names[name]
                results = await asyncio.gather(*(self._mend(name) for name in some), return_exceptions=True)
                for name, result in zip(some, results, strict=True):
                    if isinstance(result, StoreError):
                        failed.append(name)
                    elif isinstance(result, Exception):
                        logger.error("what the store has could not be mended", exc_info=result)
        finally:
            self._task = None
        self._names.update(dict.fromkeys(failed))
        if failed:
            self._timer = self._clock.call_later(self._retry, self._begin)
        else:
            self._begin()
