"""A site to talk to, and clients of the native protocol that talk to it over real sockets."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from starlette_realtime import Connection, ConnectionOptions, Member, RateLimiter, Realtime, RoomsOptions, SignedTokens
from starlette_realtime.testing import FakeClock
from tests.support.server import Running, serve

NATIVE = Subprotocol("starlette-realtime.v1.json")
SECRET = "a secret that only these tests know"
PATIENCE = 5.0  # seconds that anything may take
CALM = ConnectionOptions(heartbeat=1e6)  # for tests that move the clock and are not about hearts
AT_ONCE = RoomsOptions(presence_interval=0.0)  # presence is told without waiting for a clock that stands still


def relaxed(**options: Any) -> RateLimiter:
    """The default limits, but for those that many users share: a clock that stands still would keep them."""
    return RateLimiter(**{"publishes": (), "connections_per_user": None, **options})


Frame = dict[str, Any]


class Peer:
    """
    One client: what comes is collected in `frames`, and `expect` takes it from there in any order, with a deadline.

    With `pongs`, the server's pings are answered.
    """

    def __init__(self, websocket: ClientConnection, *, pongs: bool = True) -> None:
        self.websocket = websocket
        self.frames: list[Frame] = []  # all that came, in order
        self.texts: list[str] = []  # the same, as it came
        self._pongs = pongs
        self._waiting: list[Frame] = []
        self._news = asyncio.Event()
        self._numbers = itertools.count(10_001)  # tests number their own commands below
        self._reader = asyncio.create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.websocket.close()
        await self._reader

    async def _read(self) -> None:
        try:
            async for text in self.websocket:
                assert isinstance(text, str), "the native protocol has no binary frames"
                self.texts.append(text)
                frame = json.loads(text)
                self.frames.append(frame)
                self._waiting.append(frame)
                self._news.set()
                if self._pongs and frame["type"] == "ping":
                    await self.websocket.send('{"type":"pong"}')
        except ConnectionClosed:
            pass  # `closed` tells how
        finally:
            self._news.set()

    # --- talking ----------------------------------------------------------------------------------------------------

    async def send(self, type: str, /, **fields: Any) -> None:
        """Send one frame, without an id unless it is given."""
        await self.websocket.send(json.dumps({"type": type, **fields}))

    async def text(self, text: str) -> None:
        """Send a text frame as it stands."""
        await self.websocket.send(text)

    async def ask(self, type: str, /, **fields: Any) -> Frame:
        """Send a command with an id, and give back the whole reply."""
        number = next(self._numbers)
        await self.send(type, id=number, **fields)
        return await self.expect("reply", id=number)

    async def do(self, type: str, /, **fields: Any) -> Any:
        """Send a command that must succeed, and give back the reply's data."""
        reply = await self.ask(type, **fields)
        assert "error" not in reply, reply
        return reply["data"]

    async def refused(self, type: str, /, **fields: Any) -> Frame:
        """Send a command that must be refused, and give back the reply's error."""
        reply = await self.ask(type, **fields)
        assert "data" not in reply, reply
        error: Frame = reply["error"]
        return error

    async def auth(self, token: str | None = None, **fields: Any) -> Any:
        """Authenticate; the reply's data."""
        return await self.do("auth", **({"token": token} if token is not None else {}), **fields)

    async def sync(self) -> None:
        """Wait until the server has worked off, and answered, what was sent before."""
        await self.ask("event", event="echo", data=None)

    # --- hearing ----------------------------------------------------------------------------------------------------

    async def expect(self, type: str, /, **fields: Any) -> Frame:
        """Take the first frame of `type` that has these fields, waiting for it if need be."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    self._news.clear()
                    for number, frame in enumerate(self._waiting):
                        if frame["type"] == type and all(frame.get(name) == fields[name] for name in fields):
                            return self._waiting.pop(number)
                    if self._reader.done():
                        break
                    await self._news.wait()
        except TimeoutError:
            pass
        ended = f", and then {self.websocket.close_code}" if self._reader.done() else ""
        raise AssertionError(f"no {type} with {fields} among {self._waiting}{ended}")

    def heard(self, type: str, /, **fields: Any) -> list[Frame]:
        """All frames of `type` with these fields that came so far."""
        return [
            frame
            for frame in self.frames
            if frame["type"] == type and all(frame.get(name) == fields[name] for name in fields)
        ]

    async def closed(self) -> tuple[int, str]:
        """Wait for the server to close, and give back code and reason."""
        async with asyncio.timeout(PATIENCE):
            await self.websocket.wait_closed()
            await self._reader
        assert self.websocket.close_code is not None
        return self.websocket.close_code, self.websocket.close_reason or ""

    def lose(self) -> None:
        """Reset the connection without a goodbye."""
        self.websocket.transport.abort()


@asynccontextmanager
async def dial(
    server: Running,
    path: str = "/realtime/ws",
    *,
    origin: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    subprotocols: Iterable[Subprotocol] = (NATIVE,),
    pongs: bool = True,
    **options: Any,
) -> AsyncIterator[Peer]:
    """Open a connection, and close it at the end of the block if it is still open."""
    websocket = await connect(
        server.ws_url + path,
        origin=Origin(origin) if origin is not None else None,
        additional_headers=list(headers),
        subprotocols=list(subprotocols) or None,
        compression=None,
        ping_interval=None,
        proxy=None,
        max_size=None,
        **options,
    )
    async with Peer(websocket, pongs=pongs) as peer:
        yield peer


class Text(msgspec.Struct):
    """What is said."""

    text: str


@dataclass
class Site:
    """A running application, its clock, and ways in."""

    realtime: Realtime
    tokens: SignedTokens
    clock: FakeClock
    server: Running
    _rooms: Iterable[int]

    def new_room(self) -> str:
        """A room that no other test has been in."""
        return f"chat:{next(iter(self._rooms))}"

    def token(self, user: str, **options: Any) -> str:
        """A token for `user`."""
        return self.tokens.issue(user, **options)

    @asynccontextmanager
    async def peer(
        self, user: str | None = None, *rooms: str, session: str | None = None, **options: Any
    ) -> AsyncIterator[Peer]:
        """Connect; authenticate as `user` where there is one; join `rooms`."""
        async with dial(self.server, **options) as peer:
            if user is not None:
                await peer.auth(self.token(user), **({"session": session} if session is not None else {}))
            for room in rooms:
                await peer.do("join", room=room)
            yield peer


def new_tokens(clock: FakeClock) -> SignedTokens:
    """The tokens that sites of these tests sign."""
    return SignedTokens(SECRET, clock=clock)


def declare(realtime: Realtime) -> None:
    """What most tests need: a room to chat in, one with names, and an echo without a room."""
    chat = realtime.room("chat:{room_id:int}", presence=True)
    named = realtime.room("named:{name}")

    @chat.on("message")
    async def message(member: Member, room_id: int, body: Text) -> Mapping[str, int]:
        position = await member.broadcast("message", body)
        return {"offset": position.offset}

    @named.on("message")
    async def named_message(member: Member, body: Text) -> None:
        await member.broadcast("message", body)

    @chat.on("raw")
    async def raw(member: Member, data: msgspec.Raw) -> None:
        await member.broadcast("raw", data)

    @chat.on("aside")
    async def aside(member: Member, body: Text) -> None:
        await member.broadcast("message", body, others_only=True)

    @realtime.on("echo")
    async def echo(connection: Connection, data: Any) -> Any:
        return data


def mounted(realtime: Realtime, path: str = "/realtime") -> Starlette:
    """The smallest application around `realtime`."""
    app = Starlette(lifespan=realtime.lifespan)
    app.mount(path, realtime)
    return app


@asynccontextmanager
async def running(
    *,
    app: ASGIApp | None = None,
    realtime: Realtime | None = None,
    clock: FakeClock | None = None,
    server: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Site]:
    """A site with the usual rooms; `options` are `Realtime`'s, `server` are uvicorn's."""
    clock = clock or FakeClock()
    tokens = new_tokens(clock)
    if realtime is None:
        defaults = {"connection": CALM, "options": AT_ONCE, "limiter": relaxed(), "clock": clock}
        realtime = Realtime(**{"authenticate": tokens, **defaults, **options})
        declare(realtime)
    async with serve(app or mounted(realtime), **(server or {})) as running_server:
        yield Site(realtime, tokens, clock, running_server, itertools.count(1))


async def handshake(server: Running, *lines: str, path: str = "/realtime/ws", host: str | None = None) -> "Answer":
    """
    Send a WebSocket handshake by hand, with `lines` in addition, and give back what is answered.

    `host` is the value of the `Host` header, this server's own by default.
    """
    head = [
        f"GET {path} HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{server.port}'}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Protocol: {NATIVE}",
        *lines,
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
            start, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
            status = int(start.split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            frames: list[tuple[int, bytes]] = []
            body = b""
            if status == 101:
                while not frames or frames[-1][0] != 8:
                    frames.append(await _frame(reader))
            else:
                body = await reader.readexactly(int(headers.get("content-length", "0")))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return Answer(status, headers, body, frames)


@dataclass(frozen=True)
class Answer:
    """The answer to a handshake, and, where it was accepted, all frames up to the server's close."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    frames: list[tuple[int, bytes]]

    @property
    def close(self) -> tuple[int, str]:
        """The close frame's code and reason."""
        payload = self.frames[-1][1]
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    @property
    def turned_away(self) -> bool:
        """Whether nobody got in: refused with a status, or closed before anything but an error was said."""
        if self.status != 101:
            return 400 <= self.status < 500
        said = [json.loads(payload)["type"] for opcode, payload in self.frames if opcode == 1]
        return said == ["error"] and self.close[0] in (4401, 4403)


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One unfragmented frame of a server (RFC 6455 section 5.2)."""
    first, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    return first & 15, await reader.readexactly(length)
