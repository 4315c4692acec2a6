"""The structs mean what the wire protocol says where nothing is said."""

import msgspec
import pytest
from msgspec import UNSET, Raw, Struct

from starlette_realtime import messages
from starlette_realtime.messages import (
    Auth,
    Body,
    Entry,
    History,
    Identity,
    Join,
    MemberInfo,
    Position,
    Reply,
    Send,
    Sender,
    SetStatus,
)

STRUCTS = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_message_is_frozen_and_says_what_it_is(kind: type[Struct]) -> None:
    assert kind.__struct_config__.frozen
    if not kind.__name__.startswith("_"):
        assert kind.__doc__


def test_defaults_are_those_of_the_protocol() -> None:
    assert History() == History(size=512, ttl=300.0)
    assert Identity("ada").claims == {}
    assert Identity("ada").expires_at is None
    assert Auth().since == {}
    assert Send(event="m").data == Raw(b"null")
    assert Join(room="r").status == "online"
    assert SetStatus().meta is UNSET
    assert Reply(1).data is UNSET


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Position("e", 7, "i"), b'{"epoch":"e","offset":7,"id":"i"}'),
        (Entry("c", "u:ada"), b'{"connection":"c","who":"u:ada"}'),
        (MemberInfo("c", meta=Raw(b"{}")), b'{"connection":"c","meta":{}}'),
    ],
)
def test_what_crosses_the_store_has_one_form(value: Struct, text: bytes) -> None:
    assert msgspec.json.encode(value) == text


def test_a_body_comes_back_from_the_store_with_its_bytes() -> None:
    body = Body("m", Raw(b'{"a" : 1.0}'), Sender("c", "u"), exclude="s")
    assert msgspec.json.decode(msgspec.json.encode(body), type=Body) == body
