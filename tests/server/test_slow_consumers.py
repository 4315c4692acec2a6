"""A client that does not read is let go, in time and within bounds, and costs the others nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from starlette_realtime import Connection
from tests.server.support import CALM, Peer, Site, dial, running
from tests.support.server import RunningServer
from tests.support.waiting import until

SMALL = replace(CALM, outbox_bytes=256 * 1024, outbox_entries=64, send_timeout=10.0)
PADDING = "x" * 16_000


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with running(connection=SMALL) as site:
        yield site


@asynccontextmanager
async def stalled(site: Site, room: str | None) -> AsyncIterator[tuple[Peer, Connection]]:
    """Somebody in a room, or not even signed in, who has stopped reading, with little room in the kernel."""
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", site.server.port))
    async with dial(site.server, sock=link) as peer:
        user = None if room is None else "sloth"
        if user is not None:
            await peer.auth(site.token(user))
            await peer.do("join", room=room)
        else:
            await peer.expect("welcome")
        (connection,) = [each for each in site.realtime.connections if each.user == user]
        peer.websocket.transport.pause_reading()
        yield peer, connection
        peer.lose()


async def flood(site: Site, room: str, connection: Connection, *, volatile: bool = False) -> int:
    """Publish until the connection is given up; tells how much was needed. The outbox stays within its bounds."""
    view = site.realtime.at(room)
    for number in range(2000):
        await (view.broadcast_volatile if volatile else view.broadcast)("news", [number, PADDING])
        await asyncio.sleep(0)
        assert connection.outbox.size <= SMALL.outbox_bytes
        assert len(connection.outbox) <= SMALL.outbox_entries + 1  # and the error that goes before the close
        if connection.closed:
            return number + 1
    return 2000


async def test_who_does_not_read_is_closed_as_a_slow_consumer_and_the_others_miss_nothing(site: Site) -> None:
    async with site.peer("bob", "chat:1") as bob, stalled(site, "chat:1") as (_, connection):
        count = await flood(site, "chat:1", connection)
        assert count < 2000
        assert connection.close_code == 4440
        assert len(connection.outbox) <= 1
        for number in range(count):
            await bob.expect("event", event="news", data=[number, PADDING])
        await until(lambda: len(bob.heard("event")) == count, what="all of them, once")
        assert not bob.heard("error")
        # the last word cannot be said: after the send time limit the connection is dropped
        await site.clock.advance(10.0)
        await until(lambda: connection not in site.realtime.connections, what="the connection to be dropped")
        await bob.do("event", event="message", room="chat:1", data={"text": "hi"})


async def test_who_reads_again_in_time_hears_why(site: Site) -> None:
    async with stalled(site, "chat:1") as (peer, connection):
        await flood(site, "chat:1", connection)
        peer.websocket.transport.resume_reading()
        assert await peer.closed() == (4440, "slow_consumer")
        assert peer.frames[-1]["code"] == "slow_consumer"
        offsets = [event["position"]["offset"] for event in peer.heard("event")]
        assert offsets == list(range(1, len(offsets) + 1)), "what was heard has no gap"


async def test_who_was_too_slow_resumes_without_a_gap(site: Site) -> None:
    async with stalled(site, "chat:1") as (peer, connection):
        count = await flood(site, "chat:1", connection)
        peer.websocket.transport.resume_reading()
        await peer.closed()
        heard = peer.heard("event")
        async with site.peer("sloth") as again:
            joined = await again.do("join", room="chat:1", since=heard[-1]["position"])
            assert joined["recovered"], "what was given up is far less than the room keeps"
            missed = joined["events"]
            assert missed, "something was given up"
            assert [event["data"][0] for event in heard + missed] == list(range(count))
            assert [event["position"]["offset"] for event in heard + missed] == list(range(1, count + 1))
            assert joined["position"] == missed[-1]["position"]


async def test_a_single_write_that_does_not_end_drops_the_connection(site: Site) -> None:
    async with stalled(site, "chat:1") as (_, connection):
        view = site.realtime.at("chat:1")
        while not len(connection.outbox):  # until a write is stuck and something waits behind it
            await view.broadcast("news", PADDING)
            for _ in range(3):
                await asyncio.sleep(0)
        await site.clock.advance(9.9)
        assert not connection.closed
        await site.clock.advance(0.2)
        await until(lambda: connection not in site.realtime.connections, what="the connection to be dropped")
        assert connection.close_code == 4440


async def test_volatile_events_are_left_out_before_anybody_is_closed(site: Site) -> None:
    async with site.peer("bob", "chat:1") as bob, stalled(site, "chat:1") as (peer, connection):
        view = site.realtime.at("chat:1")
        for number in range(1000):
            await view.broadcast_volatile("cursor", [number, PADDING])
            await asyncio.sleep(0)
            assert connection.outbox.size <= SMALL.outbox_bytes / 4 + 2 * len(PADDING)
        assert not connection.closed
        await bob.expect("event", event="cursor", data=[999, PADDING])
        peer.websocket.transport.resume_reading()
        await view.broadcast("news", "kept")
        await peer.expect("event", event="news")
        assert 0 < len(peer.heard("event", event="cursor")) < 1000


async def test_presence_sees_a_slow_consumer_go_only_after_the_linger(site: Site) -> None:
    async with site.peer("bob", "chat:1") as bob, stalled(site, "chat:1") as (_, connection):
        await flood(site, "chat:1", connection)
        await site.clock.advance(10.0)
        await until(lambda: connection not in site.realtime.connections, what="the connection to be dropped")
        assert (await bob.do("members", room="chat:1"))["total"] == 2
        await site.clock.advance(5.0)
        assert (await bob.do("members", room="chat:1"))["total"] == 1


async def test_what_a_slow_consumer_held_is_given_back(site: Site) -> None:
    def held() -> dict[str, int]:
        gauges = site.realtime.gauges()
        # The store knows for a day how far the room was, so that nobody who comes back is misled.
        return {name: gauges[name] for name in gauges if name not in ("store.topics", "store.timers")}

    baseline = held()
    async with stalled(site, "chat:1") as (_, connection):
        await flood(site, "chat:1", connection)
        assert held() != baseline
        await site.clock.advance(10.0)
        await until(lambda: not site.realtime.connections, what="the connection to be dropped")
    assert connection.outbox.size == 0
    await site.clock.advance(300.0)
    await until(lambda: held() == baseline, what="everything to be given back")


async def test_the_socket_of_who_does_not_read_goes_too(site: Site) -> None:
    assert isinstance(site.server, RunningServer)
    connections = site.server.server.server_state.connections
    async with stalled(site, "chat:1") as (_, connection):
        await flood(site, "chat:1", connection)
        assert len(connections) == 1
        await site.clock.advance(10.0)
        await until(lambda: not connections, what="the server to close the socket")


async def test_the_socket_of_who_is_closed_and_does_not_read_goes_too(site: Site) -> None:
    assert isinstance(site.server, RunningServer)
    connections = site.server.server.server_state.connections
    async with stalled(site, "chat:1") as (_, connection):
        # So much that the kernel takes it no more, and so little that nobody has to wait.
        view = site.realtime.at("chat:1")
        transport = next(iter(connections)).transport
        while not transport.get_write_buffer_size():
            await view.broadcast("news", PADDING)
            await until(lambda: not connection.outbox.size or transport.get_write_buffer_size())
        connection.close(4403)
        await until(lambda: connection not in site.realtime.connections, what="the end of the connection")
        await site.clock.advance(10.0)
        await until(lambda: not connections, what="the server to close the socket")


async def test_pages_that_were_asked_for_at_once_come_one_after_another_however_large() -> None:
    rooms = [f"chat:{number}" for number in range(1, 25)]
    async with running(connection=CALM) as site, stalled(site, "chat:1") as (peer, connection):
        for room in rooms:
            for number in range(15):
                await site.realtime.at(room).broadcast("news", [number, PADDING])
            if room != "chat:1":
                await peer.send("join", room=room)
        for number, room in enumerate(rooms):
            await peer.send("history", id=number, room=room, limit=100)
        await until(lambda: connection.recovering.locked(), what="a page for which there is no room")
        assert connection.outbox.size <= CALM.outbox_bytes
        peer.websocket.transport.resume_reading()
        for number in range(len(rooms)):
            page = (await peer.expect("reply", id=number))["data"]
            assert [event["data"][0] for event in page["events"]] == list(range(15))
            assert connection.outbox.size <= CALM.outbox_bytes
        assert not connection.closed


PING = b"\x89\xfd" + bytes(4) + b"x" * 125
"""A WebSocket ping of the largest size (RFC 6455 section 5.5), masked with zeros."""


def served(site: Site) -> asyncio.WriteTransport:
    """The server's end of the only connection, with little room in the kernel."""
    assert isinstance(site.server, RunningServer)
    (protocol,) = site.server.server.server_state.connections
    transport: asyncio.WriteTransport = protocol.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return transport


