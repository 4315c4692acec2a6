"""The door check: what JSON from outside must be before anything else looks at it."""

import re
from typing import Final

import msgspec

__all__ = ["MAX_DEPTH", "BadJSON", "check", "compact"]

MAX_DEPTH: Final = 32
"""How many arrays and objects may lie within each other: a scalar has depth 0, `[]` has 1."""

_MAX_INTEGER: Final = 2**53
_SYNTAX: Final = msgspec.json.Decoder(msgspec.Raw)

# One pass tells digits, exponents and brackets from the rest, so that what follows are plain searches.
_KINDS: Final = bytes.maketrans(b"123456789E{}", b"000000000e[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]"))

# The tokens that can be too large: 16 digits reach 2**53, and a double overflows with an exponent of three digits, or
# with an integer part that is longer still.
_LARGE: Final = re.compile(
    rb"(?<![0-9.eE+\-])-?(?:"
    rb"[0-9]{16,}+(?:\.[0-9]++)?+(?:[eE][+\-]?[0-9]++)?+"
    rb"|[0-9]++(?:\.[0-9]++)?+[eE]\+?[0-9]{3,}+"
    rb")"
)

# RFC 8259 section 7: an escape is two characters or six, and a character beyond the basic plane is a surrogate pair.
_PAIRED: Final = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+",
    re.DOTALL,
)


class BadJSON(ValueError):
    """The text is not the JSON that may come in; the message says why, and holds nothing of the text."""


def check(text: str | bytes, *, depth: int = MAX_DEPTH) -> None:
    """
    Let pass one JSON value (RFC 8259) with UTF-8, finite doubles, integers within ±2^53 and no lone surrogates.

    `depth` bounds how many arrays and objects lie within each other, in the whole text. The cost is linear in the
    text; most texts are searched a few times at memory speed, and only what looks suspicious is taken apart.

    Raises `BadJSON`.
    """
    try:
        if isinstance(text, str):
            raw = text.encode()
        else:
            raw = text
            if not raw.isascii():
                raw.decode()
    except UnicodeError:
        raise BadJSON("lone surrogates, or not UTF-8") from None
    kinds = raw.translate(_KINDS)
    deep = kinds.count(b"[") > depth
    large = b"0000000000000000" in kinds or b"e000" in kinds or b"e+000" in kinds
    if deep or large:
        outside = _outside_strings(raw)
        if deep:
            _check_depth(outside, depth)
        if large:
            _check_numbers(outside)
    if b"\\u" in raw and _PAIRED.fullmatch(raw) is None:
        raise BadJSON("lone surrogates")
    try:
        _SYNTAX.decode(raw)
    except msgspec.DecodeError:
        raise BadJSON("not JSON") from None


def compact(raw: bytes) -> bytes:
    """Remove line ends: in valid JSON they stand between tokens only. The text is otherwise as it was."""
    if b"\n" in raw or b"\r" in raw:
        return raw.translate(None, b"\r\n")
    return raw


def _outside_strings(raw: bytes) -> bytes:
    """The text without its strings. Escaped backslashes go first: they don't escape the quote behind them."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(raw.split(b'"')[::2])


def _check_depth(outside: bytes, depth: int) -> None:
    """Peel the innermost brackets once per level."""
    brackets = outside.translate(_KINDS).translate(None, _NO_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise BadJSON(f"over {depth} arrays and objects within each other")


def _check_numbers(outside: bytes) -> None:
    for match in _LARGE.finditer(outside):
        token = match[0]
        if not token.strip(b"-0123456789"):
            # Seventeen digits are too many whatever they are, and `int` is slow with thousands.
            if len(token.lstrip(b"-")) > 16 or abs(int(token)) > _MAX_INTEGER:
                raise BadJSON("integers must be within ±2^53")
        elif abs(float(token)) == float("inf"):
            raise BadJSON("numbers must be finite")
