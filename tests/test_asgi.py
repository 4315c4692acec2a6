"""Refusals reach whoever was refused, foreign pages stay outside, and peers are who the server says."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from starlette_realtime.asgi import (
    Origins,
    address_group,
    client_address,
    close_reason,
    deny,
    header_values,
    is_private,
    mounted_path,
    outcome,
    scope_user,
)
from starlette_realtime.errors import ConfigurationError, Forbidden, RateLimited, Refused, Unauthenticated, Unavailable
from starlette_realtime.types import Message, Receive, Scope, Send
from tests.support.server import serve

RESPONSE = "websocket.http.response"


def request(
    kind: str = "websocket", /, method: str = "GET", scheme: str | None = None, **headers: str
) -> dict[str, Any]:
    """A scope with these headers; `_` in a name is `-`."""
    fields = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": kind,
        "scheme": scheme or ("ws" if kind == "websocket" else "http"),
        "headers": fields,
    }
    if kind == "http":
        scope["method"] = method
    return scope


async def refuse(scope: Scope, first: str | None = None, **options: Any) -> list[Message]:
    """What `deny` sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        assert scope["type"] == "websocket", "a request's body need not be read to refuse it"
        return {"type": first or "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await deny(scope, receive, send, **options)
    return sent


# --- deny -----------------------------------------------------------------------------------------------------------


async def test_a_request_is_refused_with_its_status_and_the_error() -> None:
    start, body = await refuse(request("http"), status=429, code=4429, retry_after=0.25, headers=[(b"X-Trace", b"7")])
    assert (start["type"], start["status"]) == ("http.response.start", 429)
    headers = dict(start["headers"])
    assert json.loads(body["body"]) == {"code": "rate_limited", "message": "too many, too fast", "retry_after": 0.25}
    assert headers == {
        b"content-type": b"application/json",
        b"content-length": str(len(body["body"])).encode(),
        b"cache-control": b"no-store",
        b"x-trace": b"7",
        b"retry-after": b"1",
    }
    assert body["type"] == "http.response.body"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, b"1"), (1.0, b"1"), (1.001, b"2"), (59.9, b"60")])
async def test_retry_after_is_in_whole_seconds_and_never_too_early(seconds: float, header: bytes) -> None:
    start, _ = await refuse(request("http"), status=503, code=1013, retry_after=seconds)
    assert dict(start["headers"])[b"retry-after"] == header


async def test_a_refusal_that_is_nobodys_standard_is_named_and_said_as_it_is() -> None:
    _, body = await refuse(request("http"), status=403, code=4999)
    assert json.loads(body["body"]) == {"code": "forbidden", "message": "not allowed"}
    _, body = await refuse(request("http"), status=403, code=4403, reason="banned")
    assert json.loads(body["body"]) == {"code": "banned", "message": "banned"}


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (Unauthenticated(), 401, 4401),
        (Unauthenticated(code="expired"), 401, 4401),
        (Unauthenticated(code="revoked"), 401, 4450),
        (Forbidden(), 403, 4403),
        (Refused("banned"), 403, 4403),
        (RateLimited(retry_after=1.0), 429, 4429),
        (Unavailable(), 503, 1013),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_each_refusal_has_a_status_and_a_close_code(refusal: Refused, status: int, code: int) -> None:
    assert outcome(refusal) == (status, code)


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_401_names_the_scheme(kind: str) -> None:
    scope = request(kind) | {"extensions": {RESPONSE: {}}}
    start, body = await refuse(scope, status=401, code=4401)
    assert [value for name, value in start["headers"] if name == b"www-authenticate"] == [b"Bearer"]
    assert json.loads(body["body"])["code"] == "unauthenticated"
    own = (b"WWW-Authenticate", b'Basic realm="x"')
    start, _ = await refuse(scope, status=401, code=4401, reason="expired", headers=[own])
    assert [value for name, value in start["headers"] if name == b"www-authenticate"] == [own[1]]


