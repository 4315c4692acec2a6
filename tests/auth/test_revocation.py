"""Revocation: what was issued to somebody is void, at once here and within fifteen seconds everywhere."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Route

from starlette_realtime import AuthGuard, ConfigurationError, Identity, SignedTokens, StarletteSession, Unauthenticated
from starlette_realtime.errors import StoreError, Unavailable
from starlette_realtime.messages import History
from starlette_realtime.store import REVOCATIONS, MemoryStore
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle
from starlette_realtime.types import Message, Receive, Scope, Send
from tests.auth.support import HOME, SECRET, application, bearer, refusal, request, sign_in, user_of, whoami

BOUND = 15.0
"""Seconds within which no revoked connection lives, in any process."""

REVOKED = (401, "revoked")

STORES = 2
"""Timers of the store, for a revocation and for what was published of it."""


class Listening:
    """An application that accepts, notes what it hears, and tries to speak when it is told that the peer has gone."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.refused: list[OSError] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            self.heard.append(message)
        self.heard.append(message)
        try:
            await send({"type": "websocket.send", "text": "late"})
        except OSError as exc:
            self.refused.append(exc)


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def guard(clock: FakeClock, tokens: SignedTokens, store: MemoryStore) -> AuthGuard:
    return AuthGuard(application(authenticate=tokens), authenticate=tokens, store=store, clock=clock)


SCOPE: Scope = {"type": "http", "method": "GET", "headers": []}


async def code_of(guard: AuthGuard, token: str) -> str:
    """With which code the token is refused; "" where it isn't."""
    try:
        await guard.authenticate(token, SCOPE)
    except Unauthenticated as exc:
        return exc.code
    return ""


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_a_revoked_users_tokens_are_refused_and_later_ones_are_good(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard
) -> None:
    old, other = tokens.issue("ada"), tokens.issue("bob")
    await guard.revoke_user("ada")
    assert await refusal(guard, headers=bearer(old)) == REVOKED
    response = await request(guard, headers=bearer(old))
    challenge = 'Bearer error="invalid_token", error_description="the credentials were revoked"'
    assert response.headers["www-authenticate"] == challenge
    assert await user_of(guard.wrap(application(authenticate=tokens)), headers=bearer(other)) == "bob"
    await clock.advance(0.002)
    assert await code_of(guard, tokens.issue("ada")) == ""
    assert await code_of(guard, old) == "revoked"


async def test_a_revoked_token_is_refused_and_the_users_others_are_good(tokens: SignedTokens, guard: AuthGuard) -> None:
    lost, kept = tokens.issue("ada"), tokens.issue("ada")
    await guard.revoke_token(str(tokens.read(lost).claims["jti"]))
    assert await code_of(guard, lost) == "revoked"
    assert await code_of(guard, kept) == ""


async def test_users_and_token_ids_are_never_mistaken_for_each_other(tokens: SignedTokens, guard: AuthGuard) -> None:
    identity = Identity("t:x", {"jti": "u:y"})
    for user, jti in (("x", "y"), ("u:t:x", "t:u:y"), ("u:y", "t:x")):
        await guard.revoke_user(user)
        await guard.revoke_token(jti)
    assert not guard.revoked(identity, 0.0)
    await guard.revoke_user("t:x")
    assert guard.revoked(identity, 0.0)
    await guard.revoke_user("None")
    assert not guard.revoked(Identity(None), 0.0), "nobody is not called so"


async def test_whoever_was_let_in_up_to_the_moment_is_revoked(clock: FakeClock, guard: AuthGuard) -> None:
    await guard.revoke_user("ada")
    now = clock.time()
    for since, issued, revoked in (
        (now, None, True),
        (now - 1, None, True),
        (now + 0.01, None, False),
        (now + 1, now - 1, True),
        (now + 1, now + 0.5, False),
        (now - 1, now + 0.5, True),  # issued later than used: clocks that are apart
        (now + 1, "yesterday", False),
    ):
        claims = {} if issued is None else {"iat": issued}
        assert guard.revoked(Identity("ada", claims), since) is revoked


