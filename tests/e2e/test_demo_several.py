"""The demo on two processes, in real browsers: one is killed, its pages move to the other one, and nothing is lost."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import gettempdir

import pytest
from playwright.async_api import Browser, expect

from tests.e2e.guests import PATIENCE, Guest, Several, several
from tests.e2e.looks import FAINT, TOO_WIDE
from tests.support.browser import Pages
from tests.support.server import serve_process
from tests.support.waiting import until

MOVED = re.compile(r"Process 1 was killed\. Moved to process 2 in \d+\.\d s; missed 0, repeated 0\.")

REAPED = 20_000 + PATIENCE
"""Milliseconds within which a dead process's members have left: the promise, and what a busy machine may add."""

SIGNED_IN_ELSEWHERE = """(port) => new Promise((resolve) => {
  const socket = new WebSocket(`ws://${location.hostname}:${port}/realtime/ws`, "starlette-realtime.v1.json");
  socket.onopen = () => socket.send('{"type": "auth", "id": 1}');
  socket.onmessage = ({data}) => {
    const {type, data: answer} = JSON.parse(data);
    if (type === "reply") resolve(answer.user);
  };
  socket.onclose = ({code}) => resolve(code);
})"""


@pytest.fixture
async def demo() -> AsyncIterator[Several]:
    async with several() as demo:
        yield demo


async def on(guest: Guest, number: int) -> None:
    """Wait until the page says that it is on that process."""
    await expect(guest.page.locator("#process")).to_have_text(f"process {number}", timeout=PATIENCE)


async def outcome(guest: Guest, words: str | re.Pattern[str]) -> None:
    """Wait until a trial's outcome has these words."""
    await expect(guest.page.locator("#outcome")).to_contain_text(words, timeout=PATIENCE)


def folders() -> set[Path]:
    """Those of the servers that demos share."""
    return set(Path(gettempdir()).glob("realtime-demo-*"))


async def texts(guest: Guest) -> list[str]:
    """The room's messages, in the order of the page."""
    return await guest.page.locator("[data-message] [data-text]").all_inner_texts()


async def test_people_on_two_processes_are_in_one_room(demo: Several, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.urls[0], "Ada")
    bob = await Guest.come(await pages.new(), demo.urls[1], "Bob")
    await on(ada, 1)
    await on(bob, 2)
    for guest in (ada, bob):
        await guest.sees("[data-member]", count=2)
    await ada.write("from one")
    await bob.reads(["from one"])
    await bob.write("from the other")
    for guest in (ada, bob):
        await guest.reads(["from one", "from the other"])
        await guest.counts(received=2, missed=0, repeated=0)
        for number in (1, 2):
            row = guest.page.locator(f"#processes [data-process='{number}']")
            await expect(row).to_contain_text(re.compile(r"1 page · heartbeat \d s ago"), timeout=PATIENCE)
        await expect(guest.page.locator("[data-stat=connections]")).to_have_text("2", timeout=PATIENCE)
        await expect(guest.page.locator("[data-stat=people]")).to_have_text("2", timeout=PATIENCE)
        await guest.sees("[data-list=rooms] [data-row=Lobby]:has-text('2')")
    await expect(ada.page.locator("#processes [data-process='1']")).to_contain_text("this page")
    # Ports share cookies, and are one site: a page is signed in on all processes, and only pages of the demo are.
    assert await ada.page.evaluate(SIGNED_IN_ELSEWHERE, demo.ports[1]) == "Ada"
    for guest in (ada, bob):
        await guest.is_content()


