"""Failures: what goes wrong in the application's own code is answered, logged, and never leaves a door open."""

import asyncio
import math

import pytest

from starlette_realtime import Connection, Identity, Member, Realtime, Refused
from starlette_realtime.counters import Counters
from starlette_realtime.testing import settle
from tests.rooms.support import Failed, connection_options, serving


async def cancelled_by_somebody_else() -> None:
    """What happens to whoever waits for a task, or a connection of a pool, that another one cancels."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def test_a_handler_whose_work_was_cancelled_elsewhere_is_answered_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}")

        @chat.on("work")
        @realtime.on("work")
        async def work() -> None:
            await cancelled_by_somebody_else()

        @chat.on_join
        async def came(member: Member) -> None:
            await cancelled_by_somebody_else()

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        assert "a handler of chat:{room_id:int} failed" in caplog.text
        for room in ("chat:1", None):
            caplog.clear()
            with pytest.raises(Failed, match="internal"):
                await ada.event("work", room=room)
            assert "the handler of 'work'" in caplog.text
            assert "cancelled by somebody else" in caplog.text


async def test_authorize_that_was_cancelled_elsewhere_lets_nobody_in_and_nobody_stay() -> None:
    bad = False

    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}")

        @chat.authorize
        async def may(member: Member) -> bool:
            if bad:
                await cancelled_by_somebody_else()
            return True

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1", "chat:2")
        bad = True
        with pytest.raises(Failed, match="internal"):
            await ada.join("chat:3")
        await ada.auth("ada")
        assert [(await ada.expect("left"))["room"] for _ in range(2)] == ["chat:1", "chat:2"]
        for room in ("chat:1", "chat:2", "chat:3"):
            with pytest.raises(Failed, match="not_joined"):
                await ada.call("history", room=room)


@pytest.mark.parametrize("hook", ["authenticate", "on_connect"])
async def test_who_could_not_be_let_in_for_a_cancellation_elsewhere_is_closed(hook: str) -> None:
    async def authenticate(token: str) -> Identity:
        if hook == "authenticate":
            await cancelled_by_somebody_else()
        return Identity(token)

    def declare(realtime: Realtime) -> None:
        @realtime.on_connect
        async def connected(connection: Connection) -> None:
            if hook == "on_connect":
                await cancelled_by_somebody_else()

    async with serving(declare, authenticate=authenticate) as world:
        ada = await world.client().__aenter__()
        await ada.command("auth", token="ada")
        assert (await ada.closed()).code in (1013, 4401)


@pytest.mark.parametrize("retry_after", [math.inf, 1e308, -5.0, math.nan])
async def test_whatever_an_application_says_of_when_to_come_back_can_be_told(retry_after: float) -> None:
    def declare(realtime: Realtime) -> None:
        @realtime.on("work")
        async def work() -> None:
            raise Refused("busy", retry_after=retry_after)

        @realtime.on_connect
        async def connected(connection: Connection) -> None:
            if connection.user == "nobody":
                raise Refused("busy", retry_after=retry_after)

    async with serving(declare) as world:
        ada = await world.enter("ada")
        with pytest.raises(Failed, match="busy") as failed:
            await ada.event("work", room=None)
        assert 0 <= failed.value.error["retry_after"] <= 1e9
        nobody = await world.client().__aenter__()
        await nobody.command("auth", token="nobody")
        assert (await nobody.closed()).reason.startswith("busy;")
        assert (await nobody.expect("error"))["code"] == "busy"


async def test_credentials_that_take_too_long_to_check_are_tried_again_later() -> None:
    checking = asyncio.Event()

    async def authenticate(token: str) -> Identity:
        if token == "slow":
            await checking.wait()
        return Identity(token)

    async with serving(authenticate=authenticate, connection=connection_options(auth_timeout=2.0)) as world:
        ada = await world.enter("ada")
        slow = await world.client().__aenter__()
        await slow.command("auth", token="slow")
        await world.clock.advance(1.9)
        assert slow.peer.closed is None
        refresh = await ada.command("auth", token="slow")
        await world.clock.advance(0.2)
        assert (await slow.closed()).code == 1013
        await world.clock.advance(2.0)
        with pytest.raises(Failed, match="unavailable"):
            await ada.answer(refresh)
        assert ada.peer.closed is None


async def test_only_the_first_auth_is_free() -> None:
    asked: list[str] = []
    checking = asyncio.Event()

    async def authenticate(token: str) -> Identity:
        asked.append(token)
        await checking.wait()
        return Identity(token)

    async with serving(authenticate=authenticate) as world:
        ada = await world.client().__aenter__()
        numbers = [await ada.command("auth", token="ada") for _ in range(20)]
        await settle()
        checking.set()
        replies = [await ada.expect("reply", id=number) for number in numbers]
        codes = [reply["error"]["code"] for reply in replies if "error" in reply]
        assert codes == ["rate_limited"] * 14
        assert len(asked) == 6  # five refreshes in half a minute


async def test_a_status_for_all_rooms_skips_those_that_are_left_meanwhile() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}", presence=True)

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1", "chat:2", "chat:3")
        world.store.faults.stall()
        setting = await ada.command("status", status="away")
        await settle()
        leaving = await ada.command("leave", room="chat:2")
        await settle()
        world.store.faults.resume()
        assert await ada.answer(setting) == {}
        await ada.answer(leaving)
        for number in (1, 3):
            members = await world.realtime.at(f"chat:{number}").members()
            assert [entry.status for entry in members.entries] == ["away"]
        assert (await world.realtime.at("chat:2").members()).total == 0


def test_made_up_codes_are_counted_together_once_there_are_many() -> None:
    counters = Counters()
    for number in range(150):
        counters.refuse(f"code_{number}")
    counters.refuse("code_0")
    assert len(counters.refused) == 101
    assert (counters.refused["code_0"], counters.refused["other"]) == (2, 50)
