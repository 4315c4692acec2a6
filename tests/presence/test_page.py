"""The page of PresenceTracker's application, in a browser."""

from pathlib import Path

from playwright.async_api import expect

from tests.support.browser import Pages
from tests.support.pages import write
from tests.support.server import serve_process

BACK = 20_000.0  # ms that a page may take to come back


async def test_an_editor_comes_back_to_a_server_that_was_restarted(tmp_path: Path, pages: Pages, port: int) -> None:
    write("presence-tracker.md", tmp_path)
    options = ("--timeout-graceful-shutdown", "1")  # open event streams would hold it up
    page = await pages.new()
    async with serve_process("app:app", *options, cwd=tmp_path, port=port) as server:
        await page.goto(f"{server.url}/?name=ann")
        await expect(page.locator("#here")).to_have_text("ann (online)")
    async with serve_process("app:app", *options, cwd=tmp_path, port=port) as server:
        other = await pages.new()
        await other.goto(f"{server.url}/?name=bob")
        await expect(page.locator("#here")).to_contain_text("bob (online)", timeout=BACK)
        await expect(other.locator("#here")).to_contain_text("ann (online)", timeout=BACK)
        await pages.close()
