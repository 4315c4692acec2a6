"""`first_frame=True`: a WebSocket without credentials sends them first, and its application hears nothing of that."""

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime import AuthGuard, ConfigurationError, Forbidden, SignedTokens, Unavailable
from starlette_realtime.auth.firstframe import MAX_FRAME
from starlette_realtime.store import MemoryStore
from starlette_realtime.testing import Closed, FakeClock, Peer, Rejected, settle
from starlette_realtime.types import Receive, Scope, Send
from tests.auth.support import HOME, application, bearer, refusal

calls: list[str] = []


async def echo(websocket: WebSocket) -> None:
    """Accept as applications do, and echo."""
    calls.append(websocket.user.display_name)
    await websocket.accept(subprotocol="chosen.late", headers=[(b"x-late", b"1")])
    await websocket.send_json({"user": websocket.user.display_name, "subprotocols": websocket.scope["subprotocols"]})
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@requires(["authenticated", "admin"])
async def administration(websocket: WebSocket) -> None:
    """For a scope that most don't have."""
    await websocket.accept()
    await websocket.send_text("welcome")


async def close(websocket: WebSocket) -> None:
    """Close before the accept, as the query wants it."""
    await websocket.close(int(websocket.query_params["code"]), websocket.query_params.get("reason"))


async def deny(websocket: WebSocket) -> None:
    """Refuse with a response of its own, as the query wants it."""
    await websocket.send_denial_response(Response("no", int(websocket.query_params["status"])))


async def fail(websocket: WebSocket) -> None:
    """Starlette turns it into a response."""
    raise HTTPException(401)


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    """Speaks before it accepts, which is an error of the program."""
    await receive()
    await send({"type": "websocket.send", "text": "early"})


def guarded(clock: FakeClock, tokens: SignedTokens, **options: Any) -> Starlette:
    """An application whose WebSockets authenticate by their first frame."""
    options = {"authenticate": tokens, "first_frame": True, "clock": clock, **options}
    routes = [
        WebSocketRoute("/ws", echo),
        WebSocketRoute("/administration", administration),
        WebSocketRoute("/close", close),
        WebSocketRoute("/deny", deny),
        WebSocketRoute("/fail", fail),
    ]
    return Starlette(routes=routes, middleware=[Middleware(AuthGuard, **options)])


@pytest.fixture(autouse=True)
def forget_calls() -> None:
    calls.clear()


async def ends(peer: Peer) -> tuple[list[Any], Closed]:
    """What the peer is told, and how it is closed."""
    closed = await peer.wait_closed()
    await peer.ended()
    return [json.loads(frame) for frame in peer.waiting()], closed


def error(code: str, message: str) -> dict[str, str]:
    """The frame that goes before a close."""
    return {"type": "error", "code": code, "message": message}


# --- who is let in ----------------------------------------------------------------------------------------------------


