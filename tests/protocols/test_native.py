"""The native protocol: every frame both ways, and an answer to everything that is none."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_realtime.errors import ProtocolError
from starlette_realtime.messages import (
    Answer,
    Auth,
    Bounds,
    Command,
    Error,
    Event,
    Expiring,
    Failure,
    GetHistory,
    GetMembers,
    Join,
    Joined,
    Leave,
    Left,
    Limits,
    MemberInfo,
    Ping,
    Pong,
    Position,
    Presence,
    Reconnect,
    Reply,
    Reset,
    Roster,
    Send,
    Sender,
    ServerEvent,
    SetStatus,
    StoreAway,
    StoreBack,
    Welcome,
)
from starlette_realtime.protocols import NativeProtocol

PLACE = Position("e", 7, "i")
PLACE_JSON = '{"epoch":"e","offset":7,"id":"i"}'

COMMANDS: dict[str, Command] = {
    '{"type":"auth"}': Auth(),
    '{"type":"auth","id":1,"token":"t","session":"s","since":{"user:a":' + PLACE_JSON + "}}": Auth(
        id=1, token="t", session="s", since={"user:a": PLACE}
    ),
    '{"type":"join","room":"chat:1"}': Join(room="chat:1"),
    '{"type":"join","id":2,"room":"r","since":' + PLACE_JSON + ',"meta":{"a": [1]},"status":"away"}': Join(
        id=2, room="r", since=PLACE, meta=Raw(b'{"a": [1]}'), status="away"
    ),
    '{"type":"join","room":"r","meta":null}': Join(room="r"),
    '{"type":"leave","room":"r","id":-3}': Leave(room="r", id=-3),
    '{"type":"event","event":"message"}': Send(event="message", data=Raw(b"null")),
    '{"type":"event","event":"m","data":{"b":1,"a" : 1.0e2,"b":2},"room":"r","key":"k","id":4}': Send(
        event="m", data=Raw(b'{"b":1,"a" : 1.0e2,"b":2}'), room="r", key="k", id=4
    ),
    '{"type":"status"}': SetStatus(),
    '{"type":"status","status":"online","meta":null,"room":"r"}': SetStatus(status="online", meta=None, room="r"),
    '{"type":"status","meta":"busy","id":5}': SetStatus(meta=Raw(b'"busy"'), id=5),
    '{"type":"history","room":"r"}': GetHistory(room="r"),
    '{"type":"history","room":"r","before":' + PLACE_JSON + ',"limit":10,"id":6}': GetHistory(
        room="r", before=PLACE, limit=10, id=6
    ),
    '{"type":"members","room":"r","id":9007199254740992}': GetMembers(room="r", id=2**53),
    '{"type":"reply","id":8,"data":[true]}': Answer(id=8, data=Raw(b"[true]")),
    '{"type":"reply","id":8,"error":{"code":"no","message":"not now","retry_after":1,"fields":{"a":"b"}}}': Answer(
        id=8, error=Failure("no", "not now", 1.0, {"a": "b"})
    ),
    '{"type":"pong"}': Pong(),
    ' {"unknown":[{}],"room":"r","type":"leave"}\t': Leave(room="r"),
}

EVENTS: dict[str, ServerEvent] = {
    '{"type":"welcome","connection":"c","heartbeat":25.0,"limits":{"message_bytes":65536,"rooms":100},"server":"s"}': (
        Welcome("c", 25.0, Bounds(65536, 100), "s")
    ),
    '{"type":"reply","id":1,"data":{"text":"é"}}': Reply(1, data=Raw('{"text":"é"}'.encode())),
    '{"type":"reply","id":1,"error":{"code":"rate_limited","message":"slow","retry_after":0.5}}': Reply(
        1, error=Failure("rate_limited", "slow", 0.5)
    ),
    '{"type":"reply","id":1,"error":{"code":"invalid_payload","fields":{"text":"too long"}}}': Reply(
        1, error=Failure("invalid_payload", fields={"text": "too long"})
    ),
    '{"type":"event","event":"m","data":null}': Event("m", Raw(b"null")),
    '{"type":"event","event":"m","data":[1 ],"room":"r","position":'
    + PLACE_JSON
    + ',"from":{"connection":"c","user":"u"},"at":5,"id":6}': Event(
        "m", Raw(b"[1 ]"), room="r", position=PLACE, sender=Sender("c", "u"), at=5, id=6
    ),
    '{"type":"joined","room":"r"}': Joined(room="r"),
    '{"type":"joined","recovered":false,"events":[],"position":'
    + PLACE_JSON
    + ',"reason":"epoch","members":{"seq":1,"total":1,"list":[{"connection":"c","user":"u","status":"away",'
    '"meta":{},"since":9}]},"room":"r"}': Joined(
        room="r",
        recovered=False,
        events=(),
        position=PLACE,
        reason="epoch",
        members=Roster(1, 1, [MemberInfo("c", "u", "away", Raw(b"{}"), 9)]),
    ),
    '{"type":"left","room":"r","code":"forbidden"}': Left("r", "forbidden"),
    '{"type":"presence","room":"r","seq":3,"prev":1,"joined":[{"connection":"c"}],"left":["d"]}': Presence(
        "r", 3, 1, joined=[MemberInfo("c")], left=["d"]
    ),
    '{"type":"presence","room":"r","seq":3,"total":900,"sample":[{"connection":"c"}]}': Presence(
        "r", 3, total=900, sample=[MemberInfo("c")]
    ),
    '{"type":"reset","room":"r","reason":"epoch","position":' + PLACE_JSON + "}": Reset("r", "epoch", PLACE),
    '{"type":"stale"}': StoreAway(),
    '{"type":"stale","room":"r"}': StoreAway("r"),
    '{"type":"fresh"}': StoreBack(),
    '{"type":"fresh","room":"r"}': StoreBack("r"),
    '{"type":"expiring","expires_in":24.5}': Expiring(24.5),
    '{"type":"reconnect","after":1.5,"reason":"draining"}': Reconnect(1.5, "draining"),
    '{"type":"limits","remaining":3,"retry_after":0.2,"event":"m"}': Limits(3, 0.2, "m"),
    '{"type":"error","code":"internal"}': Error("internal"),
    '{"type":"error","code":"rate_limited","message":"slow","retry_after":2.0}': Error("rate_limited", "slow", 2.0),
    '{"type":"ping"}': Ping(),
}


def talk(protocol: NativeProtocol, frame: str | bytes, now: float = 0.0) -> tuple[list[Command], list[Any]]:
    """What the protocol makes of a frame: commands, and its own answers."""
    commands = protocol.receive(frame, now)
    answers = protocol.pending()
    assert protocol.pending() == []
    return commands, [json.loads(answer) for answer in answers]


@pytest.mark.parametrize(("frame", "command"), COMMANDS.items())
def test_a_frame_is_its_command(frame: str, command: Command) -> None:
    assert talk(NativeProtocol(), frame) == ([command], [])


@pytest.mark.parametrize(("frame", "event"), EVENTS.items())
def test_an_event_is_its_frame(frame: str, event: ServerEvent) -> None:
    assert NativeProtocol().send(event) == (frame,)
    assert NativeProtocol.encode(event) == (frame,)
    assert NativeProtocol.encode(event, "any view") == (frame,)


def test_the_tables_above_hold_every_type() -> None:
    assert {type(command) for command in COMMANDS.values()} == set(Command.__args__)
    assert {type(event) for event in EVENTS.values()} == set(ServerEvent.__args__)


def test_the_subprotocol_has_its_name() -> None:
    assert NativeProtocol.subprotocol == "starlette-realtime.v1.json"


def test_a_payload_keeps_its_bytes_but_for_line_ends() -> None:
    frame = '{"type":"event",\n"event":"m","data":{ "b" : "\\n",\r\n\t"a":1.50 ,"b":1}}'
    commands, _ = talk(NativeProtocol(), frame)
    assert commands == [Send(event="m", data=Raw(b'{ "b" : "\\n",\t"a":1.50 ,"b":1}'))]


def test_a_payload_may_be_as_deep_as_the_bound() -> None:
    frame = '{{"type":"event","event":"m","data":{}}}'.format
    commands, _ = talk(NativeProtocol(), frame("[" * 32 + "]" * 32))
    assert commands == [Send(event="m", data=Raw(b"[" * 32 + b"]" * 32))]
    assert talk(NativeProtocol(), frame("[" * 33 + "]" * 33))[1][0]["code"] == "bad_frame"


POSITION = '{{"epoch":"{}","offset":{},"id":"{}"}}'.format

MALFORMED = {
    '{"type":"join","id":1}': "room",
    '{"type":"join","room":1,"id":1}': "room",
    '{"type":"join","room":null,"id":1}': "room",
    '{"type":"join","room":"r","status":"asleep","id":1}': "status",
    '{"type":"join","room":"r","since":7,"id":1}': "since",
    '{"type":"join","room":"r","since":' + POSITION("e", -1, "i") + ',"id":1}': "since.offset",
    '{"type":"join","room":"r","since":' + POSITION("e", 1.5, "i") + ',"id":1}': "since.offset",
    '{"type":"join","room":"r","since":' + POSITION("e" * 65, 1, "i") + ',"id":1}': "since.epoch",
    '{"type":"join","room":"r","since":' + POSITION("e", 1, "i" * 65) + ',"id":1}': "since.id",
    '{"type":"join","room":"r","id":1,"meta":"' + "x" * 1023 + '"}': "meta",
    '{"type":"status","id":1,"meta":"' + "x" * 1023 + '"}': "meta",
    '{"type":"status","id":1,"status":"offline"}': "status",
    '{"type":"event","id":1}': "event",
    '{"type":"event","event":"","id":1}': "event",
    '{"type":"event","event":"' + "e" * 129 + '","id":1}': "event",
    '{"type":"event","event":"e","key":"","id":1}': "key",
    '{"type":"event","event":"e","key":"' + "k" * 65 + '","id":1}': "key",
    '{"type":"event","event":"e","key":5,"id":1}': "key",
    '{"type":"auth","token":"","id":1}': "token",
    '{"type":"auth","token":"' + "t" * 8193 + '","id":1}': "token",
    '{"type":"auth","session":"' + "t" * 8193 + '","id":1}': "session",
    '{"type":"auth","since":{"r":' + POSITION("e", -1, "i") + '},"id":1}': "since",
    '{"type":"auth","since":{' + ",".join(f'"r{n}":{POSITION("e", 1, "i")}' for n in range(101)) + '},"id":1}': "since",
    '{"type":"history","room":"r","limit":0,"id":1}': "limit",
    '{"type":"history","room":"r","limit":true,"id":1}': "limit",
    '{"type":"history","room":"r","before":' + POSITION("e", -1, "i") + ',"id":1}': "before.offset",
    '{"type":"nope","id":1}': "unknown `type`",
    '{"type":"welcome","id":1}': "unknown `type`",
    '{"type":["join"],"id":1}': "unknown `type`",
    '{"type":null,"id":1}': "type",
    '{"id":1}': "type",
    '{"room":"r","id":1}': "type",
}


@pytest.mark.parametrize(("frame", "named"), MALFORMED.items())
def test_a_bad_envelope_gets_a_reply_that_names_the_field(frame: str, named: str) -> None:
    commands, (answer,) = talk(NativeProtocol(), frame)
    assert commands == []
    assert (answer["type"], answer["id"], answer["error"]["code"]) == ("reply", 1, "bad_frame")
    assert named in answer["error"]["message"]
    assert len(answer["error"]["message"]) <= 200


@pytest.mark.parametrize(
    "frame",
    [
        *('{"type":"join"}', '{"type":"join","id":null}', '{"type":"join","room":"r","id":"1"}', "{}"),
        *('{"type":"join","room":"r","id":1.0}', '{"type":"join","room":"r","id":true}', '{"type":"nope","id":[1]}'),
        *('{"type":"reply"}', '{"type":"reply","id":null,"data":1}', '{"type":"reply","id":1,"error":1}'),
        *('{"type":"reply","id":1,"error":{"code":""}}', '{"type":"\\u0072eply","id":1,"error":{}}'),
    ],
)
def test_a_bad_envelope_without_an_id_or_of_a_reply_gets_an_error(frame: str) -> None:
    commands, (answer,) = talk(NativeProtocol(), frame)
    assert commands == []
    assert (answer["type"], answer["code"]) == ("error", "bad_frame")
    assert answer["message"]


def test_a_bad_envelope_is_never_counted() -> None:
    protocol = NativeProtocol()
    for _ in range(50):
        assert len(talk(protocol, '{"type":"nope"}')[1]) == 1


UNREADABLE: tuple[str | bytes, ...] = (
    *("", " ", "hello", "{", '{"type":"pong"', '{"type":"pong"} {"type":"pong"}', "{'type':'pong'}", "\ufeff{}"),
    *(b"", b'{"type":"pong"}', "[]", '[{"type":"pong"}]', "1", '"pong"', "null", '{"type":"pong",}'),
    *('{"type":"pong","x":NaN}', '{"type":"pong","x":1e999}', '{"type":"pong","id":9007199254740993}'),
    *('{"type":"pong","x":"\\ud800"}', '{"type":"pong","x":"\ud800"}', '{"type":"pong","\\udc00":1}', "\ud800"),
    *('{"type":"pong","x":' + "[" * 33 + "]" * 33 + "}", "[" * 60_000, '{"type":"pong","x":"a\nb"}'),
)


@pytest.mark.parametrize("frame", UNREADABLE)
def test_what_cannot_be_read_gets_an_error(frame: str | bytes) -> None:
    commands, (answer,) = talk(NativeProtocol(), frame)
    assert commands == []
    assert answer == {"type": "error", "code": "bad_frame", "message": answer["message"]}
    assert answer["message"]


def test_the_tenth_unreadable_frame_within_a_minute_closes() -> None:
    protocol = NativeProtocol()
    for n in range(9):
        assert talk(protocol, UNREADABLE[n], float(n))[0] == []
        assert talk(protocol, '{"type":"pong"}', float(n)) == ([Pong()], [])
    with pytest.raises(ProtocolError) as caught:
        protocol.receive("no", 60.0)
    assert caught.value.close_code == 4400
    assert protocol.pending() == []


def test_ten_unreadable_frames_in_more_than_a_minute_are_forgiven() -> None:
    protocol = NativeProtocol()
    for n in range(100):
        assert len(talk(protocol, "no", n * 6.7)[1]) == 1


@pytest.mark.parametrize("make", [lambda n: "x" * n, lambda n: b"x" * n, lambda n: "é" * (n // 2) + "x" * (n % 2)])
def test_a_frame_over_the_size_closes_and_one_of_the_size_does_not(make: Callable[[int], str | bytes]) -> None:
    protocol = NativeProtocol(max_size=100)
    assert len(talk(protocol, make(100))[1]) == 1
    with pytest.raises(ProtocolError) as caught:
        protocol.receive(make(101), 0.0)
    assert caught.value.close_code == 1009


def test_the_size_counts_bytes_and_not_characters() -> None:
    frame = '{"type":"event","event":"m","data":"' + "é" * 100 + '"}'
    assert len(NativeProtocol(max_size=len(frame) + 100).receive(frame, 0.0)) == 1
    with pytest.raises(ProtocolError):
        NativeProtocol(max_size=len(frame) + 99).receive(frame, 0.0)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TYPES = ("auth", "join", "leave", "event", "status", "history", "members", "pong")
envelopes = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "room": st.text(max_size=8) | json_values,
        "event": st.text(max_size=8) | json_values,
        "data": json_values,
        "key": st.text(max_size=70) | json_values,
        "meta": json_values,
        "status": st.sampled_from(("online", "away", None, "x")) | json_values,
        "since": st.none()
        | json_values
        | st.fixed_dictionaries({"epoch": st.text(), "offset": st.integers(-2, 2**53), "id": st.text()}),
        "limit": st.integers(-5, 5) | json_values,
        "token": st.text(max_size=8) | json_values,
    },
)


@given(st.lists(st.text() | st.binary() | envelopes.map(json.dumps), max_size=15))
def test_no_input_raises_anything_but_a_protocol_error(frames: list[str | bytes]) -> None:
    protocol = NativeProtocol(max_size=4096)
    for frame in frames:
        with suppress(ProtocolError):
            commands, answers = talk(protocol, frame)
            assert len(commands) + len(answers) == 1


@given(envelopes, st.integers(-(2**53), 2**53), st.booleans())
def test_a_command_with_an_id_is_one_command_or_one_reply(
    envelope: dict[str, Any], number: int, ascii_only: bool
) -> None:
    frame = json.dumps({**envelope, "id": number}, ensure_ascii=ascii_only)
    commands, answers = talk(NativeProtocol(max_size=10**6), frame)
    assert len(commands) + len(answers) == 1
    if commands:
        assert commands[0].id == number
    else:
        assert (answers[0]["type"], answers[0]["id"], answers[0]["error"]["code"]) == ("reply", number, "bad_frame")


@given(json_values)
def test_a_payload_arrives_as_what_was_sent(data: Any) -> None:
    frame = json.dumps({"type": "event", "event": "m", "data": data}, indent=1)
    (command,) = NativeProtocol(max_size=10**6).receive(frame, 0.0)
    assert isinstance(command, Send)
    assert json.loads(bytes(command.data)) == data
    (sent,) = NativeProtocol.encode(Event("m", command.data))
    assert isinstance(sent, str)
    assert json.loads(sent) == {"type": "event", "event": "m", "data": data}
    assert "\n" not in sent
