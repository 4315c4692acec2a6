"""Payloads: signatures that can't be filled are refused when decorated; what fits no annotation, when it comes."""

import asyncio
import dataclasses
import functools
import threading
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_realtime.errors import ConfigurationError, InvalidPayload
from starlette_realtime.payloads import Call, Handler, decoder, encode


class Who: ...


class Special(Who): ...


class Where: ...


class Struct(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=5)]
    tags: list[str] = []


@dataclasses.dataclass
class Data:
    text: str
    n: int = 3


class Typed(TypedDict):
    text: str
    n: int


class Model(pydantic.BaseModel):
    text: str = pydantic.Field(min_length=1)
    n: int = 3


class Measure(pydantic.BaseModel):
    x: float


class Colour(Enum):
    RED = "red"


def handler(fn: Any, **options: Any) -> Handler:
    return Handler(fn, **{"injectable": (Who, Where), "params": {"room_id": int, "name": str}, **options})


async def call(fn: Any, payload: bytes = b"null", **options: Any) -> Any:
    who, where = Special(), Where()
    params = {"room_id": 7, "name": "red"}
    return await handler(fn, **options)(Call({Special: who, Where: where}, params, Raw(payload)))


# --- signatures ---


async def test_arguments_are_found_by_type_by_name_and_what_remains_is_the_payload() -> None:
    async def fn(body: dict[str, int], room_id: int, who: Who, where: Where, name: Any) -> Any:
        return body, room_id, type(who), type(where), name

    assert await call(fn, b'{"a":1}') == ({"a": 1}, 7, Special, Where, "red")


async def test_arguments_are_optional() -> None:
    async def nothing() -> int:
        return 1

    async def untyped(body):  # type: ignore[no-untyped-def]
        return body

    assert await call(nothing, b"[1]") == 1
    assert await call(untyped, b'[1,{"a":null}]') == [1, {"a": None}]


async def test_raw_payloads_are_passed_untouched() -> None:
    async def fn(body: Raw) -> bytes:
        return bytes(body)

    assert await call(fn, b'{"a" :  1}') == b'{"a" :  1}'


async def test_a_plain_function_runs_in_a_thread_and_may_return_an_awaitable() -> None:
    def plain(body: int) -> tuple[int, bool]:
        return body, threading.current_thread() is threading.main_thread()

    def lazy() -> Any:
        return asyncio.sleep(0, "later")

    assert await call(plain, b"3") == (3, False)
    assert await call(lazy) == "later"


async def test_methods_partials_and_callable_objects_are_handlers() -> None:
    class Handlers:
        async def method(self, body: int) -> int:
            return body + 1

        async def __call__(self, body: int) -> int:
            return body + 2

    async def added(body: int, *, more: int = 5) -> int:
        return body + more

    assert await call(Handlers().method, b"1") == 2
    assert await call(Handlers(), b"1") == 3

    async def wrapped(room_id: int, body: int) -> int:
        return body + room_id

    @functools.wraps(wrapped)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await wrapped(*args, **kwargs)

    assert await call(wrapper, b"1") == 8


def _star(*args: int) -> None: ...


def _double_star(**kwargs: int) -> None: ...


def _positional(body: int, /) -> None: ...


def _two(a: int, b: int) -> None: ...


def _wrong_type(room_id: str) -> None: ...


def _not_a_payload(body: Who | Where) -> None: ...


