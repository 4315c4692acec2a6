"""Real pages whose credentials run out, are renewed, refused or taken away."""

from tests.e2e.people import Person, visit
from tests.e2e.site import Site
from tests.support.browser import Pages
from tests.support.server import serve
from tests.support.waiting import until


async def test_a_token_that_runs_out_is_renewed_on_the_open_link(pages: Pages) -> None:
    site = Site(token_life=2.0)
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        (connection,) = site.connections_of("ada")
        assert connection.identity is not None
        first = connection.identity.expires_at
        assert first is not None
        # This token was issued after the first one's end.
        await until(lambda: connection.identity and (connection.identity.expires_at or 0.0) > first + 2.0, within=15)
        await ada.says("still here")
        assert await ada.heard(count=1) == ["still here"]
        assert await ada.run("[chat.states, chat.errors]") == [["connecting", "online"], []]
        assert site.connections == [connection]


async def test_a_page_whose_token_ran_out_comes_back_when_there_is_a_new_one(pages: Pages) -> None:
    site = Site(token_life=2.0)
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        site.tokens_away = True
        await ada.sees("chat.client.state !== 'online'")
        (connection,) = site.connections_of("ada")
        assert connection.close_code == 4401
        await site.realtime.at("chat:1").broadcast("message", {"text": "missed"})
        site.tokens_away = False
        assert await ada.heard(count=1) == ["missed"]
        assert set(await ada.run("chat.errors")) == {"token_failed", "expired"}
        assert len(site.connections_of("ada")) == 2


async def test_a_page_that_is_closed_as_unauthenticated_comes_back_with_a_new_token(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        tokens = site.tokens
        site.connections_of("ada")[0].close(4401)
        await until(lambda: len(site.connections_of("ada")) == 2)
        await ada.says("again")
        assert await ada.heard(count=1) == ["again"]
        assert site.tokens == tokens + 1
        assert await ada.run("chat.resets") == []


async def test_a_page_whose_tokens_are_not_accepted_gives_up(pages: Pages) -> None:
    site = Site()
    site.tokens_forged = True
    async with serve(site.app) as server:
        page = await pages.new()
        await page.goto(f"{server.url}/?user=ada")
        ada = Person(page, "ada")
        await ada.sees("window.chat?.client.state === 'closed'")
        assert await ada.run("[chat.client.closed.code, chat.room.state]") == [4401, "left"]
        assert site.tokens == 2  # it tried a fresh one
        assert site.connections == []


async def test_a_user_who_is_disconnected_stays_away(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await site.realtime.disconnect_user("ada")
        await ada.sees("chat.client.state === 'closed'")
        assert await ada.run("[chat.client.closed.code, chat.client.closed.reason]") == [4403, "forbidden"]
        assert await ada.run("[chat.left, chat.room.state]") == [["forbidden"], "left"]
        await bob.sees("chat.present() === 'bob online 1'")
        tokens = site.tokens
        await ada.run("() => void window.dispatchEvent(new Event('online'))")
        refusal = "() => chat.room.send('message', {text: 'let me in'}).catch((error) => error.code)"
        assert await ada.run(refusal) == "forbidden"
        await bob.says("alone")
        await bob.delivered(count=1)
        assert [site.tokens, len(site.connections_of("ada")), await ada.run("chat.states.at(-1)")] == [
            tokens,
            1,
            "closed",
        ]


async def test_a_page_that_closes_is_gone_at_once(pages: Pages) -> None:
    site = Site()
    async with serve(site.app) as server:
        ada = await visit(await pages.new(), server.url, "ada")
        bob = await visit(await pages.new(), server.url, "bob")
        await ada.run("() => chat.client.close()")
        await bob.sees("chat.present() === 'bob online 1'", within=3.0)  # no linger of 5 s
        await until(lambda: site.realtime.gauges()["connections"] == 1)