async def test_the_first_frame_authenticates_and_the_application_is_called_then(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    async with Peer(guarded(clock, tokens), origin=HOME) as peer:
        assert peer.accepted
        await settle()
        assert calls == []
        await peer.send({"type": "auth", "id": 7, "token": tokens.issue("ada", expires_in=60.0)})
        assert await peer.receive_json() == {"type": "reply", "id": 7, "data": {"user": "ada", "expires_in": 60.0}}
        assert (await peer.receive_json())["user"] == "ada"
        await peer.send("hello")
        assert await peer.receive() == "hello"
        assert peer.subprotocol is None
    async with Peer(guarded(clock, tokens)) as peer:
        await peer.send({"type": "auth", "id": 8, "token": tokens.issue("ada", expires_in=0.25)})
        assert (await peer.receive_json())["data"] == {"user": "ada", "expires_in": 0.25}
    assert clock.timers == 0


async def test_without_an_id_there_is_no_reply_and_the_client_need_not_wait(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    async with Peer(guarded(clock, tokens)) as peer:
        await peer.send({"type": "auth", "token": tokens.issue("ada"), "session": "s", "since": {}})
        await peer.send("at once")
        assert (await peer.receive_json())["user"] == "ada"
        assert await peer.receive() == "at once"


async def test_who_brings_credentials_sends_no_first_frame(clock: FakeClock, tokens: SignedTokens) -> None:
    app = guarded(clock, tokens)
    async with Peer(app, headers=bearer(tokens.issue("ada"))) as peer:
        assert peer.subprotocol == "chosen.late", "the application accepts by itself"
        assert (await peer.receive_json())["user"] == "ada"
    with pytest.raises(Rejected) as rejected:
        await Peer(app, headers=bearer("nonsense")).connect()
    assert rejected.value.status == 401


async def test_http_is_served_as_ever(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, first_frame=True, clock=clock)
    assert await refusal(app) == (401, "unauthenticated")


async def test_of_the_guards_subprotocols_the_first_offered_is_chosen(clock: FakeClock, tokens: SignedTokens) -> None:
    app = guarded(clock, tokens, subprotocols=["v2", "v1"])
    for offered, chosen in ((["v1", "v2"], "v2"), (["v1"], "v1"), (["v3"], None), ([], None)):
        async with Peer(app, subprotocols=offered) as peer:
            assert peer.subprotocol == chosen
            await peer.send({"type": "auth", "token": tokens.issue("ada")})
            assert (await peer.receive_json())["subprotocols"] == ([chosen] if chosen else [])


async def test_the_anonymous_say_that_they_bring_nothing(clock: FakeClock, tokens: SignedTokens) -> None:
    app = guarded(clock, tokens, anonymous=True)
    for frame in ({"type": "auth", "id": 1}, {"type": "auth", "id": 1, "token": None}):
        async with Peer(app) as peer:
            await peer.send(frame)
            assert (await peer.receive_json())["data"] == {"user": None, "expires_in": None}
            assert (await peer.receive_json())["user"] == ""
    async with Peer(app) as peer:
        await peer.send({"type": "auth", "token": "nonsense"})
        assert (await ends(peer))[1].code == 4401, "who brings something brings something valid"
    async with Peer(app) as peer:
        await clock.advance(5.0)
        assert (await ends(peer))[1].code == 4404


# --- who is not -------------------------------------------------------------------------------------------------------


async def test_who_says_nothing_in_time_is_closed(clock: FakeClock, tokens: SignedTokens) -> None:
    for seconds, options in ((5.0, {}), (0.5, {"auth_timeout": 0.5})):
        async with Peer(guarded(clock, tokens, **options)) as peer:
            await clock.advance(seconds - 0.1)
            assert peer.closed is None
            await clock.advance(0.1)
            frames, closed = await ends(peer)
            assert (closed.code, closed.reason) == (4404, "no_auth")
            assert [frame["code"] for frame in frames] == ["no_auth"]
    assert calls == []
    assert clock.timers == 0


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "hello",
        "[]",
        "null",
        '"auth"',
        "{}",
        '{"type": "join", "room": "chat:1"}',
        '{"type": "Auth", "token": "t"}',
        '{"type": "auth", "token": 7}',
        '{"type": "auth", "token": ["t"]}',
        '{"type": "auth", "token": "t", "id": "1"}',
        '{"type": "auth", "token": "t", "id": 1.5}',
        '{"type": "auth", "token": "t", "id": 9007199254740993}',
        '{"type": "auth", "token": "t", "x": NaN}',
        '{"type": "auth", "token": "t"} {}',
        '{"type": "auth", "token": "\\ud800"}',
        '{"type": "auth", "token": "\ud800"}',
        '{"type": "auth", "token": "t", "deep": ' + "[" * 40 + "]" * 40 + "}",
        '{"type": "auth", "token": "' + "x" * MAX_FRAME + '"}',
        '{"type": "auth", "token": "' + "é" * (MAX_FRAME // 2) + '"}',
        b'{"type": "auth", "token": "t"}',
    ],
    ids=lambda frame: str(frame)[:40].encode("ascii", "replace").decode(),
)
async def test_a_bad_frame_is_the_last(clock: FakeClock, tokens: SignedTokens, frame: str | bytes) -> None:
    async with Peer(guarded(clock, tokens)) as peer:
        await peer.send(frame)
        frames, closed = await ends(peer)
        assert (closed.code, closed.reason) == (4400, "bad_frame")
        assert [(frame["type"], frame["code"]) for frame in frames] == [("error", "bad_frame")]
        assert "xxx" not in json.dumps(frames), "nothing of it is repeated"
    assert calls == []
    assert clock.timers == 0


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b'{"type": "auth", "token": "t"}', "send text frames, not binary ones"),
        ('{"type": "join"}', 'the first frame is {"type": "auth", "token": "…"}'),
        ("x" * (MAX_FRAME + 1), f"the first frame has at most {MAX_FRAME} bytes"),
        ("hello", "not JSON"),
    ],
    ids=["binary", "another", "long", "text"],
)
async def test_a_bad_frame_is_told_what_is_wrong_with_it(
    clock: FakeClock, tokens: SignedTokens, frame: str | bytes, message: str
) -> None:
    async with Peer(guarded(clock, tokens)) as peer:
        await peer.send(frame)
        assert (await ends(peer))[0] == [error("bad_frame", message)]


