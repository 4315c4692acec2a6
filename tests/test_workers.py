"""Components with a memory store of their own say once that other workers know nothing of what they count."""

import pytest

from starlette_realtime import AuthGuard, RateLimiter, SignedTokens
from starlette_realtime.auth import guard as guards
from starlette_realtime.ratelimit import limiter as limiters

TOKENS = SignedTokens("a secret of these tests alone")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "several workers" in record.getMessage()]


async def test_a_guard_says_it_when_it_revokes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guards, "several", lambda: True)
    guard = AuthGuard(authenticate=TOKENS)
    await guard.revoke_user("ann")
    await guard.revoke_token("x")
    (line,) = told(caplog)
    assert "revocations hold in one of them only" in line


async def test_a_limiter_says_it_when_it_counts_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limiters, "several", lambda: True)
    limiter = RateLimiter()
    await limiter.admit("slot", user="ann")
    await limiter.admit("other", user="ann")
    (line,) = told(caplog)
    assert "counts shared limits and connections alone" in line


async def test_one_worker_hears_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    await AuthGuard(authenticate=TOKENS).revoke_user("ann")
    await RateLimiter().admit("slot", user="ann")
    assert told(caplog) == []