async def test_a_handshake_without_origin_gets_the_status_where_the_server_can() -> None:
    scope = request() | {"extensions": {RESPONSE: {}}}
    start, body = await refuse(scope, status=403, code=4403, reason="forbidden", frames=["unseen"])
    assert (start["type"], start["status"]) == (f"{RESPONSE}.start", 403)
    assert body["type"] == f"{RESPONSE}.body"
    assert json.loads(body["body"]) == {"code": "forbidden", "message": "not allowed"}


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {"other": {}}}])
async def test_a_handshake_without_origin_is_closed_where_the_server_cannot(extensions: dict[str, Any]) -> None:
    sent = await refuse(request() | extensions, status=429, code=4429, retry_after=2.0)
    assert sent == [{"type": "websocket.close", "code": 4429, "reason": "rate_limited;2"}]


async def test_a_browser_is_accepted_told_and_closed() -> None:
    scope = request(origin="https://evil.example") | {"subprotocols": ["a", "b"], "extensions": {RESPONSE: {}}}
    sent = await refuse(scope, status=403, code=4403, frames=["one", "two"])
    assert sent == [
        {"type": "websocket.accept", "subprotocol": "a"},
        {"type": "websocket.send", "text": "one"},
        {"type": "websocket.send", "text": "two"},
        {"type": "websocket.close", "code": 4403, "reason": "forbidden"},
    ]


async def test_a_browser_is_told_when_to_come_back() -> None:
    sent = await refuse(request(origin="https://a.example"), status=429, code=4429, retry_after=2.0)
    assert sent[-1] == {"type": "websocket.close", "code": 4429, "reason": "rate_limited;2"}


async def test_a_browser_that_offered_no_subprotocol_gets_none() -> None:
    assert (await refuse(request(origin="null"), status=403, code=4403))[0]["subprotocol"] is None


async def test_whoever_left_before_is_told_nothing() -> None:
    assert await refuse(request(), "websocket.disconnect", status=403, code=4403) == []


async def test_whoever_leaves_meanwhile_is_no_error() -> None:
    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        raise OSError("gone")

    await deny(request(origin="http://a"), receive, send, status=403, code=4403)


async def test_a_refusal_that_is_cancelled_stays_cancelled() -> None:
    async def receive() -> Message:
        raise asyncio.CancelledError

    async def send(message: Message) -> None:
        raise AssertionError

    with pytest.raises(asyncio.CancelledError):
        await deny(request(), receive, send, status=403, code=4403)


async def test_a_real_server_refuses_as_it_was_told() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, code = (401, 4401) if scope["path"] == "/login" else (429, 4429)
        retry_after = None if status == 401 else 1.5
        await deny(scope, receive, send, status=status, code=code, retry_after=retry_after, frames=["why"])

    async with serve(app, lifespan="off") as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws_url}/login")
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws_url}/busy")
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "2"
        assert json.loads(refused.value.response.body)["code"] == "rate_limited"
        browser = await connect(f"{server.ws_url}/busy", origin=Origin("http://a"), subprotocols=[Subprotocol("p")])
        assert await browser.recv() == "why"
        with pytest.raises(ConnectionClosed):
            await browser.recv()
        assert (browser.subprotocol, browser.close_code, browser.close_reason) == ("p", 4429, "rate_limited;1.5")
        async with httpx2.AsyncClient() as client:
            response = await client.post(f"{server.url}/login", content=b"x" * 1000)
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("code", "retry_after", "reason"),
    [
        ("forbidden", None, "forbidden"),
        ("rate_limited", 2.0, "rate_limited;2"),
        ("rate_limited", 0.25, "rate_limited;0.25"),
        ("rate_limited", 0.0001, "rate_limited;0.001"),
        ("rate_limited", 0.0, "rate_limited;0"),
        ("rate_limited", -1.0, "rate_limited;0"),
        ("rate_limited", 100.0, "rate_limited;100"),
        ("rate_limited", 1234567.8, "rate_limited;1234567.8"),
    ],
)
def test_a_close_reason_is_the_code_and_the_seconds(code: str, retry_after: float | None, reason: str) -> None:
    assert close_reason(code, retry_after) == reason


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.none() | st.floats(0, 10**9))
@example("x" * 200, 1.5)
@example("é" * 100, None)
@example("é" * 100, 1.5)
@example("é" * 100, 15.0)
def test_a_close_reason_fits_into_a_control_frame(code: str, retry_after: float | None) -> None:
    reason = close_reason(code, retry_after)
    assert len(reason.encode()) <= 123
    if retry_after is not None:
        assert float(reason.rpartition(";")[2]) >= retry_after - 1e-6
    assert code.startswith(reason.rpartition(";")[0] if retry_after is not None else reason)


