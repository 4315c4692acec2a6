"""The documentation's frames are frames, and its conversation is one that a server has."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_realtime import Member, Realtime, SignedTokens
from starlette_realtime.messages import ServerEvent
from starlette_realtime.protocols.native import NativeProtocol
from starlette_realtime.testing import Peer
from tests.support.pages import Block, blocks, locate, names

events = msgspec.json.Decoder(ServerEvent)

CHANGING = {"connection", "session", "expires_in", "epoch", "id", "at"}  # differ each time, but for their types


def conversation(block: Block) -> Iterator[tuple[str, Any]]:
    """The frames of a `text` block, each with who says it: `>` the client, `<` the server; a frame may have lines."""
    if re.match(r"[<>] \{", block.source):
        for said in re.split(r"^(?=[<>] )", block.source, flags=re.MULTILINE)[1:]:
            yield said[0], json.loads(said[1:].replace("[…]", "[]"))


def frames() -> Iterator[tuple[Block, str, Any]]:
    """All frames of all pages: those of conversations, and `json` blocks that have a `type`, of either side."""
    for page in names():
        for block in blocks(page):
            if block.language == "text":
                yield from ((block, who, frame) for who, frame in conversation(block))
            if block.language == "json" and isinstance(frame := json.loads(block.source), dict) and "type" in frame:
                yield block, "", frame


def test_every_frame_is_one_that_the_protocol_has() -> None:
    seen = 0
    for block, who, frame in frames():
        seen += 1
        protocol, text = NativeProtocol(), json.dumps(frame)
        understood = who != "<" and bool(protocol.receive(text, 0.0))
        assert understood or who != ">", f"{block.where}: {frame}: {protocol.pending()}"
        if understood:
            continue
        try:
            event = events.decode(text)
        except msgspec.ValidationError as exc:
            raise AssertionError(f"{block.where}: {frame}: {exc}") from exc
        unknown = frame.keys() - {"type", *event.__struct_encode_fields__}
        assert not unknown, f"{block.where}: {frame} has {unknown}"
    assert seen


def shape(value: Any) -> Any:
    """A frame, with the types alone of what changes."""
    if isinstance(value, list):
        return [shape(item) for item in value]
    if not isinstance(value, dict):
        return value
    told = {key: item for key, item in value.items() if key != "list"}  # the members: elided
    return {key: type(item).__name__ if key in CHANGING else shape(item) for key, item in told.items()}


async def test_the_protocols_conversation_happens() -> None:
    tokens = SignedTokens("a secret of the tests alone")
    realtime = Realtime(authenticate=tokens)
    chat = realtime.room("chat:{room_id:int}", presence=True)

    @chat.on("message")
    async def message(member: Member, body: dict[str, str]) -> int:
        position = await member.broadcast("message", {"user": member.user, **body})
        return position.offset

    (page,) = (block for block in blocks("wire-protocol.md") if [*conversation(block)])
    app = Starlette(routes=[Mount("/realtime", realtime)])
    async with realtime, Peer(app, "/realtime/ws", subprotocols=[NativeProtocol.subprotocol]) as peer:
        for number in range(7):
            await chat.at(room_id=42).broadcast("message", number)
        for who, frame in conversation(page):
            if who == ">":
                await peer.send(frame | {"token": tokens.issue("ann")} if "token" in frame else frame)
                continue
            heard = await peer.receive_json()
            while heard["type"] == "presence":
                heard = await peer.receive_json()
            assert shape(heard) == shape(frame)


@pytest.mark.parametrize("kind", [kind.__struct_config__.tag for kind in ServerEvent.__args__])
def test_the_protocols_page_has_every_frame_of_the_server(kind: str) -> None:
    part = locate("wire-protocol.md").read_text().split("## Server to client")[1].split("\n## ")[0]
    assert re.search(rf"^\|.*`{kind}`.*\| ", part, re.MULTILINE)