async def test_a_later_moment_can_be_named_where_clocks_are_apart(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard
) -> None:
    await guard.revoke_user("ada", issued_before=clock.time() + 5)
    await clock.advance(4.0)
    assert await code_of(guard, tokens.issue("ada")) == "revoked"
    await clock.advance(2.0)
    assert await code_of(guard, tokens.issue("ada")) == ""


async def test_a_refused_websocket_of_a_browser_is_closed_with_the_code(tokens: SignedTokens, guard: AuthGuard) -> None:
    token = tokens.issue("ada")
    await guard.revoke_user("ada")
    async with Peer(guard, origin=HOME, headers=bearer(token)) as page:
        closed = await page.wait_closed()
        assert (closed.code, closed.reason) == (4450, "revoked")
    with pytest.raises(Rejected) as rejected:
        await Peer(guard, headers=bearer(token)).connect()
    assert rejected.value.status == 401


async def test_a_revoked_cookie_is_told_apart_from_none(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(application(anonymous=True), authenticate=tokens, anonymous=True, cookie="tok", clock=clock)
    headers = [("Cookie", f"tok={tokens.issue('ada')}")]
    assert await user_of(guard, headers=headers) is None  # by the inner guard
    await guard.revoke_user("ada")
    assert await refusal(guard, headers=headers) == REVOKED


@pytest.mark.parametrize("dated", [True, False])
async def test_a_session_says_when_it_began_or_is_as_old_as_can_be(clock: FakeClock, dated: bool) -> None:
    session = StarletteSession(issued_key="at") if dated else StarletteSession()
    guard = AuthGuard(authenticate=session, clock=clock)
    app = Starlette(
        routes=[Route("/sign-in", sign_in), Route("/", whoami, middleware=[Middleware(guard.wrap)])],
        middleware=[Middleware(SessionMiddleware, secret_key=SECRET)],
    )

    async def sign(at: float) -> list[tuple[str, str]]:
        response = await request(app, f"/sign-in?user=ada&at={at}")
        return [("Cookie", f"session={response.cookies['session']}")]

    before = await sign(clock.time())
    assert await user_of(app, headers=before) == "ada"
    await guard.revoke_user("ada")
    await clock.advance(1.0)
    assert await refusal(app, headers=before) == REVOKED
    after = await sign(clock.time())
    if dated:
        assert await user_of(app, headers=after) == "ada"
    else:
        assert await refusal(app, headers=after) == REVOKED


class Undated:
    """A reader whose tokens don't say when they were issued."""

    def read(self, token: str) -> Identity:
        """Everybody is who they say."""
        return Identity(token)


class Backend(AuthenticationBackend):
    """Asked at this very moment."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Whom a header names."""
        name = conn.headers.get("x-user")
        return (AuthCredentials(), SimpleUser(name)) if name else None


async def test_what_is_asked_live_counts_from_now_and_what_only_repeats_doesnt(clock: FakeClock) -> None:
    live = AuthGuard(application(authenticate=lambda token: token), authenticate=lambda token: token, clock=clock)
    backend = AuthGuard(application(authenticate=Backend()), authenticate=Backend(), clock=clock)
    repeats = AuthGuard(application(authenticate=Undated()), authenticate=Undated(), clock=clock)
    for guard in (live, backend, repeats):
        await guard.revoke_user("ada")
    await clock.advance(1.0)
    headers = [*bearer("ada")]
    assert await user_of(live, headers=headers) == "ada"
    assert await user_of(backend, headers=[("X-User", "ada")]) == "ada"
    assert await refusal(repeats, headers=headers) == REVOKED
    assert await user_of(repeats, headers=bearer("bob")) == "bob"


@pytest.mark.parametrize("issued", [None, "yesterday", "1800000000", [0]])
async def test_who_says_no_time_of_issue_that_counts_has_said_none(clock: FakeClock, issued: object) -> None:
    class Badly:
        """A reader that leaves the claim as it came."""

        def read(self, token: str) -> Identity:
            return Identity(token, {"iat": issued})

    guard = AuthGuard(authenticate=Badly(), clock=clock)
    assert await code_of(guard, "ada") == ""
    await guard.revoke_user("ada")
    await clock.advance(1.0)
    assert await code_of(guard, "ada") == "revoked"
    assert await code_of(guard, "bob") == ""


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 129])
async def test_what_cannot_be_a_user_or_a_token_is_not_revoked(guard: AuthGuard, user: str) -> None:
    with pytest.raises(ValueError, match="cannot be a user"):
        await guard.revoke_user(user)
    for jti in ("", "x" * 257):
        with pytest.raises(ValueError, match="256"):
            await guard.revoke_token(jti)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf")])
