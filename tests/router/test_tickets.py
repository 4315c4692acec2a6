"""POST /ticket: a signed-in page gets one credential for one connection, and nobody else does."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from starlette_realtime import AuthGuard, Limit, RateLimiter, Realtime, RoomRouter, SignedTokens
from starlette_realtime.testing import FakeClock
from tests.server.support import dial, handshake, mounted
from tests.support.server import RunningServer, serve

FRIEND = "https://friend.example"
JSON = {"content-type": "application/json"}


class Site:
    def __init__(
        self, realtime: Realtime, tokens: SignedTokens, server: RunningServer, http: httpx2.AsyncClient
    ) -> None:
        self.realtime = realtime
        self.tokens = tokens
        self.server = server
        self.http = http

    def bearer(self, user: str = "ann", **options: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens.issue(user, **options)}"}

    async def ask(self, **headers: str) -> httpx2.Response:
        return await self.http.post("/realtime/ticket", headers={**JSON, **headers})

    async def ticket(self, user: str = "ann", **headers: str) -> str:
        response = await self.ask(**self.bearer(user), **headers)
        assert response.status_code == 200
        ticket: str = response.json()["ticket"]
        return ticket

    async def status(self, ticket: str, *lines: str) -> int:
        return (await handshake(self.server, *lines, path=f"/realtime/ws?ticket={ticket}")).status


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Site]:
    clock = FakeClock()
    tokens = SignedTokens("a secret that only these tests know", clock=clock)
    realtime = Realtime(authenticate=tokens, cookie="who", origins=[FRIEND], clock=clock, **options)
    app: Starlette = mounted(realtime)
    async with serve(app) as server, httpx2.AsyncClient(base_url=server.url) as http:
        yield Site(realtime, tokens, server, http)


async def test_a_ticket_lets_one_connection_in_once() -> None:
    async with running() as site:
        response = await site.ask(**site.bearer("ann"))
        assert response.headers["cache-control"] == "no-store"
        body = response.json()
        assert body["expires_in"] == 30.0
        path = f"/realtime/ws?ticket={body['ticket']}"
        async with dial(site.server, path) as peer:
            assert (await peer.auth())["user"] == "ann"
        assert (await handshake(site.server, path=path)).status == 401


async def test_a_ticket_is_good_for_the_origin_that_asked() -> None:
    async with running() as site:
        ticket = await site.ticket(origin=FRIEND)
        elsewhere = await handshake(site.server, f"Origin: {site.server.url}", path=f"/realtime/ws?ticket={ticket}")
        assert elsewhere.close == (4401, "unauthenticated")
        async with dial(site.server, f"/realtime/ws?ticket={ticket}", origin=FRIEND) as peer:
            assert (await peer.auth())["user"] == "ann"


async def test_a_ticket_is_good_for_its_user_alone() -> None:
    async with running() as site:
        ticket = await site.ticket("ann")
        authorization = site.bearer("bob")["authorization"]
        assert await site.status(ticket, f"Authorization: {authorization}") == 401


async def test_a_ticket_expires() -> None:
    async with running() as site:
        ticket = await site.ticket("ann")
        await site.realtime.clock.advance(30.0)  # type: ignore[attr-defined]
        assert await site.status(ticket) == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer nonsense"}, 401),
        ({"origin": "https://foe.example"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_who_may_not_have_one_is_told_why(headers: dict[str, str], status: int) -> None:
    async with running() as site:
        response = await site.ask(**({**site.bearer(), **headers} if status != 401 else headers))
        assert response.status_code == status
        assert response.json()["code"] == {401: "unauthenticated", 403: "forbidden", 415: "bad_frame"}[status]
        assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_cookie_needs_an_allowed_origin() -> None:
    async with running() as site:
        cookie = {"cookie": f"who={site.tokens.issue('ann')}"}
        assert (await site.ask(**cookie)).status_code == 403
        assert (await site.ask(**cookie, origin=FRIEND)).status_code == 200
        assert (await site.ask(**cookie, origin=site.server.url)).status_code == 200


async def test_other_methods_are_none() -> None:
    async with running() as site:
        response = await site.http.get("/realtime/ticket", headers=site.bearer())
        assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")


async def test_a_page_of_another_allowed_origin_may_ask() -> None:
    async with running() as site:
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
        preflight = await site.http.options("/realtime/ticket", headers={"origin": FRIEND, **asks})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == FRIEND
        assert preflight.headers["access-control-allow-headers"] == "content-type, authorization"
        assert preflight.headers["vary"] == "origin"
        answer = await site.ask(**site.bearer(), origin=FRIEND)
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert answer.headers["access-control-allow-credentials"] == "true"
        foe = await site.http.options("/realtime/ticket", headers={"origin": "https://foe.example", **asks})
        assert foe.status_code == 405
        assert "access-control-allow-origin" not in foe.headers


async def test_tickets_are_limited_as_handshakes_are() -> None:
    limiter = RateLimiter(handshakes=Limit("2/minute", by=lambda connection: "everybody"))
    async with running(limiter=limiter) as site:
        for _ in range(2):
            assert (await site.ask(**site.bearer())).status_code == 200
        refused = await site.ask(**site.bearer())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["code"] == "rate_limited"


async def test_a_store_that_is_away_is_a_503() -> None:
    async with running() as site:
        ticket = await site.ticket()
        site.realtime.store.faults.stall()  # type: ignore[attr-defined]
        try:
            waiting = handshake(site.server, path=f"/realtime/ws?ticket={ticket}")
            task = asyncio.ensure_future(waiting)
            async with asyncio.timeout(10.0):
                while not task.done():
                    await site.realtime.clock.advance(0.5)  # type: ignore[attr-defined]
                    await asyncio.sleep(0)
            assert (await task).status == 503
        finally:
            site.realtime.store.faults.resume()  # type: ignore[attr-defined]


async def test_a_ticket_says_when_it_ends_where_its_user_does_so_earlier() -> None:
    async with running() as site:
        response = await site.ask(**site.bearer("ann", expires_in=12.0))
        assert response.json()["expires_in"] == pytest.approx(12.0)


async def test_claims_that_no_ticket_can_hold_are_the_servers_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as site:
        response = await site.ask(**site.bearer("ann", claims={"novel": secrets.token_urlsafe(3_500)}))
        assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "too long" in caplog.text


async def test_a_cookies_user_gives_no_ticket_to_any_page() -> None:
    class ByCookie(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
            name = conn.cookies.get("who")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    app = mounted(Realtime(authenticate=ByCookie(), origins="*"))
    async with serve(app) as server, httpx2.AsyncClient(base_url=server.url) as http:
        headers = {**JSON, "origin": "https://foe.example", "cookie": "who=ann"}
        answer = await http.post("/realtime/ticket", headers=headers)
        # Without this header, a page can't read what it asked for with somebody's cookies (Fetch, section 4.9).
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_behind_another_guard_tickets_are_not_the_routers() -> None:
    tokens = SignedTokens("a secret that only these tests know")
    router = RoomRouter(path="/realtime")
    app = Starlette(middleware=[Middleware(AuthGuard, authenticate=tokens), Middleware(router.wrap)])
    async with serve(app) as server, httpx2.AsyncClient(base_url=server.url) as http:
        headers = {**JSON, "authorization": f"Bearer {tokens.issue('ann')}"}
        assert (await http.post("/realtime/ticket", headers=headers)).status_code == 404


@pytest.mark.parametrize("origin", ["null", "https://foe.example"])
async def test_a_ticket_is_in_no_log_even_where_the_handshake_is_refused(
    origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running() as site:
        ticket = await site.ticket("ann")
        caplog.clear()
        answer = await handshake(site.server, f"Origin: {origin}", path=f"/realtime/ws?ticket={ticket}")
        assert answer.close[0] == 4403
        assert caplog.text
        assert ticket not in caplog.text
        async with dial(site.server, f"/realtime/ws?ticket={ticket}") as peer:
            assert (await peer.auth())["user"] == "ann"  # it was not used up
