"""The demo in real browsers: people sign in, talk, lose their links, and lose nothing else."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from tests.e2e.guests import PATIENCE, SECRET, Guest
from tests.e2e.looks import TOO_WIDE
from tests.e2e.people import through
from tests.support.browser import Pages
from tests.support.proxy import Proxy
from tests.support.server import RunningProcess, serve_process
from tests.support.waiting import until

BRIGHTNESS = """() => ["backgroundColor", "color"].map((name) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = getComputedStyle(document.body)[name];
  canvas.fillRect(0, 0, 1, 1);
  const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
  return red + green + blue;
})"""


@pytest.fixture
async def demo() -> AsyncIterator[RunningProcess]:
    async with serve_process("demo.app:app", env=SECRET) as server:
        yield server


def links(server: RunningProcess) -> int:
    """How many WebSocket handshakes the server accepted, by its own account."""
    return sum("[accepted]" in line for line in server.output)


async def test_two_people_sign_in_and_talk(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    assert await ada.page.locator("[data-current-room]").get_attribute("data-current-room") == "chat:lobby"
    for guest in (ada, bob):
        await guest.sees("[data-member]", count=2)
    await ada.write("hello")
    await bob.reads(["hello"])
    await bob.page.locator("form[data-composer] textarea").press_sequentially("<b>hi")
    await expect(ada.page.locator("[data-typing]")).to_contain_text("Bob", timeout=PATIENCE)
    await bob.page.keyboard.press("Shift+Enter")
    await bob.page.keyboard.type("there</b>")
    await bob.page.keyboard.press("Enter")
    for guest in (ada, bob):
        await guest.reads(["hello", "<b>hi there</b>"])
    assert await ada.page.locator("[data-text]").nth(1).inner_text() == "<b>hi\nthere</b>"
    await ada.sees("[data-message][data-from=Ada][data-delivery=delivered][data-offset='1']")
    await bob.sees("[data-message][data-from=Bob][data-delivery=delivered][data-offset='2']")
    await ada.counts(sent=1, received=2, missed=0, repeated=0)
    await bob.page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    await bob.page.evaluate("() => void document.dispatchEvent(new Event('visibilitychange'))")
    await ada.sees("[data-member=Bob][data-status=away]")
    await bob.page.mouse.move(600, 300)
    await bob.page.mouse.move(620, 320)
    await expect(ada.page.locator(".cursor")).to_contain_text("Bob", timeout=PATIENCE)
    await ada.is_content()
    await bob.is_content()
    await bob.page.close()
    await ada.sees("[data-member]", count=1)


async def test_other_rooms_are_other_rooms(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    await ada.write("in the lobby")
    await bob.reads(["in the lobby"])
    other = await bob.page.locator("[data-room]:not([data-room='chat:lobby'])").first.get_attribute("data-room")
    for guest in (ada, bob):
        await guest.page.locator(f"[data-room='{other}']").click()
        await guest.sees(f"[data-current-room='{other}']")
        await guest.reads([])
    for guest in (ada, bob):
        await guest.sees("[data-member]", count=2)
    await bob.write("elsewhere")
    for guest in (ada, bob):
        await guest.reads(["elsewhere"])
        await guest.page.locator("[data-room='chat:lobby']").click()
        await guest.reads(["in the lobby"])
        await guest.counts(received=2, missed=0, repeated=0)
        await guest.is_content()


async def test_direct_messages_reach_one_person_alone(demo: RunningProcess, pages: Pages) -> None:
    ada, bob, cleo = [await Guest.come(await pages.new(), demo.url, name) for name in ("Ada", "Bob", "Cleo")]
    await ada.page.locator("[data-dm=Bob]").click()
    await ada.page.locator("form[data-dm-composer] input[name=text]").fill("between us")
    await ada.page.keyboard.press("Enter")
    await bob.page.locator("[data-dm=Ada]").click()
    await expect(bob.page.locator("[data-dm-message]")).to_have_text(["between us"], timeout=PATIENCE)
    await bob.page.locator("form[data-dm-composer] input[name=text]").fill("of course")
    await bob.page.keyboard.press("Enter")
    for guest in (ada, bob):
        await expect(guest.page.locator("[data-dm-message]")).to_have_text(
            ["between us", "of course"], timeout=PATIENCE
        )
    await bob.page.reload()
    await bob.here()
    await bob.page.locator("[data-dm=Ada]").click()
    await expect(bob.page.locator("[data-dm-message]")).to_have_text(["between us", "of course"], timeout=PATIENCE)
    await cleo.page.locator("[data-dm=Ada]").click()
    await cleo.page.locator("form[data-dm-composer] input[name=text]").fill("hello from Cleo")
    await cleo.page.keyboard.press("Enter")
    await expect(cleo.page.locator("[data-dm-message]")).to_have_text(["hello from Cleo"], timeout=PATIENCE)
    for guest in (ada, bob, cleo):
        await guest.sees("[data-message]", count=0)
        await guest.is_content()


async def test_a_page_that_pulls_the_plug_misses_nothing(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    await bob.write("before")
    await ada.reads(["before"])
    await ada.page.locator("[data-drop]").click()
    await ada.offline()
    theirs = [f"meanwhile {number}" for number in range(12)]
    own = ["cut off", "still cut off"]
    await ada.write(*own)
    await bob.write(*theirs)
    await bob.reads(["before", *theirs])
    await ada.sees("[data-message][data-delivery=sending]", count=2)
    await ada.here()
    for guest in (ada, bob):
        await guest.reads(["before", *theirs, *own])
        await guest.counts(received=15, missed=0, repeated=0)
        await guest.sees("[data-message][data-delivery=delivered]", count=15)
    await ada.counts(sent=2)
    await bob.counts(sent=13)
    assert links(demo) == 3
    for guest in (ada, bob):
        await guest.sees("[data-member]", count=2)
        await guest.is_content()


async def test_a_page_without_a_link_for_five_seconds_loses_nothing_that_is_typed(
    demo: RunningProcess, pages: Pages
) -> None:
    async with Proxy("127.0.0.1", demo.port) as proxy:
        ada = await Guest.come(await pages.new(), through(proxy), "Ada")
        bob = await Guest.come(await pages.new(), demo.url, "Bob")
        await bob.write("before")
        await ada.reads(["before"])
        accepted = proxy.connections
        proxy.cut()
        outage = asyncio.create_task(asyncio.sleep(5))
        await ada.offline()
        own = [f"typed offline {number}" for number in range(20)]
        theirs = [f"meanwhile {number}" for number in range(10)]
        await ada.write(*own)
        await bob.write(*theirs)
        await bob.reads(["before", *theirs])
        await outage
        await ada.sees("[data-message][data-delivery=sending]", count=20)
        assert links(demo) == 2
        proxy.restore()
        for guest in (ada, bob):
            await guest.reads(["before", *theirs, *own])
            await guest.sees("[data-message][data-delivery=delivered]", count=31)
            await guest.counts(received=31, missed=0, repeated=0)
        await ada.counts(sent=20)
        assert proxy.connections > accepted
        assert links(demo) == 3


async def test_a_server_that_was_killed_gets_what_was_written_meanwhile(pages: Pages) -> None:
    async with serve_process("demo.app:app", env=SECRET) as server:
        ada = await Guest.come(await pages.new(), server.url, "Ada")
        bob = await Guest.come(await pages.new(), server.url, "Bob")
        await ada.write("forgotten")
        await bob.reads(["forgotten"])
        server.process.kill()
        await ada.offline()
        await ada.write("written meanwhile")
        await ada.sees("[data-message][data-delivery=sending]")
    async with serve_process("demo.app:app", env=SECRET, port=server.port):
        for guest in (ada, bob):
            await guest.page.evaluate(
                "() => void dispatchEvent(new Event('online'))"
            )  # no need to wait for the backoff
            await guest.reads(["written meanwhile"])
            await guest.sees("[data-member]", count=2)
            await guest.counts(missed=0, repeated=0)
        await ada.counts(sent=2, received=2)


async def test_a_reload_stays_signed_in_until_signing_out(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await ada.write("hello")
    await ada.reads(["hello"])
    await ada.page.reload()
    await ada.here()
    await ada.reads(["hello"])
    await ada.counts(sent=0, received=0, missed=0, repeated=0)
    await ada.page.locator("[data-sign-out]").click()
    await expect(ada.page.locator("form[data-sign-in]")).to_be_visible(timeout=PATIENCE)
    assert await ada.page.evaluate("() => fetch('/session').then((answer) => answer.status)") == 401
    await ada.page.reload()
    await expect(ada.page.locator("form[data-sign-in]")).to_be_visible(timeout=PATIENCE)
    await until(lambda: links(demo) == 2)


async def test_nothing_is_wider_than_the_page(demo: RunningProcess, pages: Pages) -> None:
    page = await pages.new()
    widths = (320, 360, 768, 1280)
    await page.goto(demo.url)
    await expect(page.locator("form[data-sign-in]")).to_be_visible(timeout=PATIENCE)
    for width in widths:
        await page.set_viewport_size({"width": width, "height": 740})
        assert await page.evaluate(TOO_WIDE) == []
    ada = await Guest.come(page, demo.url, "Ada " + "W" * 28)
    await ada.write("hello", "w" * 400, "words " * 60)
    await ada.sees("[data-message][data-delivery=delivered]", count=3)
    for width in widths:
        await page.set_viewport_size({"width": width, "height": 740})
        for view in ("Chat", "Live"):
            switch = page.locator(".views").get_by_role("button", name=view)
            if await switch.is_visible():
                await switch.click()
            assert await page.evaluate(TOO_WIDE) == []
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert await page.locator(".live").evaluate("(live) => live.scrollWidth <= live.clientWidth")
    await ada.is_content()


async def test_the_page_follows_the_colour_scheme(demo: RunningProcess, pages: Pages) -> None:
    page = await pages.new()
    ada = await Guest.come(page, demo.url, "Ada")
    await page.emulate_media(color_scheme="light")
    paper, ink = await page.evaluate(BRIGHTNESS)
    await page.emulate_media(color_scheme="dark")
    night, chalk = await page.evaluate(BRIGHTNESS)
    assert paper > 600 > 250 > ink
    assert night < 200 < 500 < chalk
    await ada.is_content()