async def test_what_is_no_time_revokes_nothing(guard: AuthGuard, store: MemoryStore, time: float) -> None:
    with pytest.raises(ValueError, match="Unix seconds"):
        await guard.revoke_user("ada", issued_before=time)
    assert await store.revocations() == {}


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_an_interval_that_is_not_positive_is_an_error_of_the_program(interval: float) -> None:
    with pytest.raises(ConfigurationError, match="revocation_interval"):
        AuthGuard(anonymous=True, revocation_interval=interval)
    AuthGuard(anonymous=True, revocation_interval=0.5)


# --- open WebSockets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["user", "token"])
async def test_an_open_websocket_ends_and_the_application_hears_of_it(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard, by: str
) -> None:
    app = Listening()
    token = tokens.issue("ada")
    peer = Peer(guard.wrap(app), headers=bearer(token))
    other = Peer(guard.wrap(Listening()), headers=bearer(tokens.issue("bob")))
    async with other:
        await peer.connect()
        await peer.send("hello")
        if by == "user":
            await guard.revoke_user("ada")
        else:
            await guard.revoke_token(str(tokens.read(token).claims["jti"]))
        closed = await peer.wait_closed()
        assert (closed.code, closed.reason) == (4450, "revoked")
        await peer.ended()
        assert app.heard[-1] == {"type": "websocket.disconnect", "code": 4450, "reason": "revoked"}
        assert len(app.refused) == 1
        assert "revoked" in str(app.refused[0])
        await other.send("still here")
        assert other.closed is None
    assert clock.timers == STORES
    assert guard.gauges() == {"revocations_known": 1, "revocations_watched": 0, "authenticating": 0}


async def test_all_websockets_of_a_user_end(clock: FakeClock, tokens: SignedTokens, guard: AuthGuard) -> None:
    peers = [Peer(guard.wrap(Listening()), headers=bearer(tokens.issue("ada"))) for _ in range(20)]
    for peer in peers:
        await peer.connect()
    await guard.revoke_user("ada")
    assert {(await peer.wait_closed()).code for peer in peers} == {4450}
    for peer in peers:
        await peer.ended()


async def test_who_goes_takes_no_revocation_from_who_stays(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard
) -> None:
    token = tokens.issue("ada")
    peers = [Peer(guard.wrap(Listening()), headers=bearer(each)) for each in (token, token, tokens.issue("ada"))]
    for peer in peers:
        await peer.connect()
    await peers[0].disconnect()
    assert guard.gauges()["revocations_watched"] == 3, "the user and both tokens"
    await guard.revoke_token(str(tokens.read(token).claims["jti"]))
    assert (await peers[1].wait_closed()).code == 4450
    await peers[1].ended()
    assert peers[2].closed is None
    await guard.revoke_user("ada")
    assert (await peers[2].wait_closed()).code == 4450
    await peers[2].ended()
    assert guard.gauges()["revocations_watched"] == 0


async def test_a_revocation_during_the_handshake_is_not_missed(clock: FakeClock) -> None:
    """Between the check of the credentials and the watch over the WebSocket."""
    guard: AuthGuard

    async def check(token: str) -> str:
        await guard.revoke_user("ada")
        return "ada"

    guard = AuthGuard(Listening(), authenticate=check, clock=clock)
    with pytest.raises(Rejected) as rejected:
        await Peer(guard, headers=bearer("ada")).connect()
    assert rejected.value.status == 401


# --- several processes ------------------------------------------------------------------------------------------------


async def test_an_entered_guard_hears_of_it_at_once(clock: FakeClock, tokens: SignedTokens, store: MemoryStore) -> None:
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(Listening(), authenticate=tokens, store=store.sibling(), clock=clock)
    async with here, there, there:
        peer = Peer(there, headers=bearer(tokens.issue("ada")))
        await peer.connect()
        await here.revoke_user("ada")
        await settle()
        assert (await peer.wait_closed()).code == 4450
        await peer.ended()
    assert clock.timers == STORES


