"""Replies that a client asked for: they wait for room, and it is never closed for them, however much they are."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw

from starlette_realtime import Connection, ConnectionOptions
from starlette_realtime.messages import Page, Recovery
from starlette_realtime.testing import settle
from tests.rooms.support import Client, World

BOUND = 64 * 1024
SMALL = ConnectionOptions(outbox_bytes=BOUND, outbox_entries=64, heartbeat=1e6)
LARGE = "x" * 5_000
PAGE = 4  # of these in a page: 20 kB, of which the outbox takes one at a time
ROOMS = [f"chat:{number}" for number in range(1, 25)]


class Site(World):
    """Rooms with a history and a few members that show much of themselves, behind a small outbox."""

    def __init__(self) -> None:
        super().__init__(connection=SMALL)
        self.calls = 0

        @self.realtime.on("large")
        async def large(connection: Connection, data: Raw) -> str:
            self.calls += 1
            return "y" * 20_000

        self.realtime.room("chat:{room_id:int}", presence=True)

    async def fill(self, *rooms: str) -> None:
        """Publish a page in each of these rooms."""
        for room in rooms:
            for number in range(PAGE):
                await self.realtime.at(room).broadcast("said", [number, LARGE])

    def connection(self, user: str) -> Connection:
        """The connection of that user."""
        (found,) = [each for each in self.realtime.connections if each.user == user]
        return found

    def check(self, connection: Connection) -> None:
        """Nothing was given up, and little is kept: the outbox's bound, and one reply."""
        assert not connection.closed
        assert connection.outbox.size <= BOUND / 2 + 5_000
        assert len(connection.outbox) <= SMALL.outbox_entries / 2


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


async def stalled(site: Site, *rooms: str) -> Client:
    """Somebody who has joined and then reads nothing more."""
    client = await site.enter("sloth")
    for room in rooms:
        await client.join(room)
    client.peer.stall()
    return client


async def test_pages_of_history_come_one_after_another(site: Site) -> None:
    await site.fill(*ROOMS)
    client = await stalled(site, *ROOMS)
    connection = site.connection("sloth")
    numbers = [await client.command("history", room=room, limit=100) for room in ROOMS]
    await settle()
    site.check(connection)
    assert connection.lanes.held > len(ROOMS) - 4, "what has no room waits in its lane"
    client.peer.flow()
    for number in numbers:
        page = await client.answer(number)
        assert [event["data"] for event in page["events"]] == [[count, LARGE] for count in range(PAGE)]
    await settle()
    assert connection.lanes.held == 0


async def test_a_page_that_waited_is_of_the_moment_when_it_comes_and_none_is_kept_meanwhile(site: Site) -> None:
    await site.fill(*ROOMS)
    client = await stalled(site, *ROOMS)
    numbers = [await client.command("history", room=room, limit=PAGE) for room in ROOMS]
    await settle()
    await site.realtime.at(ROOMS[-1]).broadcast("said", "since then")
    client.peer.flow()
    assert [event["data"] for event in (await client.answer(numbers[0]))["events"]][-1] == [PAGE - 1, LARGE]
    assert [event["data"] for event in (await client.answer(numbers[-1]))["events"]][-1] == "since then"


async def test_nothing_is_read_for_who_has_gone_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.fill(*ROOMS)
    client = await stalled(site, *ROOMS)
    for room in ROOMS:
        await client.command("history", room=room, limit=PAGE)
    await settle()

    async def page(*args: object, **options: object) -> Page:
        raise AssertionError("a page for nobody")

    monkeypatch.setattr(site.store, "page", page)
    await client.peer.disconnect()
    await settle()
    assert site.realtime.counters.refused == {}


async def test_what_a_handler_returns_waits_too_and_the_handler_is_called_once(site: Site) -> None:
    client = await stalled(site)
    numbers = [await client.command("event", event="large", data=n) for n in range(12)]
    await settle()
    site.check(site.connection("sloth"))
    client.peer.flow()
    for number in numbers:
        assert await client.answer(number) == "y" * 20_000
    assert site.calls == 12


