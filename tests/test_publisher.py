"""Publishing from a process that serves nobody: to rooms and users, once for each key, by the application's rooms."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from starlette_realtime import (
    ConfigurationError,
    Forbidden,
    History,
    Identity,
    Member,
    MemoryStore,
    Publisher,
    Realtime,
    Refused,
    Room,
    RoomsOptions,
    SignedTokens,
    Unavailable,
    UnknownRoom,
)
from starlette_realtime.testing import settle
from tests.rooms.support import World

CHAT = Room("chat:{room_id:int}", history=History(size=3, ttl=60.0))
LIVE = Room("live", history=None)
OPTIONS = RoomsOptions(user_history=History(size=2, ttl=60.0), publication_bytes=1_000)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """An application with those rooms; its own objects are equal to these, as in a process of its own."""
    world = World(options=OPTIONS)
    world.chat = world.realtime.room(CHAT.template, presence=True, history=CHAT.history)
    world.realtime.room(LIVE.template, history=None)
    async with world:
        yield world


@pytest.fixture
async def publisher(world: World) -> AsyncIterator[Publisher]:
    """A publisher in another process."""
    async with Publisher(world.store.sibling(), [CHAT, LIVE], options=OPTIONS) as publisher:
        yield publisher


# --- publishing -----------------------------------------------------------------------------------------------------


async def test_members_hear_what_is_published_elsewhere(world: World, publisher: Publisher) -> None:
    ann = await world.enter("ann", "chat:1", "live")
    position = await publisher.publish(CHAT.name(room_id=1), "message", {"text": "hello"})
    await publisher.publish_volatile("live", "tick", 1)
    await publisher.publish_volatile("chat:1", "typing")
    await settle()
    message, tick, typing = ann.take("event")
    assert (message["event"], message["data"], message["position"]["offset"]) == ("message", {"text": "hello"}, 1)
    assert "from" not in message
    assert message["position"]["id"] == position.id
    assert (tick["room"], tick["data"], typing["event"], typing["data"]) == ("live", 1, "typing", None)


async def test_a_rooms_definition_says_what_is_kept(world: World, publisher: Publisher) -> None:
    for number in range(5):
        await publisher.publish("chat:1", "message", number)
    page = await world.realtime.at("chat:1").history()
    assert [bytes(event.data) for event in page.events] == [b"2", b"3", b"4"]
    for number in range(5):
        await publisher.send_to_user("ann", "note", number)
    ann = await world.client().__aenter__()
    await ann.auth("ann")
    assert (await ann.expect("joined"))["position"]["offset"] == 5
    kept = await world.store.page("user:ann", before=None, limit=10)
    assert len(kept.publications) == 2


async def test_a_key_publishes_once_whoever_repeats_it(world: World, publisher: Publisher) -> None:
    ann = await world.enter("ann", "chat:1", "chat:2")
    first = await publisher.publish("chat:1", "report", 1, key="2024-05-01")
    async with Publisher(world.store.sibling(), [CHAT]) as next_run:
        assert await next_run.publish("chat:1", "report", 1, key="2024-05-01") == first
        assert (await next_run.publish("chat:1", "report", 2, key="2024-05-02")).offset == 2
        assert (await next_run.publish("chat:2", "report", 3, key="2024-05-01")).offset == 1
        sent = [await next_run.send_to_user("ann", "note", 4, key="k") for _ in range(2)]
        assert sent[0] == sent[1]
    async with Publisher(world.store.sibling(), [CHAT], producer="another") as another:
        assert (await another.publish("chat:1", "report", 5, key="2024-05-01")).offset == 3
    assert sorted(await ann.heard()) == [1, 2, 3, 4, 5]


async def test_a_clients_key_is_not_a_publishers(world: World, publisher: Publisher) -> None:
    chat: Room = world.chat

    @chat.on("say")
    async def say(member: Member, text: str) -> int:
        return (await member.broadcast("said", text)).offset

    ann = await world.enter("ann", "chat:1")
    assert await ann.event("say", "hello", key="k") == 1
    assert (await publisher.publish("chat:1", "said", "hello", key="k")).offset == 2


async def test_without_an_answer_it_is_repeated_with_its_key(world: World, publisher: Publisher) -> None:
    ann = await world.enter("ann", "chat:1")
    store = publisher.store
    assert isinstance(store, MemoryStore)
    store.faults.unanswered(1)
    with pytest.raises(Unavailable) as refused:
        await publisher.publish("chat:1", "report", 1, key="k")
    assert "answer was lost" in str(refused.value.__cause__)
    assert (await publisher.publish("chat:1", "report", 1, key="k")).offset == 1
    assert await ann.heard() == [1]


@pytest.mark.parametrize(("key", "error"), [("", ValueError), ("k" * 129, ValueError), (7, TypeError)])
async def test_what_is_no_key_is_refused(publisher: Publisher, key: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="a key"):
        await publisher.publish("chat:1", "report", key=key)
    with pytest.raises(error, match="a key"):
        await publisher.send_to_user("ann", "report", key=key)


async def test_what_cannot_be_published_says_why(publisher: Publisher) -> None:
    with pytest.raises(UnknownRoom, match=r"declared are chat:\{room_id:int\}, live"):
        await publisher.publish("chat:one", "message")
    with pytest.raises(Forbidden, match="send_to_user"):
        await publisher.publish("user:ann", "message")
    with pytest.raises(Refused, match="too_large: an event may have 1000 bytes"):
        await publisher.publish("chat:1", "message", "x" * 1_000)
    with pytest.raises(ConfigurationError, match="use publish_volatile there"):
        await publisher.publish("live", "message")
    with pytest.raises(ConfigurationError, match="is reserved"):
        await publisher.publish("chat:1", "rt:kick")
    with pytest.raises(TypeError):
        await publisher.publish("chat:1", "message", object())
    with pytest.raises(ValueError, match="cannot be a user"):
        await publisher.send_to_user("", "message")


async def test_a_publisher_without_rooms_reaches_users(world: World) -> None:
    ann = await world.enter("ann")
    async with Publisher(world.store.sibling()) as publisher:
        await publisher.send_to_user("ann", "note", "hello")
        with pytest.raises(UnknownRoom, match=r"none: pass rooms=\[…\]"):
            await publisher.publish("chat:1", "message")
    assert await ann.heard() == ["hello"]


# --- users and members ----------------------------------------------------------------------------------------------


async def test_a_user_is_disconnected(world: World, publisher: Publisher) -> None:
    ann, bob = await world.enter("ann"), await world.enter("bob")
    await publisher.disconnect_user("ann")
    assert (await ann.closed()).code == 4403
    assert ann.take("error")[0]["code"] == "forbidden"
    await publisher.disconnect_user("bob", code=1012, error="moved")
    assert (await bob.closed()).code == 1012
    with pytest.raises(ConfigurationError, match="no close code"):
        await publisher.disconnect_user("ann", code=1000)


async def test_a_member_is_kicked_by_user_or_connection(world: World, publisher: Publisher) -> None:
    ann, bob = await world.enter("ann", "chat:1", "live"), await world.enter("bob", "chat:1")
    await publisher.kick("chat:1", user="ann", code="gone")
    await publisher.kick("chat:1", connection=bob.id)
    await publisher.kick("live", user="ann")
    left = [await ann.expect("left"), await ann.expect("left"), await bob.expect("left")]
    assert [(frame["room"], frame["code"]) for frame in left] == [
        ("chat:1", "gone"),
        ("live", "forbidden"),
        ("chat:1", "forbidden"),
    ]
    with pytest.raises(TypeError, match="either a user or a connection"):
        await publisher.kick("chat:1")
    with pytest.raises(ValueError, match="cannot be a user"):
        await publisher.kick("chat:1", user="")


async def test_a_user_or_a_token_is_revoked() -> None:
    world = World(authenticate=SignedTokens("s" * 32))
    async with world, Publisher(world.store.sibling()) as publisher:
        tokens = SignedTokens("s" * 32, clock=world.clock)
        ann, old = await world.enter(tokens.issue("ann")), tokens.issue("bob")
        bob = await world.enter(old)
        await publisher.revoke_user("ann")
        assert (await ann.closed()).code == 4450
        await publisher.revoke_token(str(tokens.read(old).claims["jti"]))
        assert (await bob.closed()).code == 4450
        eve = await world.enter(tokens.issue("eve"))
        await publisher.revoke_user("eve", issued_before=world.clock.time() - 60.0)
        for never in (math.nan, math.inf):
            with pytest.raises(ValueError, match="Unix seconds"):
                await publisher.revoke_user("eve", issued_before=never)
        await settle()
        assert eve.peer.closed is None
        for empty in ("", "x" * 257):
            with pytest.raises(ValueError, match="token's id"):
                await publisher.revoke_token(empty)


# --- looking in -----------------------------------------------------------------------------------------------------


async def test_it_sees_who_is_there(world: World, publisher: Publisher) -> None:
    ann = await world.enter("ann", "chat:1")
    view = publisher.at("chat:1")
    assert [user.user for user in await view.users()] == ["ann"]
    assert (await view.connections()).total == 1
    (found,) = (await publisher.connections_of("ann")).connections
    assert (found.connection, found.node, found.rooms) == (ann.id, world.store.node, ("chat:1",))
    counts = await publisher.count()
    assert counts.connections == 1
    assert counts.processes.keys() == {world.store.node}
    assert [node.id for node in await publisher.nodes()] == [world.store.node]
    await publisher.at("chat:1").broadcast("said", "from the view")
    assert (await view.history()).events[0].event == "said"


# --- life -----------------------------------------------------------------------------------------------------------


async def test_before_it_is_entered_it_does_nothing(world: World) -> None:
    publisher = Publisher(world.store, [CHAT])
    for ask in (
        publisher.publish("chat:1", "message"),
        publisher.publish_volatile("chat:1", "message"),
        publisher.send_to_user("ann", "message"),
        publisher.disconnect_user("ann"),
        publisher.kick("chat:1", user="ann"),
        publisher.revoke_user("ann"),
        publisher.revoke_token("t"),
        publisher.connections_of("ann"),
        publisher.count(),
        publisher.nodes(),
    ):
        with pytest.raises(ConfigurationError, match="this Publisher was not entered"):
            await ask


async def test_entering_it_again_nests_and_it_can_be_used_anew(world: World) -> None:
    publisher = Publisher(world.store.sibling(), [CHAT])
    for number in (1, 3):
        async with publisher:
            async with publisher:
                assert (await publisher.publish("chat:1", "message")).offset == number
            assert (await publisher.publish("chat:1", "message")).offset == number + 1
            assert (await publisher.count()).missing == ()
    assert len(await world.realtime.nodes()) == 1


async def test_it_may_use_the_applications_own_store_and_rooms(world: World) -> None:
    ann = await world.enter("ann", "chat:1")
    async with Publisher(world.store, world.realtime.rooms) as publisher:
        await publisher.publish("chat:1", "message", "hello")
    assert await ann.heard() == ["hello"]
    await world.chat.at(room_id=1).broadcast("message", "the room is still the application's")
    assert len(await ann.heard()) == 1


async def test_a_memory_store_of_its_own_reaches_nobody() -> None:
    with pytest.raises(ConfigurationError, match="reaches nobody: share a RedisStore"):
        async with Publisher(MemoryStore()):
            pass


async def test_a_store_that_is_away_is_unavailable(world: World) -> None:
    class Away(MemoryStore):
        async def _start(self) -> None:
            await self._answer()
            await super()._start()

    store = Away(clock=world.clock, backend=world.store.backend)
    store.faults.stall()
    publisher = Publisher(store, [CHAT])
    entering = asyncio.ensure_future(publisher.__aenter__())
    await world.clock.advance(3.0)
    with pytest.raises(Unavailable):
        await entering
    store.faults.resume()
    async with publisher:
        store.faults.stall()
        for ask in (
            publisher.publish("chat:1", "message"),
            publisher.publish_volatile("chat:1", "message"),
            publisher.kick("chat:1", user="ann"),
            publisher.revoke_user("ann"),
            publisher.count(),
            publisher.nodes(),
            publisher.at("chat:1").members(),
        ):
            asking = asyncio.ensure_future(ask)
            await world.clock.advance(3.0)
            with pytest.raises(Unavailable):
                await asking
        store.faults.resume()


def test_options_that_make_no_sense_say_so() -> None:
    store = MemoryStore()
    with pytest.raises(ConfigurationError, match="takes the application's store"):
        Publisher("redis://localhost")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rooms are Room objects"):
        Publisher(store, ["chat:1"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="producer is a name"):
        Publisher(store, producer="")
    with pytest.raises(ConfigurationError, match="matches the same names"):
        Publisher(store, [CHAT, Room("chat:{number:int}")])


async def test_a_realtime_that_does_not_run_kicks_nobody() -> None:
    realtime = Realtime(authenticate=_nobody)
    realtime.room("chat")
    with pytest.raises(ConfigurationError, match="Realtime was not started"):
        await realtime.at("chat").kick(user="ann")


async def _nobody(token: str) -> Identity | None:
    return None
