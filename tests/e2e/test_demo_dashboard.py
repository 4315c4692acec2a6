"""The demo's dashboard in real browsers: its buttons do harm, its panels show it, and nobody loses a message."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.e2e.guests import PATIENCE, SECRET, Guest
from tests.e2e.looks import FAINT
from tests.e2e.people import WITHIN
from tests.support.browser import Pages
from tests.support.server import RunningProcess, serve_process

OVERLAPS = """() => {
  const seen = [".talk", ".live", ".direct", ".places", ".side", ".bar"]
    .map((selector) => document.querySelector(selector))
    .filter((element) => element.checkVisibility({visibilityProperty: true}))
    .map((element) => [element.className, element.getBoundingClientRect()]);
  const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return seen.flatMap(([one, a], index) =>
    seen.slice(index + 1).filter(([, b]) => over(a, b)).map(([other]) => `${one} and ${other}`));
}"""

FOCUSED = "Object.keys(document.activeElement.dataset)[0] ?? document.activeElement.id"


@pytest.fixture
async def demo() -> AsyncIterator[RunningProcess]:
    async with serve_process("demo.app:app", env=SECRET) as server:
        yield server


async def outcome(guest: Guest, words: str | re.Pattern[str]) -> None:
    """Wait until a trial's outcome has these words."""
    await expect(guest.page.locator("#outcome")).to_contain_text(words, timeout=PATIENCE)


async def stat(guest: Guest, name: str, value: str | re.Pattern[str]) -> None:
    """Wait until a number of the panels is this."""
    await expect(guest.page.locator(f"[data-stat={name}]")).to_have_text(value, timeout=PATIENCE)


async def line(guest: Guest, panel: str) -> str:
    """How the first line of a panel's chart is drawn now."""
    drawn = await guest.page.locator(f"[data-panel={panel}] path.line.first").get_attribute("d")
    return drawn or ""