async def test_small_replies_wait_as_well_where_they_are_many(site: Site) -> None:
    client = await stalled(site, "chat:1")
    connection = site.connection("sloth")
    for n in range(200):
        client.peer.push(f'{{"type":"history","id":{1_000 + n},"room":"chat:1","limit":1}}')
        client.peer.push(f'{{"type":"members","id":{2_000 + n},"room":"chat:1"}}')
    await settle()
    assert connection.lanes.held <= SMALL.inbox
    client.peer.flow()
    await settle()
    assert not connection.closed
    assert len([frame for frame in client.take("reply") if frame["id"] >= 1_000]) == 400


async def crowd(site: Site, count: int, *rooms: str) -> list[Client]:
    """So many members of these rooms, each of whom shows a thousand bytes."""
    members = [await site.enter(f"member{number}") for number in range(count)]
    for member in members:
        for room in rooms:
            await member.join(room, meta="m" * 1_000)
    return members


async def test_joins_of_rooms_with_many_members_come_one_after_another_and_nothing_is_missing(site: Site) -> None:
    rooms = ROOMS[:12]
    await crowd(site, 20, *rooms)
    client = await stalled(site)
    connection = site.connection("sloth")
    numbers = {room: await client.command("join", room=room) for room in rooms}
    await settle()
    site.check(connection)
    assert len(connection.rooms) < len(rooms)
    for room in rooms:
        await site.realtime.at(room).broadcast("said", "meanwhile")
    await site.clock.advance(0.2)
    client.peer.flow()
    answers = {room: await client.answer(number) for room, number in numbers.items()}
    for room, answer in answers.items():
        assert len(answer["members"]["list"]) == 21
        assert "reason" not in answer
        await site.realtime.at(room).broadcast("said", "now")
    await settle()
    events: dict[str, list[Any]] = {room: list(answers[room]["events"]) for room in rooms}
    for event in client.take("event"):
        events[event["room"]].append(event)
    for room, answer in answers.items():
        offsets = [event["position"]["offset"] for event in events[room]]
        assert offsets[-1] == 2, "what was published after the join has come"
        assert offsets == list(range(3 - len(offsets), 3)), "once, and in order"
        live = [event["position"]["offset"] for event in events[room] if event not in answer["events"]]
        assert live == list(range(answer["position"]["offset"] + 1, 3)), "what follows the position, and no more"
    assert not connection.closed


async def test_what_is_published_while_a_join_that_waited_reads_the_store_is_not_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ROOMS[:6]
    await crowd(site, 20, *rooms)
    client = await stalled(site)
    numbers = {room: await client.command("join", room=room) for room in rooms}
    await settle()
    recover = site.store.recover

    async def slowly(topic: str, **options: Any) -> Recovery:
        recovery = await recover(topic, **options)
        await site.realtime.at(topic).broadcast("said", "after it was read")
        await settle()
        return recovery

    monkeypatch.setattr(site.store, "recover", slowly)
    client.peer.flow()
    for room, number in numbers.items():
        answer = await client.answer(number)
        assert "reason" not in answer
        position = answer["position"]["offset"]
        await site.realtime.at(room).broadcast("said", "now")
        live: list[dict[str, Any]] = []
        while not live or live[-1]["data"] != "now":
            live.append(await client.expect("event", room=room))
        assert [event["position"]["offset"] for event in live] == list(range(position + 1, position + 1 + len(live)))
    assert not site.connection("sloth").closed


async def test_who_joins_again_and_again_is_told_one_after_another(site: Site) -> None:
    await crowd(site, 20, "chat:1", "chat:2")
    client = await stalled(site, "chat:1", "chat:2")
    numbers = [await client.command("join", room=room) for room in ("chat:1", "chat:2") * 12]
    await settle()
    site.check(site.connection("sloth"))
    client.peer.flow()
    for number in numbers:
        assert len((await client.answer(number))["members"]["list"]) == 21


