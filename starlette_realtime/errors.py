"""Errors: the exception tree, and the one table of error codes and close codes."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = [
    "CLOSE_CODES",
    "ERROR_CODES",
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "Declined",
    "Forbidden",
    "InvalidPayload",
    "NotJoined",
    "ProtocolError",
    "RateLimited",
    "RealtimeError",
    "Refused",
    "StoreError",
    "Unauthenticated",
    "Unavailable",
    "UnknownRoom",
]


class CloseCode(NamedTuple):
    """One row of the close-code table (RFC 6455 section 7.4 for 1xxx; 4xxx are ours)."""

    code: int
    name: str
    meaning: str
    reconnect: Literal["yes", "no", "token", "after"]
    """What a client does: `token` reconnects with a new token, `after` waits for the announced delay."""


CLOSE_CODES: Mapping[int, CloseCode] = {
    row.code: row
    for row in (
        CloseCode(1001, "going_away", "the server is going away", "after"),
        CloseCode(1002, "broken_frames", "broken WebSocket frames", "no"),
        CloseCode(1007, "invalid_utf8", "a text frame that is not UTF-8", "no"),
        CloseCode(1009, "too_large", "a message over the size limit", "no"),
        CloseCode(1012, "draining", "the process is draining", "after"),
        CloseCode(1013, "unavailable", "the service is unavailable", "yes"),
        CloseCode(4400, "bad_frame", "too many frames that the protocol does not allow", "no"),
        CloseCode(4401, "unauthenticated", "no valid credentials, or they have expired", "token"),
        CloseCode(4403, "forbidden", "refused by origin or rule, or removed by the server", "no"),
        CloseCode(4404, "no_auth", "no `auth` command in time", "yes"),
        CloseCode(4408, "no_heartbeat", "the client was silent for too long", "yes"),
        CloseCode(4429, "rate_limited", "over a rate or connection limit", "after"),
        CloseCode(4440, "slow_consumer", "the client read too slowly", "yes"),
        CloseCode(4441, "out_of_step", "the process lost step with the store", "yes"),
        CloseCode(4450, "revoked", "the credentials were revoked", "no"),
    )
}
"""Close code → its row. The browser client carries the same table; a test compares the two."""

ERROR_CODES: Mapping[str, str] = {
    "bad_frame": "the frame is not what the protocol allows",
    "unauthenticated": "authenticate first",
    "expired": "the credentials have expired",
    "revoked": "the credentials were revoked",
    "forbidden": "not allowed",
    "unknown_room": "there is no such room",
    "not_joined": "join the room first",
    "unknown_event": "nobody handles this event",
    "invalid_payload": "the payload is not what the event takes",
    "too_large": "too large",
    "rate_limited": "too many, too fast",
    "too_expensive": "it costs more than may be spent at once",
    "too_many_rooms": "this connection is in too many rooms",
    "unavailable": "unavailable for now, try again",
    "timeout": "no answer in time",
    "declined": "the client that was asked answered with an error",
    "not_found": "there is nothing at this address",
    "replaced": "another connection took its place",
    "internal": "the server failed",
}
"""Error code of a `reply` or `error` → its default message. Applications add codes of their own."""


class RealtimeError(Exception):
    """Everything that this package raises."""


class ConfigurationError(RealtimeError):
    """The program is wrong: raised at import or start-up, with what to change."""


class ProtocolError(RealtimeError):
    """The peer broke the wire format beyond repair: the connection closes with `close_code`."""

    def __init__(self, close_code: int, message: str = "") -> None:
        super().__init__(close_code, message)
        self.close_code = close_code
        self.message = message


class Refused(RealtimeError):
    """
    A command was understood and denied: the peer gets an error reply and stays connected.

    `code` is one of `ERROR_CODES` or the application's own (`[a-z][a-z0-9_]{0,63}`); `message` is shown to
    the peer, by default the code's text; `retry_after` is in seconds, and None means that a retry won't help;
    `fields` maps a payload's field (`"address.street"`, or `""` for the whole) to what is wrong with it.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.message = message if message is not None else ERROR_CODES.get(code, code)
        self.retry_after = retry_after
        self.fields = fields

    def __str__(self) -> str:
        return self.code if self.message in ("", self.code) else f"{self.code}: {self.message}"


class Unauthenticated(Refused):
    """No valid credentials; `code` is `unauthenticated`, `expired` or `revoked`."""

    def __init__(self, message: str | None = None, *, code: str = "unauthenticated") -> None:
        super().__init__(code, message)


class Forbidden(Refused):
    """Known, but not allowed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__("forbidden", message)


class UnknownRoom(Refused):
    """No declared pattern matches the room's name."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__("unknown_room", message)


class NotJoined(Refused):
    """The connection is not a member of the room."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__("not_joined", message)


class InvalidPayload(Refused):
    """The payload does not fit the handler's annotation; `fields` says where."""

    def __init__(self, message: str | None = None, *, fields: Mapping[str, str] | None = None) -> None:
        super().__init__("invalid_payload", message, fields=fields)


class RateLimited(Refused):
    """Over a limit; try again after `retry_after` seconds."""

    def __init__(self, message: str | None = None, *, retry_after: float) -> None:
        super().__init__("rate_limited", message, retry_after=retry_after)


class Unavailable(Refused):
    """A dependency (the store, most often) is away; try again after `retry_after` seconds."""

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__("unavailable", message, retry_after=retry_after)


class Declined(Refused):
    """
    A client answered a handler's request with an error.

    `answer` is what it said: a `Refused` with that code, message, `retry_after` and fields. Whoever else hears of it,
    because the handler lets it pass, hears `declined` alone: one client's word is not the server's.
    """

    def __init__(self, answer: Refused) -> None:
        super().__init__("declined")
        self.answer = answer

    def __str__(self) -> str:
        return f"{self.code} ({self.answer})"


class StoreError(RealtimeError):
    """The store failed; the driver's error, where there is one, is the `__cause__`."""


class ConnectionClosed(RealtimeError):
    """The connection has ended, so that nothing can be sent to it or awaited from it."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