@pytest.mark.parametrize("moment", ["in a room", "before auth", "after the close"])
async def test_who_pings_and_does_not_read_is_dropped_before_the_pongs_are_too_many(site: Site, moment: str) -> None:
    assert isinstance(site.server, RunningServer)
    connections = site.server.server.server_state.connections
    async with stalled(site, "chat:1" if moment != "before auth" else None) as (peer, connection):
        if moment == "after the close":
            connection.close(4403)
            await until(lambda: connection.gone, what="the end of the connection")
        transport = served(site)
        while transport.get_write_buffer_size() <= SMALL.outbox_bytes + connection.outbox.largest:
            peer.websocket.transport.write(PING * 100)
            await asyncio.sleep(0)
        await site.clock.advance(0.9)
        assert len(connections) == 1
        await site.clock.advance(0.2)
        await until(lambda: not connections, what="the server to drop the socket")
        assert connection.close_code == (4403 if moment == "after the close" else 4440)
    await until(lambda: not site.realtime.connections, what="the end of the connection")


async def test_pongs_within_the_bound_are_nobodys_business(site: Site) -> None:
    async with stalled(site, "chat:1") as (peer, connection):
        transport = served(site)
        peer.websocket.transport.write(PING * 1_000)
        await until(lambda: transport.get_write_buffer_size() > SMALL.outbox_bytes / 4, what="the pongs")
        await site.clock.advance(3.0)
        assert not connection.closed
        peer.websocket.transport.resume_reading()
        await peer.sync()
