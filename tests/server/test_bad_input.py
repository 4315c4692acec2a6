"""Whatever a client sends, it gets the answer that the protocol promises, and nobody else is harmed."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.server.support import Frame, Peer, Site, running

LARGEST = 64 * 1024


@pytest.fixture(scope="module")
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with running() as site:
        yield site


@dataclass
class Scene:
    """An offender and a witness in one room."""

    site: Site
    room: str
    offender: Peer
    witness: Peer

    async def nobody_is_harmed(self, *, survives: bool = True) -> None:
        """The room goes on for the witness, and for the offender where it `survives`."""
        assert (await self.witness.do("event", event="message", room=self.room, data={"text": "after"}))["offset"]
        await self.witness.expect("event", event="message", data={"text": "after"})
        await self.site.realtime.at(self.room).broadcast("news", 1)
        await self.witness.expect("event", event="news", room=self.room)
        assert not self.witness.heard("error")
        assert not self.witness.heard("reset")
        if survives:
            await self.offender.expect("event", event="message", data={"text": "after"})
            await self.offender.do("event", event="message", room=self.room, data={"text": "sorry"})
            await self.witness.expect("event", event="message", data={"text": "sorry"})


@pytest.fixture
async def scene(site: Site) -> AsyncIterator[Scene]:
    room = site.new_room()
    async with site.peer("mallory", room) as offender, site.peer("bob", room) as witness:
        yield Scene(site, room, offender, witness)


# --- readable, but no good --------------------------------------------------------------------------------------------

MALFORMED: list[Frame] = [
    {},
    {"type": None},
    {"type": 5},
    {"type": ["join"]},
    {"type": "shout"},
    {"type": "welcome"},
    {"type": "Join", "room": "chat:1"},
    {"type": "join"},
    {"type": "join", "room": None},
    {"type": "join", "room": 42},
    {"type": "join", "room": "chat:1", "since": "yesterday"},
    {"type": "join", "room": "chat:1", "since": {"epoch": "e", "offset": -1, "id": ""}},
    {"type": "join", "room": "chat:1", "since": {"epoch": "e", "offset": 1.5, "id": ""}},
    {"type": "join", "room": "chat:1", "since": {"epoch": "e" * 65, "offset": 1, "id": "i"}},
    {"type": "join", "room": "chat:1", "since": {"offset": 1}},
    {"type": "join", "room": "chat:1", "status": "busy"},
    {"type": "join", "room": "chat:1", "meta": "x" * 1025},
    {"type": "leave"},
    {"type": "event"},
    {"type": "event", "event": ""},
    {"type": "event", "event": "e" * 129},
    {"type": "event", "event": "echo", "key": ""},
    {"type": "event", "event": "echo", "key": "k" * 65},
    {"type": "event", "event": "echo", "key": 7},
    {"type": "status", "status": "offline"},
    {"type": "status", "meta": {"x": "y" * 1025}},
    {"type": "history"},
    {"type": "history", "room": "chat:1", "limit": 0},
    {"type": "history", "room": "chat:1", "limit": "all"},
    {"type": "members"},
    {"type": "auth", "token": ""},
    {"type": "auth", "token": 5},
    {"type": "auth", "token": "t" * 8193},
    {"type": "auth", "since": []},
]


def _short(frame: object) -> str:
    return json.dumps(frame)[:60]


@pytest.mark.parametrize("frame", MALFORMED, ids=_short)
async def test_a_malformed_command_is_answered_by_its_id_and_else_by_an_error_frame(scene: Scene, frame: Frame) -> None:
    await scene.offender.text(json.dumps({**frame, "id": 77}))
    reply = await scene.offender.expect("reply", id=77)
    assert reply["error"]["code"] == "bad_frame"
    assert reply["error"]["message"]
    await scene.offender.text(json.dumps(frame))
    assert (await scene.offender.expect("error"))["code"] == "bad_frame"
    await scene.nobody_is_harmed()


@pytest.mark.parametrize("id", ["1", 1.5, 1e3, True, None, [1], {}], ids=repr)
async def test_an_id_that_is_no_integer_gets_no_reply(scene: Scene, id: object) -> None:
    before = len(scene.offender.heard("reply"))
    await scene.offender.text(json.dumps({"type": "shout", "id": id}))
    assert (await scene.offender.expect("error"))["code"] == "bad_frame"
    assert len(scene.offender.heard("reply")) == before
    await scene.nobody_is_harmed()


@pytest.mark.parametrize(
    "frame", [{"type": "reply"}, {"type": "reply", "id": "1"}, {"type": "reply", "id": 1, "error": 5}]
)
async def test_a_broken_reply_is_never_answered_by_a_reply(scene: Scene, frame: Frame) -> None:
    before = len(scene.offender.heard("reply"))
    await scene.offender.text(json.dumps(frame))
    assert (await scene.offender.expect("error"))["code"] == "bad_frame"
    assert len(scene.offender.heard("reply")) == before
    await scene.nobody_is_harmed()


async def test_a_reply_to_nothing_is_ignored(scene: Scene) -> None:
    await scene.offender.send("reply", id=999, data={"text": "?"})
    await scene.offender.send("pong", id=3)
    await scene.nobody_is_harmed()
    assert not scene.offender.heard("error")


async def test_malformed_commands_are_not_counted_as_bad_frames(scene: Scene) -> None:
    for _ in range(15):
        await scene.offender.text('{"type":"shout"}')
    for _ in range(15):
        assert (await scene.offender.expect("error"))["code"] == "bad_frame"
    await scene.nobody_is_harmed()


async def test_unknown_fields_are_ignored(scene: Scene) -> None:
    await scene.offender.do("event", event="message", room=scene.room, data={"text": "hi", "colour": 1}, priority=9)
    assert (await scene.witness.expect("event", event="message"))["data"] == {"text": "hi"}
    await scene.nobody_is_harmed()


@pytest.mark.parametrize("data", [{}, {"text": 5}, {"text": None}, None, [], "hello", 5, {"Text": "x"}], ids=_short)
async def test_an_invalid_payload_names_the_fields_that_are_wrong(scene: Scene, data: object) -> None:
    error = await scene.offender.refused("event", event="message", room=scene.room, data=data)
    assert error["code"] == "invalid_payload"
    ((field, why),) = error["fields"].items()
    assert field == ("text" if isinstance(data, dict) else "")
    assert why
    await scene.nobody_is_harmed()


async def test_an_invalid_payload_without_an_id_is_answered_by_an_error_frame(scene: Scene) -> None:
    await scene.offender.send("event", event="message", room=scene.room, data={"text": 5})
    error = await scene.offender.expect("error", code="invalid_payload")
    assert list(error["fields"]) == ["text"]
    await scene.nobody_is_harmed()


@pytest.mark.parametrize("event", ["shout", "rt:kick", "rt:disconnect", "disconnect", "echo", "e" * 128])
async def test_an_unknown_event_is_refused(scene: Scene, event: str) -> None:
    assert (await scene.offender.refused("event", event=event, room=scene.room))["code"] == "unknown_event"
    await scene.nobody_is_harmed()


@pytest.mark.parametrize("event", ["shout", "rt:kick", "message"])
async def test_an_unknown_event_of_the_connection_is_refused(scene: Scene, event: str) -> None:
    assert (await scene.offender.refused("event", event=event, data={"text": "x"}))["code"] == "unknown_event"
    await scene.nobody_is_harmed()


# --- unreadable -------------------------------------------------------------------------------------------------------

UNREADABLE: dict[str, str | bytes] = {
    "nothing": "",
    "blank": "  ",
    "words": "hello",
    "half a frame": '{"type":"event"',
    "two frames": '{"type":"pong"}{"type":"pong"}',
    "single quotes": "{'type':'pong'}",
    "a trailing comma": '{"type":"pong",}',
    "a comment": '{"type":"pong"} // x',
    "a byte order mark": '\ufeff{"type":"pong"}',
    "a raw control character": '{"type":"po\x01ng"}',
    "an array": '[{"type":"pong"}]',
    "a string": '"pong"',
    "a number": "42",
    "null": "null",
    "binary": b'{"type":"pong"}',
    "binary nothing": b"",
    "NaN": '{"type":"event","event":"echo","data":NaN}',
    "Infinity": '{"type":"event","event":"echo","data":Infinity}',
    "minus Infinity": '{"type":"event","event":"echo","data":-Infinity}',
    "1e999": '{"type":"event","event":"echo","data":1e999}',
    "-1e999 in a list": '{"type":"event","event":"echo","data":[1,-1e999]}',
    "1e999 in an unknown field": '{"type":"event","event":"echo","extra":1e999}',
    "a large integer": f'{{"type":"event","event":"echo","data":{2**53 + 1}}}',
    "a large negative integer": f'{{"type":"event","event":"echo","data":{-(2**53) - 1}}}',
    "an endless integer": f'{{"type":"event","event":"echo","data":{"9" * 5000}}}',
    "a large id": f'{{"type":"event","event":"echo","id":{2**63}}}',
    "a lone surrogate": '{"type":"event","event":"echo","data":"\\ud800"}',
    "a lone low surrogate": '{"type":"event","event":"echo","data":"\\udc00\\ud83d"}',
    "a surrogate as a key": '{"type":"event","event":"echo","data":{"\\ud800":1}}',
    "a surrogate in a room": '{"type":"join","room":"chat:\\ud800"}',
    "33 arrays": '{"type":"event","event":"echo","data":' + "[" * 33 + "]" * 33 + "}",
    "33 objects": '{"type":"event","event":"echo","data":' + '{"a":' * 33 + "1" + "}" * 33 + "}",
    "a tower": '{"type":"event","event":"echo","data":' + "[" * 30_000 + "]" * 30_000 + "}",
    "an unclosed tower": "[" * 60_000,
}


@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_the_tenth_unreadable_frame_within_a_minute_closes(scene: Scene, unreadable: str | bytes) -> None:
    for _ in range(9):
        await scene.offender.websocket.send(unreadable)
        error = await scene.offender.expect("error")
        assert error["code"] == "bad_frame"
        assert error["message"]
    await scene.nobody_is_harmed()
    await scene.offender.websocket.send(unreadable)
    assert (await scene.offender.expect("error"))["code"] == "bad_frame"
    assert await scene.offender.closed() == (4400, "bad_frame")
    await scene.nobody_is_harmed(survives=False)


async def test_unreadable_frames_are_forgiven_after_a_minute(scene: Scene) -> None:
    for _ in range(3):
        for _ in range(9):
            await scene.offender.text("hello")
            await scene.offender.expect("error", code="bad_frame")
        await scene.site.clock.advance(60.5)
    await scene.nobody_is_harmed()


async def test_unreadable_frames_count_before_auth_too(scene: Scene) -> None:
    async with scene.site.peer() as stranger:
        for _ in range(10):
            await stranger.text("hello")
        assert await stranger.closed() == (4400, "bad_frame")
    await scene.nobody_is_harmed()


@pytest.mark.parametrize(
    "data",
    [
        str(2**53),
        str(-(2**53)),
        "1.7976931348623157e308",
        "5e-324",
        "[" * 32 + "]" * 32,
        '"\\ud83d\\ude00"',
        '"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["',
        '"1e999 and 99999999999999999999"',
        '"\\\\ud800"',
        '"\\u0000"',
    ],
)
async def test_what_is_just_within_the_rules_passes(scene: Scene, data: str) -> None:
    await scene.offender.text(f'{{"type":"event","event":"raw","room":"{scene.room}","data":{data},"id":5}}')
    assert "error" not in await scene.offender.expect("reply", id=5)
    assert (await scene.witness.expect("event", event="raw"))["data"] == json.loads(data)
    await scene.nobody_is_harmed()


async def test_a_payload_that_is_forwarded_keeps_its_bytes_less_line_ends(scene: Scene) -> None:
    data = '{"a" : 1.50,\n"a":\r\n"\\n\\u00e9\\/"}'
    await scene.offender.text(f'{{"type":"event","event":"raw","room":"{scene.room}",\r\n"data":{data}}}')
    await scene.witness.expect("event", event="raw")
    assert '"data":{"a" : 1.50,"a":"\\n\\u00e9\\/"}' in scene.witness.texts[-1]
    await scene.nobody_is_harmed()


# --- broken below the protocol ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b'{"type":"pong\xe2\x82"}'])
async def test_invalid_utf8_closes_1007(scene: Scene, payload: bytes) -> None:
    await scene.offender.websocket.send(payload, text=True)
    assert (await scene.offender.closed())[0] == 1007
    await scene.nobody_is_harmed(survives=False)


@pytest.mark.parametrize(
    "bytes_on_the_wire",
    [
        b"\x81\x02{}",  # not masked (RFC 6455 section 5.1)
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits (5.2)
        b"\x83\x80\x00\x00\x00\x00",  # a reserved opcode (5.2)
        b"\x80\x80\x00\x00\x00\x00",  # a continuation of nothing (5.4)
        b"\x89\xfe\x00\x7e" + b"\x00" * 130,  # a ping over 125 bytes (5.5)
    ],
    ids=["unmasked", "reserved bits", "opcode", "continuation", "long ping"],
)
async def test_broken_frames_close_1002(scene: Scene, bytes_on_the_wire: bytes) -> None:
    scene.offender.websocket.transport.write(bytes_on_the_wire)
    assert (await scene.offender.closed())[0] == 1002
    await scene.nobody_is_harmed(survives=False)


def _of_size(size: int, fill: str = "x") -> str:
    head, tail = '{"type":"event","id":6,"event":"echo","data":"', '"}'
    rest = size - len(head) - len(tail)
    count, left = divmod(rest, len(fill.encode()))
    return head + fill * count + "x" * left + tail


@pytest.mark.parametrize("fill", ["x", "é", "😀"])
async def test_a_message_of_the_largest_size_passes_and_one_byte_more_closes_1009(scene: Scene, fill: str) -> None:
    largest = _of_size(LARGEST, fill)
    assert len(largest.encode()) == LARGEST
    await scene.offender.text(largest)
    assert (await scene.offender.expect("reply", id=6))["data"] == json.loads(largest)["data"]
    await scene.offender.text(_of_size(LARGEST + 1, fill))
    assert (await scene.offender.expect("error"))["code"] == "too_large"
    assert await scene.offender.closed() == (1009, "too_large")
    await scene.nobody_is_harmed(survives=False)


async def test_the_size_is_that_of_all_fragments(scene: Scene) -> None:
    await scene.offender.websocket.send("x" * 1024 for _ in range(65))
    assert await scene.offender.closed() == (1009, "too_large")
    await scene.nobody_is_harmed(survives=False)


async def test_a_binary_message_over_the_size_closes_1009(scene: Scene) -> None:
    await scene.offender.websocket.send(b"x" * (LARGEST + 1))
    assert await scene.offender.closed() == (1009, "too_large")
    await scene.nobody_is_harmed(survives=False)


async def test_what_the_server_itself_finds_too_large_closes_1009(anyio_backend: str) -> None:
    async with running(server={"ws_max_size": LARGEST}) as site:
        room = site.new_room()
        async with site.peer("mallory", room) as offender, site.peer("bob", room) as witness:
            await offender.text(_of_size(1024 * 1024))
            assert (await offender.closed())[0] == 1009
            await Scene(site, room, offender, witness).nobody_is_harmed(survives=False)
