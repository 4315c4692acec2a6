"""Stripping: the tokens of an ECMAScript module, without comments and needless white space."""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["Token", "join", "strip", "tokens"]


def strip(source: str) -> str:
    """
    Take comments and needless white space out of an ECMAScript module (ECMA-262, section 12).

    Nothing else changes: neither names nor line ends that could end a statement. Raises as `tokens` does.
    """
    return join(tokens(source))


def join(tokens: Iterable["Token"]) -> str:
    """Write tokens with as little white space between them as is safe."""
    parts = []
    last = _START
    for token in tokens:
        if token.gap == "\n" and _ends_statement(last) and _begins_statement(token):
            parts.append("\n")
        elif token.gap and _touches(last, token):
            parts.append(" ")
        parts.append(token.text)
        last = token
    return "".join(parts)


class Token(NamedTuple):
    """One token; a template is several: its text comes up to each `${`, from each `}` on."""

    kind: str
    """`word` (a name, a keyword, a number or its parts), `string`, `regex` or `sign`."""
    text: str
    gap: str = ""
    """What is before it: nothing, a space, or a newline."""


_START: Final = Token("sign", ";")

_GAP: Final = re.compile(r"(?:[\s\ufeff]|//[^\n\r\u2028\u2029]*|/\*.*?\*/)*", re.DOTALL)
_NEWLINE: Final = re.compile(r"[\n\r\u2028\u2029]")
_REGEX: Final = re.compile(r"/(?:[^/\\\[\n\r]|\\.|\[(?:[^\]\\\n\r]|\\.)*\])+/\w*")
_TEMPLATE: Final = re.compile(r"[`}](?:[^`\\$]|\\.|\$(?!\{))*(?:`|\$\{)", re.DOTALL)  # up to an expression, or the end
_SYNTAX: Final = re.compile(
    r"""
      (?P<word>    [\w$\#\\\u200c\u200d]+ | \.[0-9]\w* )
    | (?P<string>  "(?:[^"\\\n\r]|\\.)*" | '(?:[^'\\\n\r]|\\.)*' )
    | (?P<sign>    \.\.\. | => | \+\+ | -- | [?]\.(?![0-9]) | && | \|\| | [?][?] | [(){}\[\];,.<>=+\-*%&|^!~?:@/`] )
    """,
    re.DOTALL | re.VERBOSE,
)

_BEFORE_OPERAND: Final = frozenset(
    "await case delete do else in instanceof new return throw typeof void yield".split()  # noqa: SIM905
)
_BEFORE_HEAD: Final = frozenset(("if", "while", "for", "with"))
_NO_END: Final = frozenset(("{", "(", "[", ";", ",", "?.", "=>", "=", "?", ":", "&&", "||", "??", "+", "&", "|"))
_NO_BEGIN: Final = frozenset(("}", ")", "]", ";", ",", ".", "?.", "=>", "=", "?", ":", "&&", "||", "??"))


def tokens(source: str) -> Iterator[Token]:
    """
    Read a module's tokens.

    It reads what can be read without a parser, and raises `ValueError` for the rest: a slash after `}` or `of`, which
    may divide or begin a regular expression, and what is no token.
    """
    at = 0
    before = last = _START
    templates: list[bool] = []  # of the open braces: whether it is a template's
    heads: list[bool] = []  # of the open parentheses: whether a statement follows the closing one
    operand = True  # an operand may come now, so a slash begins a regular expression
    while True:
        space = _match(_GAP, source, at)
        at += len(space)
        if at == len(source):
            return
        match = _SYNTAX.match(source, at)
        kind = str(match.lastgroup) if match else "nothing"
        text = match[0] if match else ""
        if text == "/" and last.text in ("}", "of"):
            raise ValueError(f"a slash that may divide or not: {_line(source, at)}")
        if text == "/" and operand:
            kind, text = "regex", _match(_REGEX, source, at)
        elif text == "`" or (text == "}" and templates and templates.pop()):
            kind, text = "string", _match(_TEMPLATE, source, at)
            if text.endswith("${"):
                templates.append(True)
        elif text == "{":
            templates.append(False)
        elif text == "(":
            heads.append(
                (last.text in _BEFORE_HEAD and before.text not in (".", "?."))
                or (before.text, last.text) == ("for", "await")
            )
        if not text:
            raise ValueError(f"no token of ECMAScript: {_line(source, at)}")
        if kind == "word":
            operand = text in _BEFORE_OPERAND and last.text not in (".", "?.")
        elif kind == "sign":
            after_head = text == ")" and bool(heads) and heads.pop()
            operand = after_head or text not in (")", "]", "}", "++", "--")
        else:
            operand = kind == "string" and text.endswith("${")
        at += len(text)
        before, last = last, Token(kind, text, "\n" if _NEWLINE.search(space) else space[:1] and " ")
        yield last


def _match(pattern: re.Pattern[str], source: str, at: int) -> str:
    match = pattern.match(source, at)
    return match[0] if match else ""


def _line(source: str, at: int) -> str:
    return source[source.rfind("\n", 0, at) + 1 :].partition("\n")[0].strip()


def _ends_statement(token: Token) -> bool:
    return token.kind != "sign" or token.text not in _NO_END


def _begins_statement(token: Token) -> bool:
    return token.kind != "sign" or token.text not in _NO_BEGIN


def _touches(one: Token, other: Token) -> bool:
    """Whether the two could be read otherwise without a space."""
    signs = (one.kind == "sign") + (other.kind == "sign")
    if signs == 0:
        return True
    if signs == 2:
        return one.text not in "(){}[];," and other.text not in "(){}[];,"
    return "." in (one.text[-1], other.text[0]) or (one.text == "/" and other.kind == "regex")
