"""The time limits once more, on the system's clock: nothing of what a test clock shows is the test clock's doing."""

import asyncio

from starlette_realtime import Connection, ConnectionOptions, Realtime, SignedTokens
from tests.server.support import SECRET, dial, mounted
from tests.support.server import serve

TOKENS = SignedTokens(SECRET)


async def test_who_does_not_authenticate_in_time_is_closed() -> None:
    realtime = Realtime(authenticate=TOKENS, connection=ConnectionOptions(auth_timeout=0.1))
    async with serve(mounted(realtime)) as server, dial(server) as peer:
        assert await peer.closed() == (4404, "no_auth")


async def test_who_is_silent_is_closed_and_who_answers_stays() -> None:
    realtime = Realtime(authenticate=TOKENS, connection=ConnectionOptions(heartbeat=0.1, grace=1.0))
    async with serve(mounted(realtime)) as server, dial(server) as alive, dial(server, pongs=False) as silent:
        for peer in (alive, silent):
            await peer.auth(TOKENS.issue("alice"))
        assert await silent.closed() == (4408, "no_heartbeat")
        for _ in range(5):
            await alive.expect("ping")
        assert len(realtime.connections) == 1


async def test_who_does_not_refresh_is_warned_and_closed() -> None:
    realtime = Realtime(authenticate=TOKENS)
    async with serve(mounted(realtime)) as server, dial(server) as peer, dial(server) as other:
        await peer.auth(TOKENS.issue("alice", expires_in=2.0))
        await other.auth(TOKENS.issue("bob", expires_in=2.0))
        assert 0 < (await peer.expect("expiring"))["expires_in"] <= 1.01
        await other.auth(TOKENS.issue("bob"))
        assert await peer.closed() == (4401, "expired")
        assert len(realtime.connections) == 1


async def test_a_request_that_is_not_answered_is_given_up() -> None:
    realtime = Realtime(authenticate=TOKENS)

    @realtime.on("ask")
    async def ask(connection: Connection) -> object:
        return await connection.request("question", timeout=0.05)

    async with serve(mounted(realtime)) as server, dial(server) as peer:
        await peer.auth(TOKENS.issue("alice"))
        assert (await peer.refused("event", event="ask"))["code"] == "timeout"


async def test_who_waits_as_told_passes() -> None:
    realtime = Realtime(authenticate=TOKENS)

    @realtime.on("one", limit="1/second")
    async def one(connection: Connection) -> None: ...

    async with serve(mounted(realtime)) as server, dial(server) as peer:
        await peer.auth(TOKENS.issue("alice"))
        await peer.do("event", event="one")
        await asyncio.sleep((await peer.refused("event", event="one"))["retry_after"])
        await peer.do("event", event="one")
