"""The tracker sees connections from the accept to the end, and tells who is there."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from starlette_realtime import ConfigurationError
from starlette_realtime.presence import PresenceHandle, PresenceTracker
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle
from tests.presence.support import clock_of, edit, present, processes, topic_of, user_of


async def test_who_is_accepted_is_present_until_they_go() -> None:
    async with processes(1) as (process,):
        async with process.peer("ann") as ann:
            topic, connection = await present(ann)
            assert topic == "plan"
            snapshot = await process.tracker.members("plan")
            assert (snapshot.total, snapshot.complete) == (1, True)
            (member,) = snapshot.members
            assert (member.connection, member.user, member.status) == (connection, "ann", "online")
            assert member.since == int(clock_of(process).time() * 1000)
            assert await process.tracker.status("plan", "ann") == "online"
            assert await process.tracker.status("plan", "bob") == "offline"
            assert (await process.tracker.members("other")).total == 0
        await settle()
        assert await process.who() == {}
        assert process.told == ["+ann plan", "-ann plan"]


async def test_the_endpoint_finds_itself_present_as_soon_as_it_has_accepted() -> None:
    seen: list[Any] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        seen.append(await tracker.status("plan", "ann"))
        await websocket.close()

    tracker = PresenceTracker(topic=topic_of, user=user_of, clock=FakeClock())
    app = Starlette(routes=[WebSocketRoute("/{document}", endpoint, middleware=[Middleware(tracker.wrap)])])
    async with Peer(app, "/plan?user=ann") as peer:
        await peer.wait_closed()
    assert seen == ["online"]


async def test_a_refused_handshake_is_never_seen() -> None:
    async with processes(1) as (process,):
        before = await process.tracker.members("plan")
        with pytest.raises(Rejected):
            await process.peer("ann", more="&refuse=1").connect()
        assert await process.tracker.members("plan") == before
        assert process.told == []


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_client_that_says_goodbye_leaves_at_once(code: int) -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.disconnect(code)
        await settle()
        assert await process.who() == {}


@pytest.mark.parametrize("code", [1005, 1006, 1012, 4401])
async def test_a_connection_that_breaks_lingers(code: int) -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.disconnect(code)
        await clock_of(process).advance(4.9)
        assert await process.who() == {"ann": "online 1"}
        assert process.tracker.gauges()["lingering"] == 1
        await clock_of(process).advance(0.2)
        assert await process.who() == {}
        assert process.told == ["+ann plan", "-ann plan"]


@pytest.mark.parametrize("command", [{"close": 1000}, {"close": 4403}, {"return": 1}])
async def test_who_is_sent_away_by_the_application_leaves_at_once(command: dict[str, int]) -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.send(command)
        await peer.ended()
        await settle()
        assert await process.who() == {}


async def test_who_was_cut_off_by_a_crash_lingers() -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.send({"crash": 1})
        with pytest.raises(RuntimeError, match="crashed"):
            await peer.ended()
        await settle()
        assert await process.who() == {"ann": "online 1"}


async def test_who_is_cut_off_by_a_cancellation_lingers() -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.cancel()
        await settle()
        assert await process.who() == {"ann": "online 1"}


async def test_an_endpoint_that_only_sends_notices_by_its_failure_to() -> None:
    sent = asyncio.Event()

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await sent.wait()
        try:
            await send({"type": "websocket.send", "text": "tick"})
        except OSError:
            return

    clock = FakeClock()
    tracker = PresenceTracker(endpoint, topic=lambda conn: "ticks", user=user_of, clock=clock)
    peer = Peer(tracker, "/?user=ann")
    await peer.connect()
    peer.leave(1006)
    sent.set()
    await peer.ended()
    assert await tracker.status("ticks", "ann") == "online"
    await clock.advance(6.0)
    assert await tracker.status("ticks", "ann") == "offline"


async def test_who_comes_back_within_the_linger_was_never_gone() -> None:
    async with processes(1) as (process,):
        first = process.peer("ann")
        await first.connect()
        _, connection = await present(first)
        await first.lose()
        before = await process.tracker.members("plan")
        await clock_of(process).advance(4.0)
        async with process.peer("ann") as second:
            assert (await present(second))[1] == connection
            assert await process.tracker.members("plan") == before  # not even a change of the sequence
            await clock_of(process).advance(60.0)
            assert await process.who() == {"ann": "online 1"}
        await settle()
        assert process.told == ["+ann plan", "-ann plan"]


async def test_each_of_several_broken_connections_is_taken_over_once() -> None:
    async with processes(1) as (process,):
        peers = [process.peer("ann") for _ in range(3)]
        for peer in peers:
            await peer.connect()
            await present(peer)
        for peer in peers:
            await peer.lose()
        again = [process.peer("ann") for _ in range(2)]
        names = []
        for peer in again:
            await peer.connect()
            names.append((await present(peer))[1])
        assert len(set(names)) == 2
        assert await process.who() == {"ann": "online 3"}
        await clock_of(process).advance(6.0)
        assert await process.who() == {"ann": "online 2"}
        for peer in again:
            await peer.disconnect()
        await settle()
        assert process.told == ["+ann plan", "-ann plan"]


async def test_a_user_who_lingers_in_one_topic_comes_to_another_anew() -> None:
    async with processes(1) as (process,):
        first = process.peer("ann")
        await first.connect()
        await present(first)
        await first.lose()
        async with process.peer("ann", "other") as second:
            await present(second)
            await clock_of(process).advance(6.0)
        await settle()
        assert process.told == ["+ann plan", "+ann other", "-ann plan", "-ann other"]


async def test_anonymous_peers_are_counted_by_connection_and_do_not_linger() -> None:
    async with processes(1) as (process,):
        peers = [process.peer() for _ in range(2)]
        for peer in peers:
            await peer.connect()
            await present(peer)
        users = await process.tracker.users("plan")
        assert [(user.user, len(user.connections)) for user in users] == [(None, 1), (None, 1)]
        for peer in peers:
            await peer.lose()
        await settle()
        assert (await process.tracker.members("plan")).total == 0
        assert process.told == ["+None plan"] * 2 + ["-None plan"] * 2


async def test_without_a_linger_nobody_lingers() -> None:
    async with processes(1, linger=0.0) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.lose()
        await settle()
        assert await process.who() == {}


async def test_a_user_is_away_when_all_their_connections_are() -> None:
    async with processes(1) as (process,), process.peer("ann") as one, process.peer("ann") as two:
        for peer in (one, two):
            await present(peer)
        await one.send({"status": "away"})
        assert await one.receive_json() == "set"
        assert await process.tracker.status("plan", "ann") == "online"
        await two.send({"status": "away", "meta": {"at": 3}})
        assert await two.receive_json() == "set"
        assert await process.tracker.status("plan", "ann") == "away"
        (ann,) = await process.tracker.users("plan")
        assert [each.meta for each in ann.connections] == [None, {"at": 3}]
        await two.send({"meta": None, "status": "online"})
        assert await two.receive_json() == "set"
        (ann,) = await process.tracker.users("plan")
        assert (ann.status, [each.meta for each in ann.connections]) == ("online", [None, None])
        assert process.told == ["+ann plan"]


async def test_metadata_comes_from_the_handshake_and_a_status_before_the_accept_is_the_first() -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.scope["presence"].set(status="away")
        assert websocket.scope["presence"].connection is None
        await websocket.accept()
        assert await websocket.receive_text() == "go"
        await websocket.scope["presence"].set(meta=["mine"])
        await websocket.send_text("done")
        assert await websocket.receive_text() == "go"
        await websocket.close()
        await websocket.scope["presence"].set(status="online")  # too late, and no harm

    tracker = PresenceTracker(topic=topic_of, user=user_of, meta=lambda conn: dict(conn.query_params))
    app = Starlette(routes=[WebSocketRoute("/{document}", endpoint, middleware=[Middleware(tracker.wrap)])])
    async with Peer(app, "/plan?user=ann") as peer:
        await settle()
        (member,) = (await tracker.members("plan")).members
        assert (member.status, member.meta) == ("away", {"user": "ann"})
        await peer.send("go")
        assert await peer.receive() == "done"
        (member,) = (await tracker.members("plan")).members
        assert (member.status, member.meta) == ("away", ["mine"])
        await peer.send("go")
        await peer.ended()
    assert (await tracker.members("plan")).total == 0
    assert tracker.gauges()["present"] == 0


@pytest.mark.parametrize("wrong", [{"status": "offline"}, {"meta": "x" * 5_000}, {"meta": object()}])
async def test_what_cannot_be_shown_is_refused(wrong: dict[str, Any]) -> None:
    async with processes(1) as (process,):
        with pytest.raises((ValueError, TypeError)):
            await PresenceHandle(process.tracker._visits).set(**wrong)


async def test_a_snapshot_has_at_most_what_was_asked_for_and_says_so() -> None:
    async with processes(1, shown=2) as (process,):
        peers = [process.peer(name) for name in ("ann", "bob", "cat")]
        for peer in peers:
            await peer.connect()
            await present(peer)
        snapshot = await process.tracker.members("plan")
        assert [member.user for member in snapshot.members] == ["ann", "bob"]
        assert (snapshot.total, snapshot.complete) == (3, False)
        assert (await process.tracker.members("plan", limit=3)).complete
        assert (await process.tracker.members("plan", limit=0)).members == ()
        for peer in peers:
            await peer.disconnect()


async def test_a_connection_without_a_topic_is_served_and_not_tracked() -> None:
    async with processes(1, topic=lambda conn: None) as (process,), process.peer("ann") as peer:
        assert await present(peer) == [None, None]
        await peer.send({"status": "away"})
        assert await peer.receive_json() == "set"
        assert process.tracker.gauges()["present"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"topic": lambda conn: ""},
        {"topic": lambda conn: "x" * 129},
        {"user": lambda conn: "a\nb"},
        {"meta": lambda conn: "x" * 5_000},
    ],
)
async def test_what_cannot_be_told_is_logged_and_the_connection_is_served(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with processes(1, **options) as (process,), process.peer("ann") as peer:
        assert await present(peer) == [None, None]
    assert "isn't tracked" in caplog.text


@pytest.mark.parametrize("options", [{"topic": lambda conn: 42}, {"user": lambda conn: b"ann"}])
async def test_an_answer_of_the_wrong_type_is_the_programs_mistake(options: dict[str, Any]) -> None:
    async with processes(1, **options) as (process,):
        with pytest.raises(ConfigurationError, match="answers with a string or None"):
            await process.peer("ann").connect()


async def test_what_cannot_work_is_told_when_it_is_made() -> None:
    async def later(conn: HTTPConnection) -> str:
        return "x"

    wrong: list[Any] = ["document", later]
    for topic in wrong:
        with pytest.raises(ConfigurationError, match="plain function"):
            PresenceTracker(topic=topic)
    tracker = PresenceTracker(topic=topic_of)
    with pytest.raises(ConfigurationError, match=r"Middleware\(tracker.wrap\)"):
        await Peer(tracker, "/").connect()
    with pytest.raises(ValueError, match="1 to 128 characters"):
        await tracker.members("")
    with pytest.raises(ValueError, match="1 to 128 characters"):
        tracker.watch("x" * 129)


def test_requests_and_the_lifespan_pass_through() -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse(str("presence" in request.scope))

    tracker = PresenceTracker(Starlette(routes=[Route("/", hello)]), topic=topic_of)
    with TestClient(tracker) as client:
        assert client.get("/").text == "False"


async def test_what_is_wrapped_twice_is_counted_once() -> None:
    tracker = PresenceTracker(topic=topic_of, user=user_of, clock=FakeClock())
    route = WebSocketRoute("/{document}", edit, middleware=[Middleware(tracker.wrap)])
    app = tracker.wrap(Starlette(routes=[route]))
    async with Peer(app, "/plan?user=ann") as ann:
        await present(ann)
        assert (await tracker.members("plan")).total == 1


async def test_two_trackers_around_one_connection_don_t_disturb_each_other() -> None:
    site = PresenceTracker(topic=lambda conn: "site", user=user_of)
    page = PresenceTracker(topic=topic_of, user=user_of)
    route = WebSocketRoute("/{document}", edit, middleware=[Middleware(site.wrap), Middleware(page.wrap)])
    async with Peer(Starlette(routes=[route]), "/plan?user=ann") as ann:
        assert (await present(ann))[0] == "plan"
        assert await site.status("site", "ann") == await page.status("plan", "ann") == "online"
    await settle()
    assert await site.status("site", "ann") == await page.status("plan", "ann") == "offline"


async def test_topics_do_not_meet_those_of_rooms() -> None:
    async with processes(1) as (process,), process.peer("ann", "chat:1") as ann:
        await present(ann)
        assert (await process.store.members("chat:1", limit=9)).total == 0


async def test_a_callback_that_fails_or_blocks_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with processes(1) as (process,):
        called: list[str] = []

        @process.tracker.on_join
        def broken(topic: str, who: Any) -> None:
            raise LookupError("no such row")

        @process.tracker.on_join
        async def stuck(topic: str, who: Any) -> None:
            await asyncio.Event().wait()

        @process.tracker.on_leave
        def left(topic: str, who: Any) -> None:
            called.append(who.user)

        ann = process.peer("ann")
        await ann.connect()
        await present(ann)
        await ann.disconnect()
        async with process.peer("bob") as bob:
            await present(bob)
        assert process.told == ["+ann plan", "+bob plan"]  # the departures wait
        async with asyncio.timeout(10.0):
            while sorted(called) != ["ann", "bob"]:  # the sync ones run in threads, in either order
                await asyncio.sleep(0.001)
                await clock_of(process).advance(1.0)
    assert "no such row" in caplog.text
    assert "TimeoutError" in caplog.text


async def test_who_comes_and_goes_while_a_callback_runs_is_told_in_order() -> None:
    async with processes(1) as (process,):
        gate = asyncio.Event()

        @process.tracker.on_join
        async def slow(topic: str, who: Any) -> None:
            await gate.wait()
            process.told.append("row written")

        for _ in range(2):
            peer = process.peer("ann")
            await peer.connect()
            await present(peer)
            await peer.disconnect()
        assert process.tracker.gauges()["telling"] == 4
        gate.set()
        await settle()
        assert process.told == ["+ann plan", "row written", "-ann plan"] * 2


async def test_so_much_may_wait_to_be_told_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("starlette_realtime.presence.callbacks.WAITING", 1)
    async with processes(1) as (process,):
        gate = asyncio.Event()

        @process.tracker.on_join
        async def slow(topic: str, who: Any) -> None:
            await gate.wait()

        async with process.peer("ann") as ann, process.peer("bob") as bob:
            for peer in (ann, bob):
                await present(peer)
            gate.set()
            await settle()
            assert process.told == ["+ann plan"]
    assert "this one isn't told" in caplog.text


async def test_so_many_linger_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlette_realtime.presence.visits.LINGERING", 2)
    async with processes(1) as (process,):
        for name in ("ann", "bob", "cat"):
            peer = process.peer(name)
            await peer.connect()
            await present(peer)
            await peer.lose()
        await settle()
        assert set(await process.who()) == {"bob", "cat"}
        assert process.told[-1] == "-ann plan"


async def test_closing_lets_nobody_linger_and_tells_it() -> None:
    async with processes(1) as (process,):
        peer = process.peer("ann")
        await peer.connect()
        await present(peer)
        await peer.lose()
    assert process.told == ["+ann plan", "-ann plan"]


async def test_closing_gives_up_a_callback_that_never_ends(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    tracker = PresenceTracker(topic=topic_of, user=user_of, clock=clock)

    @tracker.on_join
    async def stuck(topic: str, who: Any) -> None:
        await asyncio.Event().wait()

    app = Starlette(routes=[WebSocketRoute("/{document}", edit, middleware=[Middleware(tracker.wrap)])])
    await tracker.__aenter__()
    for _ in range(3):
        async with Peer(app, "/plan?user=ann") as ann:
            await present(ann)
    await clock.advance(10.0)
    closing = asyncio.ensure_future(tracker.__aexit__(None, None, None))
    await clock.advance(29.0)
    assert not closing.done()
    await clock.advance(2.0)
    await closing
    assert "not told of any more" in caplog.text
    assert not any(tracker.gauges().values())


async def test_a_tracker_may_be_entered_several_times() -> None:
    async with processes(1) as (process,):
        async with process.tracker:
            peer = process.peer("ann")
            await peer.connect()
            await present(peer)
            await peer.lose()
        assert await process.who() == {"ann": "online 1"}


@pytest.mark.parametrize("workers", ["1", "4"])
async def test_several_workers_without_a_shared_store_are_warned_of_once(
    workers: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["uvicorn", "app:app", "--workers", workers])
    caplog.set_level(logging.WARNING)
    async with processes(1) as (process,):
        for _ in range(2):
            async with process.peer("ann") as ann:
                await present(ann)
    assert caplog.text.count("several workers") == (workers == "4")


async def test_who_is_gone_before_the_accept_has_gone_out_is_never_present() -> None:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        accepting = asyncio.ensure_future(send({"type": "websocket.accept"}))
        assert (await receive())["type"] == "websocket.disconnect"
        gate.set()
        await accepting

    gate = asyncio.Event()
    tracker = PresenceTracker(endpoint, topic=lambda conn: "plan", user=user_of, clock=FakeClock())

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async def late(message: Any) -> None:
            await send(message)
            await gate.wait()

        await tracker(scope, receive, late)

    peer = Peer(slow, "/?user=ann")
    await peer.connect()
    peer.leave()
    await peer.ended()
    assert (await tracker.members("plan")).seq == 0
