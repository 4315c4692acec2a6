"""A real Chromium on the test's own event loop, so that pages, servers and proxies meet in one place."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from playwright.async_api import Browser, Error, Page, async_playwright

from tests.support.chromium import chromium_path

FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # a page that needs more than loopback fails
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start the machine's Chromium without a window. Raises `ChromiumMissing`, whose message names the remedy."""
    # Chromium refuses to sandbox its pages for root.
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else [*FLAGS]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=flags)
        try:
            yield browser
        finally:
            await browser.close()


class Pages:
    """
    Pages of one test, each in a profile of its own, as of different people.

    An exception that a page didn't catch fails the test, unless it is taken out of `errors`.
    """

    def __init__(self, browser: Browser) -> None:
        self.errors: list[str] = []
        self._browser = browser
        self._stack = AsyncExitStack()

    async def new(self) -> Page:
        """Open an empty page in a new profile; it is closed when the test ends."""
        context = await self._browser.new_context()
        self._stack.push_async_callback(context.close)
        page = await context.new_page()
        page.on("pageerror", self._note)
        return page

    async def close(self) -> None:
        """Close all pages. Raises `AssertionError` if one of them had an uncaught exception."""
        await self._stack.aclose()
        assert not self.errors, f"uncaught in a page: {self.errors}"

    def _note(self, error: Error) -> None:
        self.errors.append(str(error))
