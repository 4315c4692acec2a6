"""The README's chat, as it stands there, in two pages."""

import shlex
from pathlib import Path

from playwright.async_api import Page, expect

from tests.support.browser import Pages
from tests.support.pages import blocks, write
from tests.support.server import serve_process


def options() -> list[str]:
    """What the README tells uvicorn."""
    lines = "".join(block.source for block in blocks("README.md") if block.language == "console").splitlines()
    (command,) = (line for line in lines if line.startswith("$ uvicorn app:app "))
    return shlex.split(command)[3:]


async def open_page(pages: Pages, url: str) -> Page:
    page = await pages.new()
    await page.goto(url)
    return page


def test_the_application_has_at_most_forty_lines() -> None:
    (application,) = (block for block in blocks("README.md") if block.title == "app.py")
    assert len(application.source.splitlines()) <= 40


async def test_the_chat_of_the_readme_works_in_two_pages(tmp_path: Path, pages: Pages) -> None:
    write("README.md", tmp_path)
    async with serve_process("app:app", *options(), cwd=tmp_path) as server:
        ann = await open_page(pages, f"{server.url}/?name=ann")
        bob = await open_page(pages, f"{server.url}/?name=bob")
        await expect(ann.locator("#members")).to_have_text("ann, bob")
        await expect(bob.locator("#members")).to_have_text("ann, bob")

        await ann.locator("input").press_sequentially("hello")
        await expect(bob.locator("#typing")).to_have_text("ann is typing")
        await ann.locator("input").press("Enter")
        await expect(bob.locator("#log li")).to_have_text(["ann: hello"])
        await bob.locator("input").fill("hello yourself")
        await bob.locator("input").press("Enter")
        said = ["ann: hello", "bob: hello yourself"]
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(said)
            await expect(page.locator("#typing")).to_be_empty()

        await bob.reload()
        await expect(bob.locator("#log li")).to_have_text(said)
        await ann.locator("input").press("Enter")  # nothing to send
        await ann.locator("input").fill("welcome back")
        await ann.locator("input").press("Enter")
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text([*said, "ann: welcome back"])
        await pages.close()


async def test_the_chat_loads_anew_what_a_restarted_server_has(tmp_path: Path, pages: Pages, port: int) -> None:
    write("README.md", tmp_path)
    async with serve_process("app:app", *options(), cwd=tmp_path, port=port) as server:
        ann = await open_page(pages, f"{server.url}/?name=ann")
        await expect(ann.locator("#members")).to_have_text("ann")
        await ann.locator("input").fill("before")
        await ann.locator("input").press("Enter")
        await expect(ann.locator("#log li")).to_have_text(["ann: before"])
    async with serve_process("app:app", *options(), cwd=tmp_path, port=port) as server:
        bob = await open_page(pages, f"{server.url}/?name=bob")
        await bob.locator("input").fill("meanwhile")
        await bob.locator("input").press("Enter")
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(["bob: meanwhile"], timeout=20_000.0)
        await ann.locator("input").fill("after")
        await ann.locator("input").press("Enter")
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(["bob: meanwhile", "ann: after"])
        await pages.close()


async def test_a_page_without_a_name_asks_for_one(tmp_path: Path, pages: Pages) -> None:
    write("README.md", tmp_path)
    async with serve_process("app:app", *options(), cwd=tmp_path) as server:
        page = await pages.new()
        page.once("dialog", lambda dialog: dialog.accept("cleo"))
        await page.goto(f"{server.url}/?name=")
        await expect(page.locator("#members")).to_have_text("cleo")
        await pages.close()