def _undefined(body: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (_star, r"_star: handlers take no \*args"),
        (_double_star, r"_double_star: handlers take no \*args"),
        (_positional, "passed by name, so 'body'"),
        (_two, "what should 'a', 'b' be"),
        (_wrong_type, "'room_id' is a int in the room's pattern"),
        (_not_a_payload, "can't be a payload"),
        (_undefined, "names 'Nowhere', which is not defined"),
    ],
)
def test_a_signature_that_cannot_be_filled_is_refused_with_the_reason(fn: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        handler(fn)


def test_where_there_is_no_payload_nothing_may_remain() -> None:
    def more(who: Who, body: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"what should 'body' be\? Annotate what is injected \(Who, Where\)"):
        handler(more, payload=False)


async def test_where_there_is_no_payload_defaults_remain_defaults() -> None:
    def fn(who: Who, body: int = 4) -> int:
        return body

    assert await handler(fn, payload=False)(Call({Who: Who()})) == 4


# --- validation ---


@pytest.mark.parametrize(
    ("annotation", "payload", "value"),
    [
        (Struct, b'{"text":"hi"}', Struct("hi")),
        (Data, b'{"text":"hi","n":4}', Data("hi", 4)),
        (Typed, b'{"text":"hi","n":4}', {"text": "hi", "n": 4}),
        (Model, b'{"text":"hi"}', Model(text="hi")),
        (list[Model], b'[{"text":"a"},{"text":"b"}]', [Model(text="a"), Model(text="b")]),
        (Model | None, b"null", None),
        (int, b"3", 3),
        (str | None, b"null", None),
        (Literal["a", "b"], b'"a"', "a"),
        (Colour, b'"red"', Colour.RED),
        (datetime, b'"2026-01-02T03:04:05Z"', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (Annotated[int, pydantic.Field(gt=1)], b"2", 2),
        (Any, b"[1]", [1]),
    ],
)
def test_a_payload_becomes_what_the_annotation_says(annotation: Any, payload: bytes, value: object) -> None:
    assert decoder(annotation)(Raw(payload)) == value


@pytest.mark.parametrize(
    ("annotation", "payload", "field"),
    [
        (Struct, b"{}", "text"),
        (Struct, b'{"text":""}', "text"),
        (Struct, b'{"text":"too long"}', "text"),
        (Struct, b'{"text":"a","tags":["b",1]}', "tags[1]"),
        (Struct, b"3", ""),
        (Data, b'{"text":1}', "text"),
        (Typed, b'{"text":"a"}', "n"),
        (Model, b'{"text":""}', "text"),
        (Model, b'{"text":"a","n":"x"}', "n"),
        (list[Model], b'[{"text":"a"},{}]', "1.text"),
        (int, b'"3"', ""),
        (int, b"null", ""),
        (Annotated[int, pydantic.Field(gt=1)], b"1", ""),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(annotation: Any, payload: bytes, field: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        decoder(annotation)(Raw(payload))
    assert refused.value.code == "invalid_payload"
    assert refused.value.fields is not None
    assert list(refused.value.fields) == [field]
    assert all(refused.value.fields.values())


def test_an_error_never_repeats_the_payload() -> None:
    for annotation in (Struct, Model, Typed):
        with pytest.raises(InvalidPayload) as refused:
            decoder(annotation)(Raw(b'{"text":["swordfish"],"n":"swordfish"}'))
        assert "swordfish" not in str(refused.value.fields)


# --- encoding ---


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (None, b"null"),
        (Struct("a"), b'{"text":"a","tags":[]}'),
        (Data("a"), b'{"text":"a","n":3}'),
        (Model(text="a"), b'{"text":"a","n":3}'),
        ({"m": [Model(text="a")]}, b'{"m":[{"text":"a","n":3}]}'),
        (Raw(b'{"a" : 1}'), b'{"a" : 1}'),
        ({"a": (1, 2.5, True, None)}, b'{"a":[1,2.5,true,null]}'),
        (2**53, b"9007199254740992"),
    ],
)
def test_values_become_json(value: object, raw: bytes) -> None:
    assert bytes(encode(value)) == raw


@pytest.mark.parametrize("value", [object(), {1, object()}, lambda: None])
def test_what_json_cannot_say_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [float("inf")],
        {"a": {"b": -float("inf")}},
        2**53 + 1,
        -(2**60),
        _nested(40),
        Data("x", float("nan")),  # type: ignore[arg-type]
        Measure(x=float("inf")),
    ],
)
def test_what_the_wire_must_not_carry_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError):
        encode(value)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises((ValueError, TypeError)):
        encode({"a": "\ud800"})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_every_value_of_the_wire_survives_the_way(value: Any) -> None:
    assert msgspec.json.decode(encode(value)) == value
