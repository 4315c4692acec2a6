"""Real pages and what becomes of servers: restarts, drains, several addresses, several origins."""

from contextlib import AsyncExitStack

from tests.e2e.people import Person, through, visit
from tests.e2e.site import Site
from tests.support.browser import Pages
from tests.support.proxy import Proxy
from tests.support.server import serve


async def test_a_server_that_starts_anew_resets_the_room_and_takes_what_waited(pages: Pages) -> None:
    before, after = Site(), Site()
    async with serve(before.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        await ada.says("before")
        await ada.heard(count=1)
    await ada.sees("chat.client.state !== 'online'")
    await ada.says("meanwhile")
    assert await ada.run("chat.resets") == []
    async with serve(after.app, port=server.port):
        assert await ada.delivered(count=2) == ["before", "meanwhile"]
        assert await ada.heard(count=2) == ["before", "meanwhile"]
        assert await ada.run("[chat.resets, chat.recoveries]") == [["forgotten"], []]
        assert await ada.run("chat.heard.map((one) => one.offset)") == [1, 1]
        assert await ada.run("chat.room.position.offset") == 1
        assert [before.handled, after.handled] == [["before"], ["meanwhile"]]
        assert len(after.connections_of("ada")) == 1
        await ada.sees("chat.present() === 'ada online 1'")


async def test_a_draining_server_is_left_alone_until_it_said(pages: Pages) -> None:
    site = Site()
    async with serve(site.app, lifespan="off") as server:
        async with site.realtime:
            ada = await visit(await pages.new(), server.url, "ada")
        async with site.realtime:
            await ada.sees("chat.states.includes('waiting')")
            await ada.run("() => void window.dispatchEvent(new Event('online'))")  # no reason to come earlier
            await ada.says("back")
            assert await ada.delivered(count=1) == ["back"]
            assert await ada.heard(count=1) == ["back"]
            assert await ada.run("chat.states") == ["connecting", "online", "waiting", "connecting", "online"]
            (wait,) = await ada.run("chat.waits")
            assert 500 <= wait <= 750  # ms: what the server said, and the client's own jitter
            assert await ada.run("chat.lasted[2]") >= wait - 10
            assert len(site.connections_of("ada")) == 2


async def test_an_address_where_nobody_answers_is_passed_over(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as dead:
        dead.cut()
        ada = await visit(await pages.new(), server.url, "ada", at=[f"{through(dead)}/realtime", "/realtime"])
        await ada.says("hello")
        assert await ada.heard(count=1) == ["hello"]
        assert await ada.run("chat.states") == ["connecting", "waiting", "connecting", "online"]
        assert dead.connections == 0


async def test_a_page_goes_on_at_its_other_address_as_the_same_member(pages: Pages) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Proxy("127.0.0.1", 0))
        second = await stack.enter_async_context(Proxy("127.0.0.1", 0))
        home = await stack.enter_async_context(Proxy("127.0.0.1", 0))  # the page's own origin
        site = Site(origins=(through(home),))
        server = await stack.enter_async_context(serve(site.app))
        first.target = second.target = home.target = ("127.0.0.1", server.port)
        addresses = [f"{through(proxy)}/realtime" for proxy in (first, second)]
        bob = await visit(await pages.new(), server.url, "bob")
        ada = await visit(await pages.new(), through(home), "ada", at=addresses)
        second.cut()
        first.cut()
        await ada.sees("chat.states.includes('waiting')")
        await bob.says("meanwhile")
        await bob.delivered(count=1)
        second.restore()
        assert await ada.heard(count=1) == ["meanwhile"]
        assert len(site.connections_of("ada")) == 2
        assert [first.connections, second.connections] == [1, 1]
        assert await ada.run("[chat.recoveries, chat.resets]") == [[1], []]
        # The session went on: nobody saw ada leave, and she is not twice.
        await bob.sees("chat.present() === 'ada online 1,bob online 1'")
        assert await bob.run("chat.presence.filter((change) => change.endsWith('ada'))") == ["+ada"]


async def test_a_page_of_another_origin_is_refused_for_good(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server, Proxy("127.0.0.1", server.port) as elsewhere:
        page = await pages.new()
        await page.goto(f"{through(elsewhere)}/?user=ada&at={server.url}/realtime")
        ada = Person(page, "ada")
        await ada.sees("window.chat?.client.state === 'closed'")
        assert await ada.run("chat.client.closed.code") == 4403
        assert site.connections == []
