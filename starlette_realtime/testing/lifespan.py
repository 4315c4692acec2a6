"""The lifespan of an application, for the length of a block (ASGI's lifespan messages, version 2.0)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from starlette_realtime.testing.clock import FakeClock, standstill
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Lifespan", "running"]


class Lifespan:
    """
    One application's start and stop, and the application itself between them, with the state that its start left.

    `timeout` is in seconds of real time, for each of the two. With a `clock` that is moved from timer to timer, as long
    as the application waits for it.
    """

    def __init__(self, app: ASGIApp, *, clock: FakeClock | None = None, timeout: float = 5.0) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        """What the application's lifespan left for its requests."""
        self._clock = clock
        self._timeout = timeout
        self._messages: asyncio.Queue[Message] = asyncio.Queue(2)
        self._started = asyncio.Event()
        self._failure = ""
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket, each with a copy of the state."""
        await self.app({**scope, "state": {**self.state, **scope.get("state", {})}}, receive, send)

    async def start(self) -> None:
        """Start; raises what the application raised, or `RuntimeError` with what it said went wrong."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._messages.put_nowait({"type": "lifespan.startup"})
        waiting = asyncio.ensure_future(self._started.wait())
        try:
            await self._patiently(_first(waiting, self._task), "start")
        finally:
            waiting.cancel()
        if not self._started.is_set():
            await self._result()

    async def stop(self) -> None:
        """Stop, after `start`; raises as that does."""
        assert self._task is not None
        self.leave()
        await self._patiently(_first(self._task), "stop")
        await self._result()

    def leave(self) -> None:
        """Ask for the stop, without waiting for it."""
        if self._messages.empty():
            self._messages.put_nowait({"type": "lifespan.shutdown"})

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self.app(scope, self._messages.get, self._send)

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._started.set()
        elif kind.endswith(".failed"):
            self._failure = message.get("message", "") or kind

    async def _patiently(self, waiting: Awaitable[None], what: str) -> None:
        try:
            if self._clock is not None:
                await self._clock.run(waiting, timeout=self._timeout)
            else:
                await asyncio.wait_for(waiting, self._timeout)
        except TimeoutError as error:
            said = f"the application did not {what} within {self._timeout} s{standstill()}"
            assert self._task is not None
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=self._timeout)
            raise TimeoutError(said) from error

    async def _result(self) -> None:
        assert self._task is not None
        await self._task
        if self._failure:
            raise RuntimeError(f"the application's lifespan failed: {self._failure}")
        if not self._started.is_set():
            raise RuntimeError("the application's lifespan ended without a word")


@asynccontextmanager
async def running(app: ASGIApp, *, clock: FakeClock | None = None, timeout: float = 5.0) -> AsyncIterator[ASGIApp]:
    """
    Run the application's lifespan around a block: `async with running(app) as app:`.

    What it gives is the same application, with the state that its lifespan yielded. Peers and requests may as well ask
    the original, where there is no such state.

    `timeout` bounds the start and the stop, each in seconds of real time. An application that waits for a `FakeClock`
    while it stops needs that `clock`: it is then moved. Raises what the application raised.
    """
    lifespan = Lifespan(app, clock=clock, timeout=timeout)
    await lifespan.start()
    try:
        yield lifespan
    finally:
        await lifespan.stop()


async def _first(*tasks: "asyncio.Future[Any]") -> None:
    """Wait until one of them is done, whatever came of it; cancelling this cancels none of them."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
