"""Patterns: room names, the templates that describe them, and the user's own room."""

import re
from collections.abc import Callable, Mapping
from keyword import iskeyword
from types import MappingProxyType
from typing import Final, Generic, TypeVar
from unicodedata import is_normalized
from urllib.parse import quote

from starlette_realtime.errors import ConfigurationError

__all__ = ["MAX_NAME", "RESERVED", "Pattern", "Patterns", "check_event", "check_user", "encode_user"]

MAX_NAME: Final = 128
"""The longest room name and the longest user, in characters."""

Params = dict[str, str | int]
V = TypeVar("V")

_RESERVED: Final = ("user:", "rt:")
_USER: Final = "user:"

# Control characters, line and paragraph separators, surrogates, and what Unicode calls Bidi_Control (UAX #9): they
# break logs and protocols, or make one name look like another. Joiners stay: scripts and emoji need them.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEAD: Final = re.compile(r"[^:/{]*[:/]")

# Not `\d` and `int`: they take `042` and `٤٢`, which would be one authorisation and several topics.
_CONVERTERS: Final[Mapping[str, tuple[type, str]]] = {
    "str": (str, "[^:/,?]+"),
    "int": (int, "0|[1-9][0-9]{0,17}"),
}


def _flaw(text: str) -> str:
    """What keeps `text` from being a name or a user; "" when nothing does."""
    if not 0 < len(text) <= MAX_NAME:
        return f"it has 1 to {MAX_NAME} characters"
    if text.isascii():
        return "" if text.isprintable() else "it has control characters"
    if _UNSAFE.search(text):
        return "it has control characters, line separators, surrogates or direction marks"
    if not is_normalized("NFC", text):
        return "it is not in Unicode's normal form NFC"
    return ""


class Pattern:
    """
    A template of room names: `chat:lobby`, or `chat:{room_id:int}` with parameters.

    A parameter is `{name}` or `{name:converter}`: `str`, the default, is one character or more without `:`, `/`, `,`
    and `?`; `int` is ASCII `0|[1-9][0-9]{0,17}`. A name has 1 to 128 characters, is in NFC, and has no control
    characters, line or paragraph separators, surrogates or direction marks (Bidi_Control). What is not in that form
    is refused, never repaired: a name has one spelling, and no two names have the same parameters.

    Names that begin with `user:` or `rt:` are the server's: no pattern matches them.

    Raises `ConfigurationError` for a template that breaks these rules, or whose parameters could not be told apart.
    """

    __slots__ = ("_match", "params", "shape", "template")

    def __init__(self, template: str) -> None:
        self.template = template
        literals, names, converters = _parse(template)
        self.params: Mapping[str, type] = MappingProxyType(
            {name: _CONVERTERS[converter][0] for name, converter in zip(names, converters, strict=True)}
        )
        """Each parameter's type, in the template's order."""
        self.shape = literals[0] + "".join(
            f"{{:{converter}}}{literal}" for converter, literal in zip(converters, literals[1:], strict=True)
        )
        """The template without the parameters' names: two patterns of one shape match the same names."""
        expression = re.escape(literals[0]) + "".join(
            f"({_CONVERTERS[converter][1]}){re.escape(literal)}"
            for converter, literal in zip(converters, literals[1:], strict=True)
        )
        self._match: Callable[[str], re.Match[str] | None] = re.compile(expression).fullmatch

    def __repr__(self) -> str:
        return f"Pattern({self.template!r})"

    def match(self, name: str) -> Params | None:
        """The parameters in `name`, or None when it is no name of this pattern."""
        return None if name.startswith(_RESERVED) or _flaw(name) else self._parameters(name)

    def format(self, **params: str | int) -> str:
        """
        The name with these parameters; `match` gives them back.

        Raises `ValueError` when a parameter is missing, unknown or not what its converter takes, or when the result
        is no valid name.
        """
        if params.keys() != self.params.keys():
            wanted = ", ".join(f"{name}=…" for name in self.params) or "no parameters"
            raise ValueError(f"{self.template!r} takes {wanted}")
        for name, value in params.items():
            if not isinstance(value, self.params[name]) or isinstance(value, bool):
                raise ValueError(f"{name!r} of {self.template!r} takes {self.params[name].__name__}")
        name = _FIELD.sub(lambda match: str(params[match[1].partition(":")[0]]), self.template)
        if self.match(name) != params:
            raise ValueError(f"these parameters make no room name of {self.template!r}")
        return name

    def _parameters(self, name: str) -> Params | None:
        match = self._match(name)
        if match is None:
            return None
        groups = zip(self.params.items(), match.groups(), strict=True)
        return {key: int(text) if kind is int else text for (key, kind), text in groups}