async def test_a_killed_processes_pages_move_and_lose_nothing(demo: Several, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.urls[0], "Ada")
    bob = await Guest.come(await pages.new(), demo.urls[1], "Bob")
    eve = await Guest.come(await pages.new(), demo.urls[0], "Eve")
    for guest in (ada, bob, eve):
        await guest.sees("[data-member]", count=3)
    before = set(await demo.descendants())

    async def writing(guest: Guest) -> list[str]:
        said = [f"{guest.name} {number}" for number in range(20)]
        for text in said:
            await guest.write(text)
        return said

    writers = [asyncio.create_task(writing(guest)) for guest in (ada, bob)]
    await expect(ada.page.locator("[data-message][data-from=Bob]").nth(2)).to_be_attached(timeout=PATIENCE)
    await ada.page.locator("[data-kill]").dispatch_event("click")  # without the focus, which the writer has
    await outcome(ada, MOVED)
    said = [set(await writer) for writer in writers]
    await expect(eve.page.locator(".toast")).to_contain_text(
        re.compile(r"Moved to process 2 in \d+\.\d s; missed 0, repeated 0\."), timeout=PATIENCE
    )
    for guest in (ada, bob, eve):
        await on(guest, 2)
        await guest.sees("[data-message][data-delivery=delivered]", count=40)
        await guest.counts(received=40, missed=0, repeated=0)
    heard = [await texts(guest) for guest in (ada, bob, eve)]
    assert heard[0] == heard[1] == heard[2]
    assert set(heard[0]) == said[0] | said[1]
    for guest, own in zip((ada, bob), said, strict=True):
        assert [text for text in heard[0] if text in own] == sorted(own, key=lambda text: int(text.split()[1]))
        await guest.counts(sent=20)
    # It is the only one for a moment, and stays.
    await bob.page.locator("[data-kill]").click()
    await outcome(bob, "this is the only process left")
    await until(lambda: any("Process 1 was killed (SIGKILL)" in line for line in demo.output))
    # Nobody is there twice, or after they have gone: the dead process's members leave, those who moved are here.
    for guest in (ada, bob, eve):
        await guest.sees("[data-member]", count=3)
        twice = guest.page.locator("[data-member] .about", has_text="pages")
        await expect(twice).to_have_count(0, timeout=REAPED)
    await expect(bob.page.locator("#processes [data-process='1'][data-live=true]")).to_be_visible(timeout=PATIENCE)
    assert len(set(await demo.descendants()) - before) == 1
    await eve.page.close()
    await bob.sees("[data-member]", count=2)
    fay = await Guest.come(await pages.new(), demo.urls[0], "Fay")
    await on(fay, 1)
    await fay.sees("[data-member]", count=3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_what_is_shown_of_several_processes_fits_and_can_be_read(
    demo: Several, browser: Browser, scheme: str
) -> None:
    context = await browser.new_context(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    ada = await Guest.come(await context.new_page(), demo.urls[0], "Ada " + "W" * 28)
    await ada.sees("#processes [data-live=true]", count=2)
    await ada.page.locator("[data-kill]").click()
    await outcome(ada, MOVED)
    await ada.sees("#processes [data-live=false]")
    assert await ada.page.evaluate(FAINT) == []
    for width in (320, 360, 480, 768, 1280):
        await ada.page.set_viewport_size({"width": width, "height": 740})
        for view in ("Chat", "Live"):
            switch = ada.page.locator(".views").get_by_role("button", name=view)
            if await switch.is_visible():
                await switch.click()
            assert await ada.page.evaluate(TOO_WIDE) == []
            assert await ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await context.close()


async def test_a_guest_whose_page_was_closed_is_no_ghost_of_a_killed_process(demo: Several, pages: Pages) -> None:
    ada = await Guest.come(await pages.new(), demo.urls[0], "Ada")
    bob = await Guest.come(await pages.new(), demo.urls[1], "Bob")
    for guest in (ada, bob):
        await guest.sees("[data-member]", count=2)
    await ada.page.locator("[data-kill]").click()
    await ada.page.close()
    await expect(bob.page.locator("[data-member]")).to_have_count(1, timeout=REAPED)
    await bob.sees("[data-member=Bob]")


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_nothing_is_left_when_it_ends(signalled: signal.Signals) -> None:
    before = folders()
    async with several() as demo:
        started = await demo.descendants()
        assert len(started) == 3  # two processes, and what they share
        (folder,) = folders() - before
        demo.process.send_signal(signalled)
        assert await asyncio.wait_for(demo.process.wait(), PATIENCE / 1000) == 0
    assert folder not in folders()
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_taken_port_is_told_before_anything_starts() -> None:
    async with serve_process("demo.app:app") as other:
        with pytest.raises(AssertionError, match=rf"^Port {other.port} is taken\. Choose another one: scripts/demo"):
            async with several(ports=(other.port, other.port + 1)):
                pass


async def test_a_process_alone_has_nothing_to_kill(pages: Pages) -> None:
    async with serve_process("demo.app:app") as alone:
        ada = await Guest.come(await pages.new(), alone.url, "Ada")
        for selector in ("[data-kill]", "#process", "[data-panel=processes]"):
            await expect(ada.page.locator(selector)).to_be_hidden()
        await ada.is_content()
