"""Frames as a client writes and reads them: what the server's door would refuse never leaves."""

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from starlette_realtime.errors import InvalidPayload, Refused
from starlette_realtime.messages import Failure, ServerEvent
from starlette_realtime.protocols.door import MAX_DEPTH, check

__all__ = ["BadFrame", "decode", "encode", "expect", "read", "refusal"]

T = TypeVar("T")

_decoder: Final[msgspec.json.Decoder[ServerEvent]] = msgspec.json.Decoder(ServerEvent)
_types: Final = {kind.__struct_config__.tag for kind in ServerEvent.__args__}


class _Envelope(msgspec.Struct, frozen=True):
    type: str


_envelopes: Final = msgspec.json.Decoder(_Envelope)


class BadFrame(ValueError):
    """The server sent what the protocol does not allow: it may have been an event."""


def encode(command: Mapping[str, object]) -> str:
    """
    A command's JSON; fields that are None are left out, `data` alone may be null.

    Raises `InvalidPayload` for what JSON can't say and what the wire must not carry (numbers that are not finite or
    integers beyond 2^53, lone surrogates, over 32 levels): here, where the stack still says who sent it.
    """
    fields = {name: value for name, value in command.items() if value is not None or name == "data"}
    try:
        plain = msgspec.to_builtins(fields, str_keys=True, enc_hook=_plain)
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        check(text, depth=MAX_DEPTH + 1)  # a payload lies within the frame's object
    except (TypeError, ValueError, NotImplementedError, OverflowError, RecursionError) as exc:
        raise InvalidPayload(f"this can't be sent: {exc}") from exc
    return text


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # a pydantic model's
    if dump is None:
        raise NotImplementedError(f"{type(value).__name__} is nothing that JSON can say")
    return dump(mode="json")


def decode(text: str) -> ServerEvent | None:
    """What the server said; None for a type of frame that a later version has. Raises `BadFrame`."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as exc:
        try:
            known = _envelopes.decode(text).type in _types
        except msgspec.ValidationError:
            known = True
        if known:
            raise BadFrame(str(exc)) from exc
        return None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise BadFrame(str(exc)) from exc


def read(raw: Raw, kind: Any) -> Any:
    """Decode a payload into `kind`. Raises `InvalidPayload`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as exc:
        raise InvalidPayload(f"what the server sent is no {getattr(kind, '__name__', kind)}: {exc}") from exc


def expect(raw: Raw, kind: type[T]) -> T:
    """Decode what the protocol says a reply holds. Raises `BadFrame`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as exc:
        raise BadFrame(str(exc)) from exc


def refusal(failure: Failure) -> Refused:
    """A reply's `error` as the exception that the application catches."""
    return Refused(failure.code, failure.message or None, retry_after=failure.retry_after, fields=failure.fields)
