"""The tables of codes are those of the wire protocol, and errors carry what a reply needs."""

import re

import pytest

from starlette_realtime.errors import (
    CLOSE_CODES,
    ERROR_CODES,
    ConfigurationError,
    ConnectionClosed,
    Forbidden,
    InvalidPayload,
    NotJoined,
    ProtocolError,
    RateLimited,
    RealtimeError,
    Refused,
    StoreError,
    Unauthenticated,
    Unavailable,
    UnknownRoom,
)


def test_the_close_codes_are_those_of_the_protocol() -> None:
    assert {code: row.reconnect for code, row in CLOSE_CODES.items()} == {
        1001: "after",
        1002: "no",
        1007: "no",
        1009: "no",
        1012: "after",
        1013: "yes",
        4400: "no",
        4401: "token",
        4403: "no",
        4404: "yes",
        4408: "yes",
        4429: "after",
        4440: "yes",
        4441: "yes",
        4450: "no",
    }


def test_a_close_code_has_a_name_that_fits_into_a_reason() -> None:
    assert all(code == row.code for code, row in CLOSE_CODES.items())
    assert len({row.name for row in CLOSE_CODES.values()}) == len(CLOSE_CODES)
    assert all(re.fullmatch("[a-z][a-z0-9_]{0,63}", row.name) for row in CLOSE_CODES.values())


def test_the_error_codes_are_those_of_the_protocol() -> None:
    assert set(ERROR_CODES) == {
        "bad_frame",
        "unauthenticated",
        "expired",
        "revoked",
        "forbidden",
        "unknown_room",
        "not_joined",
        "unknown_event",
        "invalid_payload",
        "too_large",
        "rate_limited",
        "too_expensive",
        "too_many_rooms",
        "unavailable",
        "timeout",
        "declined",
        "not_found",
        "replaced",
        "internal",
    }
    assert all(ERROR_CODES.values())


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (Unauthenticated(), "unauthenticated", None),
        (Unauthenticated(code="expired"), "expired", None),
        (Forbidden(), "forbidden", None),
        (UnknownRoom(), "unknown_room", None),
        (NotJoined(), "not_joined", None),
        (InvalidPayload(), "invalid_payload", None),
        (RateLimited(retry_after=0.5), "rate_limited", 0.5),
        (Unavailable(), "unavailable", 1.0),
    ],
)
def test_a_refusal_has_a_code_of_the_table_and_its_message(
    error: Refused, code: str, retry_after: float | None
) -> None:
    assert (error.code, error.retry_after) == (code, retry_after)
    assert error.message == ERROR_CODES[code]


def test_a_refusal_of_the_applications_own_shows_its_code() -> None:
    error = Refused("sold_out", fields={"seat": "taken"})
    assert (error.code, error.message, error.fields) == ("sold_out", "sold_out", {"seat": "taken"})


def test_every_error_is_a_realtime_error() -> None:
    for error in (ConfigurationError("x"), ProtocolError(4400), Refused("x"), StoreError("x"), ConnectionClosed(4408)):
        assert isinstance(error, RealtimeError)
    assert ProtocolError(1009, "big").close_code == 1009
    assert (ConnectionClosed(4408, "no_heartbeat").code, ConnectionClosed(4408).reason) == (4408, "")
