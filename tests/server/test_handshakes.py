"""Who may connect: origins, hosts and credentials of the handshake, as browsers, programs and attackers send them."""

import json
from collections.abc import AsyncIterator

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from starlette_realtime import Realtime, SignedTokens
from starlette_realtime.testing import FakeClock
from tests.server.support import (
    AT_ONCE,
    CALM,
    NATIVE,
    SECRET,
    Peer,
    Site,
    declare,
    dial,
    handshake,
    new_tokens,
    running,
)

ALLOWED = "https://app.example.com"


@pytest.fixture(scope="module")
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(
        authenticate=new_tokens(clock), cookie="token", origins=[ALLOWED], connection=CALM, options=AT_ONCE, clock=clock
    )
    declare(realtime)
    async with running(realtime=realtime, clock=clock) as site:
        yield site


@pytest.fixture(scope="module", params=["h11", "httptools"])
async def parsed(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A site behind each of uvicorn's HTTP parsers."""
    async with running(cookie="token", server={"http": request.param}) as site:
        yield site


@pytest.fixture
async def witness(site: Site) -> AsyncIterator[Peer]:
    """Somebody in a room, who is there before and after, and hears that it goes on."""
    room = site.new_room()
    async with site.peer("bob", room) as witness:
        yield witness
        await site.realtime.at(room).broadcast("news", 1)
        await witness.expect("event", event="news")
        assert not witness.heard("error")


def cookie(site: Site, user: str = "alice") -> tuple[str, str]:
    return "Cookie", f"token={site.token(user)}"


# --- origins ----------------------------------------------------------------------------------------------------------

GOOD_ORIGINS = [
    "http://127.0.0.1:{port}",
    "https://127.0.0.1:{port}",
    ALLOWED,
    f"{ALLOWED}:443",
    "HTTPS://APP.example.COM",
]

BAD_ORIGINS = [
    "null",
    "",
    "*",
    "127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    "http:///127.0.0.1:{port}",
    "file://",
    "about:blank",
    # lookalikes
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}evil",
    "http://127.0.0.1.evil.example:{port}",
    "http://evil127.0.0.1:{port}",
    "http://evil.example",
    "http://evil.example:{port}",
    "http://127.0.0.1:{port}@evil.example",
    "http://evil.example#127.0.0.1:{port}",
    "http://evil.example/127.0.0.1:{port}",
    "http://evil.example?127.0.0.1:{port}",
    "http://evil.example\\@127.0.0.1:{port}",
    # other ports, userinfo, a path
    "http://127.0.0.1",
    "http://127.0.0.1:80",
    "http://127.0.0.1:1{port}",
    "http://127.0.0.1:0{port}",
    "http://127.0.0.1:{port}0",
    "http://127.0.0.1:",
    "http://user@127.0.0.1:{port}",
    "http://user:password@127.0.0.1:{port}",
    "http://@127.0.0.1:{port}",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/app",
    "http://127.0.0.1:{port}?x",
    "http://127.0.0.1:{port}#x",
    # other spellings of the host
    "http://localhost:{port}",
    "http://127.0.0.1.:{port}",
    "http://127.1:{port}",
    "http://2130706433:{port}",
    "http://0x7f000001:{port}",
    "http://[::1]:{port}",
    "http://[::ffff:127.0.0.1]:{port}",
    "http://127.0.0.1%00:{port}",
    "ws://127.0.0.1:{port}",
    "ftp://127.0.0.1:{port}",
    "http://127.0.0.1:{port} http://evil.example",
    "http://127.0.0.1:{port},http://evil.example",
    # of the one that is allowed besides
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com.evil.example",
    "https://evilapp.example.com",
    "https://evil.app.example.com",
    "https://example.com",
    "https://app.example.com.",
    "https://app-example.com",
    "https://appxexample.com",
    "https://app.example.com@evil.example",
    "https://user@app.example.com",
]


@pytest.mark.parametrize("origin", GOOD_ORIGINS)
async def test_pages_of_the_same_and_of_allowed_origins_come_in_with_their_cookie(
    site: Site, witness: Peer, origin: str
) -> None:
    async with dial(site.server, origin=origin.format(port=site.server.port), headers=[cookie(site)]) as page:
        assert (await page.auth())["user"] == "alice"


@pytest.mark.parametrize("origin", BAD_ORIGINS)
async def test_other_pages_are_accepted_told_why_and_closed(site: Site, witness: Peer, origin: str) -> None:
    origin = origin.format(port=site.server.port)
    async with dial(site.server, origin=origin, headers=[cookie(site)]) as page:
        assert page.websocket.subprotocol == NATIVE
        assert await page.closed() == (4403, "forbidden")
        assert [(frame["type"], frame["code"]) for frame in page.frames] == [("error", "forbidden")]


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
async def test_a_foreign_page_with_a_token_of_its_own_is_refused_all_the_same(
    site: Site, witness: Peer, origin: str
) -> None:
    headers = [("Authorization", f"Bearer {site.token('alice')}")]
    async with dial(site.server, origin=origin, headers=headers) as page:
        assert await page.closed() == (4403, "forbidden")


