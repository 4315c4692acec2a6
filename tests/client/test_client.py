"""The client as an application uses it: tokens, sending, the end, addresses, options, links of another kind."""

import asyncio
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from starlette_realtime import (
    ConfigurationError,
    ConnectionClosed,
    RealtimeError,
    Refused,
)
from starlette_realtime.client import (
    Closed,
    Event,
    Room,
    StateChange,
    TokenError,
    Uncertain,
    connect,
    refused,
)
from starlette_realtime.client.links import socket_url
from starlette_realtime.messages import NULL
from starlette_realtime.messages import Event as Frame
from starlette_realtime.testing import Leaks, settle
from tests.client.site import Site, Text, reported, some

# --- tokens ---------------------------------------------------------------------------------------------------------


async def test_tokens_are_renewed_before_they_expire(site: Site) -> None:
    async with site.client() as client:
        await client.wait_online()
        first = client.connection
        await site.clock.advance(3_600.0)
        assert client.connection == first, "the connection lives on"
        assert len(site.asked) >= 6
        await client.refresh()


async def test_a_string_ends_the_client_when_it_expires(site: Site) -> None:
    async with site.client(token=site.token()) as client:
        await client.wait_online()
        await site.clock.advance(700.0)
        assert client.closed is not None
        assert client.closed.code == 4401


async def test_an_end_that_is_told_again_and_again_holds_on_to_nothing(site: Site) -> None:
    async with site.client(token=site.token()) as client:
        room = await client.join("chat:1")
        await site.clock.advance(700.0)

        async def depth(call: Callable[[], Any]) -> int:
            with pytest.raises(Closed) as closed:
                await call()
            return len(list(traceback.walk_tb(closed.value.__traceback__)))

        calls = (
            lambda: client.send("event"),
            lambda: room.send("event"),
            lambda: client.join("chat:2"),
            lambda: client.wait_online(),
            lambda: anext(aiter(room)),
        )
        for call in calls:
            depths = {await depth(call) for _ in range(20)}
            assert max(depths) < 10


async def test_a_plain_function_runs_in_a_thread(site: Site) -> None:
    threads: list[int] = []

    def token() -> str:
        threads.append(threading.get_ident())
        return site.token()

    async with asyncio.timeout(5.0), site.client(token=token) as client:
        await client.wait_online()
    assert threads[0] != threading.get_ident()


async def test_a_plain_function_may_return_an_awaitable(site: Site) -> None:
    async with asyncio.timeout(5.0), site.client(token=lambda: site.fresh()) as client:
        await client.wait_online()


@pytest.mark.parametrize("fault", ["raises", "hangs", "returns bytes"])
async def test_a_token_function_that_fails_is_told_and_asked_again(site: Site, fault: str) -> None:
    errors: list[RealtimeError] = []
    calls = 0

    async def token() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return site.token()
        if fault == "raises":
            raise ValueError("down")
        if fault == "hangs":
            await asyncio.Event().wait()
        return b"token"

    client = site.client(token=token)
    client.on_error(errors.append)
    async with client:
        await site.clock.until(lambda: client.state == "online")
    (error,) = errors
    assert isinstance(error, TokenError)
    cause = {"raises": ValueError, "hangs": TimeoutError, "returns bytes": TypeError}[fault]
    assert isinstance(error.__cause__, cause)


# --- sending --------------------------------------------------------------------------------------------------------


async def test_twenty_messages_sent_offline_arrive_once_and_in_order(site: Site) -> None:
    site.link.cut()
    async with site.client() as client:
        room = client.join("chat:1")
        sent = [room.send("message", number) for number in range(20)]
        assert client.pending == 20
        await settle()
        site.link.restore()
        await site.clock.until(lambda: all(future.done() for future in sent))
        offsets = [(await future)["offset"] for future in sent]
        assert offsets == list(range(1, 21))
        assert [event.data for event in (await room.history(limit=20)).events] == [15, 16, 17, 18, 19]


