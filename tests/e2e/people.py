"""People who use the site with a browser, as a test directs them."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import Page
from playwright.async_api import TimeoutError as Timeout

from tests.support.proxy import Proxy

WITHIN = 15.0  # seconds that a condition in a page may take; a deadline, not an expectation


class Person:
    """Somebody at a page of the site. Expressions are JavaScript, with `chat` as pages/chat.js has it."""

    def __init__(self, page: Page, user: str) -> None:
        self.page = page
        self.user = user

    async def run(self, expression: str, argument: object = None) -> Any:
        """The value of an expression; of a function's body, with `argument`, where it is a function."""
        return await self.page.evaluate(expression, argument)

    async def sees(self, expression: str, *, within: float = WITHIN) -> None:
        """Wait until an expression is true; else `AssertionError` tells what happened to the page."""
        try:
            await self.page.wait_for_function(expression, timeout=within * 1000, polling=20)
        except Timeout:
            diary = await self.page.evaluate("window.chat?.diary()")
            raise AssertionError(f"{self.user} did not see {expression} within {within} s: {diary}") from None

    async def says(self, *texts: str) -> None:
        """Send texts, without waiting for their delivery."""
        await self.page.evaluate("(texts) => chat.say(...texts)", list(texts))

    async def heard(self, *, count: int, within: float = WITHIN) -> list[str]:
        """All texts heard so far, in order, once there are `count` of them."""
        await self.sees(f"chat.heard.length >= {count}", within=within)
        texts: list[str] = await self.page.evaluate("chat.heard.map((one) => one.text)")
        return texts

    async def delivered(self, *, count: int, within: float = WITHIN) -> list[str]:
        """The texts that were acknowledged, in the order of their acknowledgements, once there are `count`."""
        await self.sees(f"chat.acked.length >= {count}", within=within)
        assert await self.page.evaluate("chat.failed") == []
        texts: list[str] = await self.page.evaluate("chat.acked.map((one) => one.text)")
        return texts


async def visit(page: Page, url: str, user: str, *, at: Sequence[str] = (), **options: str) -> Person:
    """Open the site at `url` as `user`, and wait until they are in the room. `options` are the page's own."""
    query = urlencode([("user", user), *(("at", address) for address in at), *options.items()])
    await page.goto(f"{url}/?{query}")
    person = Person(page, user)
    await person.sees("window.chat?.room.state === 'joined'")
    return person


def through(proxy: Proxy) -> str:
    """The site's address behind a proxy."""
    return f"http://127.0.0.1:{proxy.port}"
