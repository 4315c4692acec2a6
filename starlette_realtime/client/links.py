"""Links: one WebSocket as the client uses it, and how the `websockets` library opens one."""

from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

from starlette_realtime.errors import ConfigurationError, ConnectionClosed

__all__ = ["Link", "Opener", "refused", "socket_url", "websockets_opener"]

SUBPROTOCOL: Final = "starlette-realtime.v1.json"

MAX_SIZE: Final = 4 * 1024 * 1024
"""Bytes of one frame: a resume brings up to 1 MiB of events, and their envelopes."""

STATUSES: Final = {401: (4401, "unauthenticated"), 403: (4403, "forbidden"), 404: (4403, "not_found")}
"""What a refused handshake's status says as a close code."""


class Link(Protocol):
    """
    One open WebSocket with the subprotocol `starlette-realtime.v1.json`.

    All three may be called at the same time, each by one task. Whoever has an ASGI application, a tunnel or a recording
    instead of a network gives `connect` an `opener` that returns one of these.
    """

    async def send(self, text: str) -> None:
        """Write one text frame; returns when it may be followed by another. Raises `ConnectionClosed`."""
        ...

    async def recv(self) -> str:
        """The next text frame. Raises `ConnectionClosed` with the code and the reason of the end."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, politely if that is quick; it must not raise."""
        ...


class Opener(Protocol):
    """Opens links."""

    async def __call__(self, url: str) -> Link:
        """
        Open one to `url` (`ws://…/ws`). Raises `ConnectionClosed` with what a refusal means as a close code (`refused`
        translates an HTTP status), `OSError`, or what else went wrong: then it is tried again.
        """
        ...


def socket_url(url: str) -> str:
    """The address of the WebSocket where the kit is mounted. Raises `ConfigurationError`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ConfigurationError(f"{url!r}: connect() takes an address like 'https://example.com/realtime'")
    return urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/ws", parts.query, ""))


def refused(status: int, retry_after: str | None = None) -> ConnectionClosed:
    """What a handshake that was answered with this HTTP status means (`Retry-After` in seconds; RFC 9110)."""
    if status in (429, 503):
        code, name = (4429, "rate_limited") if status == 429 else (1013, "unavailable")
        seconds = retry_after or ""
        return ConnectionClosed(code, f"{name};{seconds}" if seconds.isdecimal() else name)
    code, name = STATUSES.get(status, (1006, f"http_{status}"))
    return ConnectionClosed(code, name)


class _WebSocket:
    """A `Link` over a connection of the `websockets` library."""

    def __init__(self, socket: Any, broken: type[Exception]) -> None:
        self._socket = socket
        self._broken = broken

    async def send(self, text: str) -> None:
        try:
            await self._socket.send(text)
        except self._broken as exc:
            raise _closed(exc) from exc

    async def recv(self) -> str:
        try:
            text: str = await self._socket.recv(decode=True)
        except self._broken as exc:
            raise _closed(exc) from exc
        return text

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._socket.close(code, reason)


def _closed(exc: Any) -> ConnectionClosed:
    """The server's close where it said one; else ours, where its frames were at fault; else a broken link."""
    if exc.rcvd is not None:
        return ConnectionClosed(int(exc.rcvd.code), exc.rcvd.reason)
    if exc.sent is not None and exc.sent.code in (1002, 1007, 1009):
        return ConnectionClosed(int(exc.sent.code), "max_size" if exc.sent.code == 1009 else "")
    return ConnectionClosed(1006, "")


def websockets_opener(
    *, headers: Mapping[str, str] | None, origin: str | None, max_size: int, options: Mapping[str, Any]
) -> Opener:
    """Open links with the `websockets` library. Raises `ConfigurationError` where that is missing."""
    try:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed as Broken
        from websockets.exceptions import InvalidStatus
        from websockets.typing import Origin, Subprotocol
    except ImportError as exc:
        raise ConfigurationError(
            "the client needs the websockets library: pip install 'starlette-realtime[client]'"
        ) from exc

    settings: dict[str, Any] = {"compression": None, "open_timeout": None, "close_timeout": 5.0, **options}

    async def opener(url: str) -> Link:
        try:
            socket = await connect(
                url,
                origin=None if origin is None else Origin(origin),
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                additional_headers=headers,
                max_size=max_size,
                **settings,
            )
        except InvalidStatus as exc:
            raise refused(exc.response.status_code, exc.response.headers.get("Retry-After")) from exc
        return _WebSocket(socket, Broken)

    return opener