async def test_behind_a_proxy_with_tls_a_page_without_it_is_foreign(site: Site, witness: Peer) -> None:
    headers = [("X-Forwarded-Proto", "https"), cookie(site)]
    here = f"127.0.0.1:{site.server.port}"
    async with dial(site.server, origin=f"https://{here}", headers=headers) as page:
        await page.auth()
    async with dial(site.server, origin=f"http://{here}", headers=headers) as page:
        assert await page.closed() == (4403, "forbidden")


async def test_a_cookie_without_an_origin_is_refused(site: Site, witness: Peer) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with dial(site.server, headers=[cookie(site)]):
            pytest.fail("it must not get in")
    assert refusal.value.response.status_code == 403
    assert json.loads(refusal.value.response.body or b"")["code"] == "forbidden"


@pytest.mark.parametrize("fetched", ["cross-site", "same-site", "none", "", "same-origin, cross-site"])
async def test_what_a_browser_says_is_cross_site_is_refused_without_an_origin_too(
    site: Site, witness: Peer, fetched: str
) -> None:
    assert (await handshake(site.server, f"Sec-Fetch-Site: {fetched}")).status == 403


async def test_a_program_without_origin_and_cookie_comes_in_with_a_token(site: Site, witness: Peer) -> None:
    async with dial(site.server) as program:
        assert (await program.auth(site.token("alice")))["user"] == "alice"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1@evil.example"]
)
async def test_a_host_that_is_not_allowed_is_refused_whatever_the_origin_says(host: str) -> None:
    async with running(allowed_hosts=["127.0.0.1"], cookie="token") as site:
        for extra in ([], [f"Origin: http://{host}"], [f"Origin: http://{host}", f"Cookie: token={site.token('a')}"]):
            assert (await handshake(site.server, *extra, host=host)).turned_away
        async with dial(site.server, origin=site.server.url, headers=[cookie(site)]) as page:
            await page.auth()


# --- headers that come twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ("Host: evil.example",),
        ("Host: 127.0.0.1:{port}",),
        ("Origin: http://evil.example", "Origin: http://127.0.0.1:{port}"),
        ("Origin: http://127.0.0.1:{port}", "Origin: http://evil.example"),
        ("Origin: http://127.0.0.1:{port}", "ORIGIN: http://127.0.0.1:{port}"),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",),
        ("Sec-WebSocket-Version: 13",),
        ("Sec-WebSocket-Version: 8",),
        ("Authorization: Bearer {token}", "Authorization: Bearer {token}"),
        ("Authorization: Bearer {token}", "Authorization: Bearer nonsense"),
        ("Authorization: Bearer nonsense", "Authorization: Bearer {token}"),
        ("Authorization: Bearer {token}", "Authorization: Basic YTpi"),
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
        ("Origin: http://127.0.0.1:{port}", "Host: 127.0.0.1:{port}", "Cookie: token={token}"),
        ("Origin: http://evil.example", "Host: evil.example", "Cookie: token={token}"),
    ],
)
async def test_a_header_that_comes_twice_lets_nobody_in(parsed: Site, lines: tuple[str, ...]) -> None:
    values = {"port": parsed.server.port, "token": parsed.token("alice")}
    async with parsed.peer("bob", "chat:1") as witness:
        answer = await handshake(parsed.server, *(line.format(**values) for line in lines))
        assert answer.turned_away, answer
        assert [connection.user for connection in parsed.realtime.connections] == ["bob"]
        await parsed.realtime.at("chat:1").broadcast("news", 1)
        await witness.expect("event", event="news")


@pytest.mark.parametrize("folded", ["Origin: http://127.0.0.1:{port}\r\n .evil.example", "X: y\r\n Origin: http://x"])
async def test_a_folded_header_lets_nobody_in(parsed: Site, folded: str) -> None:
    lines = (folded.format(port=parsed.server.port), f"Cookie: token={parsed.token('alice')}")
    answer = await handshake(parsed.server, *lines)
    assert answer.turned_away, answer


async def test_two_cookies_of_one_name_are_no_identity(site: Site, witness: Peer) -> None:
    headers = [cookie(site, "alice"), cookie(site, "carol")]
    async with dial(site.server, origin=site.server.url, headers=headers) as page:
        assert (await page.refused("auth"))["code"] == "unauthenticated"


# --- credentials ------------------------------------------------------------------------------------------------------


def _bad(site: Site) -> dict[str, str]:
    expired = SignedTokens(SECRET, clock=FakeClock(time=site.clock.time() - 3600)).issue("alice")
    foreign = SignedTokens("quite another secret, of 16 bytes", clock=site.clock).issue("alice")
    return {
        "Bearer": "unauthenticated",
        "Bearer nonsense": "unauthenticated",
        f"Bearer {expired}": "expired",
        f"bearer {expired}": "expired",
        f"Bearer {foreign}": "unauthenticated",
        f"Bearer {site.token('alice')}x": "unauthenticated",
        f"Bearer {site.token('alice')} {site.token('alice')}": "unauthenticated",
        f"Bearer {site.token('alice')},Bearer {site.token('alice')}": "unauthenticated",
        "Bearer \xff\xfe": "unauthenticated",
        f"Bearer {'x' * 8000}": "unauthenticated",
    }


