"""FirstFrame: a WebSocket that authenticates by its first frame, before its application knows of it."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Raw

from starlette_realtime.asgi import close_reason, deny, outcome
from starlette_realtime.auth.refusals import error_frame, why
from starlette_realtime.clock import Clock
from starlette_realtime.errors import CLOSE_CODES, ConfigurationError, Refused, Unavailable
from starlette_realtime.messages import Identity, Reply
from starlette_realtime.protocols.door import BadJSON, check
from starlette_realtime.protocols.native import NativeProtocol
from starlette_realtime.tokens import MAX_TOKEN
from starlette_realtime.types import Message, Receive, Scope, Send

__all__ = ["MAX_FRAME", "FirstFrame", "Opened"]

logger = logging.getLogger("starlette_realtime.auth")

MAX_FRAME: Final = 2 * MAX_TOKEN
"""The largest first frame, in bytes of UTF-8: a token, and what a client of the native protocol says besides."""

SAYING: Final = 10.0
"""How long a peer may take to read what it is told, in seconds."""

_STATUS: Final = {401: 4401, 429: 4429, 503: 1013}


class _Auth(msgspec.Struct, frozen=True):
    """The first frame; other fields are left to the native protocol."""

    type: Literal["auth"]
    token: str | None = None
    id: int | None = None


_decoder: Final = msgspec.json.Decoder(_Auth)


class Opened(NamedTuple):
    """A WebSocket that has authenticated, as its application is to see it."""

    identity: Identity
    since: float
    """When it did, in Unix seconds."""
    receive: Receive
    send: Send


class FirstFrame:
    """
    Accepts WebSockets, reads one frame of each, `{"type": "auth", "token": …, "id"?: n}`, and asks `authenticate`.

    A peer has `timeout` seconds for it, and a bad one is closed (4404, 4400). At most `most` are under way at once.
    A frame without a token is answered by `fallback`, which may let the peer in as nobody. Of `subprotocols`, the
    first that the peer offers is chosen, since the application comes too late for that.
    """

    def __init__(
        self,
        authenticate: Callable[[str, Scope], Awaitable[Identity]],
        fallback: Callable[[], Identity],
        *,
        clock: Clock,
        timeout: float,
        subprotocols: Sequence[str],
        most: int,
    ) -> None:
        if not (timeout > 0 and most > 0) or isinstance(subprotocols, str):
            raise ConfigurationError("auth_timeout is in seconds, max_waiting a number, subprotocols a list of names")
        self.waiting = 0
        """How many are under way."""
        self._authenticate = authenticate
        self._fallback = fallback
        self._clock = clock
        self._timeout = timeout
        self._subprotocols = tuple(subprotocols)
        self._most = most

    async def open(self, scope: Scope, receive: Receive, send: Send) -> Opened | None:
        """Authenticate one; None where that failed, and the peer was told."""
        if self.waiting >= self._most:
            logger.info("over %d WebSockets are authenticating: more are turned away", self._most)
            await deny(scope, receive, send, status=503, code=1013, retry_after=1.0)
            return None
        self.waiting += 1
        try:
            return await self._open(scope, receive, send)
        finally:
            self.waiting -= 1

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> Opened | None:
        if (await receive())["type"] != "websocket.connect":
            return None
        offered = scope.get("subprotocols") or ()
        chosen = next((name for name in self._subprotocols if name in offered), None)
        if not await self._say(send, {"type": "websocket.accept", "subprotocol": chosen}):
            return None
        try:
            async with self._clock.timeout(self._timeout):
                message = await receive()
        except TimeoutError:
            await self._close(send, 4404)
            return None
        if message["type"] == "websocket.disconnect":
            return None
        try:
            frame = _read(message)
        except BadJSON as exc:
            await self._close(send, 4400, "bad_frame", str(exc))
            return None
        since = self._clock.time()
        try:
            async with self._clock.timeout(self._timeout):
                identity = self._fallback() if frame.token is None else await self._authenticate(frame.token, scope)
        except TimeoutError:
            logger.warning("credentials took over %.1f s to check", self._timeout)
            await self._refuse(send, Unavailable())
            return None
        except Refused as exc:
            logger.info("a first frame was refused: %s", why(exc))
            await self._refuse(send, exc)
            return None
        if frame.id is not None and not await self._say(send, _welcome(frame.id, identity, self._clock.time())):
            return None
        scope["subprotocols"] = [] if chosen is None else [chosen]
        behind = _Behind(receive, send)
        return Opened(identity, since, behind.receive, behind.send)

    async def _refuse(self, send: Send, refusal: Refused) -> None:
        await self._close(send, outcome(refusal)[1], refusal.code, refusal.message, refusal.retry_after)

    async def _close(
        self, send: Send, code: int, error: str = "", message: str | None = None, retry_after: float | None = None
    ) -> None:
        row = CLOSE_CODES[code]
        text = error_frame(error or row.name, message or row.meaning, retry_after)
        reason = close_reason(error or row.name, retry_after)
        await self._say(
            send,
            {"type": "websocket.send", "text": text},
            {"type": "websocket.close", "code": code, "reason": reason},
        )

    async def _say(self, send: Send, *messages: Message) -> bool:
        """Whether the peer was there to be told."""
        try:
            async with self._clock.timeout(SAYING):
                for message in messages:
                    await send(message)
        except OSError as exc:  # a TimeoutError is one
            logger.debug("a peer went while it authenticated: %r", exc)
            return False
        return True


class _Behind:
    """An accepted WebSocket for an application that has yet to accept it."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._connected = self._accepted = self._refused = False

    async def receive(self) -> Message:
        """The handshake, that the peer has behind it, then what comes."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """
        Send, but for the accept; a refusal of the handshake becomes a close.

        Before an accept, ASGI's close has no code of its own: 1000 says that the handshake is refused.
        """
        kind = message["type"]
        if self._accepted:
            await self._send(message)
        elif kind == "websocket.accept":
            self._accepted = True
        elif kind == "websocket.close":
            code = message.get("code") or 1000
            await self._turn_away(4403 if code == 1000 else code, message.get("reason") or "")
        elif kind == "websocket.http.response.start":
            await self._turn_away(_STATUS.get(message["status"], 4403), "")
        elif not (self._refused and kind == "websocket.http.response.body"):
            raise RuntimeError(f"{kind} came before websocket.accept")

    async def _turn_away(self, code: int, reason: str) -> None:
        self._refused = True
        row = CLOSE_CODES.get(code)
        await self._send({"type": "websocket.close", "code": code, "reason": reason or (row.name if row else "")})


def _read(message: Message) -> _Auth:
    """The `auth` frame; raises `BadJSON`."""
    text = message.get("text")
    if text is None:
        raise BadJSON("send text frames, not binary ones")
    if len(text) > MAX_FRAME or len(text.encode(errors="replace")) > MAX_FRAME:
        raise BadJSON(f"the first frame has at most {MAX_FRAME} bytes")
    check(text)
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        raise BadJSON('the first frame is {"type": "auth", "token": "…"}') from None


def _welcome(id: int, identity: Identity, now: float) -> Message:
    left = None if identity.expires_at is None else max(0.0, identity.expires_at - now)
    data = Raw(msgspec.json.encode({"user": identity.user, "expires_in": left}))
    (text,) = NativeProtocol.encode(Reply(id, data))
    return {"type": "websocket.send", "text": text}
