"""Frames: one WebSocket whose frames are counted, and an end that its application hears of."""

import asyncio
import logging
from contextlib import suppress
from typing import Any, Literal, cast

from starlette_realtime.asgi import close_reason
from starlette_realtime.clock import Clock
from starlette_realtime.ratelimit.gate import Gate
from starlette_realtime.ratelimit.limit import Subject
from starlette_realtime.ratelimit.rate import TokenBucket
from starlette_realtime.types import Message, Receive, Send

__all__ = ["LimitedSocket"]

logger = logging.getLogger("starlette_realtime.ratelimit")

CLOSING = 10.0
"""How long a peer may take to read that it is being closed, in seconds."""


class LimitedSocket:
    """
    The `receive` and `send` of one WebSocket, with its frames counted by `gate`.

    Over the limit the WebSocket is closed with 4429; with `over="wait"` a frame is handed on when its time has come,
    and nothing is read meanwhile. Who is over it for `max_wait` seconds on end is closed all the same: while frames of
    theirs wait to be read, nobody notices that they have gone. After `end` the application receives
    `websocket.disconnect`, and its sends raise `OSError`. `replaceable`: `end` may come from outside, while the
    application waits.
    """

    def __init__(
        self,
        gate: Gate,
        subject: Subject,
        receive: Receive,
        send: Send,
        *,
        clock: Clock,
        over: Literal["close", "wait"],
        max_wait: float,
        replaceable: bool,
    ) -> None:
        self._gate = gate
        self._subject = subject
        self._receive = receive
        self._send = send
        self._clock = clock
        self._over = over
        self._max_wait = max_wait
        self._waited = 0.0  # seconds on end
        self._rested = False  # for the frame that is held
        self._buckets: dict[object, TokenBucket] = {}
        self._held: Message | None = None  # read, and not handed on yet: a cancelled receive loses nothing
        self._ended: Message | None = None
        self._outside = asyncio.get_running_loop().create_future() if replaceable else None
        self._reading: asyncio.Future[Message] | None = None
        self._sending: set[asyncio.Timeout] = set()

    async def receive(self) -> Message:
        """The application's `receive`."""
        while self._ended is None:
            if self._held is None:
                message = await self._read()
                if message is None or message["type"] != "websocket.receive":
                    return message or self._disconnect()
                self._held = message
            message = self._held
            retry_after = await self._count(message)
            if self._has_ended():  # from outside, while the store was asked
                return self._disconnect()
            if retry_after == 0.0:
                if not self._rested:
                    self._waited = 0.0
                self._held, self._rested = None, False
                return message
            if self._over == "wait" and retry_after is not None and self._waited < self._max_wait:
                wait = min(retry_after, self._max_wait - self._waited)
                self._waited, self._rested = self._waited + wait, True
                await self._rest(wait)
                continue
            code = "too_expensive" if retry_after is None else "rate_limited"
            logger.info("a WebSocket went over its limit of frames and is closed: %s", code)
            await self.end(4429, close_reason(code, retry_after))
        return self._disconnect()

    async def send(self, message: Message) -> None:
        """The application's `send`. Raises `OSError` after the end."""
        if self._ended is not None:
            raise OSError(f"the connection was closed with {self._ended['code']}")
        if self._outside is None:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(None) as scope:
                self._sending.add(scope)
                await self._send(message)
        except TimeoutError:
            raise OSError("the connection was closed, and the peer doesn't read") from None
        finally:
            self._sending.discard(scope)

    async def end(self, code: int, reason: str) -> None:
        """Close the WebSocket, and tell the application that it is gone."""
        if self._ended is not None:
            return
        self._ended = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._held = None
        if self._outside is not None and not self._outside.done():
            self._outside.set_result(None)
        try:
            async with self._clock.timeout(CLOSING):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as exc:
            logger.debug("the peer had gone before it could be closed, or doesn't read: %r", exc)
        for scope in self._sending:
            scope.reschedule(0.0)

    def leave(self) -> None:
        """The application has returned: nothing is read any more."""
        if self._reading is not None:
            self._reading.cancel()

    def _has_ended(self) -> bool:
        return self._ended is not None

    def _disconnect(self) -> Message:
        assert self._ended is not None
        return self._ended

    async def _read(self) -> Message | None:
        """The next message; None where the end came from outside."""
        if self._outside is None:
            return await self._receive()
        if self._reading is None:
            self._reading = asyncio.ensure_future(cast(Any, self._receive()))
        await asyncio.wait((self._reading, self._outside), return_when=asyncio.FIRST_COMPLETED)
        if self._ended is not None:
            return None
        message, self._reading = self._reading.result(), None
        return message

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until the end comes from outside."""
        if self._outside is None:
            await self._clock.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await asyncio.shield(self._outside)

    async def _count(self, message: Message) -> float | None:
        """0.0 where the frame may pass; else in how many seconds it may, None for never."""
        text = message.get("text")
        frame = text if text is not None else message.get("bytes")
        gate = self._gate
        if gate.local:
            return gate.take_now(self._buckets, frame).retry_after
        return (await gate.take(self._subject, self._buckets, frame)).retry_after
