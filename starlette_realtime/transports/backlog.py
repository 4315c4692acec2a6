"""Backlog: what a server holds for peers that don't read, pongs above all, looked at once a second."""

import asyncio
from weakref import WeakKeyDictionary

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.connection import Connection

__all__ = ["Backlog"]

INTERVAL = 1.0
"""How often it is looked at, in seconds."""


class Backlog:
    """
    The sockets of one clock's connections, each of which may have so much to send.

    A server answers a WebSocket ping (RFC 6455, section 5.5.2) whether or not the peer takes the answers, and neither
    the outbox nor its time limit sees that. What a socket has to send beyond the bound of the outbox, and the frame
    that the server may have taken from it, is somebody's doing: the connection is dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: dict[asyncio.WriteTransport, Connection] = {}
        self._timer: Timer | None = None

    @classmethod
    def of(cls, clock: Clock) -> "Backlog":
        """The one of that clock, on the event loop that runs."""
        loop = asyncio.get_running_loop()
        found = _backlogs.get(clock)
        if found is None or found._loop is not loop:
            found = _backlogs[clock] = cls(loop)
        return found

    def add(self, socket: asyncio.WriteTransport, connection: Connection) -> None:
        """Look after a socket until it closes, which may be after the connection's end."""
        self._sockets[socket] = connection
        if self._timer is None:
            self._timer = connection.clock.call_later(INTERVAL, self._look, connection.clock)

    def ended(self, socket: asyncio.WriteTransport) -> None:
        """The connection has ended: where the socket is closed, too, it is forgotten at once."""
        if socket.is_closing():
            self._sockets.pop(socket, None)
            if not self._sockets and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self, clock: Clock) -> None:
        self._timer = None
        for socket, connection in list(self._sockets.items()):
            outbox = connection.outbox
            if not socket.is_closing() and socket.get_write_buffer_size() > outbox.max_bytes + outbox.largest:
                connection.abort()
                socket.abort()
            if socket.is_closing():
                del self._sockets[socket]
        if self._sockets:
            self._timer = clock.call_later(INTERVAL, self._look, clock)


_backlogs: WeakKeyDictionary[Clock, Backlog] = WeakKeyDictionary()
