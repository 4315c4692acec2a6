"""Refusals: what a peer is told that is not let in, as a status, a close code, or a frame."""

import logging
from typing import TypedDict

from starlette_realtime.asgi import deny, outcome
from starlette_realtime.errors import ERROR_CODES, Refused
from starlette_realtime.messages import Error
from starlette_realtime.protocols.native import NativeProtocol
from starlette_realtime.types import Receive, Scope, Send

__all__ = ["Denial", "denial", "error_frame", "refuse", "why"]

logger = logging.getLogger("starlette_realtime.auth")


def error_frame(code: str, message: str, retry_after: float | None) -> str:
    """The native protocol's `error` frame."""
    (frame,) = NativeProtocol.encode(Error(code, message, retry_after))
    assert isinstance(frame, str)
    return frame


def why(refusal: Refused) -> str:
    """What was refused, and why exactly, in a line for the log."""
    cause = refusal.__cause__
    return refusal.code if cause is None else f"{refusal.code} ({type(cause).__name__}: {cause})"


class Denial(TypedDict):
    """What `asgi.deny` has to know of a refusal."""

    status: int
    code: int
    reason: str
    message: str
    retry_after: float | None
    headers: list[tuple[bytes, bytes]]


def denial(refusal: Refused, *, presented: bool) -> Denial:
    """How a request or handshake is denied; `presented`: it had brought credentials."""
    status, code = outcome(refusal)
    return {
        "status": status,
        "code": code,
        "reason": refusal.code,
        "message": refusal.message,
        "retry_after": refusal.retry_after,
        "headers": _challenge(refusal, presented=presented) if status == 401 else [],
    }


def _challenge(refusal: Refused, *, presented: bool) -> list[tuple[bytes, bytes]]:
    """The header of a 401 (RFC 6750 section 3)."""
    text = b"Bearer"
    if presented:
        text += b' error="invalid_token"'
        if refusal.code in ("expired", "revoked"):
            text += b', error_description="%s"' % ERROR_CODES[refusal.code].encode()
    return [(b"www-authenticate", text)]


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refused, *, presented: bool) -> None:
    """
    Deny a request or handshake; `presented`: it had brought credentials.

    A challenge tells them apart (RFC 6750 section 3): `Bearer` alone asks for a token, and `invalid_token` says that
    the one that came won't do. A client of the native protocol gets its `error` frame before the close.
    """
    how = denial(refusal, presented=presented)
    logger.info("refused with %d: %s", how["status"], why(refusal))
    native = NativeProtocol.subprotocol in scope.get("subprotocols", ())
    frames = [error_frame(refusal.code, refusal.message, refusal.retry_after)] if native else []
    await deny(scope, receive, send, **how, frames=frames)