@pytest.mark.parametrize("scheme", ["Basic YWxpY2U6YWxpY2U=", "Basic {}", "Token {}", "{}"])
async def test_another_scheme_s_header_is_no_credential_and_no_obstacle(site: Site, witness: Peer, scheme: str) -> None:
    headers = [("Authorization", scheme.format(site.token("alice")))]
    async with dial(site.server, origin=site.server.url, headers=headers) as page:
        assert (await page.refused("auth"))["code"] == "unauthenticated"
    async with dial(site.server, origin=site.server.url, headers=headers) as page:
        assert (await page.auth(site.token("carol")))["user"] == "carol"


async def test_a_program_with_wrong_credentials_gets_401_and_the_scheme(site: Site, witness: Peer) -> None:
    for value, code in _bad(site).items():
        answer = await handshake(site.server, f"Authorization: {value}")
        assert answer.status == 401, value[:40]
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"'), value[:40]
        assert json.loads(answer.body)["code"] == code
        assert answer.headers["cache-control"] == "no-store"


async def test_a_page_with_wrong_credentials_is_accepted_told_why_and_closed(site: Site, witness: Peer) -> None:
    for value, code in _bad(site).items():
        async with dial(site.server, origin=site.server.url, headers=[("Authorization", value)]) as page:
            assert await page.closed() == (4401, code)
            assert [(frame["type"], frame["code"]) for frame in page.frames] == [("error", code)]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_program_with_a_good_token_in_its_header_sends_auth_without_one(
    site: Site, witness: Peer, scheme: str
) -> None:
    async with dial(site.server, headers=[("Authorization", f"{scheme} {site.token('alice')}")]) as program:
        await program.expect("welcome")
        assert (await program.refused("join", room="chat:1"))["code"] == "unauthenticated"
        assert (await program.auth())["user"] == "alice"
        await program.do("join", room="chat:1")


@pytest.mark.parametrize("query", ["token", "access_token", "authorization", "auth"])
async def test_a_token_in_the_query_is_no_credential(site: Site, witness: Peer, query: str) -> None:
    async with dial(site.server, f"/realtime/ws?{query}={site.token('alice')}") as peer:
        assert (await peer.refused("auth"))["code"] == "unauthenticated"
        assert (await peer.closed())[0] == 4401


@pytest.mark.parametrize("value", ["nonsense", "", '"quoted', "a; token=b"])
async def test_a_cookie_that_is_no_good_leaves_the_first_frame(site: Site, witness: Peer, value: str) -> None:
    headers = [("Cookie", f"token={value}")]
    async with dial(site.server, origin=site.server.url, headers=headers) as page:
        assert (await page.auth(site.token("alice")))["user"] == "alice"
    async with dial(site.server, origin=site.server.url, headers=headers) as page:
        assert (await page.refused("auth"))["code"] == "unauthenticated"
        assert (await page.closed())[0] == 4401


async def test_the_first_frames_token_counts_more_than_the_handshakes(site: Site, witness: Peer) -> None:
    headers = [("Authorization", f"Bearer {site.token('alice')}")]
    async with dial(site.server, headers=headers) as program:
        assert (await program.auth(site.token("carol")))["user"] == "carol"
    async with dial(site.server, headers=headers) as program:
        assert (await program.refused("auth", token="nonsense"))["code"] == "unauthenticated"
        assert (await program.closed())[0] == 4401


async def test_a_handshake_token_that_expires_before_auth_is_expired(site: Site, witness: Peer) -> None:
    headers = [("Authorization", f"Bearer {site.token('alice', expires_in=1.0)}")]
    async with dial(site.server, headers=headers) as program:
        await program.expect("welcome")
        await site.clock.advance(1.0)
        assert (await program.refused("auth"))["code"] == "expired"
        assert await program.closed() == (4401, "expired")


# --- subprotocols -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        ([NATIVE], NATIVE),
        (["graphql-ws", NATIVE], NATIVE),
        (["graphql-ws"], None),
        (["starlette-realtime.v2.json"], None),
    ],
)
async def test_our_subprotocol_is_chosen_wherever_it_is_offered(
    site: Site, offered: list[Subprotocol], chosen: Subprotocol | None
) -> None:
    async with dial(site.server, subprotocols=offered) as peer:
        assert peer.websocket.subprotocol == chosen
        await peer.auth(site.token("alice"))
        await peer.sync()


@pytest.mark.parametrize("path", ["/realtime", "/realtime/", "/realtime/ws/", "/realtime/wss", "/realtime/x/ws", "/ws"])
async def test_a_handshake_elsewhere_is_refused(site: Site, witness: Peer, path: str) -> None:
    answer = await handshake(site.server, path=path)
    assert answer.status in (403, 404)
    answer = await handshake(site.server, f"Origin: {site.server.url}", path=path)
    assert answer.turned_away
