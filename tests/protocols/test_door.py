"""The door check lets pass exactly what a slow and obvious reader lets pass."""

import json
from decimal import Decimal
from typing import Any, Never

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from starlette_realtime.protocols.door import MAX_DEPTH, BadJSON, check, compact


class Pairs(list[tuple[str, Any]]):
    """An object with all its keys, repeated ones too."""


def refuse(_: str) -> Never:
    raise ValueError


def integer(token: str) -> int:
    if abs(Decimal(token)) > 2**53:
        raise ValueError
    return 0


def double(token: str) -> float:
    if float(token) in (float("inf"), float("-inf")):
        raise ValueError
    return 0.0


def depth_of(value: Any) -> int:
    """How deep `value` is; raises where it has a lone surrogate."""
    if isinstance(value, str):
        value.encode()
        return 0
    if isinstance(value, Pairs):
        return 1 + max((max(depth_of(key), depth_of(item)) for key, item in value), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def reference(text: str, depth: int) -> bool:
    """Whether `text` may come in, found out the long way."""
    try:
        value = json.loads(text, parse_constant=refuse, parse_int=integer, parse_float=double, object_pairs_hook=Pairs)
        return depth_of(value) <= depth
    except (ValueError, RecursionError):
        return False


def accepted(text: str | bytes, depth: int = MAX_DEPTH) -> bool:
    try:
        check(text, depth=depth)
    except BadJSON:
        return False
    return True


PIECES = (
    *("\\ud83d", "\\uDE00", "\\udc00", "\\\\", '\\"', "\\u0041", "\\n", "\\/", "\\u005c", "\\udBfF", "ud800", "ude00"),
    *("\ud800", "\ude00", "😀", "é", "[", "]", "{", "}", ":", ",", "1e999", "9" * 17, "a", " ", "\\", "\n", "\x7f"),
)
numbers = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
    st.builds(lambda n: str(n), st.integers(2**53 - 2, 2**53 + 2) | st.integers(-(2**53) - 2, -(2**53) + 2)),
    st.builds(lambda n, e: f"{'9' * n}e{e}", st.integers(1, 320), st.integers(280, 310)),
    st.builds(lambda n, e: f"{'9' * n}.{'1' * n}E+{e:05}", st.integers(200, 310), st.integers(0, 110)),
)
strings = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map(lambda pieces: '"' + "".join(pieces) + '"'),
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
)
spaces = st.sampled_from(("", "", "", " ", "\n", "\r\n", "\t"))
scalars = st.one_of(numbers, strings, st.sampled_from(("null", "true", "false", "NaN", "Infinity", "-Infinity")))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(strings, spaces, inner), max_size=4).map(
            lambda items: "{" + ",".join(f"{key}{space}:{value}" for key, space, value in items) + "}"
        )
        | st.tuples(spaces, inner, spaces).map("".join)
    ),
    max_leaves=12,
)
soup = st.lists(st.sampled_from((*PIECES, '"', "-", "0", "1", ".", "e", "E", "+", "null", "[]")), max_size=20).map(
    "".join
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(values)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 3)))
        text = (
            text[:start]
            + draw(st.sampled_from(("", '"', "[", "]", "{", "}", "\\", "0", "9" * 16, ",", "e")))
            + text[end:]
        )
    return text


@given(st.one_of(values, mutated(), soup, st.text()), st.integers(0, 5))
@example('"\\\\ud800"', 0)
@example('"\\\\\\ud800"', 0)
@example('"\\ud800\\ud800\\udc00"', 0)
@example('["\\\\","[[[[","\\"]"]', 1)
@example('["\\"",[[1]]]', 2)
@example('["\\"",1e999]', 2)
@example("1" * 5000, 0)
@example("0." + "1" * 5000, 0)
@example("-0", 0)
@example("", 0)
def test_the_check_agrees_with_a_slow_reader(text: str, depth: int) -> None:
    assert accepted(text, depth) == reference(text, depth)


@given(values)
def test_text_and_its_bytes_are_judged_alike(text: str) -> None:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        assert not accepted(text)
    else:
        assert accepted(raw) == accepted(text)


@pytest.mark.parametrize("raw", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'\xef\xbb\xbf"a"'])
def test_bytes_that_are_not_utf_8_are_refused(raw: bytes) -> None:
    assert not accepted(raw)


@pytest.mark.parametrize(
    "text",
    [
        *("9007199254740992", "-9007199254740992", "9007199254740993.0", "1e308", "1E+308", "-1e-999", "0e999", "-0"),
        *('"1e999"', '"9007199254740993"', '{"12345678901234567890":"e999"}', '"\\ud83d\\ude00"', '"\\\\ud800"'),
    ],
)
def test_what_only_looks_suspicious_passes(text: str) -> None:
    assert accepted(text)


@pytest.mark.parametrize(
    "text",
    [
        *("9007199254740993", "-9007199254740993", "12345678901234567", "1e999", "-1E+400", "1e0309", "9" * 400 + "e1"),
        *("9" * 400 + ".5", '[1,{"a":1e400}]', "NaN", "Infinity", "-Infinity", "01", "1.", "+1", "'a'", "[1,]", "1 2"),
        *('"\\ud800"', '"\\udc00"', '{"\\ud800":1}', '"\ud800"', '"\\ud800\\u0041"', '"\\udc00\\ud800"', '"a\nb"', ""),
    ],
)
def test_what_has_no_place_in_json_is_refused(text: str) -> None:
    assert not accepted(text)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"[":', "}]")])
def test_depth_ends_at_the_bound(opening: str, closing: str) -> None:
    levels = MAX_DEPTH // (1 + (len(closing) == 2))
    inner = "" if closing == "]" else "1"
    assert accepted(opening * levels + inner + closing * levels)
    assert not accepted(f"[{opening * levels}{inner}{closing * levels}]")


def test_width_is_no_depth() -> None:
    assert accepted("[" + ",".join(["[[]]"] * 10_000) + "]")
    assert accepted(json.dumps("[" * 1000))


@pytest.mark.parametrize("text", ["[" * 65536, '{"a":' * 13107, "[" * 32768 + "]" * 32768])
def test_bottomless_text_is_refused_without_recursion(text: str) -> None:
    assert not accepted(text)


def test_the_reason_holds_nothing_of_the_text() -> None:
    with pytest.raises(BadJSON, match=r"^not JSON$"):
        check('{"token": "hunter2"')
    with pytest.raises(BadJSON, match=r"^over 32 arrays and objects within each other$"):
        check("[" * 33 + "]" * 33)


@given(values.filter(accepted))
@example('["X",\r"\\r"]')
@example('["X",\n"XX"]')
def test_compacting_removes_line_ends_and_nothing_else(text: str) -> None:
    compacted = compact(text.encode())
    assert b"\n" not in compacted
    assert b"\r" not in compacted
    assert json.loads(compacted) == json.loads(text)
    assert compacted == text.replace("\r", "").replace("\n", "").encode()
