"""Floods: who sends far more than is allowed is limited and closed; the others notice nothing, and nothing piles up."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

from starlette_realtime import Clock, Connection, ConnectionOptions, Realtime
from tests.server.support import Peer, declare, dial, mounted, new_tokens
from tests.support.server import serve

FLOOD = 10_000
FRAMES: dict[str, Callable[[int], str]] = {
    "events": lambda n: json.dumps(
        {"type": "event", "id": n, "room": "chat:1", "event": "message", "data": {"text": "x"}}
    ),
    "events without an id": lambda n: json.dumps({"type": "event", "room": "chat:1", "event": "raw", "data": 1}),
    "joins": lambda n: json.dumps({"type": "join", "id": n, "room": f"chat:{n}"}),
    "renewals": lambda n: json.dumps({"type": "auth", "id": n}),
    "pongs": lambda n: '{"type":"pong"}',
    "answers to nothing": lambda n: json.dumps({"type": "reply", "id": n, "data": None}),
    "unknown types": lambda n: json.dumps({"type": "nonsense", "id": n}),
    "status everywhere": lambda n: json.dumps({"type": "status", "id": n, "status": "away"}),
}
GARBAGE = {"not JSON": lambda n: "{", "arrays": lambda n: "[1]"}


class Watch:
    """What piles up on a connection, looked at between the loop's other work."""

    def __init__(self, connection: Connection) -> None:
        self.largest_outbox = 0
        self.most_held = 0
        self.most_buckets = 0
        self._connection = connection
        self._task = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        connection = self._connection
        while not connection.gone:
            self.largest_outbox = max(self.largest_outbox, connection.outbox.size)
            self.most_held = max(self.most_held, connection.lanes.held)
            self.most_buckets = max(self.most_buckets, len(connection.buckets))
            await asyncio.sleep(0)

    async def end(self) -> None:
        await asyncio.wait_for(self._task, 10.0)


async def pour(peer: Peer, frame: Callable[[int], str]) -> int:
    """Send 10,000 frames as fast as they are taken; tells how many that were."""
    sent = 0
    with suppress(ConnectionClosed):
        for number in range(1, FLOOD + 1):
            await peer.websocket.send(frame(number))
            sent += 1
            if number % 100 == 0:
                await asyncio.sleep(0)
    return sent


@pytest.mark.parametrize(("what", "code"), [*((name, 4429) for name in FRAMES), *((name, 4400) for name in GARBAGE)])
async def test_a_flood_is_limited_and_closed_while_others_are_served(what: str, code: int) -> None:
    clock = Clock()  # the real one: limits are about time
    tokens = new_tokens(clock)  # type: ignore[arg-type]
    realtime = Realtime(authenticate=tokens, connection=ConnectionOptions(), clock=clock)
    declare(realtime)
    async with (
        serve(mounted(realtime)) as server,
        dial(server) as listener,
        dial(server) as flooder,
    ):
        await listener.auth(tokens.issue("listener"))
        await listener.do("join", room="chat:1")
        await flooder.auth(tokens.issue("flooder"))
        await flooder.do("join", room="chat:1")
        (connection,) = [one for one in realtime.connections if one.user == "flooder"]
        watch = Watch(connection)
        room = realtime.at("chat:1")

        async def publish() -> int:
            number = 0
            while not connection.gone:
                await room.broadcast("tick", number)
                number += 1
                await asyncio.sleep(0.005)
            return number

        publishing = asyncio.ensure_future(publish())
        await pour(flooder, {**FRAMES, **GARBAGE}[what])
        assert (await flooder.closed())[0] == code
        await watch.end()
        published = await publishing
        await room.broadcast("tick", published)
        await listener.expect("event", event="tick", data=published)
        assert [frame["data"] for frame in listener.heard("event", event="tick")] == list(range(published + 1))
        assert watch.largest_outbox <= connection.options.outbox_bytes
        assert watch.most_held <= 2 * connection.options.inbox
        assert watch.most_buckets <= 10
        # What was let through, and what was answered, is what the limits allow, whatever was sent.
        replies = [frame for frame in flooder.frames if frame["type"] in ("reply", "error")]
        assert len(replies) <= 250
        assert realtime.counters.closed[code] == 1
