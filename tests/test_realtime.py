"""The facade: what it refuses to be made of, how it starts and stops, and what it shows of itself."""

import asyncio
from typing import Any

import pytest

from starlette_realtime import (
    ConfigurationError,
    Connection,
    ConnectionOptions,
    History,
    MemoryStore,
    Realtime,
    Room,
    RoomsOptions,
    SignedTokens,
    StarletteSession,
    UnknownRoom,
)
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle
from tests.rooms.support import Failed, World, serving

SECRET = "sixteen bytes or more of it"


class OtherStore(MemoryStore):
    """Looks to the kit like a store that processes share."""


async def nothing(*arguments: Any) -> Any: ...


def make(**options: Any) -> Realtime:
    return Realtime(**{"authenticate": SignedTokens(SECRET), **options})


def test_somebody_must_be_able_to_get_in() -> None:
    with pytest.raises(ConfigurationError, match="nobody could get in"):
        Realtime()
    Realtime(anonymous=True)


def test_what_cannot_authenticate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="can't authenticate"):
        Realtime(authenticate=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern", ["", "chat:{", "chat:{a}:{a}", "chat:{a:float}", "user:{id}", "rt:x", "a,b", "a?b", "x" * 200]
)
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        make().room(pattern)


@pytest.mark.parametrize(
    "options", [{"history": History(size=0)}, {"history": History(ttl=0.0)}, {"linger": -0.1}, {"shown": -1}]
)
def test_a_room_with_impossible_bounds_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        make().room("chat", **options)


@pytest.mark.parametrize("event", ["rt:x", "connect", "disconnect", "disconnecting", "newListener", "", "x" * 129])
def test_reserved_events_cannot_be_handled(event: str) -> None:
    realtime = make()
    with pytest.raises(ConfigurationError):
        realtime.on(event)
    with pytest.raises(ConfigurationError):
        realtime.room("chat").on(event)


def test_an_event_has_one_handler_and_a_room_one_authorize() -> None:
    realtime = make()
    room = realtime.room("chat")
    room.on("say")(_takes_nothing)
    realtime.on("say")(_takes_nothing)
    room.authorize(_takes_nothing)
    for again in (room.on, realtime.on):
        with pytest.raises(ConfigurationError, match="already"):
            again("say")
    with pytest.raises(ConfigurationError, match="already"):
        room.authorize(_takes_nothing)
    with pytest.raises(ConfigurationError, match="rate"):
        room.on("else", limit="often")


async def _takes_nothing() -> None: ...


def test_decorators_give_the_function_back() -> None:
    realtime = make()
    room = realtime.room("chat")
    for bind in (
        room.authorize,
        room.on("say"),
        room.on_join,
        room.on_leave,
        realtime.on("say"),
        realtime.on_connect,
        realtime.on_disconnect,
    ):
        assert bind(_takes_nothing) is _takes_nothing


def test_a_rooms_name_is_made_from_its_parameters() -> None:
    realtime = make()
    room = realtime.room("doc:{team}:{doc_id:int}")
    assert room.name(team="red", doc_id=7) == "doc:red:7"
    assert room.at(team="red", doc_id=7).room == "doc:red:7"
    assert dict(realtime.at("doc:red:7").params) == {"team": "red", "doc_id": 7}
    for wrong in ({"team": "a:b", "doc_id": 7}, {"team": "red", "doc_id": -1}, {"team": "", "doc_id": 1}):
        with pytest.raises(ValueError):
            room.name(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownRoom):
        realtime.at("doc:red:x")


def test_processes_that_share_a_store_share_a_secret() -> None:
    with pytest.raises(ConfigurationError, match="16 bytes"):
        Realtime(anonymous=True, secret="short")
    Realtime(anonymous=True, secret=["newest secret of all", "an older one of them"])


async def test_who_calls_before_the_start_is_told_what_to_add() -> None:
    realtime = make()
    with pytest.raises(ConfigurationError, match=r"lifespan=realtime\.lifespan"):
        await Peer(realtime).connect()
    with pytest.raises(ConfigurationError, match="mount"):
        await realtime({"type": "lifespan"}, nothing, nothing)


async def test_starting_nests_and_starts_again_after_a_stop() -> None:
    realtime = make()
    async with realtime:
        async with realtime.lifespan(None):
            pass
        async with Peer(realtime) as peer:
            assert (await peer.receive_json())["type"] == "welcome"
    with pytest.raises(ConfigurationError):
        await Peer(realtime).connect()
    async with realtime, Peer(realtime) as peer:
        assert (await peer.receive_json())["type"] == "welcome"


async def test_a_start_that_fails_can_be_made_again() -> None:
    class Failing(MemoryStore):
        fails = True

        async def _start(self) -> None:
            if self.fails:
                raise ConnectionRefusedError
            await super()._start()

    store = Failing()
    realtime = make(store=store)
    with pytest.raises(ConnectionRefusedError):
        async with realtime:
            pass
    store.fails = False
    async with realtime, Peer(realtime) as peer:
        await peer.receive()


async def test_a_stop_tells_everybody_and_clears_everything_away() -> None:
    left: list[str | None] = []

    def declare(realtime: Realtime) -> None:
        @realtime.on_disconnect
        async def gone(connection: Connection) -> None:
            left.append(connection.user)

        realtime.room("chat:{room_id:int}", presence=True)

    async with serving(declare) as world:
        clients = [await world.enter(user, "chat:1") for user in ("ada", "bob")]
        tasks = asyncio.all_tasks()
        await world.realtime.__aexit__(None, None, None)
        delays = set()
        for client in clients:
            closed = await client.closed()
            reconnect, error = client.log[-2:]
            assert (closed.code, closed.reason) == (1012, f"draining;{error['retry_after']}")
            assert (reconnect["type"], reconnect["reason"]) == ("reconnect", "draining")
            delays.add(reconnect["after"])
        assert len(delays) == 2  # they don't all come back at once
        assert sorted(map(str, left)) == ["ada", "bob"]
        assert world.realtime.gauges()["store.entries"] == 0
        assert asyncio.all_tasks() < tasks
        await world.realtime.__aenter__()


async def test_a_stop_waits_for_handlers_for_a_while_only() -> None:
    cancelled: list[bool] = []

    def declare(realtime: Realtime) -> None:
        @realtime.on("wait")
        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    world = World(connection=ConnectionOptions(handler_grace=0.5))
    declare(world.realtime)
    async with world:
        client = await world.enter("ada")
        client.peer.stall()
        await client.command("event", event="wait")
        await settle()
    assert cancelled == [True]
    assert world.realtime.gauges()["endings"] == 0
    assert world.realtime.gauges()["connections"] == 0


async def test_connections_are_bounded() -> None:
    async with serving(max_connections=2) as world:
        first, _ = await world.enter("ada"), await world.enter("bob")
        with pytest.raises(Rejected) as rejected:
            await world.client().peer.connect()
        assert rejected.value.status == 503
        assert float(rejected.value.headers["retry-after"]) > 0
        browser = world.client(origin="http://testserver")
        await browser.peer.connect()
        assert (await browser.closed()).code == 1013
        await first.peer.disconnect()
        await world.enter("eve")


async def test_what_is_held_is_shown() -> None:
    async with serving(lambda realtime: realtime.room("chat:{room_id:int}", presence=True)) as world:
        before = world.realtime.gauges()
        await world.enter("ada", "chat:1")
        held = world.realtime.gauges()
        grown = {name for name in held if held[name] > before[name]}
        assert {"connections", "sessions", "topics", "store.entries", "store.subscribers"} <= grown
        assert len(world.realtime.connections) == 1


async def test_several_instances_do_not_hear_each_other() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.add(Room("chat:{room_id:int}"))

    async with serving(declare) as one, serving(declare) as other:
        ada, bob = await one.enter("ada", "chat:1"), await other.enter("bob", "chat:1")
        await one.realtime.at("chat:1").broadcast("said", 1)
        assert await ada.heard() == [1]
        assert await bob.heard() == []
        client = await other.client().__aenter__()
        await client.auth("ada", session=ada.session)
        assert ada.peer.closed is None


async def test_a_user_is_named_by_the_raw_id() -> None:
    async with serving() as world:
        for user in ("", "x" * 129, "a\x00b", "e\u0301"):
            with pytest.raises(ValueError):
                await world.realtime.send_to_user(user, "mail", 1)
            with pytest.raises(ValueError):
                await world.realtime.disconnect_user(user)


async def test_a_session_of_the_default_secret_survives_no_restart_and_one_of_a_given_secret_does() -> None:
    clock = FakeClock()
    for secret, same in ((None, False), (SECRET, True)):
        options: dict[str, Any] = {"clock": clock} | ({"secret": secret} if secret else {})
        async with serving(**options) as world:
            session = (await world.enter("ada")).session
        async with serving(**options) as world:
            again = await world.enter("ada", session=session)
            (connection,) = world.realtime.connections
            ours = world.realtime._rooms.admission._sessions.read(str(session), "ada")
            assert (ours == connection.session) is same
            assert again.user == "ada"


async def test_expired_credentials_of_the_handshake_are_refused_at_auth() -> None:
    async with serving() as world:
        client = await world.client(headers=[("authorization", "Bearer ada+1")]).__aenter__()
        await world.clock.advance(1.5)
        with pytest.raises(Failed) as failed:
            await client.auth()
        assert failed.value.code == "expired"
        assert (await client.closed()).code == 4401


@pytest.mark.parametrize("name", ConnectionOptions.__dataclass_fields__)
def test_a_bound_of_a_connection_is_positive(name: str) -> None:
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError, match=f"{name} is positive"):
            ConnectionOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["missed", "missed_bytes", "publication_bytes", "history_page"])
def test_a_bound_of_rooms_is_one_or_more(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is 1 or more"):
        RoomsOptions(**{name: 0})  # type: ignore[arg-type]


def test_an_interval_of_presence_is_not_negative() -> None:
    with pytest.raises(ConfigurationError, match="presence_interval"):
        RoomsOptions(presence_interval=-0.1)


@pytest.mark.parametrize("options", [{"cookie": "who"}, {"authenticate": StarletteSession()}])
def test_any_origin_and_cookies_don_t_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="any page"):
        Realtime(**{"authenticate": SignedTokens("a secret of these tests"), "origins": "*", **options})
