"""Waiting: for a condition, with a deadline, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, within: float = 5.0, what: str = "") -> None:
    """
    Let the event loop run until `condition()` is true.

    Raises `AssertionError`, naming `what` was awaited, when it isn't after `within` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        if loop.time() >= deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        await asyncio.sleep(0.005)
