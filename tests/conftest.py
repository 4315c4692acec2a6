"""What all tests share: the event loop's kind, hypothesis profiles, and the browser."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings
from playwright.async_api import Browser, Page

from tests.support.browser import Pages, chromium
from tests.support.ports import reserved_port

# No deadline: a busy machine is not a bug. Where nobody searches for luck, a failure must be the change's doing.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Every async test and fixture runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """One Chromium for a module's tests, which then share an event loop."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    """The pages of one test: `await pages.new()` opens one as another person."""
    pages = Pages(browser)
    yield pages
    await pages.close()


@pytest.fixture
async def page(pages: Pages) -> Page:
    """One empty page."""
    return await pages.new()


@pytest.fixture
def port() -> Iterator[int]:
    """A port for a server that is to be started there twice."""
    with reserved_port() as found:
        yield found
