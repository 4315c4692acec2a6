"""Who is silent is asked, and let go when no answer comes; who asked for no subprotocol is left in peace."""

from collections.abc import AsyncIterator

import pytest

from starlette_realtime import ConnectionOptions
from tests.server.support import Site, running


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with running(connection=ConnectionOptions()) as site:
        yield site


async def test_a_silent_client_is_pinged_after_25_and_closed_after_35_seconds(site: Site) -> None:
    async with site.peer("bob", "chat:1") as bob, site.peer("alice", "chat:1", pongs=False) as alice:
        assert (await alice.expect("welcome"))["heartbeat"] == 25.0
        await site.clock.advance(24.9)
        await bob.sync()
        assert not alice.heard("ping")
        await site.clock.advance(0.2)
        await alice.expect("ping")
        await bob.sync()
        await site.clock.advance(9.7)
        assert alice.websocket.close_code is None
        await bob.sync()
        await site.clock.advance(0.3)
        assert (await alice.expect("error"))["code"] == "no_heartbeat"
        assert await alice.closed() == (4408, "no_heartbeat")
        assert len(alice.heard("ping")) == 1
        await bob.do("event", event="message", room="chat:1", data={"text": "hi"})


async def test_a_client_that_answers_pings_stays(site: Site) -> None:
    async with site.peer("alice") as alice:
        for beats in range(1, 11):
            await site.clock.advance(25.0)
            await alice.expect("ping")
            (connection,) = site.realtime.connections
            await alice.send("event", event="nope", id=5000 + beats)  # when this is answered, the pong was read
            await alice.expect("reply", id=5000 + beats)
            assert connection.heard == site.clock.now()


@pytest.mark.parametrize("frame", ['{"type":"pong"}', '{"type":"event","event":"nope"}', "no frame at all", "{}"])
async def test_any_frame_is_a_sign_of_life(site: Site, frame: str) -> None:
    async with site.peer("alice", pongs=False) as alice:
        for number in range(5):
            await site.clock.advance(30.0)
            await alice.text(frame)
            await alice.send("event", event="nope", id=5000 + number)
            await alice.expect("reply", id=5000 + number)


async def test_the_silence_after_a_pong_counts_anew(site: Site) -> None:
    async with site.peer("alice", pongs=False) as alice:
        await site.clock.advance(26.0)
        await alice.expect("ping")
        await alice.ask("event", event="nope")
        await site.clock.advance(34.0)
        assert alice.websocket.close_code is None
        await site.clock.advance(1.5)
        assert (await alice.closed())[0] == 4408


async def test_a_client_without_a_subprotocol_is_not_pinged_by_messages(site: Site) -> None:
    async with site.peer("alice", subprotocols=[]) as alice:
        assert (await alice.expect("welcome"))["heartbeat"] == 0.0
        await site.clock.advance(500.0)
        await alice.ask("event", event="nope")
        assert not alice.heard("ping")


async def test_a_client_that_never_authenticates_is_not_kept_by_its_heart(site: Site) -> None:
    async with site.peer() as stranger:
        await stranger.expect("welcome")
        await site.clock.advance(30.0)
        assert (await stranger.closed())[0] == 4404


async def test_heartbeats_may_be_quick() -> None:
    options = ConnectionOptions(heartbeat=0.2, grace=0.1)
    async with running(connection=options) as site, site.peer("alice", pongs=False) as alice:
        await site.clock.advance(0.21)
        await alice.expect("ping")
        await site.clock.advance(0.1)
        assert (await alice.closed())[0] == 4408