async def test_a_send_that_is_cancelled_before_it_was_written_never_is(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        site.link.cut()
        await settle()
        sent = [asyncio.ensure_future(_send(room, number)) for number in range(3)]
        await settle()
        sent[1].cancel()
        await settle()
        site.link.restore()
        await site.clock.until(lambda: all(task.done() for task in sent))
        assert await some(room, 2) == [0, 2]


async def _send(room: Room, value: object) -> Any:
    return await room.send("message", value)


async def test_volatile_events_go_out_now_or_never(site: Site) -> None:
    async with site.client() as client:
        assert client.send_volatile("cursor", 1) is False
        room = await client.join("chat:1")
        assert room.send_volatile("message", 5) is True
        assert await some(room, 1) == [5]


# --- the end --------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_after_the_block_in_whatever_state_it_ends(site: Site) -> None:
    opened: list[asyncio.Event] = []

    class Hanging:
        async def __call__(self, url: str) -> Any:
            opened.append(asyncio.Event())
            await opened[-1].wait()

    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    async with Leaks(site.clock, within=0.0):
        async with site.client(opener=Hanging()) as client:
            await settle()
            assert opened
        async with site.client(token=hang):
            await settle()
        site.link.cut()
        async with site.client() as client:
            await settle()
            assert client.state == "waiting"
        site.link.restore()
    async with Leaks(site.clock, site.realtime):
        for _ in range(2):
            async with site.client() as client:
                room = await client.join("chat:1")
                room.on("message")(lambda event: asyncio.Event().wait())
                room.answer("question")(lambda event: asyncio.Event().wait())
                client.on("note")(print)
                await site.room.broadcast("message", 1)
                room.set_status("away")
                await settle()


async def test_close_fails_what_waits_and_says_goodbye(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        site.link.half_open()
        futures = [room.send("message", number) for number in range(2)]
        await settle()
        site.link.restore()
    with pytest.raises(Uncertain):
        await futures[0]
    with pytest.raises(Closed, match="the application has closed"):
        await futures[1]
    await settle()
    assert (await site.room.members()).total == 0, "a goodbye doesn't linger"
    await client.close()


async def test_a_connection_that_is_lost_lingers(site: Site) -> None:
    async with site.client() as client:
        await client.join("chat:1")
        assert client._core.dialer.link is not None
        client._core.dialer.link.end(1006, "silent")
        await settle()
        assert (await site.room.members()).total == 1


async def test_what_was_sent_last_goes_out_before_the_goodbye(site: Site) -> None:
    async with site.client() as other:
        reader = await other.join("chat:1")
        async with site.client() as client:
            room = await client.join("chat:1")
            room.send_volatile("message", "last words")
        assert await some(reader, 1) == ["last words"]


async def test_close_from_a_handler_is_obeyed(site: Site) -> None:
    done: list[str] = []
    async with Leaks(), site.client() as client:
        room = await client.join("chat:1")

        @room.on("message")
        async def message(event: Event[Any]) -> None:
            await client.close()
            done.append(client.state)

        await site.room.broadcast("message", 1)
        await site.clock.until(lambda: done)
        assert done == ["closed"]


async def test_a_client_is_entered_once_and_used_within(site: Site) -> None:
    client = site.client()
    with pytest.raises(ConfigurationError, match="async with"):
        client.join("chat:1")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        with pytest.raises(ConfigurationError, match="entered once"):
            await stack.enter_async_context(client)


async def test_handlers_may_be_given_before_the_client_is_entered(site: Site) -> None:
    heard: list[Any] = []
    client = site.client()

    @client.on("hello", type=Text)
    async def hello(event: Event[Text]) -> None:
        heard.append(event.data.text)

    async with client:
        await client.send("serve")
        await settle()
        assert heard == ["you"]


# --- addresses and options ------------------------------------------------------------------------------------------


def test_an_address_becomes_the_websocket_below_it() -> None:
    assert socket_url("https://a.example/realtime/") == "wss://a.example/realtime/ws"
    assert socket_url("http://a:8000/x?y=1#z") == "ws://a:8000/x/ws?y=1"
    assert socket_url("wss://a") == "wss://a/ws"
    for wrong in ("/realtime", "a.example/realtime", "ftp://a/realtime", ""):
        with pytest.raises(ConfigurationError, match=r"connect\(\) takes an address"):
            socket_url(wrong)


@pytest.mark.parametrize("options", [{"urls": []}, {"queue": 0}, {"inbox": 0}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        connect(**{"urls": "http://a/realtime", **options})


@pytest.mark.parametrize(
    ("status", "after", "code", "reason"),
    [
        (401, None, 4401, "unauthenticated"),
        (403, None, 4403, "forbidden"),
        (404, None, 4403, "not_found"),
        (429, "3", 4429, "rate_limited;3"),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", 1013, "unavailable"),
        (502, None, 1006, "http_502"),
    ],
)
def test_a_refused_handshake_means_a_close_code(status: int, after: str | None, code: int, reason: str) -> None:
    closed = refused(status, after)
    assert (closed.code, closed.reason) == (code, reason)


def test_the_library_is_needed_by_the_client_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, starlette_realtime, starlette_realtime.client; print('websockets' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'starlette-realtime\[client\]'"):
        connect("http://a/realtime")


def test_the_log_is_the_packages_own() -> None:
    from starlette_realtime.client import client

    assert client.logger is logging.getLogger("starlette_realtime.client")


# --- links of another kind, and what goes wrong with them ------------------------------------------------------------


class Broken:
    """A link that the test drives: what `recv` raises, or how long things take."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.closed: list[int] = []
        self.frames: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, url: str) -> "Broken":
        return self

    async def send(self, text: str) -> None:
        raise OSError("the cable")

    async def recv(self) -> str:
        if self.fault is not None:
            raise self.fault
        return await self.frames.get()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed.append(code)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(OSError("the cable"), "connection_lost"), (ConnectionClosed(4429, "rate_limited;3"), "rate_limited")],
)
async def test_a_link_that_fails_is_closed_and_followed_by_another(site: Site, fault: Exception, reason: str) -> None:
    states: list[StateChange] = []
    broken = Broken(fault)
    client = site.client(opener=broken)
    client.on_state(states.append)
    async with client:
        await settle()
        assert client.state == "waiting"
        assert broken.closed == [4000], "no goodbye"
    assert [change.reason for change in states if change.state == "waiting"] == [reason]


async def test_a_bug_in_a_link_is_reported_and_the_link_given_up(site: Site) -> None:
    async with reported() as errors, site.client(opener=Broken(ZeroDivisionError("bug"))) as client:
        await settle()
        assert [type(error) for error in errors] == [ZeroDivisionError]
        assert client.state == "waiting"


async def test_a_goodbye_that_takes_too_long_is_cut_short(site: Site) -> None:
    class Slow(Broken):
        async def send(self, text: str) -> None:
            pass

        async def close(self, code: int = 1000, reason: str = "") -> None:
            await asyncio.Event().wait()

    async with Leaks(), asyncio.timeout(5.0):
        client = site.client(opener=Slow())
        await client.__aenter__()
        await settle()
        closing = asyncio.ensure_future(client.close())
        await settle()
        await site.clock.advance(6.1)
        await closing


async def test_the_users_own_room_is_the_client_itself(site: Site) -> None:
    async with site.client() as client:
        with pytest.raises(ConfigurationError, match="iterate over the client"):
            client.join("user:ann")


async def test_what_no_handler_takes_of_losses_and_ends_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        room.on("message")(lambda event: None)
        await site.relink(client, message=range(9))
        assert "events of chat:1 were lost (trimmed)" in caplog.text
        await site.room.kick(user="ann", code="banned")
        await settle()
        assert "the server ended a room (banned)" in caplog.text
        assert isinstance(room.error, Refused)
        assert room.error.code == "banned"
        assert room.stale is False


async def test_an_answer_to_a_send_that_was_cancelled_under_way_is_for_nobody(site: Site) -> None:
    async with site.client() as client, reported() as errors:
        room = await client.join("chat:1")
        sent = room.send("message", 1)
        sent.cancel()
        assert await some(room, 1) == [1], "it was written already"
        await settle()
        assert errors == []
        assert client.pending == 0


async def test_a_status_that_nobody_waits_for_fails_silently(site: Site) -> None:
    async with reported() as errors:
        async with site.client() as client:
            room = await client.join("chat:1")
            site.link.half_open()
            room.set_status("away")
            room.set_status("online").cancel()
        site.link.restore()
        await settle()
        assert errors == []


async def test_a_questions_room_must_be_ours(site: Site) -> None:
    async with site.client() as client:
        await client.wait_online()
        answered: list[Any] = []
        client._port.question(
            None, Frame(event="q", data=NULL, room="elsewhere", id=1), lambda *it: answered.append(it)
        )
        assert answered[0][1].code == "unknown_event"