# --- origin ---------------------------------------------------------------------------------------------------------

SAME = [
    ("http", "http://example.com", "example.com"),
    ("http", "http://example.com:80", "example.com"),
    ("http", "http://example.com", "example.com:80"),
    ("http", "http://example.com:8000", "example.com:8000"),
    ("http", "http://EXAMPLE.com", "example.COM"),
    ("http", "https://example.com", "example.com"),  # a proxy's doing
    ("http", "https://example.com", "example.com:443"),
    ("http", "https://example.com:8443", "example.com:8443"),
    ("https", "https://example.com", "example.com"),
    ("https", "https://example.com:443", "example.com"),
    ("http", "http://127.0.0.1:8000", "127.0.0.1:8000"),
    ("http", "http://[::1]:8000", "[::1]:8000"),
    ("http", "http://[::1]", "[0:0:0:0:0:0:0:1]"),
    ("http", "http://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("http", "http://example.com.", "example.com."),
    ("http", "http://my_service:80", "my_service"),
    ("http", "http://example.com:65535", "example.com:65535"),
]
FOREIGN = [
    *("http://evil.example", "http://evil-example.com", "http://example.com.evil.com", "http://evilexample.com"),
    *("http://sub.example.com", "http://example.co", "http://example.comm", "http://example.com.", "null", "", "*"),
    *("http://example.com:8000", "http://example.com:443", "https://example.com:80", "https://example.com:8443"),
    *(
        "http://user@example.com",
        "http://user:pw@example.com",
        "http://example.com@evil.com",
        "http://example.com:80@evil",
    ),
    *("http://example.com/", "http://example.com/path", "http://example.com?x", "http://example.com#x", "example.com"),
    *("//example.com", "http:example.com", "http:///example.com", "http://", "ftp://example.com", "ws://example.com"),
    *(
        "file://",
        "file://example.com",
        "chrome-extension://example.com",
        "http://example.com:",
        "http://example.com:080",
    ),
    *(
        "http://example.com:0",
        "http://example.com:65536",
        "http://example.com:65616",
        "http://example.com:-80",
        "http://example.com:80:80",
    ),
    *("http://example.com ", " http://example.com", "http://example.com, http://example.com", "http://example.com\t"),
    *(
        "http://example.com http://evil.com",
        "http://example.com\\@evil.com",
        "http://exämple.com",
        "http://example。com",
    ),
    *("http://*.example.com", "http://[example.com]", "http://[::1%eth0]", "http://[::1", "http://%65xample.com"),
]


@pytest.mark.parametrize("kind", ["websocket", "http"])
@pytest.mark.parametrize(("scheme", "origin", "host"), SAME)
def test_the_same_origin_may_connect(kind: str, scheme: str, origin: str, host: str) -> None:
    scheme = scheme if kind == "http" else scheme.replace("http", "ws")
    assert Origins().check(request(kind, "POST", scheme, origin=origin, host=host, cookie="s=1"))


@pytest.mark.parametrize("kind", ["websocket", "http"])
@pytest.mark.parametrize("origin", FOREIGN)
def test_a_lookalike_may_not(kind: str, origin: str) -> None:
    headers = [(b"host", b"example.com"), (b"origin", origin.encode())]
    scope = request(kind, "POST") | {"headers": headers}
    assert not Origins().check(scope)
    assert not Origins(["https://other.example"]).check(scope)


@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_a_page_without_tls_is_foreign_to_a_server_with_it(scheme: str) -> None:
    kind = "websocket" if scheme == "wss" else "http"
    assert not Origins().check(request(kind, "POST", scheme, origin="http://example.com", host="example.com"))
    assert not Origins().check(request(kind, "POST", scheme, origin="http://example.com:443", host="example.com:443"))


ORIGINS = Origins(
    ["https://app.example.com", "http://localhost:3000", "capacitor://localhost", "https://x.example:443"]
)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example.com", True),
        ("https://app.example.com:443", True),
        ("https://APP.example.com", True),
        ("https://x.example", True),
        ("http://localhost:3000", True),
        ("capacitor://localhost", True),
        ("http://api.example.com", True),  # its own
        ("http://app.example.com", False),
        ("https://app.example.com:8443", False),
        ("https://app.example.com.evil.com", False),
        ("https://evil-app.example.com", False),
        ("https://app.example.com.", False),
        ("https://sub.app.example.com", False),
        ("http://localhost", False),
        ("https://localhost:3000", False),
        ("capacitor://localhost:80", False),
        ("ionic://localhost", False),
        ("null", False),
    ],
)
def test_allowed_origins_are_compared_exactly(origin: str, allowed: bool) -> None:
    assert ORIGINS.check(request(origin=origin, host="api.example.com", cookie="s=1")) is allowed