async def test_the_panels_show_who_is_there_and_what_is_said(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await stat(ada, "connections", "1")
    before = await line(ada, "messages")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    await bob.page.locator("[data-room='chat:kitchen']").click()
    await bob.sees("[data-member]", count=1)
    for guest in (ada, bob):
        await stat(guest, "connections", "2")
        await stat(guest, "people", "2")
        await stat(guest, "members", "3")
        await guest.sees("[data-list=rooms] [data-row=Lobby]:has-text('2')")
        await guest.sees("[data-list=rooms] [data-row=Kitchen]:has-text('1')")
    await ada.write(*"abcdefgh")
    await bob.counts(received=8)
    await expect(ada.page.locator("[data-panel=messages] desc")).to_have_text(
        re.compile(r"^Over 5 minutes\. in: now [\d.]+, at least 0, at most [1-9]\d*(\.\d)?\. out: "), timeout=PATIENCE
    )
    assert await line(ada, "messages") != before
    picture = ada.page.get_by_role("img", name="Messages a second", exact=True)
    await expect(picture).to_have_accessible_description(re.compile("^Over 5 minutes"))
    box = await picture.bounding_box()
    assert box is not None
    await picture.hover(position={"x": box["width"] - 4, "y": 20})  # some seconds ago
    await expect(ada.page.locator("[data-panel=connections] .top")).to_contain_text("open, ", timeout=PATIENCE)
    await bob.page.close()
    await stat(ada, "connections", "1")
    await ada.is_content()


async def test_who_comes_back_sees_the_minutes_that_were_missed(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await stat(ada, "connections", "1")
    await ada.page.locator("[data-drop]").click()
    await ada.offline()
    await expect(ada.page.locator("#stale")).to_contain_text("no connection", timeout=PATIENCE)
    await outcome(ada, "Missed 0, repeated 0.")
    await expect(ada.page.locator("#stale")).to_be_empty(timeout=PATIENCE)
    await stat(ada, "resumed", re.compile("[1-9]"))
    # One line without a break, longer than the page has been back: the server went on counting.
    await expect(ada.page.locator("[data-panel=messages] path.line.first")).to_have_attribute(
        "d", re.compile(r"^M[^ML]+(L[^ML]+){6,}$"), timeout=PATIENCE
    )
    await ada.is_content()


async def test_a_flood_is_limited_and_over_soon_and_the_others_chat_goes_on(demo: RunningProcess, pages: Pages) -> None:
    ada, bob, cleo = [await Guest.come(await pages.new(), demo.url, name) for name in ("Ada", "Bob", "Cleo")]
    await ada.page.locator("[data-flood]").click()
    await ada.write("in the middle of it")
    await bob.write("one", "two", "three")
    await outcome(ada, re.compile(r"50 sent, \d+ refused; the server took messages again [\d.]+ s later"))
    await outcome(ada, re.compile(r"rt:limits.*\d+ left of noise"))
    await outcome(ada, re.compile(r"retry_after\s*0\.\d\d s"))
    await expect(ada.page.locator("#spend")).to_be_empty()
    for guest in (ada, bob, cleo):
        await guest.counts(received=4, missed=0, repeated=0)
    await ada.sees("[data-message][data-from=Ada][data-delivery=delivered]")
    await bob.sees("[data-message][data-from=Bob][data-delivery=delivered]", count=3)
    await bob.sees("[data-list=refused] [data-row=rate_limited]")
    await stat(bob, "refusals", re.compile(r"^[1-9]\d*$"))
    await ada.write("after it")
    await cleo.sees("[data-message]", count=5)
    assert await ada.page.locator(".toast").count() == 0
    for guest in (ada, bob, cleo):
        await guest.is_content()


async def test_who_floods_on_is_cut_off_and_comes_back_by_itself(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    await ada.page.locator("#amount").select_option("1000")
    await ada.page.locator("[data-flood]").click()
    theirs = [f"meanwhile {number}" for number in range(8)]
    await bob.write(*theirs)
    await outcome(ada, re.compile(r"the server closed the connection \(4429\), which came back, and took messages"))
    await ada.here()
    for guest in (ada, bob):
        await guest.reads(theirs)
        await guest.counts(received=8, missed=0, repeated=0)
        await guest.sees("[data-member]", count=2)
    await ada.write("well again")
    await bob.reads([*theirs, "well again"])
    for guest in (ada, bob):
        await guest.is_content()


async def test_a_bad_payload_is_told_field_by_field_and_harms_nobody(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await ada.page.locator("[data-bad]").click()
    await outcome(ada, "invalid_payload")
    fields = ada.page.locator("#outcome dt")
    assert sorted(await fields.all_inner_texts()) == ["id", "text", "to"]
    assert all([len(await one.inner_text()) > 10 for one in await ada.page.locator("#outcome dd").all()])
    await ada.sees("[data-list=refused] [data-row=invalid_payload]")
    await ada.write("still here")
    await ada.sees("[data-message][data-delivery=delivered]")
    await ada.is_content()


async def test_a_second_device_is_the_same_person_with_a_session_of_its_own(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    async with ada.page.expect_popup() as opening:
        await ada.page.locator("[data-second]").click()
    second = Guest(await opening.value, "Ada")
    await second.here()
    await expect(bob.page.locator("[data-member=Ada]")).to_contain_text("2 pages", timeout=PATIENCE)
    await bob.sees("[data-member]", count=2)
    await stat(bob, "connections", "3")
    await stat(bob, "people", "2")
    await second.write("from the other one")
    for guest in (ada, bob, second):
        await guest.reads(["from the other one"])
    await second.counts(sent=1)
    await ada.counts(sent=0, received=1)
    await second.page.close()
    await expect(bob.page.locator("[data-member=Ada]")).not_to_contain_text("pages", timeout=PATIENCE)
    await bob.sees("[data-member=Ada][data-status=online]")
    await ada.is_content()


async def test_who_goes_away_is_seen_to_and_stays_away_over_a_lost_link(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    away = ada.page.locator("[data-away]")
    await away.click()
    await expect(away).to_have_attribute("aria-pressed", "true")
    await bob.sees("[data-member=Ada][data-status=away]")
    await ada.page.locator("[data-drop]").click()
    await ada.offline()
    await outcome(ada, "Back after")
    await bob.sees("[data-member=Ada][data-status=away]")
    await away.click()
    await expect(away).to_have_attribute("aria-pressed", "false")
    await bob.sees("[data-member=Ada][data-status=online]")


async def test_chat_and_panels_are_side_by_side_or_one_at_a_time(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    talk, live = ada.page.locator(".talk"), ada.page.locator(".live")
    watched = "() => demo.client.room('dashboard') !== undefined"
    for width, both in ((1280, True), (900, False), (360, False)):
        await ada.page.set_viewport_size({"width": width, "height": 740})
        views = ada.page.locator(".views")
        await expect(talk).to_be_visible()
        await expect(live).to_be_visible(visible=both)
        await expect(views).to_be_visible(visible=not both)
        if not both:
            await until_true(ada.page, watched, is_so=False)
            await views.get_by_role("button", name="Live").click()
            await expect(live).to_be_visible()
            await expect(talk).to_be_hidden()
            await until_true(ada.page, watched)
            await stat(ada, "connections", "1")
            await views.get_by_role("button", name="Chat").click()
    await ada.is_content()


async def until_true(page: Page, expression: str, *, is_so: bool = True) -> None:
    """Wait until a page says so. (Playwright's own wait evaluates a string, which the page forbids.)"""
    async with asyncio.timeout(WITHIN):
        while await page.evaluate(expression) is not is_so:
            await asyncio.sleep(0.02)


async def test_on_a_phone_the_people_are_a_sheet(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await Guest.come(await pages.new(), demo.url, "Bob")
    await ada.page.set_viewport_size({"width": 360, "height": 740})
    people = ada.page.get_by_role("button", name="people")
    await expect(people).to_have_text(re.compile("^\\s*2"), timeout=PATIENCE)
    side = ada.page.locator("#side")
    await expect(side).to_be_hidden()
    await people.click()
    await expect(side).to_be_visible()
    await expect(ada.page.locator("#close-side")).to_be_focused()
    await ada.page.keyboard.press("Escape")
    await expect(side).to_be_hidden()
    await expect(people).to_be_focused()
    await people.click()
    await ada.page.locator("[data-dm=Bob]").click()
    await expect(ada.page.locator(".direct input")).to_be_focused()
    await expect(side).to_be_hidden()
    await ada.page.keyboard.press("Escape")
    await expect(people).to_be_focused()
    await ada.is_content()


async def test_a_direct_message_covers_no_part_of_anything(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    bob = await Guest.come(await pages.new(), demo.url, "Bob")
    await ada.sees("[data-member]", count=2)
    assert await ada.page.evaluate(OVERLAPS) == []
    await ada.page.locator("[data-dm=Bob]").click()
    for width in (320, 360, 640, 800, 999, 1000, 1100, 1280, 1600, 1920):
        await ada.page.set_viewport_size({"width": width, "height": 740})
        await expect(ada.page.locator(".direct")).to_be_visible()
        assert await ada.page.evaluate(OVERLAPS) == [], width
        assert await ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await ada.page.locator("[data-dm-composer] input").press("Escape")
    await expect(ada.page.locator(".talk")).to_be_visible()
    await expect(ada.page.locator(".direct")).to_be_hidden()
    await bob.is_content()


async def test_nothing_jumps_whatever_a_trial_says(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await stat(ada, "connections", "1")
    for width in (1280, 360):
        await ada.page.set_viewport_size({"width": width, "height": 740})
        if width == 360:
            await ada.page.locator(".views").get_by_role("button", name="Live").click()
        panels = ada.page.locator("[data-panels]")
        before = await panels.evaluate("(element) => element.offsetTop")
        for trial, words in (("bad", "invalid_payload"), ("flood", "later"), ("away", "The others"), ("away", "back")):
            await ada.page.locator(f"[data-{trial}]").click()
            await outcome(ada, words)
            assert await panels.evaluate("(element) => element.offsetTop") == before, (width, trial)


async def test_the_keyboard_gets_everywhere(demo: RunningProcess, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.url, "Ada")
    await ada.page.locator("[data-drop]").focus()
    reached = []
    for _ in range(7):
        reached.append(await ada.page.evaluate(FOCUSED))
        await ada.page.keyboard.press("Tab")
    assert reached == ["drop", "seconds", "flood", "amount", "bad", "second", "away"]
    await ada.page.locator("[data-bad]").press("Enter")
    await outcome(ada, "invalid_payload")
    assert await ada.page.evaluate(FOCUSED) == "bad"  # where it was


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_can_be_read_by_day_and_by_night(demo: RunningProcess, browser: Browser, scheme: str) -> None:
    context = await browser.new_context(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    ada = await Guest.come(await context.new_page(), demo.url, "Ada")
    await stat(ada, "connections", "1")
    await ada.write("hello")
    await ada.sees("[data-message][data-delivery=delivered]")
    await ada.page.locator("[data-bad]").click()
    await outcome(ada, "invalid_payload")
    assert await ada.page.evaluate(FAINT) == []
    bars = ada.page.locator(".bars li")
    assert await bars.first.evaluate("(bar) => getComputedStyle(bar, '::after').transitionDuration") == "0s"
    await context.close()
