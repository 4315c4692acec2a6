"""A real browser loads what a test serves, from loopback alone."""

import pytest
from playwright.async_api import Error, Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from tests.support.browser import Pages
from tests.support.chromium import ChromiumMissing, chromium_path
from tests.support.proxy import Proxy
from tests.support.server import serve


async def home(request: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html><title>A served page</title><p>hello</p>")


async def broken(request: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html><script>throw new Error('on purpose')</script>")


app = Starlette(routes=[Route("/", home), Route("/broken", broken)])


async def test_a_page_is_loaded_through_the_proxy(page: Page) -> None:
    async with serve(app) as server, Proxy("127.0.0.1", server.port) as proxy:
        await page.goto(f"http://127.0.0.1:{proxy.port}/")
        assert await page.title() == "A served page"
        assert proxy.connections >= 1
        proxy.cut()
        with pytest.raises(Error, match="ERR_CONNECTION_REFUSED"):
            await page.goto(f"http://127.0.0.1:{proxy.port}/")


async def test_an_uncaught_exception_of_a_page_is_noted(pages: Pages) -> None:
    page = await pages.new()
    async with serve(app) as server:
        await page.goto(f"{server.url}/broken")
    (error,) = pages.errors
    assert "on purpose" in error
    pages.errors.clear()


async def test_a_page_reaches_loopback_alone(page: Page) -> None:
    with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
        await page.goto("http://example.org/")


def test_a_named_browser_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(ChromiumMissing, match="/no/such/browser"):
        chromium_path()


def test_a_machine_without_a_browser_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tests.support.chromium.PLACES", ())
    with pytest.raises(ChromiumMissing, match="scripts/test installs it"):
        chromium_path()