async def test_a_lost_message_costs_no_more_than_the_bound(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    sibling = store.sibling()
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(Listening(), authenticate=tokens, store=sibling, clock=clock)
    async with here, there:
        peer = Peer(there, headers=bearer(tokens.issue("ada")))
        await peer.connect()
        sibling.faults.drop(1)
        await here.revoke_user("ada")
        await settle()
        assert peer.closed is None
        await clock.advance(BOUND)
        assert (await peer.wait_closed()).code == 4450
        await peer.ended()


async def test_an_entered_guard_reads_on_when_nobody_is_there_any_more(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    there = AuthGuard(Listening(), authenticate=tokens, store=store, clock=clock)
    async with there:
        async with Peer(there, headers=bearer(tokens.issue("ada"))):
            pass
        store.backend.revoke("u:ada", clock.time())  # and no message of it, nor a gap where one was
        await clock.advance(BOUND)
        assert there.gauges()["revocations_known"] == 1


async def test_a_guard_that_was_entered_twice_hears_until_it_is_left_twice(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(authenticate=tokens, store=store.sibling(), clock=clock)
    async with here, there:
        async with there:
            pass
        await here.revoke_user("ada")
        await settle()
        assert there.gauges()["revocations_known"] == 1


async def test_a_guard_that_was_left_hears_nothing_more(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    guard = AuthGuard(authenticate=tokens, store=store, clock=clock)
    async with store:
        async with guard:
            assert store.gauges()["subscribers"] == 1
        assert store.gauges()["subscribers"] == 0
        await store.revoke("u:ada", issued_before=clock.time())
        await settle()
        assert guard.gauges()["revocations_known"] == 0


async def test_who_says_when_it_was_issued_is_as_old_as_that(clock: FakeClock) -> None:
    """Whoever is asked live may know it of a session that began earlier."""
    began = clock.time()
    guard = AuthGuard(authenticate=lambda token: Identity(token, issued_at=float(began)), clock=clock)
    await clock.advance(60.0)
    assert (await guard.authenticate("ada", SCOPE)).issued_at == began
    await guard.revoke_user("ada", issued_before=began + 1)
    assert await code_of(guard, "ada") == "revoked"
    ahead = AuthGuard(authenticate=lambda token: Identity(token, issued_at=clock.time() + 60), clock=clock)
    assert (await ahead.authenticate("ada", SCOPE)).issued_at == clock.time(), "and no younger than its use"


async def test_a_guard_that_was_not_entered_ends_it_within_the_bound(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(Listening(), authenticate=tokens, store=store.sibling(), clock=clock)
    token = tokens.issue("ada")
    peer = Peer(there, headers=bearer(token))
    await peer.connect()
    await clock.advance(3.0)
    await here.revoke_user("ada")
    assert await code_of(there, token) == "", "it has read what there is a moment ago"
    await clock.advance(BOUND)
    assert (await peer.wait_closed()).code == 4450
    await peer.ended()
    assert await code_of(there, token) == "revoked"


async def test_a_guard_that_was_not_entered_reads_again_when_it_is_asked(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(authenticate=tokens, store=store.sibling(), clock=clock)
    token = tokens.issue("ada")
    assert await code_of(there, token) == ""
    await here.revoke_user("ada")
    await clock.advance(10.0)
    assert await code_of(there, token) == "revoked"
    assert clock.timers == STORES


async def test_what_the_store_forgets_is_forgotten(clock: FakeClock, tokens: SignedTokens) -> None:
    store = MemoryStore(clock=clock, revocation_life=3600.0)
    guard = AuthGuard(authenticate=tokens, store=store, clock=clock)
    async with guard:
        await guard.revoke_user("ada")
        await clock.advance(3599.0)
        assert guard.gauges()["revocations_known"] == 1
        await clock.advance(11.0)
        assert guard.gauges()["revocations_known"] == 0


async def test_what_is_published_while_it_reads_is_not_lost(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    """The reading's answer may be older than the message."""

    class Slow(MemoryStore):
        """Answers with what was so a moment ago."""

        async def revocations(self) -> Mapping[str, float]:
            found = await super().revocations()
            await clock.sleep(1.0)
            return found

    slow = Slow(clock=clock, backend=store.backend)
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(authenticate=tokens, store=slow, clock=clock)
    token = tokens.issue("ada")
    entering = asyncio.create_task(there.__aenter__())
    await settle()
    await here.revoke_user("ada")
    await clock.advance(1.0)
    await entering
    assert await code_of(there, token) == "revoked"
    assert await code_of(there, tokens.issue("ada")) == "", "and no more than was published"
    await there.__aexit__(None, None, None)


async def test_a_reading_that_knows_more_than_the_messages_is_believed(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore
) -> None:
    class Late(MemoryStore):
        """Answers after a while, with what is so then."""

        async def revocations(self) -> Mapping[str, float]:
            await clock.sleep(1.0)
            return await super().revocations()

    late = Late(clock=clock, backend=store.backend)
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(authenticate=tokens, store=late, clock=clock)
    entering = asyncio.create_task(there.__aenter__())
    await settle()
    await here.revoke_user("ada")
    await settle()
    late.faults.drop(1)
    await here.revoke_user("ada", issued_before=clock.time() + 60)
    await clock.advance(1.0)
    await entering
    assert await code_of(there, tokens.issue("ada")) == "revoked"
    await there.__aexit__(None, None, None)


async def test_callbacks_hear_of_each_revocation_once(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    here = AuthGuard(authenticate=tokens, store=store, clock=clock)
    there = AuthGuard(authenticate=tokens, store=store.sibling(), clock=clock)
    heard: list[tuple[str, dict[str, float]]] = []

    def broken(_: Mapping[str, float]) -> None:
        raise RuntimeError("broken")

    def told_here(revoked: Mapping[str, float]) -> None:
        heard.append(("here", dict(revoked)))

    def told_there(revoked: Mapping[str, float]) -> None:
        heard.append(("there", dict(revoked)))

    async with here, there:
        there.on_revocation(broken)
        for _ in range(2):
            here.on_revocation(told_here)
            there.on_revocation(told_there)
        at = clock.time()
        await here.revoke_user("ada")
        await here.revoke_token("t1")
        await settle()
        await clock.advance(60.0)
        assert sorted(heard, key=str) == [
            (where, {what: at}) for where in ("here", "there") for what in ("t:t1", "u:ada")
        ]
        heard.clear()
        for _ in range(2):
            there.off_revocation(told_there)
        await here.revoke_user("ada")
        await settle()
        assert heard == [("here", {"u:ada": clock.time()})]
    assert "broken" in caplog.text


async def test_a_message_that_cannot_be_read_does_no_harm(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    guard = AuthGuard(authenticate=tokens, store=store, clock=clock)
    token = tokens.issue("ada")
    async with guard:
        for data in (b"nonsense", b"[]", b'["u:ada", "now"]', b"{}", b'["\xff", 1]'):
            await store.publish(REVOCATIONS, data, history=History())
        await settle()
        assert await code_of(guard, token) == ""
        await guard.revoke_user("ada")
        assert await code_of(guard, token) == "revoked"
    assert caplog.text.count("can't be read") == 5


async def test_after_a_gap_it_reads_again(clock: FakeClock, tokens: SignedTokens, store: MemoryStore) -> None:
    sibling = store.sibling()
    there = AuthGuard(authenticate=tokens, store=sibling, clock=clock, revocation_interval=1000.0)
    token = tokens.issue("ada")
    async with there:
        sibling.faults.drop(1)
        await store.revoke("u:ada", issued_before=clock.time())
        store.backend.lose(REVOCATIONS)
        await store.publish(REVOCATIONS, b'["u:other", 1.0]', history=History())
        await settle()
        await clock.advance(30.0)
        assert await code_of(there, token) == "revoked"


async def test_many_at_once_have_it_read_once(clock: FakeClock, tokens: SignedTokens, store: MemoryStore) -> None:
    class Counting(MemoryStore):
        """Counts, and takes its time."""

        readings = 0

        async def revocations(self) -> Mapping[str, float]:
            self.readings += 1
            await clock.sleep(1.0)
            return await super().revocations()

    counting = Counting(clock=clock)
    guard = AuthGuard(authenticate=tokens, store=counting, clock=clock)
    token = tokens.issue("ada")
    asking = [asyncio.create_task(code_of(guard, token)) for _ in range(20)]
    await settle()
    asking[0].cancel()
    await clock.advance(1.0)
    assert await asyncio.gather(*asking[1:]) == [""] * 19
    assert counting.readings == 1


# --- the store is away ------------------------------------------------------------------------------------------------


async def stalled(store: MemoryStore, clock: FakeClock, question: Any) -> Any:
    """Ask while the store is away: its time limit passes."""
    asking = asyncio.ensure_future(question)
    await settle()
    for _ in range(5):
        if asking.done():
            break
        await clock.advance(1.0)
    return await asking


async def test_known_revocations_hold_and_after_a_minute_nobody_new_is_let_in(
    clock: FakeClock, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = SignedTokens(SECRET, clock=clock, max_age=3600.0)
    guard = AuthGuard(Listening(), authenticate=tokens, store=store, clock=clock)
    revoked, good = tokens.issue("ada"), tokens.issue("bob")
    async with guard:
        await guard.revoke_user("ada")
        peer = Peer(guard, headers=bearer(good))
        await peer.connect()
        store.faults.stall()
        await clock.advance(45.0)
        assert await code_of(guard, good) == ""
        assert await code_of(guard, revoked) == "revoked"
        await clock.advance(30.0)
        for token in (good, revoked):
            with pytest.raises(Unavailable):
                await stalled(store, clock, guard.authenticate(token, SCOPE))
        assert peer.closed is None, "who is in stays"
        assert caplog.text.count("revocations can't be read") == 1
        store.faults.resume()
        await clock.advance(2.0)
        assert await code_of(guard, good) == "", "and it is back at once"
        assert await code_of(guard, revoked) == "revoked"
        await peer.disconnect()


async def test_who_never_knew_what_is_revoked_lets_nobody_in(
    clock: FakeClock, tokens: SignedTokens, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    guard = AuthGuard(application(authenticate=tokens), authenticate=tokens, store=store, clock=clock)
    token = tokens.issue("ada")
    store.faults.stall()
    response = await stalled(store, clock, request(guard, headers=bearer(token)))
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert caplog.text.count("revocations can't be read") == 1
    at = clock.now()
    with pytest.raises(Unavailable):
        await guard.authenticate(token, SCOPE)
    assert clock.now() == at, "not each of them waits for the store"
    async with Peer(guard, origin=HOME, headers=bearer(token)) as page:
        assert (await page.wait_closed()).code == 1013
    store.faults.resume()
    await clock.advance(1.0)
    assert await code_of(guard, token) == ""


async def test_a_revocation_that_the_store_did_not_take_is_told(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard, store: MemoryStore
) -> None:
    token = tokens.issue("ada")
    assert await code_of(guard, token) == ""
    store.faults.stall()
    with pytest.raises(StoreError):
        await stalled(store, clock, guard.revoke_user("ada"))
    store.faults.resume()
    assert await code_of(guard, token) == ""


async def test_after_an_error_it_may_be_revoked_and_doing_it_again_does_no_harm(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard, store: MemoryStore
) -> None:
    token = tokens.issue("ada")
    store.faults.unanswered(1)
    with pytest.raises(StoreError):
        await guard.revoke_user("ada", issued_before=clock.time())
    assert await store.revocations() == {"u:ada": clock.time()}
    await guard.revoke_user("ada", issued_before=clock.time())
    assert await store.revocations() == {"u:ada": clock.time()}
    assert await code_of(guard, token) == "revoked"


async def test_a_guard_cannot_be_entered_while_the_store_is_away(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard, store: MemoryStore
) -> None:
    store.faults.stall()
    with pytest.raises(StoreError):
        await stalled(store, clock, guard.__aenter__())
    store.faults.resume()
    async with guard:
        assert await code_of(guard, tokens.issue("ada")) == ""


async def test_the_guard_can_be_left_while_the_store_is_away(
    clock: FakeClock, tokens: SignedTokens, guard: AuthGuard, store: MemoryStore
) -> None:
    before = asyncio.all_tasks()
    await guard.__aenter__()
    store.faults.stall()
    await clock.advance(10.0)
    await stalled(store, clock, guard.__aexit__(None, None, None))
    assert asyncio.all_tasks() == before
    store.faults.resume()
    async with guard:
        assert await code_of(guard, tokens.issue("ada")) == ""
