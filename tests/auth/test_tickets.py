"""Tickets: one use, soon, by whom and from where they were issued to."""

import asyncio
import base64
import hmac
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime import AuthGuard, ConfigurationError, Forbidden, Identity, SignedTokens, Unauthenticated
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.testing import FakeClock, Peer, Rejected
from tests.auth.support import HOME, SECRET, Headers, bearer, greet, refusal, request, user_of, whoami


class Site:
    """One process: an application behind a guard, and a way to issue tickets."""

    def __init__(self, clock: FakeClock, *, store: Store | None = None, **options: Any) -> None:
        self.tokens = SignedTokens(SECRET, clock=clock)
        options = {"authenticate": self.tokens, "cookie": "tok", **options}
        self.guard = AuthGuard(store=store, clock=clock, **options)
        self.queries: list[str] = []
        routes = [
            Route("/", whoami, methods=["GET", "POST"]),
            Route("/query", self.query),
            WebSocketRoute("/ws", greet),
            WebSocketRoute("/query-ws", self.query_websocket),
        ]
        self.app = self.guard.wrap(Starlette(routes=routes))

    async def query(self, request: Request) -> Response:
        """What is left of the query."""
        return JSONResponse({"query": request.scope["query_string"].decode()})

    async def query_websocket(self, websocket: WebSocket) -> None:
        """The same, over WebSocket."""
        await websocket.accept()
        await websocket.send_text(websocket.scope["query_string"].decode())
        await websocket.close()

    def ticket(
        self, user: str | None = "ada", *, origin: str | None = None, expires_at: float | None = None, **claims: object
    ) -> str:
        """A ticket, as a page of `origin` gets it."""
        headers = [] if origin is None else [(b"origin", origin.encode())]
        scope = {"type": "http", "method": "POST", "headers": headers}
        return self.guard.issue_ticket(Identity(user, claims, expires_at), scope)

    async def refused(self, ticket: str, *, path: str = "/", headers: Headers = ()) -> tuple[int, str]:
        """How a request with that ticket is refused."""
        return await refusal(self.app, path=f"{path}?ticket={ticket}", headers=headers)

    async def enters(self, ticket: str, *, headers: Headers = ()) -> str | None:
        """Whom a request with that ticket comes from."""
        return await user_of(self.app, path=f"/?ticket={ticket}", headers=headers)


@pytest.fixture
def site(clock: FakeClock) -> Site:
    return Site(clock)


INVALID = (401, "unauthenticated")


# --- what they are good for -------------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_websocket(site: Site) -> None:
    ticket = site.ticket(scopes=["admin"])
    async with Peer(site.app, f"/ws?ticket={ticket}") as peer:
        assert await peer.receive_json() == {"user": "ada", "scopes": ["authenticated", "admin"]}
    with pytest.raises(Rejected) as rejected:
        await Peer(site.app, f"/ws?ticket={ticket}").connect()
    assert rejected.value.status == 401
    assert rejected.value.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_ticket_is_good_for_one_get_and_for_nothing_that_changes_something(site: Site) -> None:
    ticket = site.ticket()
    for method in ("POST", "HEAD"):
        response = await request(site.app, f"/?ticket={ticket}", method=method)
        assert response.status_code == 401
    assert await site.enters(ticket) == "ada"
    assert await site.refused(ticket) == INVALID


async def test_of_many_at_once_one_gets_in(site: Site) -> None:
    ticket = site.ticket()
    responses = await asyncio.gather(*(request(site.app, f"/?ticket={ticket}") for _ in range(20)))
    assert sorted(response.status_code for response in responses) == [200] + [401] * 19