@pytest.mark.parametrize("origin", ["https://anything.example", "null", "http://a:1"])
def test_a_star_lets_any_page_in(origin: str) -> None:
    assert Origins("*").check(request(origin=origin, host="example.com", cookie="s=1"))


@pytest.mark.parametrize("origin", ["", "junk", "http://a b", "http://user@example.com"])
def test_a_star_lets_in_no_junk(origin: str) -> None:
    assert not Origins("*").check(request(origin=origin, host="example.com"))


@pytest.mark.parametrize(
    "allowed",
    [
        "https://app.example.com",
        ["app.example.com"],
        ["https://app.example.com/"],
        ["https://*.example.com"],
        ["null"],
        ["*"],
        [""],
        ["https://bücher.example"],
        ["https://user@example.com"],
        ["https://example.com:99999"],
        ["https://example.com:65536"],
        ["https://[zz]"],
    ],
)
def test_an_entry_that_no_header_could_equal_is_refused(allowed: Any) -> None:
    with pytest.raises(ConfigurationError, match="origin"):
        Origins(allowed)


def test_repeated_headers_are_refused_even_when_they_agree() -> None:
    for name in ("host", "origin", "sec-fetch-site"):
        scope = request(host="example.com", origin="http://example.com", sec_fetch_site="same-origin")
        assert Origins().check(scope)
        scope["headers"].append((name.encode(), header_values(scope, name.encode())[0]))
        assert not Origins().check(scope)
        assert not Origins("*").check(scope)


WITHOUT_ORIGIN: list[tuple[str, str, dict[str, str], bool]] = [
    ("websocket", "GET", {}, True),
    ("websocket", "GET", {"cookie": "s=1"}, False),
    ("websocket", "GET", {"cookie": "s=1", "sec_fetch_site": "same-origin"}, False),
    ("websocket", "GET", {"sec_fetch_site": "cross-site"}, False),
    ("http", "POST", {}, True),
    ("http", "POST", {"cookie": "s=1"}, False),
    ("http", "POST", {"cookie": ""}, False),
    ("http", "POST", {"sec_fetch_site": "cross-site"}, False),
    ("http", "DELETE", {"cookie": "s=1"}, False),
    ("http", "GET", {}, True),
    ("http", "GET", {"cookie": "s=1"}, True),
    ("http", "HEAD", {"cookie": "s=1"}, True),
    ("http", "GET", {"cookie": "s=1", "sec_fetch_site": "same-origin"}, True),
    ("http", "GET", {"sec_fetch_site": "cross-site"}, False),
    ("http", "GET", {"sec_fetch_site": "same-site"}, False),
    ("http", "GET", {"sec_fetch_site": "none"}, False),
    ("http", "GET", {"sec_fetch_site": "SAME-ORIGIN"}, False),
]