def _parse(template: str) -> tuple[list[str], list[str], list[str]]:
    """Take a template apart: one literal more than parameters, their names and their converters."""

    def wrong(why: str) -> ConfigurationError:
        return ConfigurationError(f"the room pattern {template!r} is wrong: {why}")

    parts = _FIELD.split(template)
    literals, fields = parts[::2], parts[1::2]
    if any("{" in literal or "}" in literal for literal in literals):
        raise wrong("write a parameter as `{name}` or `{name:converter}`, and no other braces")
    if any("," in literal or "?" in literal for literal in literals):
        raise wrong("a room name has no `,` and no `?`")
    text = "".join(literals)
    if (text or not fields) and (flaw := _flaw(text)):
        raise wrong(flaw)
    if template.startswith(_RESERVED):
        raise wrong("names that begin with `user:` or `rt:` are the server's own")
    names: list[str] = []
    converters: list[str] = []
    for field in fields:
        name, colon, converter = field.partition(":")
        if _PARAMETER.fullmatch(name) is None or iskeyword(name):
            raise wrong(f"{name!r} cannot be a parameter: handlers take it as an argument, by this name")
        if name in names:
            raise wrong(f"the parameter {name!r} stands there twice")
        if colon and converter not in _CONVERTERS:
            raise wrong(f"there is no converter {converter!r}, only {' and '.join(_CONVERTERS)}")
        names.append(name)
        converters.append(converter or "str")
    for converter, literal in zip(converters[:-1], literals[1:-1], strict=True):
        # Else several parameters would have one name: `{a}-{b}` reads `1-2-3` in two ways.
        if converter == "str" and not (":" in literal or "/" in literal):
            raise wrong("between a text parameter and the next one there must be a `:` or a `/`")
        if converter == "int" and (not literal or literal[0] in "0123456789"):
            raise wrong("right after an `int` parameter there must be something that is no digit")
    return literals, names, converters


class Patterns(Generic[V]):
    """
    Patterns with a value each, looked up by a room's name.

    A pattern without parameters wins over those with some, and among these the first that was added. The cost of
    a lookup does not grow with the patterns that begin differently: they are sorted by what stands before the
    first `:` or `/`. Nothing is kept of the names that are asked for.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, Pattern] = {}
        self._exact: dict[str, tuple[Pattern, V]] = {}
        self._by_head: dict[str, list[tuple[Pattern, V]]] = {}
        self._headless: list[tuple[Pattern, V]] = []  # those that begin with a parameter; also in each of `_by_head`

    def add(self, pattern: Pattern, value: V) -> None:
        """Add a pattern. Raises `ConfigurationError` when one that matches the same names is there already."""
        known = self._shapes.get(pattern.shape)
        if known is not None:
            raise ConfigurationError(f"{pattern.template!r} matches the same names as {known.template!r}: keep one")
        self._shapes[pattern.shape] = pattern
        item = (pattern, value)
        head = _HEAD.match(pattern.template)
        if not pattern.params:
            self._exact[pattern.template] = item
        elif head is not None:
            self._by_head.setdefault(head[0], self._headless.copy()).append(item)
        else:
            self._headless.append(item)
            for items in self._by_head.values():
                items.append(item)

    def match(self, name: str) -> tuple[V, Params] | None:
        """The value of the pattern that `name` belongs to, and the parameters in it; None where there is none."""
        exact = self._exact.get(name)
        if exact is not None:
            return exact[1], {}
        if name.startswith(_RESERVED) or _flaw(name):
            return None
        head = _HEAD.match(name)
        items = self._headless if head is None else self._by_head.get(head[0], self._headless)
        for pattern, value in items:
            params = pattern._parameters(name)
            if params is not None:
                return value, params
        return None


def check_user(user: str) -> None:
    """
    Raise `TypeError` unless `user` is a `str`, and `ValueError` unless it can be a user.

    That is 1 to 128 characters, in NFC, and none that a room's name could not have.
    """
    if not isinstance(user, str):
        raise TypeError(f"a user is a str of 1 to {MAX_NAME} characters, not {user!r}: str(…) makes one")
    if flaw := _flaw(user):
        raise ValueError(f"this cannot be a user: {flaw}")


def encode_user(user: str) -> str:
    """
    The name of the user's room: `user:` and the user, percent-encoded outside `[A-Za-z0-9_.~-]` (RFC 3986 2.3).

    Raises `ValueError` where `check_user` does.
    """
    check_user(user)
    return _USER + quote(user, safe="")


RESERVED = frozenset({"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"})
"""Socket.IO's own events; `rt:…` is ours."""


def check_event(event: str) -> str:
    """The name of an event that an application may use; raises `ConfigurationError` for one that it may not."""
    if not isinstance(event, str):
        raise ConfigurationError('an event is a string: write @room.on("event")')
    if not 1 <= len(event) <= MAX_NAME:
        raise ConfigurationError(f"an event's name has 1 to {MAX_NAME} characters, not {len(event)}")
    if event.startswith("rt:") or event in RESERVED:
        raise ConfigurationError(f"{event!r} is reserved: name the event otherwise")
    return event
