"""How AuthGuard refuses: programs by status and challenge, browsers by close code."""

import json

import pytest
from starlette.applications import Starlette

from starlette_realtime import (
    Authenticate,
    AuthGuard,
    Forbidden,
    RateLimited,
    Refused,
    SignedTokens,
    Unauthenticated,
    Unavailable,
)
from starlette_realtime.protocols.native import NativeProtocol
from starlette_realtime.testing import FakeClock, Peer, Rejected
from tests.auth.support import HOME, application, basic, bearer, request

PRESENTED = 'Bearer error="invalid_token"'
EXPIRED = PRESENTED + ', error_description="the credentials have expired"'


def says(token: str) -> str | None:
    """A way that refuses as the token wants it."""
    refusals = {
        "forbidden": Forbidden("not you"),
        "limited": RateLimited(retry_after=7.2),
        "own": Refused("banned", "go away"),
        "away": Unavailable(retry_after=0.25),
        "quoted": Unauthenticated('"\r\nX-Evil: 1'),
    }
    if token in refusals:
        raise refusals[token]
    return None


@pytest.fixture
def app(clock: FakeClock, tokens: SignedTokens) -> Starlette:
    return application(authenticate=[tokens, says], cookie="tok", clock=clock)


async def test_a_challenge_tells_who_brought_nothing_from_who_brought_nothing_valid(
    clock: FakeClock, tokens: SignedTokens, app: Starlette
) -> None:
    """RFC 6750 section 3."""
    old = tokens.issue("ada", expires_in=1.0)
    await clock.advance(1.0)
    for headers, challenge in (
        ([], "Bearer"),
        (basic("proxy"), "Bearer"),
        ([("Cookie", "tok=nonsense")], "Bearer"),
        (bearer("nonsense"), PRESENTED),
        (bearer(""), PRESENTED),
        ([*bearer("a"), *bearer("b")], PRESENTED),
        (bearer("quoted"), PRESENTED),
        (bearer(old), EXPIRED),
    ):
        response = await request(app, headers=headers)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, challenge)
        assert "x-evil" not in response.headers
        with pytest.raises(Rejected) as rejected:
            await Peer(app, headers=[each for each in headers if each[0] != "Cookie"]).connect()
        assert (rejected.value.status, rejected.value.headers["www-authenticate"]) == (401, challenge)


@pytest.mark.parametrize(
    ("token", "status", "code", "reason", "wait", "message"),
    [
        ("forbidden", 403, 4403, "forbidden", None, "not you"),
        ("own", 403, 4403, "banned", None, "go away"),
        ("limited", 429, 4429, "rate_limited;7.2", "8", RateLimited(retry_after=7.2).message),
        ("away", 503, 1013, "unavailable;0.25", "1", Unavailable().message),
        ("nonsense", 401, 4401, "unauthenticated", None, "the token is not valid"),
    ],
)
async def test_programs_get_a_status_and_browsers_a_close_code(
    app: Starlette, token: str, status: int, code: int, reason: str, wait: str | None, message: str
) -> None:
    response = await request(app, headers=bearer(token))
    assert (response.status_code, response.headers.get("retry-after")) == (status, wait)
    assert (response.json()["code"], response.json()["message"]) == (reason.partition(";")[0], message)
    assert ("www-authenticate" in response.headers) == (status == 401)
    with pytest.raises(Rejected) as rejected:
        await Peer(app, headers=bearer(token)).connect()
    assert (rejected.value.status, rejected.value.headers.get("retry-after")) == (status, wait)
    with pytest.raises(Rejected) as rejected:
        await Peer(app, headers=bearer(token), denial=False).connect()
    assert rejected.value.status == 403, "the server can't do better"
    async with Peer(app, origin=HOME, headers=bearer(token)) as page:
        closed = await page.wait_closed()
        assert (closed.code, closed.reason) == (code, reason)
        assert page.waiting() == [], "another protocol's client would not understand a frame"


async def test_a_client_of_the_native_protocol_gets_its_error_frame(app: Starlette) -> None:
    native = [NativeProtocol.subprotocol]
    async with Peer(app, origin=HOME, headers=bearer("forbidden"), subprotocols=native) as page:
        assert await page.receive_json() == {"type": "error", "code": "forbidden", "message": "not you"}
        assert (await page.wait_closed()).code == 4403
        assert page.subprotocol == NativeProtocol.subprotocol
    async with Peer(app, origin=HOME, headers=bearer("away"), subprotocols=["other", *native]) as page:
        assert (await page.receive_json())["retry_after"] == 0.25


async def test_another_way_may_answer_when_one_is_away(clock: FakeClock, tokens: SignedTokens) -> None:
    def away(token: str) -> str | None:
        raise Unavailable

    guard = AuthGuard(authenticate=[away, tokens], clock=clock)
    scope = {"type": "http", "method": "GET", "headers": []}
    assert (await guard.authenticate(tokens.issue("ada"), scope)).user == "ada"
    orders: list[list[Authenticate]] = [[away, tokens], [tokens, away]]
    for order in orders:
        with pytest.raises(Unavailable):  # nobody can tell
            await AuthGuard(authenticate=order, clock=clock).authenticate("nonsense", scope)


async def test_the_log_says_why_exactly(
    clock: FakeClock, tokens: SignedTokens, app: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="starlette_realtime")
    await request(app, headers=bearer(SignedTokens("another secret of enough bytes", clock=clock).issue("ada")))
    assert "refused with 401: unauthenticated (ValueError: BadSignature)" in caplog.text
    caplog.clear()
    await request(app)
    assert caplog.messages == ["refused with 401: unauthenticated"]
    caplog.clear()
    await request(app, method="POST", headers=[("Origin", "https://evil.example")], host="a" * 300)
    (line,) = caplog.messages
    assert "origin b'https://evil.example'" in line
    assert f"host b'{'a' * 200}'" in line, "and no more of it"


async def test_nothing_that_was_presented_is_logged(
    clock: FakeClock, tokens: SignedTokens, app: Starlette, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="starlette_realtime")
    token = tokens.issue("ada")
    signature = token.rpartition(".")[2]
    for bad in (f"{token}x", f"x{token}", token[:-3]):
        await request(app, headers=bearer(bad))
        await request(app, f"/?ticket=rtt1.{bad}")
    assert caplog.text.count("refused with 401") == 6
    assert token[:20] not in caplog.text
    assert signature[:10] not in caplog.text
    assert json.dumps(token) not in caplog.text