async def test_a_bad_token_is_told_and_closed(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(echo_app, authenticate=tokens, first_frame=True, clock=clock)
    old, revoked = tokens.issue("ada", expires_in=1.0), tokens.issue("eve")
    await clock.advance(1.0)
    await guard.revoke_user("eve")
    for token, code, name, message in (
        ("nonsense", 4401, "unauthenticated", "the token is not valid"),
        ("", 4401, "unauthenticated", "the token is not valid"),
        (old, 4401, "expired", "the credentials have expired"),
        (revoked, 4450, "revoked", "the credentials were revoked"),
        (None, 4401, "unauthenticated", "send a token, or sign in first"),
    ):
        async with Peer(guard) as peer:
            await peer.send({"type": "auth", "id": 1, "token": token})
            frames, closed = await ends(peer)
            assert (closed.code, closed.reason) == (code, name)
            assert frames == [error(name, message)]
    assert calls == []


async def echo_app(scope: Scope, receive: Receive, send: Send) -> None:
    """The same without routes."""
    await WebSocketRoute("/ws", echo).handle(scope, receive, send)


async def test_who_is_forbidden_or_cannot_be_told_now_is_closed_so(clock: FakeClock, tokens: SignedTokens) -> None:
    async def check(token: str) -> str | None:
        if token == "banned":
            raise Forbidden("not you")
        if token == "away":
            raise Unavailable(retry_after=3.0)
        await clock.sleep(3600.0)
        return None

    app = guarded(clock, tokens, authenticate=check)
    for token, code, reason in (("banned", 4403, "forbidden"), ("away", 1013, "unavailable;3")):
        async with Peer(app) as peer:
            await peer.send({"type": "auth", "token": token})
            frames, closed = await ends(peer)
            assert (closed.code, closed.reason) == (code, reason)
            assert frames[0]["type"] == "error"
            assert frames[0].get("retry_after") == (3.0 if token == "away" else None)
    async with Peer(app) as peer:
        await peer.send({"type": "auth", "token": "slow"})
        await clock.advance(5.0)
        assert (await ends(peer))[1].code == 1013
    assert clock.timers == 0


async def test_another_origin_is_refused_before_any_frame(clock: FakeClock, tokens: SignedTokens) -> None:
    async with Peer(guarded(clock, tokens), origin="https://evil.example") as page:
        assert (await page.wait_closed()).code == 4403
        assert page.waiting() == []


# --- how the application refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/administration", 4403, "forbidden"),
        ("/nowhere", 4403, "forbidden"),
        ("/close?code=1000", 4403, "forbidden"),
        ("/close?code=4321&reason=mine", 4321, "mine"),
        ("/close?code=4321", 4321, ""),
        ("/close?code=4401", 4401, "unauthenticated"),
        ("/deny?status=401", 4401, "unauthenticated"),
        ("/deny?status=429", 4429, "rate_limited"),
        ("/deny?status=503", 1013, "unavailable"),
        ("/deny?status=404", 4403, "forbidden"),
        ("/fail", 4401, "unauthenticated"),
    ],
)
async def test_what_the_application_says_instead_of_accepting_is_a_close(
    clock: FakeClock, tokens: SignedTokens, path: str, code: int, reason: str
) -> None:
    async with Peer(guarded(clock, tokens), path) as peer:
        await peer.send({"type": "auth", "token": tokens.issue("ada")})
        frames, closed = await ends(peer)
        assert (closed.code, closed.reason) == (code, reason)
        assert frames == []
    assert clock.timers == 0


async def test_an_application_that_speaks_before_it_accepts_hears_of_it(clock: FakeClock, tokens: SignedTokens) -> None:
    peer = Peer(AuthGuard(early, authenticate=tokens, first_frame=True, clock=clock))
    await peer.connect()
    await peer.send({"type": "auth", "token": tokens.issue("ada")})
    with pytest.raises(RuntimeError, match=r"before websocket\.accept"):
        await peer.ended()