@pytest.mark.parametrize(("kind", "method", "headers", "passes"), WITHOUT_ORIGIN)
def test_without_an_origin(kind: str, method: str, headers: dict[str, str], passes: bool) -> None:
    assert Origins().check(request(kind, method, host="example.com", **headers)) is passes
    assert Origins("*").check(request(kind, method, host="example.com", **headers)) is passes


HOSTS = ["example.com", "api.example.com:8000", "*.apps.example.com", "[::1]", "*.dev.example.com:81"]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("example.com", True),
        ("Example.COM", True),
        ("example.com:8000", True),
        ("api.example.com:8000", True),
        ("a.apps.example.com", True),
        ("a.b.apps.example.com:99", True),
        ("a.dev.example.com:81", True),
        ("[::1]:8000", True),
        ("api.example.com", False),
        ("api.example.com:8001", False),
        ("apps.example.com", False),
        ("evilapps.example.com", False),
        ("a.dev.example.com", False),
        ("example.com.", False),
        ("example.com.evil.com", False),
        ("rebound.evil.com", False),
        ("127.0.0.1", False),
        ("", False),
        ("user@example.com", False),
        ("example.com:", False),
        ("example.com:80:80", False),
    ],
)
def test_a_foreign_host_is_refused_whatever_the_origin(host: str, allowed: bool) -> None:
    origins = Origins("*", HOSTS)
    assert origins.check(request(host=host)) is allowed
    assert origins.check(request("http", host=host, sec_fetch_site="same-origin")) is allowed
    assert origins.check(request(host=host, origin="http://" + host)) is allowed
    assert origins.check(request(host=host, origin="https://good.example")) is allowed


def test_without_a_host_there_is_nothing_to_be_the_same_origin_as() -> None:
    assert Origins().check(request())
    assert not Origins().check(request(origin="http://example.com"))
    assert Origins(["http://example.com"]).check(request(origin="http://example.com"))
    assert not Origins("*", ["example.com"]).check(request(origin="http://example.com"))


def test_a_host_that_is_none_is_refused() -> None:
    for host in ("exa mple", "a/b", "a@b", "é", "", "[zz]", "[zz]:80", "[::1%eth0]", "a:65536", "[::1]:99999"):
        assert not Origins().check(request(host=host))
        assert not Origins("*").check(request(host=host, origin="http://example.com"))


@pytest.mark.parametrize(
    "hosts", ["example.com", ["https://example.com"], ["*"], [""], ["a.*.b"], ["*.*.b"], ["[zz]"], ["a:65536"]]
)
def test_a_wrong_host_entry_is_refused(hosts: Any) -> None:
    with pytest.raises(ConfigurationError):
        Origins((), hosts)


hostnames = st.from_regex(r"[a-z0-9]{1,4}(\.[a-z0-9\-]{1,4}){0,2}", fullmatch=True)
ports = st.none() | st.sampled_from((80, 443, 8000)) | st.integers(1, 65535)


def authority(host: str, port: int | None) -> str:
    return host if port is None else f"{host}:{port}"


@given(
    st.lists(hostnames, min_size=2, max_size=2), st.lists(ports, min_size=2, max_size=2), st.booleans(), st.booleans()
)
def test_only_the_very_same_host_and_port_are_the_same_origin(
    names: Sequence[str], numbers: Sequence[int | None], https: bool, tls: bool
) -> None:
    scheme, default = ("https", 443) if https else ("http", 80)
    scope = request(
        "websocket",
        scheme="wss" if tls else "ws",
        origin=f"{scheme}://{authority(names[0], numbers[0])}",
        host=authority(names[1], numbers[1]),
    )
    same = names[0] == names[1] and (numbers[0] or default) == (numbers[1] or default)
    assert Origins().check(scope) is (same and (https or not tls))
    scope["headers"][1] = (b"host", authority(names[0], numbers[0]).encode())
    assert Origins().check(scope) is (https or not tls)


