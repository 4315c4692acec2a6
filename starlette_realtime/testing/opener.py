"""What lets `starlette_realtime.client` talk to an application in the same process, over links that fail on demand."""

import math
from contextlib import suppress
from typing import Final, Unpack
from urllib.parse import urlsplit

from starlette_realtime.asgi import close_reason
from starlette_realtime.errors import CLOSE_CODES, ConnectionClosed
from starlette_realtime.testing.peers import Closed, Peer, PeerOptions, Rejected
from starlette_realtime.types import ASGIApp

__all__ = ["AppOpener", "PeerLink"]

SUBPROTOCOL: Final = "starlette-realtime.v1.json"

STATUSES: Final = {401: 4401, 403: 4403, 404: 4403, 429: 4429, 503: 1013}
"""What a refused handshake's status means as a close code; any other is 1006, to be tried again."""


class AppOpener:
    """
    Opens the Python client's links into an application: `connect("http://testserver/realtime", opener=AppOpener(app))`.

    The options are those of `Peer`: give a `link` to break, and give the client the same clock as the application.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[PeerOptions]) -> None:
        self.app = app
        """Where the next link leads: assign another process to move the client there."""
        self.options = options
        self.peers: list[Peer] = []
        """The connections that are open."""

    async def __call__(self, url: str) -> "PeerLink":
        """Open one, by the path of `url`. Raises `ConnectionClosed` where it is refused, and `OSError`."""
        parts = urlsplit(url)
        options: PeerOptions = {"subprotocols": [SUBPROTOCOL], **self.options}
        peer = Peer(self.app, f"{parts.path}?{parts.query}" if parts.query else parts.path, **options)
        try:
            await peer.connect()
        except Rejected as rejected:
            raise _refused(rejected) from rejected
        self.peers = [other for other in self.peers if other.closed is None]
        self.peers.append(peer)
        return PeerLink(peer)


class PeerLink:
    """A peer with the three methods that the Python client wants of a link."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def send(self, text: str) -> None:
        """Send one text frame. Raises `ConnectionClosed`."""
        try:
            await self.peer.send(text)
        except Closed as closed:
            raise ConnectionClosed(closed.code, closed.reason) from None

    async def recv(self) -> str:
        """The next text frame, however long it takes. Raises `ConnectionClosed`."""
        try:
            frame = await self.peer.receive(timeout=math.inf)
        except Closed as closed:
            raise ConnectionClosed(closed.code, closed.reason) from None
        return frame if isinstance(frame, str) else frame.decode()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Leave with a close frame, without waiting for the application."""
        self.peer.leave(code, reason)


def _refused(rejected: Rejected) -> ConnectionClosed:
    code = STATUSES.get(rejected.status, 1006)
    if code not in CLOSE_CODES:
        return ConnectionClosed(code, f"http_{rejected.status}")
    retry_after = None
    with suppress(KeyError, ValueError):
        retry_after = float(rejected.headers["retry-after"])
    return ConnectionClosed(code, close_reason(CLOSE_CODES[code].name, retry_after))
