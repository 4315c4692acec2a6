"""Real pages in one room: what they say, who is there, and what the server asks of them."""

from tests.e2e.people import Person, visit
from tests.e2e.site import Site
from tests.support.browser import Pages
from tests.support.server import serve
from tests.support.waiting import until


async def test_two_pages_chat_and_see_each_others_presence_and_typing(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await ada.sees("chat.present() === 'ada online 1,bob online 1'")
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        await ada.says("hello")
        await bob.heard(count=1)
        await bob.says("hello yourself", "how are you?")
        for person in (ada, bob):
            assert await person.heard(count=3) == ["hello", "hello yourself", "how are you?"]
        assert await ada.run("chat.room.sendVolatile('typing')") is True
        await bob.sees("chat.typing.length === 1")
        assert await bob.run("chat.typing") == ["ada"]
        await bob.run("chat.room.setStatus('away')")
        await ada.sees("chat.present() === 'ada online 1,bob away 1'")
        await bob.page.close()
        await ada.sees("chat.present() === 'ada online 1'")
        assert await ada.run("chat.typing") == []
        assert [await ada.delivered(count=1), len(site.connections)] == [["hello"], 2]


async def test_tabs_of_one_user_are_one_member(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        bob = await visit(await pages.new(), server.url, "bob")
        first = await visit(await pages.new(), server.url, "ada")
        second = await visit(await first.page.context.new_page(), server.url, "ada")
        await bob.sees("chat.present() === 'ada online 2,bob online 1'")
        await first.run("chat.room.setStatus('away')")
        await second.run("chat.room.setStatus('away')")
        await bob.sees("chat.present() === 'ada away 2,bob online 1'")
        await second.run("chat.room.setStatus('online')")
        await bob.sees("chat.present() === 'ada online 2,bob online 1'")
        await site.realtime.send_to_user("ada", "direct", {"text": "for both"})
        for tab in (first, second):
            await tab.sees("chat.direct.length === 1")
        await second.page.close()
        await bob.sees("chat.present() === 'ada away 1,bob online 1'")
        assert await bob.run("chat.presence.filter((change) => change === '-ada')") == []


async def test_a_reloaded_page_finds_its_room_again(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await bob.says("before")
        await ada.heard(count=1)
        (before,) = site.connections_of("ada")
        await ada.page.reload()
        await ada.sees("window.chat?.room.state === 'joined'")
        await until(lambda: before.gone)
        assert before.clean  # so that presence didn't wait for it
        history = await ada.run("chat.room.history()")
        assert [event["data"]["text"] for event in history["events"]] == ["before"]
        assert not history["more"]
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        await bob.says("after")
        assert await ada.heard(count=1) == ["after"]
        assert await ada.run("chat.heard[0].offset") == 2
        assert len(site.connections_of("ada")) == 2


async def test_whoever_is_kicked_is_told_and_may_come_again(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await site.realtime.at("chat:1").kick(user="ada")
        await ada.sees("chat.left.length === 1")
        await bob.sees("chat.present() === 'bob online 1'")
        assert await ada.run("[chat.left[0], chat.room.state, chat.client.state]") == ["forbidden", "left", "online"]
        refusal = "() => chat.room.send('message', {text: 'still here?'}).catch((error) => error.code)"
        assert await ada.run(refusal) == "forbidden"
        await bob.says("without ada")
        await bob.delivered(count=1)
        await ada.run("() => chat.client.join('chat:1').ready")
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        assert await ada.run("chat.heard") == []
        assert len(site.connections_of("ada")) == 1


async def test_a_page_answers_what_the_server_asks(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        (connection,) = site.connections_of("ada")
        await ada.run("() => void chat.client.on('sum', async ({a, b}) => a + b)")
        assert await connection.request("sum", {"a": 2, "b": 3}, returns=int) == 5


async def test_a_room_that_nobody_declared_is_refused(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        page = await pages.new()
        await page.goto(f"{server.url}/?user=ada&room=nowhere:1")
        ada = Person(page, "ada")
        await ada.sees("window.chat?.refused.length === 1")
        assert await ada.run("[chat.refused[0], chat.room.state, chat.client.state]") == [
            "unknown_room",
            "refused",
            "online",
        ]
        await until(lambda: len(site.connections_of("ada")) == 1)
