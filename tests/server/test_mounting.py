"""Where it may be mounted: any application, any path, several at once; and what it says when something is missing."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp
from websockets.exceptions import InvalidStatus

from starlette_realtime import ConfigurationError, Realtime
from starlette_realtime.testing import FakeClock
from starlette_realtime.workers import count_workers
from tests.server.support import AT_ONCE, CALM, SECRET, Peer, declare, dial, handshake, new_tokens
from tests.support.server import ROOT, Running, StartupFailed, serve, serve_process

CLOCK = FakeClock()
TOKENS = new_tokens(CLOCK)


def new_realtime(**options: Any) -> Realtime:
    realtime = Realtime(authenticate=TOKENS, connection=CALM, options=AT_ONCE, clock=CLOCK, **options)
    declare(realtime)
    return realtime


@asynccontextmanager
async def chatting(server: Running, path: str, user: str = "alice", **options: Any) -> AsyncIterator[Peer]:
    async with dial(server, f"{path}/ws", **options) as peer:
        await peer.auth(TOKENS.issue(user))
        await peer.do("join", room="chat:1")
        yield peer


async def works(server: Running, path: str) -> None:
    """Two chat, and the browser client is there."""
    async with chatting(server, path) as alice, chatting(server, path, "bob", origin=server.url) as bob:
        await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
        await bob.expect("event", event="message", data={"text": "hi"})
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{server.url}{path}/client.js")).status_code == 200


# --- where ------------------------------------------------------------------------------------------------------------


def in_starlette(realtime: Realtime, path: str) -> ASGIApp:
    return Starlette(lifespan=realtime.lifespan, routes=[Mount(path, realtime)])


def in_fastapi(realtime: Realtime, path: str) -> ASGIApp:
    app = FastAPI(lifespan=realtime.lifespan)
    app.mount(path, realtime)
    return app


def in_a_mounted_fastapi(realtime: Realtime, path: str) -> ASGIApp:
    inner = FastAPI()
    head, _, tail = path.strip("/").partition("/")
    inner.mount("/" + tail, realtime)
    outer = FastAPI(lifespan=realtime.lifespan)
    outer.mount("/" + head, inner)
    return outer


def in_nested_mounts(realtime: Realtime, path: str) -> ASGIApp:
    app: ASGIApp = realtime
    for part in reversed(path.strip("/").split("/")):
        app = Starlette(routes=[Mount(f"/{part}", app)])
    return Starlette(lifespan=realtime.lifespan, routes=[Mount("/", app)])


def in_a_lifespan_of_its_own(realtime: Realtime, path: str) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with realtime, realtime:  # it nests
            yield

    return Starlette(lifespan=lifespan, routes=[Mount(path, realtime)])


@pytest.mark.parametrize("path", ["/realtime", "/a/b/c", "/api/v1/rt", "/ws", "/ws/ws", "/client.js", "/ünïcode"])
async def test_it_works_under_any_path(path: str) -> None:
    async with serve(in_starlette(new_realtime(), path)) as server:
        await works(server, path)


@pytest.mark.parametrize("build", [in_fastapi, in_a_mounted_fastapi, in_nested_mounts, in_a_lifespan_of_its_own])
async def test_it_works_in_any_application(build: Callable[[Realtime, str], ASGIApp]) -> None:
    async with serve(build(new_realtime(), "/api/realtime")) as server:
        await works(server, "/api/realtime")


@pytest.mark.parametrize("build", [in_starlette, in_fastapi])
@pytest.mark.parametrize("root_path", ["/app", "/app/v1", "/realtime", "/ws"])
async def test_it_works_behind_a_proxy_that_strips_the_root_path(
    build: Callable[[Realtime, str], ASGIApp], root_path: str
) -> None:
    async with serve(build(new_realtime(), "/realtime"), root_path=root_path) as server:
        await works(server, "/realtime")


@pytest.mark.parametrize("path", ["", "/"])
async def test_it_may_be_mounted_at_the_root_beside_other_routes(path: str) -> None:
    realtime = new_realtime()

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(lifespan=realtime.lifespan, routes=[Route("/hello", hello), Mount(path, realtime)])
    async with serve(app) as server, httpx2.AsyncClient() as client:
        await works(server, "")
        assert (await client.get(f"{server.url}/hello")).text == "hello"
        assert (await client.get(f"{server.url}/other")).status_code == 404


async def test_several_instances_in_one_application_hear_nothing_of_each_other() -> None:
    one, two = new_realtime(), new_realtime()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with one, two:
            yield

    app = Starlette(lifespan=lifespan, routes=[Mount("/one", one), Mount("/two", two)])
    async with serve(app) as server:
        await works(server, "/one")
        await works(server, "/two")
        async with chatting(server, "/one") as alice, chatting(server, "/two", "bob") as bob:
            assert [len(each.connections) for each in (one, two)] == [1, 1]
            await alice.do("event", event="message", room="chat:1", data={"text": "to one"})
            await one.send_to_user("bob", "news", "to one")
            members = await bob.do("members", room="chat:1")
            assert [member["user"] for member in members["list"]] == ["bob"]
            history = await bob.do("history", room="chat:1")
            assert [event["data"]["text"] for event in history["events"]] == ["hi"]
            assert not bob.heard("event")
            assert not bob.heard("presence")


async def test_one_instance_may_be_mounted_twice() -> None:
    realtime = new_realtime()
    app = Starlette(lifespan=realtime.lifespan, routes=[Mount("/a", realtime), Mount("/b", realtime)])
    async with serve(app) as server, chatting(server, "/a") as alice, chatting(server, "/b", "bob") as bob:
        await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
        await bob.expect("event", event="message")


async def test_an_instance_starts_again_after_it_stopped() -> None:
    realtime = new_realtime()
    for _ in range(2):
        async with serve(in_starlette(realtime, "/realtime")) as server:
            await works(server, "/realtime")
        assert not realtime.connections


# --- the browser client -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[Running]:
    async with serve(in_starlette(new_realtime(), "/realtime")) as server:
        yield server


@pytest.fixture
async def http(server: Running) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url) as client:
        yield client


async def test_the_client_and_all_it_imports_are_served(http: httpx2.AsyncClient) -> None:
    waiting, seen = ["client.js", "react.js"], set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        response = await http.get(f"/realtime/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        waiting += [each for each in re.findall(r'from ?"\./([^"]+)"', response.text) if each not in seen]
    assert seen >= {"client.js", "react.js"}


async def test_a_page_that_has_the_client_is_told_so(http: httpx2.AsyncClient) -> None:
    first = await http.get("/realtime/client.js")
    etag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    assert first.headers["cache-control"] == "no-cache"
    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await http.get("/realtime/client.js", headers={"If-None-Match": value})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), value
    for value in ('"other"', etag.strip('"')):
        again = await http.get("/realtime/client.js", headers={"If-None-Match": value})
        assert (again.status_code, again.content) == (200, first.content)


async def test_head_is_get_without_a_body(http: httpx2.AsyncClient) -> None:
    get, head = await http.get("/realtime/client.js"), await http.head("/realtime/client.js")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-length", "content-type", "cache-control"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_not_allowed(http: httpx2.AsyncClient, method: str) -> None:
    response = await http.request(method, "/realtime/client.js", content=b"x" * 100)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert (await http.get("/realtime/client.js")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nope",
        "/Client.js",
        "/client.js/",
        "//client.js",
        "/x/client.js",
        "/client.mjs",
        "/%2e%2e/realtime.py",
        "/..%2frealtime.py",
        "/realtime.py",
        "/__init__.py",
        "/client.js%00",
        "/package.json",
    ],
)
async def test_elsewhere_there_is_nothing(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(f"/realtime{path}", follow_redirects=True)
    assert response.status_code == 404
    assert "Traceback" not in response.text


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_the_websockets_address_has_nothing_for_http(http: httpx2.AsyncClient, method: str) -> None:
    assert (await http.request(method, "/realtime/ws")).status_code == 404


# --- not started ------------------------------------------------------------------------------------------------------


async def test_a_request_to_what_was_not_started_names_the_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    realtime = new_realtime()
    app = Starlette(routes=[Mount("/realtime", realtime)])
    async with serve(app) as server:
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{server.url}/realtime/client.js")).status_code == 500
        with pytest.raises(InvalidStatus) as refusal:
            async with dial(server):
                pytest.fail("it must not get in")
        assert refusal.value.response.status_code == 500
        failures = [record.exc_info[1] for record in caplog.records if record.exc_info]
        assert len(failures) == 2
        for failure in failures:
            assert isinstance(failure, ConfigurationError)
            assert "lifespan=realtime.lifespan" in str(failure)


async def test_an_instance_is_no_application_of_its_own() -> None:
    with pytest.raises(StartupFailed) as failure:
        async with serve(new_realtime()):
            pytest.fail("it must not start")
    assert isinstance(failure.value.__cause__, ConfigurationError)
    assert "lifespan=realtime.lifespan" in str(failure.value.__cause__)


# --- several workers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "environ", "workers"),
    [
        (["uvicorn", "app:app"], {}, 1),
        (["uvicorn", "app:app", "--workers", "4"], {}, 4),
        (["uvicorn", "--workers=4", "app:app"], {}, 4),
        (["python", "-m", "uvicorn", "app:app", "--workers", "1"], {"WEB_CONCURRENCY": "3"}, 1),
        (["uvicorn", "app:app"], {"WEB_CONCURRENCY": "3"}, 3),
        (["uvicorn", "app:app"], {"UVICORN_WORKERS": "4"}, 4),
        (["/usr/bin/uvicorn", "app:app", "--workers", "4"], {}, 4),
        (["/lib/uvicorn/__main__.py", "app:app", "--workers", "4"], {}, 4),
        (["gunicorn", "app:app"], {"GUNICORN_CMD_ARGS": "--workers 4"}, 4),
        (["pytest", "-w", "4"], {"WEB_CONCURRENCY": "3"}, 1),
        (["app.py"], {"WEB_CONCURRENCY": "3"}, 1),
        ([], {}, 1),
        (["uvicorn", "app:app"], {"WEB_CONCURRENCY": ""}, 1),
        (["uvicorn", "app:app"], {"WEB_CONCURRENCY": "many"}, 1),
        (["gunicorn", "-w", "2", "app:app"], {}, 2),
        (["gunicorn", "-w2", "app:app"], {}, 2),
        (["fastapi", "run", "--workers", "2"], {}, 2),
        (["hypercorn", "--workers", "2", "app:app"], {}, 2),
        (["uvicorn", "app:app", "--workers"], {}, 1),
        (["uvicorn", "app:app", "--workers-x", "7"], {}, 1),
        (["python", "-Wignore", "-m", "app"], {}, 1),
    ],
)
def test_workers_are_counted_from_the_command_line_and_the_environment(
    argv: list[str], environ: dict[str, str], workers: int
) -> None:
    assert count_workers(argv, environ) == workers


async def test_a_memory_store_does_not_serve_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app", "--workers", "2"])
    with pytest.raises(ConfigurationError, match="2 workers"):
        async with new_realtime():
            pytest.fail("it must not start")


async def test_a_memory_store_serves_several_workers_loudly_when_told_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app", "--workers", "2"])
    async with new_realtime(several_workers=True):
        pass
    assert [record.levelname for record in caplog.records if "2 workers" in record.message] == ["WARNING"]


def alone() -> Starlette:
    """What a process of its own serves."""
    return in_starlette(Realtime(authenticate=lambda token: token, secret=SECRET), "/realtime")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("command", "said_is"),
    [
        (
            ["-m", "uvicorn", "--factory", "tests.server.test_mounting:alone", "--workers", "2", "--port", "0"],
            "2 workers",
        ),
        (["tests/server/many.py"], "several workers"),
    ],
    ids=["on the command line", "in the program"],
)
async def test_real_workers_fail_loudly(command: list[str], said_is: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env=environ, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(30):
            while "Application startup failed. Exiting." not in said:
                line = await process.stdout.readline()
                assert line, said
                said += line.decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
    assert f"{said_is}, and a MemoryStore belongs to one" in said
    assert "Run one worker" in said


async def test_one_real_worker_serves() -> None:
    async with serve_process("tests.server.test_mounting:alone", "--factory") as server, dial(server) as peer:
        assert (await peer.auth("alice"))["user"] == "alice"


# --- stopping ---------------------------------------------------------------------------------------------------------


async def test_a_stop_tells_clients_when_to_come_back() -> None:
    realtime = new_realtime()
    async with AsyncExitStack() as stack:
        peer = None
        async with realtime:
            app = Starlette(routes=[Mount("/realtime", realtime)])
            server = await stack.enter_async_context(serve(app))
            peer = await stack.enter_async_context(chatting(server, "/realtime"))
        assert (await peer.expect("reconnect"))["reason"] == "draining"
        code, reason = await peer.closed()
        assert (code, reason.partition(";")[0]) == (1012, "draining")
        assert float(reason.partition(";")[2]) > 0
        answer = await handshake(server)
        assert answer.status in (500, 503)
