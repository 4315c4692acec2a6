"""Requests to the client, the order of commands, and what a connection's end means to its handlers."""

import asyncio
from typing import Any

import msgspec
import pytest

from starlette_realtime import ERROR_CODES, Connection, ConnectionClosed, Declined, Member, Realtime, Refused
from starlette_realtime.testing import settle
from tests.rooms.support import Client, Failed, World, connection_options, serving


class Answer(msgspec.Struct):
    n: int


class Asking:
    """Rooms whose handlers ask the client, and note what came of it."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def __call__(self, realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("ask")
        async def ask(member: Member) -> Any:
            return await self._note(member.request("question", {"q": 1}, timeout=0.5))

        @room.on("ask_typed")
        async def ask_typed(member: Member) -> int:
            return (await self._note(member.request("question", returns=Answer))).n  # type: ignore[no-any-return]

        @realtime.on("ask")
        async def ask_connection(connection: Connection) -> Any:
            return await self._note(connection.request("question", timeout=0.5))

    async def _note(self, request: Any) -> Any:
        try:
            result = await request
        except (Refused, ConnectionClosed) as exc:
            self.results.append(exc)
            raise
        self.results.append(result)
        return result


@pytest.fixture
def asking() -> Asking:
    return Asking()


async def question(client: Client) -> Any:
    return await client.expect("event", event="question")


async def test_a_handler_asks_its_client_and_uses_the_answer(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        for room in ("chat:1", None):
            number = await ada.command("event", event="ask", **({"room": room} if room else {}))
            asked = await question(ada)
            assert asked.get("room") == room
            await ada.peer.send({"type": "reply", "id": asked["id"], "data": [1, {"a": None}]})
            assert await ada.answer(number) == [1, {"a": None}]


async def test_an_answer_is_validated(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        number = await ada.command("event", event="ask_typed", room="chat:1")
        await ada.peer.send({"type": "reply", "id": (await question(ada))["id"], "data": {"n": 7}})
        assert await ada.answer(number) == 7
        number = await ada.command("event", event="ask_typed", room="chat:1")
        await ada.peer.send({"type": "reply", "id": (await question(ada))["id"], "data": {"n": "x"}})
        with pytest.raises(Failed) as failed:
            await ada.answer(number)
        assert failed.value.code == "invalid_payload"
        assert "n" in failed.value.error["fields"]


async def test_the_clients_error_is_raised_in_the_handler(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        number = await ada.command("event", event="ask", room="chat:1")
        error = {"code": "busy", "message": "not now", "retry_after": 2.0}
        await ada.peer.send({"type": "reply", "id": (await question(ada))["id"], "error": error})
        with pytest.raises(Failed) as failed:
            await ada.answer(number)
        (raised,) = asking.results
        assert isinstance(raised, Declined)
        assert (raised.answer.code, raised.answer.message, raised.answer.retry_after) == ("busy", "not now", 2.0)
        # Whoever is told of it is told in the server's words: it may be somebody else.
        assert failed.value.error == {"code": "declined", "message": ERROR_CODES["declined"]}
        assert world.realtime.counters.refused == {"declined": 1}


@pytest.mark.parametrize("retry_after", [1e308, -1.0, 86_401])
async def test_a_client_cannot_ask_to_be_waited_for_without_end(asking: Asking, retry_after: float) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        number = await ada.command("event", event="ask", room="chat:1")
        error = {"code": "busy", "retry_after": retry_after}
        await ada.peer.send({"type": "reply", "id": (await question(ada))["id"], "error": error})
        assert (await ada.expect("error"))["code"] == "bad_frame"
        await world.clock.advance(0.5)
        with pytest.raises(Failed, match="timeout"):
            await ada.answer(number)


async def test_no_answer_in_time_is_a_timeout_and_a_late_answer_is_dropped(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        number = await ada.command("event", event="ask", room="chat:1")
        asked = await question(ada)
        await world.clock.advance(0.4)
        assert asking.results == []
        await world.clock.advance(0.2)
        with pytest.raises(Failed) as failed:
            await ada.answer(number)
        assert failed.value.code == "timeout"
        await ada.peer.send({"type": "reply", "id": asked["id"], "data": 1})
        await ada.peer.send({"type": "reply", "id": 999, "data": 1})
        await settle()
        assert ada.take() == []
        assert ada.peer.closed is None


async def test_a_connections_end_ends_its_requests(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        await ada.command("event", event="ask", room="chat:1")
        await question(ada)
        await ada.peer.lose()
        await settle()
        (raised,) = asking.results
        assert isinstance(raised, ConnectionClosed)
        assert world.realtime.gauges()["endings"] == 0


async def test_sixteen_requests_may_be_open_and_no_more() -> None:
    def declare(realtime: Realtime) -> None:
        @realtime.on("ask")
        async def ask(connection: Connection) -> list[str]:
            async def one() -> str:
                try:
                    return str(await connection.request("question"))
                except Refused as refused:
                    return refused.code

            return await asyncio.gather(*(one() for _ in range(18)))

    async with serving(declare) as world:
        ada = await world.enter("ada")
        number = await ada.command("event", event="ask")
        await settle()
        asked = ada.take("event")
        assert len(asked) == 16
        for frame in asked:
            await ada.peer.send({"type": "reply", "id": frame["id"], "data": "yes"})
        assert sorted(await ada.answer(number)) == ["unavailable"] * 2 + ["yes"] * 16


async def test_a_handler_that_waits_for_its_client_is_not_held_up_by_what_the_client_pipelines(asking: Asking) -> None:
    async with serving(asking) as world:
        ada = await world.enter("ada", "chat:1")
        number = await ada.command("event", event="ask", room="chat:1")
        asked = await question(ada)
        numbers = [await ada.command("event", event="ask", room="chat:1") for _ in range(60)]
        await ada.peer.send({"type": "reply", "id": asked["id"], "data": "first"})
        assert await ada.answer(number) == "first"
        codes: list[str] = []
        for number in numbers:
            if len(numbers) - len(codes) and number - numbers[0] < 31:
                asked = await question(ada)
                await ada.peer.send({"type": "reply", "id": asked["id"], "data": number})
                assert await ada.answer(number) == number
            else:
                with pytest.raises(Failed) as failed:
                    await ada.answer(number)
                codes.append(failed.value.code)
        assert codes == ["rate_limited"] * 29
        assert ada.peer.closed is None


class Slow:
    """Handlers that go on when they are told to, and note when they begin and end."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.go: dict[Any, asyncio.Event] = {}

    def __call__(self, realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.authorize
        async def may(room_id: int) -> bool:
            if room_id >= 100:
                await self._work(f"join {room_id}")
            return True

        @room.on("work")
        async def work(room_id: int, name: str) -> str:
            return await self._work(name)

        @realtime.on("work")
        async def work_outside(name: str) -> str:
            return await self._work(name)

        self.room = room

    async def _work(self, name: str) -> str:
        self.begun.append(name)
        try:
            await self.go.setdefault(name, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.ended.append(name)
        return name

    def finish(self, *names: str) -> None:
        for name in names:
            self.go.setdefault(name, asyncio.Event()).set()


async def test_commands_are_in_order_within_a_room_and_side_by_side_across_rooms() -> None:
    slow = Slow()
    async with serving(slow) as world:
        ada = await world.enter("ada", "chat:1", "chat:2")
        for room, name in (("chat:1", "a"), ("chat:1", "b"), ("chat:2", "c"), ("chat:2", "d")):
            await ada.command("event", event="work", room=room, data=name)
        await ada.command("event", event="work", data="e")
        await settle()
        assert slow.begun == ["a", "c", "e"]
        slow.finish("c", "b")
        await settle()
        assert slow.begun == ["a", "c", "e", "d"]
        slow.finish("a")
        await settle()
        assert slow.ended == ["c", "a", "b"]
        slow.finish("d", "e")


async def test_leaving_waits_for_the_rooms_handlers_before_it() -> None:
    slow = Slow()
    async with serving(slow) as world:
        ada = await world.enter("ada", "chat:1")
        work = await ada.command("event", event="work", room="chat:1", data="a")
        leave = await ada.command("leave", room="chat:1")
        await settle()
        assert ada.take("reply") == []
        slow.finish("a")
        assert await ada.answer(work) == "a"
        assert await ada.answer(leave) == {}


async def test_auth_waits_for_everything_before_it_and_holds_up_everything_after_it() -> None:
    slow = Slow()
    async with serving(slow) as world:
        ada = await world.enter("ada", "chat:1", "chat:2")
        await ada.command("event", event="work", room="chat:1", data="a")
        auth = await ada.command("auth", token="ada")
        await ada.command("event", event="work", room="chat:2", data="b")
        await settle()
        assert slow.begun == ["a"]
        assert ada.take("reply") == []
        slow.finish("a", "b")
        await ada.answer(auth)
        await settle()
        assert slow.ended == ["a", "b"]


async def test_a_full_inbox_pauses_the_reading_and_not_the_answers() -> None:
    slow = Slow()
    async with serving(slow, connection=connection_options(inbox=4)) as world:
        ada = await world.enter("ada", *(f"chat:{number}" for number in range(1, 9)))
        for number in range(1, 9):
            await ada.command("event", event="work", room=f"chat:{number}", data=str(number))
        await settle()
        assert slow.begun == ["1", "2", "3", "4"]
        slow.finish("2")
        await settle()
        assert slow.begun == ["1", "2", "3", "4", "5"]
        slow.finish(*map(str, range(1, 9)))
        await settle()
        assert len(slow.ended) == 8


async def test_a_paused_reader_is_not_mistaken_for_a_silent_client() -> None:
    slow = Slow()
    options = connection_options(inbox=1, heartbeat=1.0, grace=0.5)
    async with serving(slow, connection=options) as world:
        ada = await world.enter("ada", "chat:1", "chat:2")
        await ada.command("event", event="work", room="chat:1", data="a")
        for _ in range(3):
            await ada.command("event", event="work", room="chat:2", data="b")
        await world.clock.advance(20.0)
        assert ada.peer.closed is None
        slow.finish("a", "b")
        await settle()
        assert len(slow.ended) == 4
        await world.clock.advance(2.0)
        assert (await ada.closed()).code == 4408


async def test_after_the_end_a_running_handler_has_its_time_and_what_waits_is_forgotten() -> None:
    slow = Slow()
    async with serving(slow, connection=connection_options(handler_grace=0.5)) as world:
        ada = await world.enter("ada", "chat:1", "chat:2")
        for room, name in (("chat:1", "a"), ("chat:1", "never"), ("chat:2", "b")):
            await ada.command("event", event="work", room=room, data=name)
        await settle()
        await ada.peer.lose()
        await world.clock.advance(0.4)
        slow.finish("a")
        await settle()
        assert (slow.ended, slow.cancelled) == (["a"], [])
        assert world.realtime.gauges()["endings"] == 1
        await world.clock.advance(0.2)
        assert slow.cancelled == ["b"]
        assert slow.begun == ["a", "b"]
        assert world.realtime.gauges()["endings"] == 0


async def test_a_join_under_way_when_the_connection_ends_is_undone() -> None:
    slow = Slow()
    async with serving(slow, connection=connection_options(handler_grace=0.5)) as world:
        before = world.realtime.gauges()
        ada = await world.enter("ada")
        await ada.command("join", room="chat:100")
        await settle()
        await ada.peer.lose()
        slow.finish("join 100")
        await settle()
        bob = await world.enter("bob")
        await bob.command("join", room="chat:101")
        await settle()
        await bob.peer.lose()
        await world.clock.advance(100.0)
        assert slow.cancelled == ["join 101"]
        assert world.realtime.gauges() == before


async def test_one_connections_handlers_do_not_hold_up_anothers(world: World) -> None:
    slow = Slow()
    async with serving(slow) as other:
        ada, bob = await other.enter("ada", "chat:1"), await other.enter("bob", "chat:1")
        await ada.command("event", event="work", room="chat:1", data="a")
        slow.finish("b")
        assert await bob.event("work", "b") == "b"
        slow.finish("a")
