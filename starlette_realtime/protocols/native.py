"""The native wire protocol, version 1: one JSON object a frame."""

import re
from collections import deque
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from starlette_realtime.errors import ProtocolError
from starlette_realtime.messages import (
    NULL,
    Answer,
    Auth,
    Command,
    Error,
    Failure,
    GetHistory,
    GetMembers,
    Join,
    Leave,
    Pong,
    Position,
    Reply,
    Send,
    ServerEvent,
    SetStatus,
    Status,
)
from starlette_realtime.protocols.base import WireProtocol
from starlette_realtime.protocols.door import MAX_DEPTH, BadJSON, check, compact
from starlette_realtime.types import Frame

__all__ = ["BAD_FRAMES", "BAD_FRAMES_WINDOW", "MAX_SIZE", "NativeProtocol"]

MAX_SIZE: Final = 65536
"""The default size limit of one frame, in bytes of UTF-8."""

BAD_FRAMES: Final = 10
"""So many unreadable frames within `BAD_FRAMES_WINDOW` close the connection."""

BAD_FRAMES_WINDOW: Final = 60.0
"""In seconds."""

_MAX_OFFSET: Final = 2**53
_MAX_NAME: Final = 128  # characters of an event
_MAX_KEY: Final = 64  # characters of a key, a position's epoch or id, an error code
_MAX_CREDENTIAL: Final = 8192  # characters of a token or session
_MAX_SINCE: Final = 100  # rooms that the server joins
_MAX_META: Final = 1024  # bytes
_MAX_WAIT: Final = 86_400  # seconds that a client may ask for
_MAX_EXPLANATION: Final = 200  # characters

_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)")


# msgspec reads `Raw | None` as null alone, so these two are read as they stand on the wire and then translated.
class _Join(Struct, frozen=True, tag_field="type", tag="join"):
    room: str
    since: Position | None = None
    meta: Raw = NULL
    status: Status = "online"
    id: int | None = None


class _SetStatus(Struct, frozen=True, tag_field="type", tag="status"):
    status: Status | None = None
    meta: Raw | UnsetType = UNSET
    room: str | None = None
    id: int | None = None


class _Envelope(Struct, frozen=True):
    """What is left to read of a command that is not well-formed."""

    type: Raw = NULL
    id: Raw = NULL


_Read: TypeAlias = Auth | _Join | Leave | Send | _SetStatus | GetHistory | GetMembers | Answer | Pong

_TYPES: Final = ("auth", "event", "history", "join", "leave", "members", "pong", "reply", "status")
_decoder: Final = msgspec.json.Decoder(_Read)
_envelopes: Final = msgspec.json.Decoder(_Envelope)
_encoder: Final = msgspec.json.Encoder()


