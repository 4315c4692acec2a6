"""The documentation's application does under uvicorn what its page says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.async_api import Page
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.pages import write
from tests.support.server import RunningProcess, serve_process

PAGE = "rate-limiter.md"
POLICIES = '"requests-1";q=120;w=60, "requests-2";q=10;w=20'


@asynccontextmanager
async def documented(folder: Path) -> AsyncIterator[RunningProcess]:
    """The page's application. Uvicorn takes addresses from a proxy on loopback, as this test is one."""
    write(PAGE, folder)
    async with serve_process("app:app", "--forwarded-allow-ips=127.0.0.1", cwd=folder) as server:
        yield server


async def test_requests_are_limited_by_key_and_by_address(tmp_path: Path) -> None:
    async with documented(tmp_path) as server, httpx2.AsyncClient(base_url=server.url) as client:
        first = await client.get("/export", headers={"x-api-key": "k"})
        assert (first.status_code, first.headers["ratelimit-policy"]) == (200, POLICIES)
        assert first.headers["ratelimit"] == '"requests-2";r=0;t=20'
        second = await client.get("/export", headers={"x-api-key": "k"})
        assert second.status_code == 429
        assert 15 <= int(second.headers["retry-after"]) <= 20
        assert second.json()["code"] == "rate_limited"
        assert second.json()["message"] == "too many, too fast"
        assert (await client.get("/export", headers={"x-api-key": "other"})).status_code == 200
        assert [(await client.get("/data")).status_code for _ in range(130)] == [200] * 130  # loopback is not limited
        forwarded = {"x-forwarded-for": "203.0.113.7"}
        answers = [await client.get("/data", headers=forwarded) for _ in range(130)]
        assert [answer.status_code for answer in answers][:120] == [200] * 120
        assert answers[-1].status_code == 429
        assert answers[-1].headers["ratelimit"].startswith('"requests-1";r=0')
        assert "limits by address are off for peers of private networks" in "".join(server.output)


async def test_frames_and_connections_are_limited(tmp_path: Path) -> None:
    async with documented(tmp_path) as server:
        async with connect(f"{server.ws_url}/ws") as socket:
            for n in range(20):
                await socket.send(f"{n}")
            heard = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    heard.append(await socket.recv())
        assert [int(each) for each in heard] == list(range(len(heard)))
        assert 10 <= len(heard) <= 12
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4429
        assert closed.value.rcvd.reason.startswith("rate_limited;0.")
        headers = {"x-forwarded-for": "203.0.113.9"}
        sockets = [await connect(f"{server.ws_url}/ws", additional_headers=headers) for _ in range(20)]
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws_url}/ws", additional_headers=headers)
        assert refused.value.response.status_code == 429
        for socket in sockets:
            await socket.close()


async def test_the_page_says_why_it_was_closed_and_comes_back(tmp_path: Path, page: Page) -> None:
    async with documented(tmp_path) as server:
        await page.goto(server.url)
        await page.wait_for_function("document.querySelector('#send') !== null")
        async with page.expect_websocket() as opened:
            await page.reload()
        await opened.value
        log = page.locator("#log")
        await page.wait_for_timeout(0)
        for _ in range(20):
            await page.click("#send")
            if "closed: 4429 rate_limited;" in await log.inner_text():
                break
        await page.get_by_text("closed: 4429 rate_limited;").wait_for()
        assert "again in 0." in await log.inner_text()
