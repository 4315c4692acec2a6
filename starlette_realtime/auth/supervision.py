"""Supervision: a WebSocket that ends when its credentials do, whatever application it belongs to."""

import asyncio
import logging

from starlette_realtime.auth.revocation import Revocations
from starlette_realtime.clock import Clock
from starlette_realtime.messages import Identity
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["supervise"]

logger = logging.getLogger("starlette_realtime.auth")

CLOSING = 10.0
"""How long a peer may take to read that its credentials have ended, in seconds."""


async def supervise(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    identity: Identity,
    since: float,
    revocations: Revocations,
    clock: Clock,
) -> None:
    """
    Serve a WebSocket until `identity` expires or is revoked: then it is closed, and the application is told.

    The application hears a `websocket.disconnect`, at once and as often as it asks; what it sends raises `OSError`.
    `since` is when the credentials were checked, in Unix seconds.
    """
    supervision = _Supervision(receive, send, clock)

    def check() -> None:
        if revocations.revoked(identity, since):
            supervision.end(4450, "revoked")

    timer = None
    if identity.expires_at is not None:
        timer = clock.call_later(identity.expires_at - clock.time(), supervision.end, 4401, "expired")
    unwatch = revocations.watch(identity, check)
    try:
        check()  # it may have come between the credentials' check and this
        await app(scope, supervision.receive, supervision.send)
    finally:
        unwatch()
        if timer is not None:
            timer.cancel()
        await supervision.ended()


class _Supervision:
    """One WebSocket's two directions, and their end."""

    def __init__(self, receive: Receive, send: Send, clock: Clock) -> None:
        self._receive = receive
        self._send = send
        self._clock = clock
        self._end: tuple[int, str] | None = None
        self._receiving: set[asyncio.Timeout] = set()
        self._sending: set[asyncio.Timeout] = set()
        self._closing: asyncio.Task[None] | None = None

    def end(self, code: int, reason: str) -> None:
        """Close with `code`, once; who waits for the peer waits no longer."""
        if self._end is not None:
            return
        self._end = (code, reason)
        for waiting in self._receiving:
            waiting.reschedule(0.0)
        self._closing = asyncio.get_running_loop().create_task(self._close(code, reason))

    async def ended(self) -> None:
        """Wait until the close has been sent, if there is one."""
        if self._closing is not None:
            await asyncio.wait((self._closing,))

    async def receive(self) -> Message:
        """The next message; once it has ended, a disconnect."""
        if self._end is None:
            try:
                async with asyncio.timeout(None) as waiting:
                    self._receiving.add(waiting)
                    try:
                        return await self._receive()
                    finally:
                        self._receiving.discard(waiting)
            except TimeoutError:
                if self._end is None:  # the server's own
                    raise
        code, reason = self._end
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        """Send; raises `OSError` once it has ended."""
        if self._end is not None:
            raise OSError(f"the connection was closed, as its credentials are {self._end[1]}")
        try:
            async with asyncio.timeout(None) as waiting:
                self._sending.add(waiting)
                try:
                    await self._send(message)
                finally:
                    self._sending.discard(waiting)
        except TimeoutError:
            if self._end is None:
                raise
            raise OSError(f"the credentials are {self._end[1]}, and the peer doesn't read") from None

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with self._clock.timeout(CLOSING):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as exc:
            logger.debug("the peer had gone before its credentials ended, or doesn't read: %r", exc)
        for waiting in self._sending:
            waiting.reschedule(0.0)
