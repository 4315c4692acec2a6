"""The application of RoomRouter's page: signing in, notes, and a restart that makes every cookie a stranger's."""

from pathlib import Path

import httpx2
import pytest
from playwright.async_api import expect

from tests.support.browser import Pages
from tests.support.pages import write
from tests.support.server import serve_process

BACK = 20_000.0  # ms that a page may take to come back


async def test_who_says_no_name_is_told_so(tmp_path: Path, pages: Pages) -> None:
    write("room-router.md", tmp_path)
    async with serve_process("app:app", cwd=tmp_path) as server, httpx2.AsyncClient(base_url=server.url) as client:
        bodies: tuple[object, ...] = ({"name": ""}, {}, {"name": None}, {"name": 7}, [])
        for body in bodies:
            assert (await client.post("/sign-in", json=body)).status_code == 400, body
        assert (await client.post("/sign-in", content=b"no JSON")).status_code == 400
        assert (await client.post("/sign-in", json={"name": "ann"})).json() == {"name": "ann"}
        page = await pages.new()
        await page.goto(f"{server.url}/?name=")
        await expect(page.locator("#state")).to_have_text("say who you are")
        await expect(page.locator("form")).to_be_hidden()
        await pages.close()


async def test_after_a_restart_one_signs_in_again(
    tmp_path: Path, pages: Pages, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECRET", raising=False)
    write("room-router.md", tmp_path)
    ann = await pages.new()
    async with serve_process("app:app", cwd=tmp_path, port=port) as server:
        bob = await pages.new()
        for page, name in ((ann, "ann"), (bob, "bob")):
            await page.goto(f"{server.url}/?name={name}")
            await expect(page.locator("#state")).to_have_text("online")
        await ann.locator("input").fill("milk")
        await ann.locator("input").press("Enter")
        for page in (ann, bob):
            await expect(page.locator("#notes li")).to_have_text(["ann: milk"])
        await bob.close()
    await expect(ann.locator("#again")).to_be_hidden()
    async with serve_process("app:app", cwd=tmp_path, port=port):
        await ann.locator("#again").wait_for(timeout=BACK)
        await ann.locator("input").fill("honey")
        await ann.locator("input").press("Enter")
        await expect(ann.locator("#state")).to_contain_text("Not added: honey")
        await ann.locator("#again").click()
        await expect(ann.locator("#state")).to_have_text("online")
        await ann.locator("input").fill("bread")
        await ann.locator("input").press("Enter")
        await expect(ann.locator("#notes li")).to_have_text(["ann: bread"])
        await pages.close()