async def test_who_comes_back_to_rooms_with_many_members_is_let_in_everywhere(site: Site) -> None:
    rooms = ROOMS[:12]
    await crowd(site, 20, *rooms)
    client = await stalled(site)
    position = (await (await site.enter("other")).join("chat:1"))["position"]
    since = {**position, "offset": 0}
    numbers = [await client.command("join", room=room, since=since) for room in rooms]
    await settle()
    site.check(site.connection("sloth"))
    client.peer.flow()
    for number in numbers:
        assert len((await client.answer(number))["members"]["list"]) >= 21


async def test_a_renewal_behind_replies_that_wait_is_served_in_the_end(site: Site) -> None:
    await site.fill(*ROOMS[:12])
    client = await stalled(site, *ROOMS[:12])
    pages = [await client.command("history", room=room, limit=100) for room in ROOMS[:12]]
    renewal = await client.command("auth", token="sloth")
    after = await client.command("history", room="chat:1", limit=1)
    await settle()
    client.peer.flow()
    for number in pages:
        await client.answer(number)
    assert (await client.answer(renewal))["user"] == "sloth"
    assert len((await client.answer(after))["events"]) == 1
    replies = [frame["id"] for frame in client.log if frame["type"] == "reply"]
    assert replies.index(renewal) > max(replies.index(number) for number in pages)
    assert replies.index(after) > replies.index(renewal)


async def test_live_events_come_between_the_replies_and_keep_their_order_and_bounds(site: Site) -> None:
    await site.fill(*ROOMS)
    client = await stalled(site, *ROOMS)
    for room in ROOMS:
        await client.command("history", room=room, limit=100)
    await settle()
    for number in range(20):
        await site.realtime.at("chat:1").broadcast("news", number)
    await settle()
    site.check(site.connection("sloth"))
    client.peer.flow()
    assert await client.heard("news") == list(range(20))


async def test_too_many_live_events_still_end_who_does_not_read(site: Site) -> None:
    await site.fill("chat:1", "chat:2")
    client = await stalled(site, "chat:1", "chat:2")
    connection = site.connection("sloth")
    for _ in range(10):
        await client.command("history", room="chat:2", limit=100)
    await settle()
    for _ in range(20):
        await site.realtime.at("chat:1").broadcast("news", LARGE)
    assert connection.close_code == 4440


@pytest.mark.parametrize("end", ["disconnect", "close", "abort", "silence"])
async def test_the_connections_end_wakes_everything_that_waits(site: Site, end: str) -> None:
    await site.fill(*ROOMS)
    await crowd(site, 20, "chat:30", "chat:31")
    baseline = dict(site.realtime.gauges())
    client = await stalled(site, *ROOMS)
    connection = site.connection("sloth")
    for room in ROOMS:
        await client.command("history", room=room, limit=100)
    for room in ("chat:30", "chat:31"):
        await client.command("join", room=room)
    await client.command("auth", token="sloth")
    await settle()
    assert connection.lanes.held > 20
    if end == "disconnect":
        await client.peer.disconnect(1001)
    elif end == "close":
        connection.close(4403)
        client.peer.flow()
        assert (await client.closed()).code == 4403
    elif end == "abort":
        connection.abort()
    else:
        # one write may take 10 s, and a frame of 64 KiB is no more than that
        await site.clock.advance(9.9)
        assert not connection.closed
        await site.clock.advance(0.2)
        assert connection.close_code == 4440
    await settle()
    assert not connection.lanes.tasks
    assert not connection.recovering.locked()
    assert connection.outbox.size == 0
    await site.clock.advance(300.0)
    after = site.realtime.gauges()
    for name in ("connections", "locks", "entering", "reserved", "present", "lingering", "tasks", "endings", "telling"):
        assert after[name] == baseline[name], name


async def test_a_reply_that_is_too_large_is_refused_at_once(site: Site) -> None:
    for number in range(9):
        await site.realtime.at("chat:1").broadcast("said", [number, LARGE])
    client = await site.enter("ada")
    await client.join("chat:1")
    number = await client.command("history", room="chat:1", limit=100)
    assert (await client.expect("reply", id=number))["error"]["code"] == "too_large"
