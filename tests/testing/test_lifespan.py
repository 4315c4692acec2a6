"""An application's lifespan runs around the block, and says what went wrong."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from starlette_realtime import ConfigurationError
from starlette_realtime.testing import FakeClock, get, running
from starlette_realtime.types import Receive, Scope, Send
from tests.testing.support import make_realtime


async def test_it_starts_and_stops_in_one_task_and_leaves_its_state_to_requests() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, list[str]]]:
        async with asyncio.timeout(60):  # which must be left by the task that entered it
            events.append("started")
            yield {"events": events}
            events.append("stopped")

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse(request.state.events)

    original = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)
    async with running(original) as app:
        assert (await get(app, "/")).json() == ["started"]
    assert events == ["started", "stopped"]


@pytest.mark.parametrize("moment", ["start", "stop"])
async def test_what_it_raises_is_raised(moment: str) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if moment == "start":
            raise ZeroDivisionError
        yield
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with running(Starlette(lifespan=lifespan)):
            assert moment == "stop"


async def test_a_failure_without_an_exception_is_told_by_its_message() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    for app, complaint in ((fails, "no database"), (silent, "without a word")):
        with pytest.raises(RuntimeError, match=complaint):
            async with running(app):
                pytest.fail("it must not get here")


async def test_an_application_that_is_no_lifespans_is_told_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"lifespan=realtime\.lifespan"):
        async with running(make_realtime()):
            pytest.fail("it must not get here")


async def test_one_that_takes_too_long_is_ended() -> None:
    clock, ended = FakeClock(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            await clock.sleep(1.0)
            yield
        finally:
            ended.set()

    with pytest.raises(TimeoutError, match=r"did not start within 0\.02 s; a fake clock stands still"):
        async with running(Starlette(lifespan=lifespan), timeout=0.02):
            pytest.fail("it must not get here")
    assert ended.is_set()


async def test_one_that_waits_for_a_fake_clock_gets_its_time() -> None:
    clock = FakeClock()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await clock.sleep(1.0)
        yield
        await clock.sleep(2.0)

    async with running(Starlette(lifespan=lifespan), clock=clock):
        assert clock.now() == 1_001.0
    assert clock.now() == 1_003.0
