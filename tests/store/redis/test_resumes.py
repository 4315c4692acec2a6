"""Many who come back at once, after a process died: each gets exactly what it missed, and the store is hardly asked."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from starlette_realtime import Member, Realtime
from starlette_realtime.messages import History, Position, Recovery
from starlette_realtime.testing.contract.harness import Heard
from tests.rooms.support import Client, by_name, connection_options, unlimited
from tests.store.redis.load import publishing, readers, running
from tests.store.redis.support import FaultyStore
from tests.support.proxy import Link
from tests.support.redis import BINARIES, Binary, Server, server
from tests.support.waiting import until

RESUMES = 5_000
BUSY = {"timeout": 5.0, "lease": 15.0}  # so many at once keep the test's own event loop busy for a while
KEPT = History(size=400, ttl=60.0)


@pytest.fixture(params=BINARIES, ids=str)
async def single(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    binary: Binary = request.param
    async with server(binary) as alone:
        yield alone


class Asked:
    """How often a process has asked its store for a topic's history."""

    def __init__(self, store: FaultyStore, topic: str) -> None:
        self.count = 0
        publications: Any = store._publications
        for name in ("read", "page"):
            setattr(publications, name, self._counted(getattr(publications, name), topic))

    def _counted(self, method: Any, topic: str) -> Any:
        def counted(name: str, *args: Any) -> Any:
            self.count += name == topic
            return method(name, *args)

        return counted


async def fill(store: FaultyStore, topic: str, count: int) -> list[Position]:
    """Publish numbers, and tell the position before each of them and after the last."""
    start = (await store.read(topic, since=None, limit=0)).position
    made = await asyncio.gather(*(store.publish(topic, b"%d" % n, history=KEPT) for n in range(count)))
    return [start, *made]


def exactly(recovery: Recovery, positions: list[Position], since: int) -> bool:
    """Whether it is all that was published after the first `since`, and no more than there is."""
    data = [publication.data for publication in recovery.publications]
    return recovery.complete and data == [b"%d" % n for n in range(since, len(positions) - 1)]


async def test_a_storm_of_resumes_costs_a_read_for_each_process_and_room(single: Server) -> None:
    async with running(single, 3, **BUSY) as (one, two, dying):
        positions = await fill(dying, "t", 400)
        dying.cut()
        asked = [Asked(store, "t") for store in (one, two)]
        chance = random.Random(9)
        heard: list[tuple[FaultyStore, Heard]] = []

        async def resume(number: int) -> bool:
            store = (one, two)[number % 2]
            if number % 50 < 2:  # in between, others just come and go
                heard.append((store, Heard()))
                await store.subscribe("t", heard[-1][1])
            missed = chance.randrange(400)
            recovery = await store.recover("t", since=positions[400 - missed], limit=512)
            return exactly(recovery, positions, 400 - missed)

        assert all(await asyncio.gather(*(resume(number) for number in range(RESUMES))))
        assert max(each.count for each in asked) <= 4
        for store, reader in heard:
            await store.unsubscribe("t", reader)


async def test_a_storm_while_something_is_published_loses_nothing(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one) as (reader,):
        asked = Asked(one, "t")
        async with publishing(two, "t", history=KEPT) as sent:
            await until(lambda: len(reader.data) > 50)
            before = asked.count

            async def resume(number: int) -> None:
                await asyncio.sleep(number % 97 * 0.01)
                publications = reader.publications
                since = publications[-1 - number % 40].position
                top = publications[-1].position
                recovery = await one.recover("t", since=since, limit=512)
                assert recovery.complete
                assert since is not None
                assert top is not None
                offsets = [each.position.offset for each in recovery.publications if each.position is not None]
                assert offsets == list(range(since.offset + 1, since.offset + 1 + len(offsets)))
                assert recovery.position.offset == since.offset + len(offsets) >= top.offset

            await asyncio.gather(*(resume(number) for number in range(1_000)))
            assert asked.count - before <= 2
        await until(lambda: sent.acknowledged.keys() <= set(reader.data))


async def test_who_was_ahead_of_this_process_is_not_told_of_a_loss(single: Server) -> None:
    async with running(single, 2, probe=5.0) as (ahead, behind), readers("t", ahead, behind) as (_, late):
        await ahead.publish("t", b"0", history=KEPT)
        await until(lambda: late.data == [b"0"])

        def listens(link: Link) -> bool:
            return link.sent(b"SUBSCRIBE")

        for proxy in behind.proxies.values():
            proxy.half_open(listens)
        positions = [await ahead.publish("t", b"%d" % n, history=KEPT) for n in range(1, 4)]
        recovery = await behind.recover("t", since=positions[1], limit=512)
        assert recovery.complete
        assert [each.data for each in recovery.publications] == [b"3"]
        assert (await behind.recover("t", since=positions[2], limit=512)).complete
        behind.restore()
        await until(lambda: late.data == [b"0", b"1", b"2", b"3"])


async def test_whatever_a_client_claims_is_answered(single: Server) -> None:
    async with running(single, 1) as (store,), readers("t", store):
        positions = await fill(store, "t", 5)
        top = positions[-1]
        for strange in (
            Position("", 0, ""),
            Position(top.epoch, -5, top.id),
            Position(top.epoch, 2**62, top.id),
            Position(top.epoch, top.offset, "another"),
            Position(top.epoch, 2, "another"),
            Position("\ud800\x00", 1, "\ud800"),
            Position("x" * 10_000, 1, ""),
        ):
            recovery = await store.recover("t", since=strange, limit=512)
            assert (recovery.complete, recovery.publications, recovery.position) == (False, (), top)


async def test_clients_of_a_dead_process_resume_on_the_others(single: Server) -> None:
    count = 1_000
    async with running(single, 3, **BUSY) as (one, two, dying):
        worlds = [
            Realtime(
                store=store, authenticate=by_name, limiter=unlimited(), connection=connection_options(), secret="s" * 32
            )
            for store in (one, two, dying)
        ]
        for world in worlds:
            declare(world)
        async with worlds[0], worlds[1], worlds[2]:
            first = (await dying.read("chat:1", since=None, limit=0)).position
            made = [await worlds[2].at("chat:1").broadcast("said", number) for number in range(100)]
            positions = [first, *made]
            dying.cut()
            asked = [Asked(store, "chat:1") for store in (one, two)]
            clients = [Client(worlds[number % 2]) for number in range(count)]
            told = Counter[int]()

            async def resume(number: int) -> None:
                client = clients[number]
                await client.__aenter__()
                await client.auth(f"user{number}")
                since = positions[number % 101]
                joined = await client.join(
                    "chat:1", since={"epoch": since.epoch, "offset": since.offset, "id": since.id}
                )
                assert joined["recovered"] is True
                assert [event["data"] for event in joined["events"]] == list(range(number % 101, 100))
                told[number % 2] += 1

            for start in range(0, count, 250):
                await asyncio.gather(*(resume(number) for number in range(start, start + 250)))
            assert told == {0: count // 2, 1: count // 2}
            assert max(each.count for each in asked) <= 4
            await worlds[0].at("chat:1").broadcast("said", 100)
            for client in clients[::50]:
                assert (await client.expect("event", event="said"))["data"] == 100
            for client in clients:
                client.peer.leave()
            await until(lambda: all(client.peer.task is None or client.peer.task.done() for client in clients))
            dying.restore()


def declare(realtime: Realtime) -> None:
    """The room of these tests."""
    chat = realtime.room("chat:{number:int}")

    @chat.on("said")
    async def said(member: Member, body: int) -> None:
        await member.broadcast("said", body)
