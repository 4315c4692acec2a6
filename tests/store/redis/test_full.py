"""A server whose memory is full refuses publications, and nothing else: who listens and who comes is served."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

import pytest
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from starlette_realtime import AuthGuard, Identity, Member, Realtime, RedisStore, StoreError
from starlette_realtime.auth.revocation import user_subject
from starlette_realtime.messages import Entry, Fresh, Stale
from tests.rooms.support import Client, Failed, by_name, connection_options
from tests.store.redis.load import WIDE, readers, running, told
from tests.store.redis.support import SHORT
from tests.support.redis import BINARIES, Binary, Server, server
from tests.support.waiting import until

LISTENED = SHORT["stale_after"] + 2 * SHORT["check_interval"]
"""Seconds after which whoever hears nothing of the store would have been told so."""

PUBLISHED: dict[str, Any] = {"history": WIDE, "producer": "u", "key": "k"}


@pytest.fixture(params=BINARIES, ids=str)
async def single(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    binary: Binary = request.param
    async with server(binary, args=["--maxmemory-policy", "noeviction"]) as alone:
        yield alone


@asynccontextmanager
async def full(single: Server) -> AsyncIterator[None]:
    """Let the server have more than it may for as long as the block lasts."""
    await single.command("CONFIG", "SET", "maxmemory", "100kb")
    yield
    await single.command("CONFIG", "SET", "maxmemory", "0")


async def repeated(what: Callable[[], Awaitable[object]]) -> object:
    """Do it as soon as it is not refused any more."""
    async with asyncio.timeout(10.0):
        while True:
            with suppress(Failed):
                return await what()
            await asyncio.sleep(0.05)


def test_one_script_is_refused_and_it_is_the_one_that_keeps_what_is_published() -> None:
    scripts = [each for each in (files("starlette_realtime.store.redis") / "lua").iterdir() if each.is_file()]
    refused = {script.name for script in scripts if "flags=allow-oom" not in script.read_text().partition("\n")[0]}
    assert len(scripts) > 20
    assert refused == {"publish.lua"}


async def test_what_is_published_is_refused_and_made_once_when_there_is_room(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two) as heard:
        first = await one.publish("t", b"0", history=WIDE)
        async with full(single):
            for _ in range(2):
                with pytest.raises(StoreError, match="maxmemory"):
                    await one.publish("t", b"1", **PUBLISHED)
            await two.publish_volatile("t", b"typing")
            await asyncio.sleep(LISTENED)
            assert [told(reader, Stale) for reader in heard] == [0, 0]
        second = await one.publish("t", b"1", **PUBLISHED)
        assert await two.publish("t", b"1", **PUBLISHED) == second
        assert (second.epoch, second.offset) == (first.epoch, 2)
        await until(lambda: all(reader.data == [b"0", b"typing", b"1"] for reader in heard))
        assert [reader.gaps for reader in heard] == [[], []]


async def test_rooms_are_read_and_joined_meanwhile(single: Server) -> None:
    async with running(single, 2) as (one, two):
        since = [await one.publish("t", data, history=WIDE) for data in (b"0", b"1", b"2")]
        async with full(single), readers("t", two) as (late,), readers("new", one, two) as heard:
            recovery = await two.read("t", since=since[0], limit=9)
            assert recovery.complete
            assert [each.data for each in recovery.publications] == [b"1", b"2"]
            page = await two.page("t", before=None, limit=9)
            assert [each.data for each in page.publications] == [b"0", b"1", b"2"]
            assert (await one.page("empty", before=None, limit=9)).publications == ()
            start = (await one.read("new", since=None, limit=0)).position
            assert start.offset == 0
            await asyncio.sleep(LISTENED)
            assert [told(reader, Stale) + told(reader, Fresh) for reader in (late, *heard)] == [0, 0, 0]
            await single.command("CONFIG", "SET", "maxmemory", "0")
            assert (
                await one.publish("new", b"3", history=WIDE) == (await two.read("new", since=start, limit=9)).position
            )
            await one.publish("t", b"3", history=WIDE)
            await until(lambda: all(reader.data == [b"3"] for reader in (late, *heard)))
            assert [reader.gaps for reader in (late, *heard)] == [[], [], []]


async def test_presence_goes_on_and_so_does_looking_after_the_dead(single: Server) -> None:
    left: list[str] = []
    async with running(single, 3) as (one, two, dead), readers("t", two) as (reader,):
        two.on_presence(lambda topic, joined, gone: left.extend(entry.connection for entry in gone))
        await dead.enter("t", [Entry("c3", "u:c")])
        async with full(single):
            assert len(await one.enter("t", [Entry("c1", "u:a"), Entry("c2", "u:b")])) == 2
            assert len(await one.leave("t", ["c1"])) == 1
            dead.cut()
            await until(lambda: left == ["c3"], within=10.0)
            members = await two.members("t", limit=9)
            assert [entry.connection for entry in members.entries] == ["c2"]
            dead.restore()
            with suppress(StoreError):
                await dead.leave("t", ["c3"])
            assert len(await one.leave("t", ["c2"])) == 1
            await until(lambda: [bool(diff.entered) for diff in reader.diffs] == [True, True, False, False, False])


async def test_connections_tickets_limits_and_messages_go_on(single: Server) -> None:
    async with running(single, 2) as (one, two), full(single):
        assert await one.admit("user", "a", limit=1)
        assert not await two.admit("user", "b", limit=1)
        await one.release("user", "a")
        assert await two.admit("user", "b", limit=1)
        await two.release("user", "b")
        assert await one.claim("ticket", ttl=5.0)
        assert not await two.claim("ticket", ttl=5.0)
        for strategy in (SlidingWindowCounterRateLimiter, FixedWindowRateLimiter, MovingWindowRateLimiter):
            hits = [await strategy(store.limits).hit(parse("2/minute"), strategy.__name__) for store in (one, two, one)]
            assert hits == [True, True, False]
        inbox: list[bytes] = []
        await two.receive(inbox.append)
        await one.send(two.node, b"hello")
        await until(lambda: inbox == [b"hello"])
        async with RedisStore(single.url, prefix=one._keys.prefix, **SHORT) as late:
            assert late.node in [node.id for node in await one.nodes()]
        await two.ignore(inbox.append)


async def test_a_revocation_stands_though_it_could_not_be_published(
    single: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def allow(token: str) -> Identity:
        return Identity(token, issued_at=1.0)

    async with running(single, 2) as (one, two), full(single):
        here = AuthGuard(authenticate=allow, store=one)
        there = AuthGuard(authenticate=allow, store=two, revocation_interval=0.3)
        async with here, there:
            identity = Identity("ann", issued_at=1.0)
            await here.revoke_user("ann", issued_before=5.0)
            assert here.revoked(identity, 1.0)
            assert await two.revocations() == {user_subject("ann"): 5.0}
            await until(lambda: there.revoked(identity, 1.0))
    assert "a revocation stands, but could not be published" in caplog.text


async def test_an_application_refuses_events_and_serves_whoever_listens(single: Server) -> None:
    async with AsyncExitStack() as stack:
        worlds = []
        for _ in range(2):
            store = RedisStore(single.url, prefix="full", **SHORT)
            realtime = Realtime(authenticate=by_name, store=store, secret="x" * 32, connection=connection_options())
            room = realtime.room("chat:{number:int}", presence=True)

            @room.on("say")
            async def say(member: Member, text: str) -> int:
                return (await member.broadcast("said", text)).offset

            worlds.append(await stack.enter_async_context(realtime))
        ann = await stack.enter_async_context(Client(worlds[0]))
        await ann.auth("ann")
        since = (await ann.join("chat:1"))["position"]
        assert await ann.event("say", "before", "chat:1", key="1") == 1
        async with full(single):
            with pytest.raises(Failed) as refused:
                await ann.event("say", "meanwhile", "chat:1", key="2")
            assert refused.value.code == "unavailable"
            bob = await stack.enter_async_context(Client(worlds[1]))
            await bob.auth("bob")
            joined = await bob.join("chat:1", since=since)
            assert joined["recovered"]
            assert [event["data"] for event in joined["events"]] == ["before"]
            assert joined["members"]["total"] == 2
            assert len((await bob.call("history", room="chat:1"))["events"]) == 1
            await asyncio.sleep(LISTENED)
            assert [ann.take("stale"), bob.take("stale")] == [[], []]
        assert await repeated(lambda: ann.event("say", "meanwhile", "chat:1", key="2")) == 2
        await until(lambda: [frame["data"] for frame in bob.take("event")] == ["meanwhile"])