async def test_in_two_processes_a_ticket_is_good_once(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    here, there = Site(clock, store=store), Site(clock, store=store.sibling())
    for first, second in ((here, there), (there, here)):
        ticket = here.ticket()
        assert await first.enters(ticket) == "ada"
        assert await second.refused(ticket) == INVALID
        assert await first.refused(ticket) == INVALID


async def test_a_ticket_of_a_process_that_shares_nothing_is_refused(clock: FakeClock) -> None:
    """They have one secret, and yet neither could tell whether the other has let it in."""
    here, there = Site(clock), Site(clock)
    ticket = here.ticket()
    assert await there.refused(ticket) == INVALID
    assert await here.enters(ticket) == "ada"


async def test_the_ticket_stays_out_of_the_applications_query(site: Site) -> None:
    for query, left in (
        ("ticket={}", ""),
        ("a=1&ticket={}&b=2", "a=1&b=2"),
        ("ticket={}&ticket=mine&x=%20y", "ticket=mine&x=%20y"),
    ):
        path = f"/query?{query.format(site.ticket())}"
        assert (await request(site.app, path)).json() == {"query": left}
        async with Peer(site.app, f"/query-ws?{query.format(site.ticket())}") as peer:
            assert await peer.receive() == left


async def test_an_application_may_have_tickets_of_its_own(site: Site) -> None:
    headers = bearer(site.tokens.issue("ada"))
    for query in ("ticket=42", "ticket=", "ticket", "tickets=rtt1.x", "q=ticket=rtt1.x"):
        assert (await request(site.app, f"/query?{query}", headers=headers)).json() == {"query": query}
        assert await refusal(site.app, path=f"/query?{query}") == INVALID


async def test_a_ticket_keeps_what_its_identity_has(clock: FakeClock, site: Site) -> None:
    scope = {"type": "http", "method": "GET", "headers": []}
    identity = Identity(
        "ada", {"scopes": ["admin"], "iat": 7.5, "jti": "t", "deep": {"é": [1, None]}}, clock.time() + 99
    )
    ticket = site.guard.issue_ticket(identity, scope)
    used = {**scope, "query_string": f"ticket={ticket}".encode()}
    assert await site.guard.handshake(used) == msgspec.structs.replace(identity, issued_at=clock.time())
    assert used["query_string"] == b""


async def test_a_websocket_opened_by_a_ticket_ends_with_its_identity(clock: FakeClock, site: Site) -> None:
    async with Peer(site.app, f"/ws?ticket={site.ticket(expires_at=clock.time() + 100)}") as peer:
        await clock.advance(99.9)
        assert peer.closed is None
        await clock.advance(0.1)
        assert (await peer.wait_closed()).code == 4401


# --- when, whose, from where ------------------------------------------------------------------------------------------


async def test_a_ticket_is_good_for_thirty_seconds(clock: FakeClock, site: Site) -> None:
    early, late = site.ticket(), site.ticket()
    await clock.advance(29.9)
    assert await site.enters(early) == "ada"
    await clock.advance(0.1)
    assert await site.refused(late) == (401, "expired")
    brief = Site(clock, ticket_age=0.5)
    ticket = brief.ticket()
    await clock.advance(0.5)
    assert await brief.refused(ticket) == (401, "expired")


async def test_a_ticket_ends_with_its_identity(clock: FakeClock, site: Site) -> None:
    ticket = site.ticket(expires_at=clock.time() + 5)
    await clock.advance(5.0)
    assert await site.refused(ticket) == (401, "expired")
    with pytest.raises(Unauthenticated) as caught:
        site.ticket(expires_at=clock.time())
    assert caught.value.code == "expired"


async def test_a_used_ticket_is_known_as_long_as_any_clock_may_find_it_good(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    site = Site(clock, store=store)
    await site.enters(site.ticket())
    assert store.gauges()["claims"] == 1
    await clock.advance(89.9)
    assert store.gauges()["claims"] == 1
    await clock.advance(0.1)
    assert store.gauges()["claims"] == 0


async def test_a_ticket_of_one_origin_is_refused_from_another(clock: FakeClock) -> None:
    site = Site(clock, origins=["https://friend.example"])
    friend = "https://friend.example"
    for origin, other in ((HOME, friend), (friend, HOME)):
        ticket = site.ticket(origin=origin)
        async with Peer(site.app, f"/ws?ticket={ticket}", origin=other) as page:
            assert (await page.wait_closed()).code == 4401
        assert await site.refused(ticket) == INVALID, "nor by a program"
        assert await site.refused(ticket, headers=[("Sec-Fetch-Site", "cross-site")]) == INVALID
        async with Peer(site.app, f"/ws?ticket={ticket}", origin=origin) as page:
            assert (await page.receive_json())["user"] == "ada", "and it isn't used up by that"


async def test_a_pages_get_of_its_own_origin_says_so_in_another_way(site: Site) -> None:
    """`EventSource` sends no `Origin` there, but Fetch Metadata."""
    same = [("Sec-Fetch-Site", "same-origin")]
    assert await site.enters(site.ticket(origin=HOME), headers=same) == "ada"
    assert await site.refused(site.ticket(origin="https://friend.example"), headers=same) == INVALID
    for other in ("same-site", "cross-site", "none"):
        assert await site.refused(site.ticket(origin=HOME), headers=[("Sec-Fetch-Site", other)]) == INVALID
    with pytest.raises(Rejected):
        await Peer(site.app, f"/ws?ticket={site.ticket(origin=HOME)}", headers=same).connect()


async def test_a_ticket_that_was_issued_without_an_origin_is_good_from_any_that_may_come(site: Site) -> None:
    async with Peer(site.app, f"/ws?ticket={site.ticket()}", origin=HOME) as page:
        assert (await page.receive_json())["user"] == "ada"
    async with Peer(site.app, f"/ws?ticket={site.ticket()}", origin="https://evil.example") as page:
        assert (await page.wait_closed()).code == 4403


async def test_a_ticket_beside_credentials_of_somebody_else_is_refused(site: Site) -> None:
    ticket = site.ticket("ada")
    eve = site.tokens.issue("eve")
    for headers in (bearer(eve), [("Cookie", f"tok={eve}")]):
        assert await site.refused(ticket, headers=headers) == INVALID
    assert await site.refused(ticket, headers=bearer("nonsense")) == INVALID
    assert await site.enters(ticket, headers=bearer(site.tokens.issue("ada"))) == "ada"
    assert await site.enters(site.ticket(), headers=[("Cookie", "tok=nonsense")]) == "ada", "which is no credential"


async def test_several_tickets_are_refused(site: Site) -> None:
    one, other = site.ticket(), site.ticket()
    for pair in ((one, one), (one, other), (one, "rtt1.x")):
        assert await refusal(site.app, path="/?ticket=" + "&ticket=".join(pair)) == INVALID
    assert await site.enters(one) == "ada"


# --- what is none -----------------------------------------------------------------------------------------------------


async def test_every_changed_character_is_noticed(site: Site) -> None:
    ticket = site.ticket()
    for anonymous in (site, Site(FakeClock(), anonymous=True)):
        for place, char in enumerate(ticket):
            scope = {"type": "websocket", "headers": []}
            for other in ("A" if char != "A" else "B", chr(ord(char) ^ 1), "%41"):
                query = f"ticket={ticket[:place]}{other}{ticket[place + 1 :]}".encode()
                try:
                    identity = await anonymous.guard.handshake({**scope, "query_string": query})
                except Unauthenticated:
                    continue
                assert identity is None
                assert place < len("rtt1."), "what doesn't look like a ticket is nothing"
    assert await site.enters(ticket) == "ada"


async def test_no_other_token_passes_as_a_ticket_nor_a_ticket_as_a_token(site: Site) -> None:
    token = site.tokens.issue("ada")
    for text in (token, f"rtt1.{token}", "rtt1.", "rtt1..", "rtt1.a.b", "rtt1." + "x" * 5_000, "rtt1.%C3%A9"):
        assert await site.refused(text) == INVALID
    ticket = site.ticket()
    for text in (ticket, ticket.removeprefix("rtt1.")):
        assert await refusal(site.app, headers=bearer(text)) == INVALID
    for name in ("token", "access_token", "auth"):
        assert await refusal(site.app, path=f"/?{name}={token}") == INVALID


async def test_why_a_ticket_is_refused_is_told(clock: FakeClock, site: Site) -> None:
    async def told(ticket: str, *, on: Site = site, headers: Headers = ()) -> str:
        message: str = (await request(on.app, f"/?ticket={ticket}", headers=headers)).json()["message"]
        return message

    used, old, elsewhere = site.ticket(), site.ticket(), site.ticket(origin=HOME)
    await site.enters(used)
    assert await told(used) == "the ticket has been used: fetch a new one"
    assert await told(elsewhere) == "the ticket is another origin's"
    assert "another process's" in await told(elsewhere, on=Site(clock))
    assert await told(old, headers=bearer(site.tokens.issue("eve"))) == "the ticket is another user's"
    assert await told(f"{old}&ticket={used}") == "bring one ticket"
    assert await told(f"{old}x") == "the ticket is not valid"
    await clock.advance(30.0)
    assert await told(old) == "the ticket has expired: fetch a new one"


async def test_secrets_rotate(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    old = Site(clock, store=store, secret=SECRET)
    both = Site(clock, store=store.sibling(), secret=["another secret of enough bytes", SECRET])
    new = Site(clock, store=store.sibling(), secret="another secret of enough bytes")
    assert await both.enters(old.ticket()) == "ada"
    assert await new.enters(both.ticket()) == "ada"
    assert await old.refused(both.ticket()) == INVALID
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        Site(clock, secret="short")


async def test_a_ticket_is_signed_for_nothing_else_and_has_an_id_of_128_bits(clock: FakeClock) -> None:
    asked: list[int] = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return b"\x07" * size

    payload, _, signed = Site(clock, entropy=entropy).ticket().removeprefix("rtt1.").rpartition(".")
    key = hmac.digest(SECRET.encode(), b"starlette-realtime.ticket", "sha256")
    expected = base64.urlsafe_b64encode(hmac.digest(key, payload.encode(), "sha256")).rstrip(b"=").decode()
    assert signed == expected
    assert asked == [16]


async def test_a_handshake_need_not_have_a_query(site: Site) -> None:
    assert await site.guard.handshake({"type": "websocket", "headers": []}) is None


async def test_without_a_secret_the_guard_has_one_of_its_own(clock: FakeClock) -> None:
    site = Site(clock, authenticate=lambda token: token)
    assert await site.enters(site.ticket()) == "ada"


class Elsewhere:
    """Stands for a store that is not in memory: all that tickets ask of it."""

    def __init__(self) -> None:
        self.claimed: set[str] = set()

    async def claim(self, key: str, *, ttl: float) -> bool:
        """Once."""
        return key not in self.claimed and not self.claimed.add(key)  # type: ignore[func-returns-value]


async def test_with_a_store_of_several_processes_the_secret_alone_decides(clock: FakeClock) -> None:
    store = Elsewhere()
    here, there = Site(clock), Site(clock)
    for site in (here, there):
        site.guard._tickets._store = store  # type: ignore[assignment]
    ticket = here.ticket()
    assert await there.enters(ticket) == "ada"
    assert await here.refused(ticket) == INVALID
    alone = Site(clock, authenticate=lambda token: token)
    alone.guard._tickets._store = store  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="secret"):
        alone.ticket()


def test_what_no_ticket_can_stand_for_is_refused(site: Site) -> None:
    with pytest.raises(Unauthenticated, match="unauthenticated"):
        site.ticket(None)
    with pytest.raises(ValueError, match="4096"):
        site.ticket(noise="".join(chr(0x4E00 + n * 7919 % 20000) for n in range(2000)))
    with pytest.raises(TypeError):
        site.ticket(noise=object())
    scope = {"type": "http", "method": "POST", "headers": [(b"origin", b"a"), (b"origin", b"b")]}
    with pytest.raises(Forbidden):
        site.guard.issue_ticket(Identity("ada"), scope)


@pytest.mark.parametrize("age", [0.0, -1.0, float("nan")])
def test_an_age_that_is_not_positive_is_an_error_of_the_program(clock: FakeClock, age: float) -> None:
    with pytest.raises(ConfigurationError, match="ticket_age"):
        Site(clock, ticket_age=age)


async def test_while_the_store_is_away_tickets_are_refused_for_now(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    site = Site(clock, store=store)
    await site.enters(site.ticket())  # what is revoked has been read
    ticket = site.ticket()
    store.faults.stall()
    asking = asyncio.create_task(request(site.app, f"/?ticket={ticket}"))
    await clock.advance(2.0)
    response = await asking
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    store.faults.resume()
    assert await site.enters(ticket) == "ada"


async def test_a_ticket_of_who_was_revoked_meanwhile_is_refused(clock: FakeClock, site: Site) -> None:
    plain, dated, named = site.ticket(), site.ticket(iat=clock.time() - 10), site.ticket("bob", jti="t1")
    await clock.advance(1.0)
    await site.guard.revoke_user("ada")
    await site.guard.revoke_token("t1")
    for ticket in (plain, dated, named):
        assert await site.refused(ticket) == (401, "revoked")
    await clock.advance(1.0)
    assert await site.refused(site.ticket(iat=clock.time() - 10)) == (401, "revoked")
    assert await site.enters(site.ticket()) == "ada"
