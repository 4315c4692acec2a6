"""The WebSocket transport: one reader, one writer, on any ASGI server."""

import asyncio
import logging
from typing import Protocol

from starlette_realtime.connection import Connection, size_of
from starlette_realtime.errors import CLOSE_CODES, ProtocolError
from starlette_realtime.messages import Command, Pong
from starlette_realtime.transports.backlog import Backlog
from starlette_realtime.types import Frame, Receive, Send

__all__ = ["Handler", "serve_websocket"]

logger = logging.getLogger("starlette_realtime.websocket")

CLEAN = frozenset({1000, 1001})
"""Close codes of a peer that leaves on purpose: the page was closed, or the client was."""


class Handler(Protocol):
    """What a transport calls, in this order."""

    def opened(self, connection: Connection) -> None:
        """The connection can be written to."""
        ...

    async def handle(self, connection: Connection, command: Command) -> None:
        """A command came; the next one is read when this returns."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection has ended."""
        ...


async def serve_websocket(
    connection: Connection, handler: Handler, receive: Receive, send: Send, *, subprotocol: str | None
) -> None:
    """Accept a handshake that was received already, and serve the connection until it ends."""
    try:
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
    except OSError:
        return
    task = asyncio.current_task()
    assert task is not None
    code, reading = 1006, True

    def written(_: "asyncio.Task[None]") -> None:
        # The last word is out, or nothing more can be said: there is nothing to read for.
        if reading:
            task.cancel()

    writer = asyncio.get_running_loop().create_task(_write(connection, send))
    writer.add_done_callback(written)
    socket = _socket(receive, send)

    def drop() -> None:
        writer.cancel()
        if socket is not None:
            socket.abort()

    connection.aborted = drop
    backlog = Backlog.of(connection.clock)
    if socket is not None:
        backlog.add(socket, connection)
    try:
        handler.opened(connection)
        code = await _read(connection, handler, receive)
    except asyncio.CancelledError:
        if not writer.done() or task.uncancel():
            raise  # somebody else's doing
    finally:
        reading = False
        connection.aborted = None
        closed_by_us = connection.close_code
        clean = code in CLEAN if closed_by_us is None else _is_final(closed_by_us)
        connection.end(code=code, clean=clean)
        writer.cancel()
        handler.closed(connection)
        await asyncio.wait((writer,))
        if not writer.cancelled() and (error := writer.exception()) is not None:
            logger.error("the server failed to write", exc_info=error)
        if socket is not None:
            backlog.ended(socket)
            if _unsent(socket):
                # The server closes when it has flushed, which a peer that doesn't read puts off for ever.
                connection.clock.call_later(connection.options.send_timeout, socket.abort)


def _socket(receive: Receive, send: Send) -> asyncio.WriteTransport | None:
    """
    The peer's socket, to drop it at once.

    ASGI has no word for that. Uvicorn's `receive` and `send` are methods of its protocol, which has a transport; where
    they are wrapped, or of another server, there is None, and the server's own time limits have to do.
    """
    for method in (receive, send):
        transport: asyncio.WriteTransport | None = getattr(getattr(method, "__self__", None), "transport", None)
        if callable(getattr(transport, "abort", None)):
            return transport
    return None


def _unsent(socket: asyncio.WriteTransport) -> int:
    """How many bytes the socket has to send."""
    try:
        return socket.get_write_buffer_size()
    except AttributeError:
        return 0  # asyncio's TLS transport, when it was closed twice, has nothing to ask, but a time limit of its own


def _is_final(code: int) -> bool:
    row = CLOSE_CODES.get(code)
    return row is None or row.reconnect == "no"


async def _read(connection: Connection, handler: Handler, receive: Receive) -> int:
    """Read until the peer has gone; tells its close code."""
    protocol, clock = connection.protocol, connection.clock
    while True:
        message = await receive()
        kind = message["type"]
        if kind == "websocket.disconnect":
            return int(message.get("code") or 1005)
        if kind != "websocket.receive" or connection.closed:
            continue
        text = message.get("text")
        frame: Frame = text if text is not None else message.get("bytes") or b""
        connection.heard = clock.now()
        try:
            commands = protocol.receive(frame, connection.heard)
        except ProtocolError as exc:
            connection.close(exc.close_code, message=exc.message)
            continue
        answers = protocol.pending()
        for said in answers:
            connection.put((said,), size_of((said,)))
        if answers and not commands:
            commands = [Pong()]  # it asked for nothing, but it is a sign of life and counts as one
        for command in commands:
            await handler.handle(connection, command)


async def _write(connection: Connection, send: Send) -> None:
    async def write(frame: Frame) -> None:
        if isinstance(frame, str):
            await send({"type": "websocket.send", "text": frame})
        else:
            await send({"type": "websocket.send", "bytes": frame})

    try:
        await connection.outbox.run(write)
        if connection.close_code is not None and not connection.gone:
            await send({"type": "websocket.close", "code": connection.close_code, "reason": connection.close_reason})
    except (OSError, RuntimeError) as exc:
        # The peer has gone (ASGI: OSError; some servers: RuntimeError); the reader hears of it, too.
        logger.debug("a write failed: %r", exc)