@given(st.text(st.characters(max_codepoint=255)), st.text(st.sampled_from("htps:/@.[]%? #\\aex-om80"), max_size=20))
def test_no_decoration_of_the_host_is_the_same_origin(before: str, after: str) -> None:
    origin = before + "http://example.com" + after
    if origin.lower() not in ("http://example.com", "http://example.com:80"):
        assert not Origins().check(request(origin=origin, host="example.com"))


# --- the peer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("203.0.113.7", 1), "203.0.113.7"),
        (["203.0.113.7", 1], "203.0.113.7"),
        (("::ffff:203.0.113.7", 1), "203.0.113.7"),
        (("2001:DB8:0::1", 1), "2001:db8::1"),
        (("fe80::1%eth0", 1), "fe80::1"),
        (("testclient", 1), None),
        (("", 0), None),
        (None, None),
    ],
)
def test_the_peer_is_who_the_server_says(client: Any, address: str | None) -> None:
    scope = request(x_forwarded_for="198.51.100.1", forwarded="for=198.51.100.1") | {"client": client}
    assert client_address(scope) == address


class Named(BaseUser):
    """A user with a name, and no identity of another kind: Starlette's own `identity` raises."""

    def __init__(self, name: str, authenticated: bool = True) -> None:
        self._name = name
        self._authenticated = authenticated

    @property
    def is_authenticated(self) -> bool:
        """As told."""
        return self._authenticated

    @property
    def display_name(self) -> str:
        """The name."""
        return self._name


class Numbered(Named):
    """A user who is known by a number."""

    @property
    def identity(self) -> Any:
        """The number."""
        return 7


class Odd:
    """Somebody's own class, that doesn't even say whether it is authenticated."""

    identity = display_name = "eve"


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (Named("ada"), "ada"),
        (SimpleUser("ada"), "ada"),
        (Numbered("ada"), "7"),
        (Named("ada", authenticated=False), None),
        (Numbered("ada", authenticated=False), None),
        (UnauthenticatedUser(), None),
        (Odd(), None),
        ("ada", None),
        (None, None),
    ],
    ids=str,
)
def test_the_user_is_whom_an_authentication_has_found(user: object, name: str | None) -> None:
    assert scope_user(request() | {"user": user}) == name


def test_a_scope_that_nobody_authenticated_has_no_user() -> None:
    assert scope_user(request()) is None


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/chat/ws", None, "/chat/ws"),
        ("/chat/ws", "", "/chat/ws"),
        ("/chat/ws", "/chat", "/ws"),
        ("/chat", "/chat", ""),
        ("/chatter/ws", "/chat", "/chatter/ws"),
        ("/ws", "/chat", "/ws"),  # a server that leaves the root out
        ("/a/b/ws", "/a/b", "/ws"),
    ],
)
def test_a_path_is_told_below_where_it_is_mounted(path: str, root: str | None, below: str) -> None:
    scope = request() | {"path": path} | ({} if root is None else {"root_path": root})
    assert mounted_path(scope) == below


def test_a_scope_without_a_client_has_no_address() -> None:
    assert client_address(request()) is None


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.7"),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_address_counts_as_its_network(address: str, group: str) -> None:
    assert address_group(address) == group


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("192.168.1.1", True),
        ("100.64.0.1", True),
        ("169.254.1.1", True),
        ("::1", True),
        ("fd00::1", True),
        ("fe80::1", True),
        ("::ffff:127.0.0.1", True),
        ("testclient", True),
        ("", True),
        (None, True),
        ("172.32.0.1", False),
        ("203.0.113.7", False),
        ("8.8.8.8", False),
        ("2001:db8::1", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_a_private_peer_is_known(address: str | None, private: bool) -> None:
    assert is_private(address) is private
