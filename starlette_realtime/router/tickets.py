"""Tickets: where a signed-in page gets a one-time credential, for what can send neither a header nor a frame."""

import logging

import msgspec
from starlette.requests import HTTPConnection

from starlette_realtime.asgi import deny, header_values, scope_user
from starlette_realtime.auth import AuthGuard
from starlette_realtime.auth.refusals import denial, why
from starlette_realtime.clock import Clock
from starlette_realtime.errors import Refused, Unauthenticated, Unavailable
from starlette_realtime.ratelimit import RateLimiter, Subject
from starlette_realtime.types import Receive, Scope, Send

__all__ = ["Tickets"]

logger = logging.getLogger("starlette_realtime.router")


ABSENT = "sign in first"


class Tickets:
    """
    Answers `POST /ticket` with `{"ticket": …, "expires_in": seconds}`.

    Whoever asks is authenticated as a handshake is, by header, cookie or session, and as often as handshakes are
    let in. The request is `application/json`, which no other site's form can send; its body is not read. Pages of
    allowed origins may ask from elsewhere: they get the headers of CORS (Fetch standard, section 3.2).
    """

    def __init__(self, guard: AuthGuard, limiter: RateLimiter, *, timeout: float, clock: Clock) -> None:
        self._guard = guard
        self._limiter = limiter
        self._timeout = timeout
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = self._cors(scope) if self._guard.origins.check(scope) else None
        if scope["method"] == "OPTIONS" and headers:
            await self._preflight(headers, send)
            return
        if scope["method"] != "POST":
            await deny(
                scope, receive, send, status=405, code=4403, reason="forbidden", headers=[(b"allow", b"POST, OPTIONS")]
            )
            return
        if headers is None:
            await deny(scope, receive, send, status=403, code=4403)
            return
        kinds = header_values(scope, b"content-type")
        if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != b"application/json":
            await deny(
                scope,
                receive,
                send,
                status=415,
                code=4400,
                reason="bad_frame",
                message="send Content-Type: application/json",
                headers=headers,
            )
            return
        try:
            ticket, lasts = await self._issue(scope)
        except ValueError:
            logger.exception("a ticket can't be made: its user's claims are too long")
            await deny(scope, receive, send, status=500, code=1013, reason="internal", headers=headers)
            return
        except Refused as exc:
            logger.info("a ticket was refused: %s", why(exc))
            how = denial(exc, presented=exc.message != ABSENT)
            how["headers"] = headers + how["headers"]
            await deny(scope, receive, send, **how)
            return
        body = msgspec.json.encode({"ticket": ticket, "expires_in": lasts})
        start = [
            *headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body})

    async def _issue(self, scope: Scope) -> tuple[str, float]:
        subject = Subject(scope, scope_user(scope))
        pace = await self._limiter.handshakes.take(subject, {}, HTTPConnection(scope))
        if not pace.allowed:
            raise pace.refusal()
        try:
            async with self._clock.timeout(self._timeout):
                identity = await self._guard.handshake(scope)
        except TimeoutError:
            raise Unavailable(retry_after=5.0) from None
        if identity is None or identity.user is None:
            raise Unauthenticated(ABSENT)
        lasts = self._guard.ticket_age
        if identity.expires_at is not None:
            lasts = min(lasts, max(0.0, round(identity.expires_at - self._clock.time(), 3)))
        return self._guard.issue_ticket(identity, scope), lasts

    async def _preflight(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        start = [
            *headers,
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", b"content-type, authorization"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": start})
        await send({"type": "http.response.body", "body": b""})

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origins = header_values(scope, b"origin")
        if not origins:
            return [(b"vary", b"origin")]
        if self._guard.origins.any:
            return [(b"access-control-allow-origin", b"*")]  # without credentials: a cookie's user is not any page's
        return [
            (b"vary", b"origin"),
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-allow-credentials", b"true"),
        ]