class NativeProtocol(WireProtocol):
    """
    The native protocol on one connection: text frames, one JSON object each.

    `max_size` is the largest frame, in bytes of UTF-8. Payloads (`data`, `meta`) are checked at the door and handed
    on as the bytes they came as, less line ends between tokens; they may be 32 arrays and objects deep.

    A readable object that is no well-formed command is answered through `pending` and not counted: with a reply
    where it has an id (but never a reply to a `reply`), else with an `error`. What is no JSON object at all is
    answered with an `error` and counted: the tenth within 60 s raises `ProtocolError` with 4400. A frame over the
    size raises it with 1009.
    """

    subprotocol = "starlette-realtime.v1.json"

    def __init__(self, *, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._bad: deque[float] = deque(maxlen=BAD_FRAMES)  # when the last ones came
        self._pending: list[Frame] = []

    def receive(self, frame: Frame, now: float) -> list[Command]:
        """Read one frame; see the class for what is wrong with it."""
        # No character takes less than a byte, so most of what is too large is never encoded.
        if len(frame) > self._max_size:
            raise self._too_large()
        if isinstance(frame, bytes):
            return self._unreadable("send text frames, not binary ones", now)
        try:
            raw = frame.encode()
        except UnicodeEncodeError:
            return self._unreadable("lone surrogates", now)
        if len(raw) > self._max_size:
            raise self._too_large()
        try:
            check(raw, depth=MAX_DEPTH + 1)  # a payload lies within the frame's object
        except BadJSON as exc:
            return self._unreadable(str(exc), now)
        if not raw.lstrip(b" \t\r\n").startswith(b"{"):
            return self._unreadable("a frame is a JSON object", now)
        raw = compact(raw)
        try:
            command = _decoder.decode(raw)
        except msgspec.ValidationError as exc:
            return self._malformed(raw, str(exc))
        fault = _fault(command)
        if fault:
            return self._malformed(raw, fault)
        return [_translate(command)]

    def pending(self) -> list[Frame]:
        """Take the answers to what `receive` could not make a command of."""
        frames, self._pending = self._pending, []
        return frames

    def send(self, event: ServerEvent) -> tuple[Frame, ...]:
        """One text frame."""
        return (_encoder.encode(event).decode(),)

    @classmethod
    def encode(cls, event: ServerEvent, view: str | None = None) -> tuple[Frame, ...]:
        """One text frame; all views are the same."""
        return (_encoder.encode(event).decode(),)

    def _too_large(self) -> ProtocolError:
        return ProtocolError(1009, f"a message has at most {self._max_size} bytes")

    def _unreadable(self, why: str, now: float) -> list[Command]:
        """Answer a frame that is no JSON object, and count it."""
        bad = self._bad
        bad.append(now)
        if len(bad) == BAD_FRAMES and now - bad[0] <= BAD_FRAMES_WINDOW:
            raise ProtocolError(4400, f"too many bad frames, the last one: {why}")
        self._pending.extend(self.send(Error(code="bad_frame", message=why)))
        return []

    def _malformed(self, raw: bytes, why: str) -> list[Command]:
        """Answer an object that is no well-formed command, by its id where it has one."""
        envelope = _envelopes.decode(raw)
        kind = msgspec.json.decode(envelope.type)
        if kind is not None and kind not in _TYPES:
            why = f"unknown `type`; it is one of {', '.join(_TYPES)}"
        why = why[:_MAX_EXPLANATION]
        token = bytes(envelope.id)
        # An answer to an answer would find the wrong request: ids of the two directions are not related.
        if kind == "reply" or _INTEGER.fullmatch(token) is None:
            self._pending.extend(self.send(Error(code="bad_frame", message=why)))
        else:
            failure = Failure(code="bad_frame", message=why)
            self._pending.extend(self.send(Reply(id=int(token), error=failure)))
        return []


def _translate(command: _Read) -> Command:
    if isinstance(command, _Join):
        meta = None if command.meta == NULL else command.meta
        return Join(id=command.id, room=command.room, since=command.since, meta=meta, status=command.status)
    if isinstance(command, _SetStatus):
        change = None if command.meta == NULL else command.meta
        return SetStatus(id=command.id, status=command.status, meta=change, room=command.room)
    return command


def _fault(command: _Read) -> str:
    """What is out of bounds in a command that has the right types; "" when nothing is."""
    match command:
        case Send():
            return _length("event", command.event, _MAX_NAME) or _length("key", command.key, _MAX_KEY)
        case _Join():
            return _position("since", command.since) or _meta(command.meta)
        case _SetStatus():
            return _meta(command.meta)
        case GetHistory():
            if command.limit is not None and command.limit < 1:
                return "`limit` is 1 or more"
            return _position("before", command.before)
        case Auth():
            return (
                _length("token", command.token, _MAX_CREDENTIAL)
                or _length("session", command.session, _MAX_CREDENTIAL)
                or _positions(command.since)
            )
        case Answer():
            if command.id is None:
                return "a `reply` repeats the `id` of what it answers"
            return _error(command.error) if command.error else ""
    return ""


def _error(error: Failure) -> str:
    wait = error.retry_after
    if wait is not None and not 0 <= wait <= _MAX_WAIT:
        return f"`error.retry_after` is 0 to {_MAX_WAIT} s"
    return _length("error.code", error.code, _MAX_KEY)


def _length(name: str, value: str | None, most: int) -> str:
    return "" if value is None or 0 < len(value) <= most else f"`{name}` has 1 to {most} characters"


def _position(name: str, value: Position | None) -> str:
    if value is None:
        return ""
    if not 0 <= value.offset <= _MAX_OFFSET:
        return f"`{name}.offset` is 0 to 2^53"
    if len(value.epoch) > _MAX_KEY or len(value.id) > _MAX_KEY:
        return f"`{name}.epoch` and `{name}.id` have at most {_MAX_KEY} characters"
    return ""


def _positions(since: Mapping[str, Position]) -> str:
    if len(since) > _MAX_SINCE:
        return f"`since` has at most {_MAX_SINCE} rooms"
    return next((fault for value in since.values() if (fault := _position("since[…]", value))), "")


def _meta(meta: Raw | UnsetType) -> str:
    return f"`meta` has at most {_MAX_META} bytes" if meta is not UNSET and len(bytes(meta)) > _MAX_META else ""
