"""Real pages whose TCP links fail, by a proxy between them and the server: nothing is lost, nothing comes twice."""

import asyncio

from starlette_realtime import ConnectionOptions
from tests.e2e.people import through, visit
from tests.e2e.site import Site
from tests.support.browser import Pages
from tests.support.proxy import Proxy
from tests.support.server import serve
from tests.support.waiting import until


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def test_a_page_without_a_link_for_five_seconds_misses_nothing_and_hears_nothing_twice(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada", backoff="1000")
        bob = await visit(await pages.new(), server.url, "bob")
        links = proxy.connections
        await bob.says(*numbered("before ", 10))
        await ada.heard(count=1)
        proxy.cut()
        outage = asyncio.create_task(asyncio.sleep(5))
        await ada.sees("chat.client.state !== 'online'")
        await bob.says(*numbered("meanwhile ", 30))
        await bob.delivered(count=40)
        await outage
        assert len(site.connections_of("ada")) == 1
        proxy.restore()
        await bob.says(*numbered("after ", 10))
        await ada.says("I am back")
        expected = [*numbered("before ", 10), *numbered("meanwhile ", 30), *numbered("after ", 10)]
        everything = await bob.heard(count=51)
        assert await ada.heard(count=51) == everything
        assert [text for text in everything if text != "I am back"] == expected
        assert await ada.run("chat.heard.map((one) => one.offset)") == list(range(1, 52))
        recovered = await ada.run("chat.heard.filter((one) => one.recovered).map((one) => one.text)")
        assert set(numbered("meanwhile ", 30)) <= set(recovered)
        assert await ada.run("[chat.recoveries, chat.resets]") == [[len(recovered)], []]
        await ada.sees("chat.present() === 'ada online 1,bob online 1'")
        assert proxy.connections > links
        assert len(site.connections_of("ada")) == 2


async def test_what_a_page_sends_without_a_link_arrives_once_and_in_order(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        links = proxy.connections
        proxy.cut()
        await ada.sees("chat.client.state !== 'online'")
        await ada.says(*numbered("offline ", 20))
        await bob.says("are you there?")
        await bob.delivered(count=1)
        assert await ada.run("[chat.room.sendVolatile('typing'), chat.acked]") == [False, []]
        assert site.handled == ["are you there?"]
        proxy.restore()
        assert await ada.delivered(count=20) == numbered("offline ", 20)
        expected = ["are you there?", *numbered("offline ", 20)]
        for person in (ada, bob):
            assert await person.heard(count=21) == expected
        await bob.says("the end")
        for person in (ada, bob):
            assert await person.heard(count=22) == [*expected, "the end"]
        assert site.handled == [*expected, "the end"]
        # A short break is nobody's business.
        assert await bob.run("chat.presence.filter((change) => change.endsWith('ada'))") == ["+ada"]
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        assert proxy.connections > links
        assert len(site.connections_of("ada")) == 2


async def test_a_message_whose_acknowledgement_was_lost_is_said_once(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        proxy.delay(0.5)
        await ada.says("once")
        await until(lambda: site.handled == ["once"])
        proxy.cut()  # the answer is still on its way
        proxy.delay(0.0)
        assert await ada.run("[chat.acked, chat.heard]") == [[], []]
        proxy.restore()
        assert await ada.delivered(count=1) == ["once"]
        assert site.handled == ["once", "once"]
        assert await ada.run("chat.acked[0].offset") == 1
        await bob.says("the end")
        for person in (ada, bob):
            assert await person.heard(count=2) == ["once", "the end"]
        assert len(site.connections_of("ada")) == 2


async def test_two_pages_whose_links_break_again_and_again_hear_the_same(pages: Pages) -> None:
    site = Site()
    rounds, texts = 5, 8
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        people = [await visit(await pages.new(), through(proxy), user) for user in ("ada", "bob")]
        for turn in range(rounds):
            for person in people:
                await person.says(*numbered(f"{person.user} {turn} ", texts))
            await until(lambda turn=turn: len(site.handled) > turn * texts)  # type: ignore[misc]
            proxy.cut()
            for person in people:
                await person.sees("chat.client.state !== 'online'")
            proxy.restore()
            for person in people:
                await person.sees("chat.room.state === 'joined'")
        total = rounds * texts * len(people)
        everything = await people[0].heard(count=total)
        assert await people[1].heard(count=total) == everything
        for person in people:
            said = [text for turn in range(rounds) for text in numbered(f"{person.user} {turn} ", texts)]
            assert await person.delivered(count=len(said)) == said
            assert [text for text in everything if text.startswith(person.user)] == said
            assert await person.run("chat.resets") == []
            assert len(site.connections_of(person.user)) == 1 + rounds
        assert len(everything) == total
        for person in people:
            await person.page.close()
        await until(lambda: site.realtime.gauges()["connections"] == site.realtime.gauges()["sessions"] == 0)


async def test_a_half_open_link_is_noticed_by_the_page(pages: Pages) -> None:
    site = Site(connection=ConnectionOptions(heartbeat=0.3, grace=60.0))
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        # The page takes a link for dead 15 s after a heartbeat that doesn't come: here 3 s of the wall's.
        ada = await visit(await pages.new(), through(proxy), "ada", speed="5")
        bob = await visit(await pages.new(), server.url, "bob")
        proxy.half_open()
        await ada.says(*numbered("into the void ", 3))
        await bob.says(*numbered("unheard ", 5))
        await bob.delivered(count=5)
        assert await ada.run("[chat.client.state, chat.heard]") == ["online", []]
        await ada.sees("chat.client.state !== 'online'")
        assert len(site.connections_of("ada")) == 1
        assert not site.connections_of("ada")[0].closed  # the server doesn't know yet
        proxy.restore()
        assert await ada.delivered(count=3) == numbered("into the void ", 3)
        await bob.says("the end")
        everything = await bob.heard(count=9)
        assert await ada.heard(count=9) == everything
        assert everything == [*numbered("unheard ", 5), *numbered("into the void ", 3), "the end"]
        assert await ada.run("chat.resets") == []
        assert len(site.connections_of("ada")) == 2
        await until(lambda: site.connections_of("ada")[0].closed)
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")


async def test_a_half_open_link_is_noticed_by_the_server(pages: Pages) -> None:
    site = Site(connection=ConnectionOptions(heartbeat=0.5, grace=2.0), linger=0.2)
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada", speed="5")
        bob = await visit(await pages.new(), server.url, "bob")
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        proxy.half_open()
        await bob.sees("chat.present() === 'bob online 1'")
        (connection,) = site.connections_of("ada")
        assert connection.close_code == 4408
        await bob.says("unheard")
        await bob.delivered(count=1)
        proxy.restore()
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        assert await ada.heard(count=1) == ["unheard"]
        assert len(site.connections_of("ada")) == 2
        assert len(site.connections_of("bob")) == 1


async def test_an_ephemeral_room_says_that_events_were_lost(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada", room="game:1")
        bob = await visit(await pages.new(), server.url, "bob", room="game:1")
        await bob.says("heard")
        await ada.heard(count=1)
        proxy.cut()
        await ada.sees("chat.client.state !== 'online'")
        await bob.says("lost")
        await bob.delivered(count=2)
        assert await ada.run("chat.resets") == []
        proxy.restore()
        await ada.sees("chat.resets.length === 1")
        await bob.says("heard again")
        assert await ada.heard(count=2) == ["heard", "heard again"]
        assert await ada.run("[chat.resets, chat.recoveries]") == [["ephemeral"], []]
        assert await bob.run("chat.resets") == []
        assert len(site.connections_of("ada")) == 2


async def test_what_is_sent_to_a_user_without_a_link_waits_for_them(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as proxy:
        ada = await visit(await pages.new(), through(proxy), "ada")
        await site.realtime.send_to_user("ada", "direct", {"text": "live"})
        await ada.sees("chat.direct.length === 1")
        proxy.cut()
        await ada.sees("chat.client.state !== 'online'")
        await site.realtime.send_to_user("ada", "direct", {"text": "missed"})
        proxy.restore()
        await ada.sees("chat.direct.length === 2")
        assert await ada.run("chat.direct") == [
            {"text": "live", "recovered": False},
            {"text": "missed", "recovered": True},
        ]
