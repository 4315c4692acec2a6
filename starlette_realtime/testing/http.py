"""HTTP requests to an ASGI application, inside the test's own event loop: whole, or chunk by chunk."""

import asyncio
import json as jsonlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.cookies import SimpleCookie
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from starlette.datastructures import Headers

from starlette_realtime.testing.scopes import make_scope, request_headers
from starlette_realtime.testing.waiting import Changes
from starlette_realtime.types import ASGIApp, Message

__all__ = ["RequestOptions", "Response", "Stream", "get", "post", "request"]

_START, _BODY = "http.response.start", "http.response.body"


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the application answered; `headers` are case-insensitive, and `getlist` tells all of one name."""

    status: int
    headers: Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body, read as JSON."""
        return jsonlib.loads(self.body)

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that it sets, by name; give them to the next request or handshake as its `cookies`."""
        jar = SimpleCookie()
        for header in self.headers.getlist("set-cookie"):
            jar.load(header)
        return {name: morsel.value for name, morsel in jar.items()}


class RequestOptions(TypedDict, total=False):
    """The options of `Stream`, for those who pass them on."""

    headers: Iterable[tuple[str, str]]
    body: bytes
    json: Any
    origin: str | None
    cookies: Mapping[str, str] | None
    host: str | None
    root_path: str
    secure: bool
    client: tuple[str, int] | None
    timeout: float
    backlog: int


class Stream:
    """
    One HTTP request, and its response as it comes (ASGI's HTTP messages, version 2.3, as uvicorn has it).

        async with Stream(app, "GET", "/events") as stream:
            assert stream.status == 200
            assert await stream.receive() == b"data: 1"

    The block begins when the response does. Its end is the client's: the application hears `http.disconnect`, its call
    has to end, and what it raised is raised here. Nothing waits for longer than `timeout` seconds of real time.

    `json` is sent as the body, with its content type. `backlog` chunks wait at most: beyond that the application waits.
    The other options are those of `Peer`.
    """

    def __init__(
        self,
        app: ASGIApp,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        json: Any = None,
        origin: str | None = None,
        cookies: Mapping[str, str] | None = None,
        host: str | None = "testserver",
        root_path: str = "",
        secure: bool = False,
        client: tuple[str, int] | None = ("127.0.0.1", 50_000),
        timeout: float = 5.0,
        backlog: int = 4_096,
    ) -> None:
        named = list(headers)
        if json is not None:
            body = jsonlib.dumps(json).encode()
            named.append(("content-type", "application/json"))
        if body:
            named.append(("content-length", str(len(body))))
        self.app = app
        self.backlog = backlog
        self.scope = make_scope(
            "http",
            path,
            request_headers(named, origin, cookies, host),
            root_path=root_path,
            secure=secure,
            client=client,
            asgi={"version": "3.0", "spec_version": "2.3"},
            method=method.upper(),
        )
        self.status = 0
        """The response's status; 0 until it came."""
        self.headers = Headers()
        """The response's headers."""
        self.finished = False
        """Whether the response is whole."""
        self.task: asyncio.Task[None] | None = None
        """The application's call."""
        self._changes = Changes(timeout)
        self._chunks: deque[bytes] = deque()
        self._request: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])
        self._gone = False
        self._stalled = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Send the request and wait for the response to begin; raises what the application raised instead."""
        if self.task is not None:
            raise RuntimeError("a stream is one request: make another one")
        self.task = task = asyncio.get_running_loop().create_task(self._run())
        task.add_done_callback(self._ended)
        await self._changes.until(lambda: self.status or task.done(), "a response did not begin")
        if not self.status:
            await self.ended()
            raise RuntimeError("the application's call ended without a response")

    async def receive(self, *, timeout: float | None = None) -> bytes:
        """
        The next chunk of the body as the application sent it, or b"" at its end.

        Raises what the application raised before the end, and `TimeoutError`.
        """
        await self._changes.until(lambda: self._chunks or self._over(), "a chunk did not come", timeout)
        if self._chunks:
            self._changes.wake()
            return self._chunks.popleft()
        if not self.finished:
            await self.ended()
            raise RuntimeError("the application's call ended in the middle of its response")
        return b""

    async def read(self) -> bytes:
        """What is left of the body, to its end."""
        parts = []
        while part := await self.receive():
            parts.append(part)
        return b"".join(parts)

    def waiting(self) -> list[bytes]:
        """Take all chunks that are here already."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self._changes.wake()
        return chunks

    def stall(self) -> None:
        """Read nothing more: the application's next `send` waits, until `flow` or the end of the request."""
        self._stalled = True

    def flow(self) -> None:
        """Read again."""
        self._stalled = False
        self._changes.wake()

    def leave(self) -> None:
        """Disconnect, without waiting for the application."""
        self._gone = True
        self._changes.wake()

    async def close(self) -> None:
        """Disconnect, unless the response is whole, and wait as `ended` does."""
        if not self.finished:
            self.leave()
        await self.ended()

    async def ended(self, *, timeout: float | None = None) -> None:
        """Wait until the application's call has ended; what it raised, other than a cancellation, is raised here."""
        task = self.task
        if task is None:
            return
        await self._changes.until(task.done, "the application's call did not end", timeout)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # --- the application's side -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self.app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        while not self._request:
            if self._gone or self.finished:
                return {"type": "http.disconnect"}
            await self._changes.change()
        return self._request.popleft()

    async def _send(self, message: Message) -> None:
        while not self._gone and (self._stalled or len(self._chunks) >= self.backlog):
            await self._changes.change()
        if self._gone:
            return  # ASGI HTTP before 2.4: to a client that has gone, nothing is said and nothing is raised
        kind = message["type"]
        if kind == _START and not self.status:
            self.status = message["status"]
            self.headers = Headers(raw=list(message.get("headers", ())))
        elif kind == _BODY and self.status and not self.finished:
            if body := message.get("body", b""):
                self._chunks.append(body)
            self.finished = not message.get("more_body", False)
        else:
            raise RuntimeError(f"{kind} is not allowed now")
        self._changes.wake()

    def _over(self) -> bool:
        return self.finished or self.task is None or self.task.done()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._changes.wake()
        if not task.cancelled():
            task.exception()  # `ended` raises it; nobody has to ask


async def request(app: ASGIApp, method: str, path: str, **options: Unpack[RequestOptions]) -> Response:
    """
    Make one request and read its whole response; the options are those of `Stream`.

    The application's call has ended then, background tasks included. Raises what it raised.
    """
    async with Stream(app, method, path, **options) as stream:
        body = await stream.read()
    return Response(status=stream.status, headers=stream.headers, body=body)


async def get(app: ASGIApp, path: str, **options: Unpack[RequestOptions]) -> Response:
    """`request` with GET."""
    return await request(app, "GET", path, **options)


async def post(app: ASGIApp, path: str, **options: Unpack[RequestOptions]) -> Response:
    """`request` with POST."""
    return await request(app, "POST", path, **options)