async def test_a_close_without_a_code_refuses_what_is_not_accepted_yet(clock: FakeClock, tokens: SignedTokens) -> None:
    async def shut(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async with Peer(AuthGuard(shut, authenticate=tokens, first_frame=True, clock=clock)) as peer:
        await peer.send({"type": "auth", "token": tokens.issue("ada")})
        closed = (await ends(peer))[1]
        assert (closed.code, closed.reason) == (4403, "forbidden")


async def test_an_application_that_speaks_after_it_has_refused_hears_of_it(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    async def goes_on(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4321})
        await send({"type": "websocket.send", "text": "and yet"})

    peer = Peer(AuthGuard(goes_on, authenticate=tokens, first_frame=True, clock=clock))
    await peer.connect()
    await peer.send({"type": "auth", "token": tokens.issue("ada")})
    with pytest.raises(RuntimeError, match=r"before websocket\.accept"):
        await peer.ended()


async def test_scopes_open_what_they_are_for(clock: FakeClock, tokens: SignedTokens) -> None:
    async with Peer(guarded(clock, tokens), "/administration") as peer:
        await peer.send({"type": "auth", "token": tokens.issue("ada", claims={"scopes": ["admin"]})})
        assert await peer.receive() == "welcome"


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_it_ends_with_the_credentials(clock: FakeClock, tokens: SignedTokens) -> None:
    store = MemoryStore(clock=clock)
    app = guarded(clock, tokens, store=store)
    guard = AuthGuard(authenticate=tokens, store=store, clock=clock)
    for code in (4401, 4450):
        async with Peer(app) as peer:
            await peer.send({"type": "auth", "token": tokens.issue("ada", expires_in=30.0)})
            await peer.receive()
            if code == 4450:
                await guard.revoke_user("ada")
                await clock.advance(15.0)
            else:
                await clock.advance(30.0)
            assert (await ends(peer))[1].code == code


async def test_who_goes_meanwhile_leaves_nothing_behind(clock: FakeClock, tokens: SignedTokens) -> None:
    go = asyncio.Event()

    async def check(token: str) -> str:
        await go.wait()
        return token

    before = asyncio.all_tasks()
    guard = AuthGuard(echo_app, authenticate=check, first_frame=True, clock=clock)
    waiting, asking = Peer(guard), Peer(guard)
    for peer in (waiting, asking):
        await peer.connect()
    await asking.send({"type": "auth", "id": 1, "token": "ada"})
    await settle()
    assert guard.gauges()["authenticating"] == 2
    await waiting.disconnect(1001)
    asking.leave(1001)
    go.set()
    await asking.ended()
    await settle()
    assert guard.gauges()["authenticating"] == 0
    assert calls == []
    assert clock.timers == 0
    assert asyncio.all_tasks() == before


async def test_who_never_connects_is_not_waited_for(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(echo_app, authenticate=tokens, first_frame=True, clock=clock)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    await guard(Peer(guard).scope, receive, send)
    assert calls == []


async def test_who_goes_without_a_frame_is_told_nothing(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(echo_app, authenticate=tokens, first_frame=True, clock=clock)
    coming: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}]
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await guard(Peer(guard).scope, receive, send)
    assert sent == ["websocket.accept"]
    assert calls == []


async def test_who_does_not_read_is_given_up(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(echo_app, authenticate=tokens, first_frame=True, clock=clock)
    before = Peer(guard)
    before.stall()
    connecting = asyncio.create_task(before.connect())
    await settle()
    after = Peer(guard)
    await after.connect()
    after.stall()
    await clock.advance(5.0 + 10.0)
    with pytest.raises(Rejected):
        await connecting
    await after.ended()
    assert guard.gauges()["authenticating"] == 0
    assert clock.timers == 0


async def test_so_many_and_no_more_are_waited_for(
    clock: FakeClock, tokens: SignedTokens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="starlette_realtime")
    app = guarded(clock, tokens, max_waiting=2)
    peers = [Peer(app), Peer(app)]
    for peer in peers:
        await peer.connect()
    with pytest.raises(Rejected) as rejected:
        await Peer(app).connect()
    assert (rejected.value.status, rejected.value.headers["retry-after"]) == (503, "1")
    async with Peer(app, origin=HOME) as page:
        assert (await page.wait_closed()).code == 1013
    async with Peer(app, headers=bearer(tokens.issue("ada"))) as peer:
        assert (await peer.receive_json())["user"] == "ada", "who brings credentials isn't waited for"
    await peers[0].send({"type": "auth", "token": tokens.issue("ada")})
    await peers[0].receive()
    async with Peer(app):
        pass
    for peer in peers:
        await peer.disconnect()
    assert "turned away" in caplog.text


async def test_one_at_a_time_is_a_bound_too(clock: FakeClock, tokens: SignedTokens) -> None:
    app = guarded(clock, tokens, max_waiting=1)
    async with Peer(app):
        with pytest.raises(Rejected):
            await Peer(app).connect()
    async with Peer(app):
        pass


@pytest.mark.parametrize(
    "options", [{"auth_timeout": 0.0}, {"auth_timeout": float("nan")}, {"max_waiting": 0}, {"subprotocols": "v1"}]
)
def test_options_that_make_no_sense_are_errors_of_the_program(
    clock: FakeClock, tokens: SignedTokens, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="auth_timeout"):
        AuthGuard(authenticate=tokens, first_frame=True, clock=clock, **options)
