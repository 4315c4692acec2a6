"""Requests are answered as a server would answer them, whole or chunk by chunk."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from starlette_realtime.testing import Stream, get, post, request, settle
from starlette_realtime.types import Receive, Scope, Send


async def look(request: Request) -> JSONResponse:
    assert request.client is not None
    return JSONResponse(
        {
            "method": request.method,
            "url": str(request.url),
            "headers": request.headers.getlist("x-twice"),
            "origin": request.headers.get("origin"),
            "cookies": request.cookies,
            "client": request.client.host,
            "type": request.headers.get("content-type"),
            "body": (await request.body()).decode(),
        },
        headers={"X-Answer": "yes"},
    )


async def sign_in(request: Request) -> Response:
    request.session["user"] = "ann"
    return PlainTextResponse("hello", 201)


async def who(request: Request) -> JSONResponse:
    return JSONResponse(request.session)


app = Starlette(
    routes=[
        Route("/look", look, methods=["GET", "PUT"]),
        Route("/sign-in", sign_in, methods=["POST"]),
        Route("/who", who),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of the tests alone")],
)


async def test_a_request_says_what_it_was_given() -> None:
    response = await request(
        app,
        "put",
        "/look?a=b",
        json={"text": "é"},
        headers=[("X-Twice", "1"), ("X-Twice", "2")],
        origin="https://testserver",
        cookies={"c": "d"},
        secure=True,
        client=("192.0.2.1", 1),
    )
    assert response.status == 200
    assert response.headers["x-answer"] == "yes"
    assert response.json() == {
        "method": "PUT",
        "url": "https://testserver/look?a=b",
        "headers": ["1", "2"],
        "origin": "https://testserver",
        "cookies": {"c": "d"},
        "client": "192.0.2.1",
        "type": "application/json",
        "body": '{"text": "\\u00e9"}',
    }
    assert (await request(app, "PUT", "/look", body=b"plain")).json()["body"] == "plain"
    assert (await get(app, "/nowhere")).status == 404


async def test_a_request_may_do_without_a_host_and_an_answer_without_a_body() -> None:
    async def empty(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["headers"] == []
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body", "more_body": True})
        await send({"type": "http.response.body"})

    response = await get(empty, "/", host=None)
    assert (response.status, response.body, response.cookies) == (204, b"", {})
    await Stream(empty, "GET", "/").ended()


async def test_cookies_can_be_taken_from_one_answer_to_the_next_request() -> None:
    answer = await post(app, "/sign-in")
    assert (answer.status, answer.text) == (201, "hello")
    assert set(answer.cookies) == {"session"}
    assert (await get(app, "/who", cookies=answer.cookies)).json() == {"user": "ann"}
    assert (await get(app, "/who")).json() == {}


async def test_a_request_ends_with_its_background_tasks() -> None:
    done: list[str] = []

    async def later() -> None:
        await settle()
        done.append("later")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("now", background=BackgroundTask(later))

    assert (await get(Starlette(routes=[Route("/", endpoint)]), "/")).text == "now"
    assert done == ["later"]


class Events:
    """A stream without an end, fed by the test."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.left = False
        self.app = Starlette(routes=[Route("/events", self.endpoint)])

    async def endpoint(self, request: Request) -> Response:
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def events(self) -> AsyncIterator[str]:
        try:
            while True:
                yield f"data: {await self.queue.get()}\n\n"
        finally:
            self.left = True


async def test_a_stream_is_read_chunk_by_chunk_and_ends_with_the_client() -> None:
    events = Events()
    async with Stream(events.app, "GET", "/events", timeout=0.5) as stream:
        assert (stream.status, stream.finished) == (200, False)
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.waiting() == []
        for number in range(3):
            events.queue.put_nowait(str(number))
        assert await stream.receive() == b"data: 0\n\n"
        await settle()
        assert stream.waiting() == [b"data: 1\n\n", b"data: 2\n\n"]
        with pytest.raises(TimeoutError, match=r"a chunk did not come within 0\.01 s"):
            await stream.receive(timeout=0.01)
        assert not events.left
    assert events.left


async def test_a_stalled_reader_and_a_full_backlog_hold_up_the_application() -> None:
    sent = 0

    async def chatter(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        while sent < 10:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent += 1

    async with Stream(chatter, "GET", "/", backlog=3) as stream:
        await settle()
        assert sent == 3
        await stream.receive()
        await settle()
        assert sent == 4
        stream.stall()
        assert len(stream.waiting()) == 3
        await settle()
        assert sent == 4
        stream.flow()
        await settle()
        assert sent == 7


async def test_what_the_application_raises_is_raised() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ZeroDivisionError

    for bad in (broken, breaks):
        with pytest.raises(ZeroDivisionError):
            await get(bad, "/")


async def test_an_answer_that_is_none_or_not_whole_is_the_applications_mistake() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"x"})

    with pytest.raises(RuntimeError, match="without a response"):
        await get(silent, "/")
    with pytest.raises(RuntimeError, match="in the middle"):
        await get(half, "/")
    with pytest.raises(RuntimeError, match=r"http\.response\.body is not allowed now"):
        await get(early, "/")


async def test_nothing_is_waited_for_in_vain() -> None:
    async def stays(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await asyncio.Event().wait()

    for app, complaint in ((stays, "a response did not begin"), (deaf, "call did not end")):
        stream = Stream(app, "GET", "/", timeout=0.02)
        with pytest.raises(TimeoutError, match=complaint):
            async with stream:
                pass
        assert stream.task is not None
        stream.task.cancel()
        await stream.ended()


async def test_a_client_that_has_gone_is_told_to_the_application_and_hears_no_more() -> None:
    heard: list[str] = []

    async def careful(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200})
        heard.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"too late"})

    async with Stream(careful, "GET", "/") as stream:
        pass
    assert heard == ["http.request", "http.disconnect"]
    assert stream.waiting() == []
    with pytest.raises(RuntimeError, match="one request"):
        await stream.start()
