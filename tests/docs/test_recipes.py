"""The recipes, as they stand on their pages: several people, broken links, restarted servers."""

import asyncio
import importlib.util
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.async_api import Page, expect

from starlette_realtime import Refused
from starlette_realtime.client import Client, Event, Room, connect
from tests.support.browser import Pages
from tests.support.pages import write
from tests.support.proxy import Proxy
from tests.support.server import HOST, RunningProcess, serve_process

COMPLAINT = re.compile(r"^(Traceback|ERROR|WARNING|\w*Warning)", re.MULTILINE)
BACK = 20_000.0  # ms that a page may take to come back
LONG = 20.0  # seconds, for the same


@asynccontextmanager
async def recipe(name: str, folder: Path, *, port: int = 0) -> AsyncIterator[RunningProcess]:
    """The application of a page, which has nothing to complain about."""
    write(f"recipes/{name}.md", folder)
    async with serve_process("app:app", cwd=folder, port=port) as server:
        yield server
    assert not COMPLAINT.search("".join(server.output)), "".join(server.output)


async def visit(pages: Pages, port: int, name: str, fragment: str = "") -> Page:
    """Somebody's page."""
    page = await pages.new()
    await page.goto(f"http://{HOST}:{port}/?name={name}{fragment}")
    return page


async def token(server: RunningProcess, name: str) -> str:
    """What the recipe gives to whoever says that name."""
    async with httpx2.AsyncClient(base_url=server.url) as http:
        return (await http.get("/token", params={"name": name})).text


@asynccontextmanager
async def person(server: RunningProcess, name: str) -> AsyncIterator[Client]:
    """Somebody without a browser."""
    async with connect(f"{server.url}/realtime", token=lambda: token(server, name)) as client:
        yield client


@asynccontextmanager
async def api(server: RunningProcess, name: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Somebody's requests."""
    headers = {"authorization": f"Bearer {await token(server, name)}"}
    async with httpx2.AsyncClient(base_url=f"{server.url}/api", headers=headers) as http:
        yield http


async def say(page: Page, text: str) -> None:
    """Write into the form of the chat."""
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an asynchronous condition holds."""
    async with asyncio.timeout(LONG):
        while not await condition():
            await asyncio.sleep(0.02)


def load(path: Path) -> Any:
    """A recipe's module, as it stands there."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


# --- a chat with a database -----------------------------------------------------------------------------------------


async def test_a_chat_pages_back_and_loses_nothing_to_a_broken_link(tmp_path: Path, pages: Pages) -> None:
    async with recipe("chat", tmp_path) as server, Proxy(HOST, server.port) as proxy:
        with sqlite3.connect(tmp_path / "chat.db") as database:
            row = "INSERT INTO messages (room, user, text, at, key) VALUES (1, 'cleo', ?, 0, ?)"
            database.executemany(row, [(f"old {n}", f"k{n}") for n in range(1, 121)])
        database.close()
        old = [f"cleo: old {n}" for n in range(1, 121)]
        ann, bob = await visit(pages, server.port, "ann"), await visit(pages, proxy.port, "bob")
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(old[-50:])
        await ann.locator("#older").click()
        await expect(ann.locator("#log li")).to_have_text(old[-100:])
        await ann.locator("#older").click()
        await expect(ann.locator("#log li")).to_have_text(old)
        await expect(ann.locator("#older")).to_be_hidden()

        await say(ann, "hello")
        await expect(bob.locator("#log li")).to_have_text([*old[-50:], "ann: hello"])
        proxy.cut()
        await expect(bob.locator("#state")).not_to_contain_text("online")
        await say(ann, "one")
        await say(ann, "two")
        await say(bob, "from the tunnel")
        await expect(bob.locator("#state")).to_contain_text("1 to send")
        proxy.restore()
        said = ["ann: hello", "ann: one", "ann: two", "bob: from the tunnel"]
        await expect(bob.locator("#log li")).to_have_text([*old[-50:], *said], timeout=BACK)
        await expect(ann.locator("#log li")).to_have_text([*old, *said])
        await expect(bob.locator("#state")).to_have_text("online, 0 to send")
        await pages.close()


async def test_a_restarted_chat_is_loaded_from_its_database(tmp_path: Path, pages: Pages, port: int) -> None:
    async with recipe("chat", tmp_path, port=port) as server:
        ann, bob = await visit(pages, port, "ann"), await visit(pages, port, "bob")
        await expect(bob.locator("#state")).to_contain_text("online")
        async with person(server, "cleo") as cleo:
            room = await cleo.join("chat:1")
            assert await room.send("message", {"text": "once"}, key="k") == 1
            assert await room.send("message", {"text": "once"}, key="k") == 1
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(["cleo: once"])
    await expect(bob.locator("#state")).not_to_contain_text("online")
    await say(bob, "nobody there")
    with sqlite3.connect(tmp_path / "chat.db") as database:
        database.execute("INSERT INTO messages (room, user, text, at, key) VALUES (1, 'cleo', 'unheard', 0, 'u')")
    database.close()
    async with recipe("chat", tmp_path, port=port) as server:
        said = ["cleo: once", "cleo: unheard", "bob: nobody there"]
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text(said, timeout=BACK)
        async with person(server, "cleo") as cleo:  # the room has forgotten the key, the database has not
            room = await cleo.join("chat:1")
            assert await room.send("message", {"text": "once"}, key="k") == 1
            assert await room.send("message", {"text": "at last"}) > 3
        for page in (ann, bob):
            await expect(page.locator("#log li")).to_have_text([*said, "cleo: at last"], timeout=BACK)
    await pages.close()


async def test_a_chat_is_closed_to_who_is_not_in_it(tmp_path: Path, pages: Pages) -> None:
    async with recipe("chat", tmp_path) as server:
        dan = await visit(pages, server.port, "dan")
        await expect(dan.locator("#state")).to_contain_text("not allowed")
        async with person(server, "bob") as bob:
            with pytest.raises(Refused, match="forbidden"):
                await bob.join("chat:2")
        async with api(server, "dan") as http:
            assert (await http.get("/rooms/1/messages")).status_code == 403
        async with api(server, "ann") as http:
            assert (await http.get("/rooms/2/messages")).json() == []
            assert (await http.get("/rooms/2/messages", params={"before": 2**63})).status_code == 422
        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/api/rooms/1/messages")).status_code == 401
        await pages.close()


# --- notifications --------------------------------------------------------------------------------------------------


async def test_all_pages_of_a_user_count_alike(tmp_path: Path, pages: Pages, port: int) -> None:
    async with recipe("notifications", tmp_path, port=port) as server, Proxy(HOST, port) as proxy:
        dan = await visit(pages, port, "dan")
        await expect(dan.locator("#state")).to_contain_text("no token: 403")
        await dan.close()
        ann, cleo = await visit(pages, port, "ann"), await visit(pages, port, "cleo")
        first = await visit(pages, port, "bob")
        second = await first.context.new_page()
        await second.goto(f"http://{HOST}:{proxy.port}/?name=bob")

        async def send(text: str) -> None:
            await ann.get_by_label("Text").fill(text)
            await ann.get_by_role("button", name="Send").click()
            await expect(ann.get_by_label("Text")).to_be_empty()

        await send("hello")
        for page in (first, second):
            await expect(page.locator("#list li")).to_have_text(["ann: hello"])
            await expect(page).to_have_title("(1) Notifications")
            await expect(page.locator("#latest")).to_have_text("ann: hello")
        await second.locator("#read").click()
        for page in (first, second):
            await expect(page.locator("#unread")).to_have_text("0")
            await expect(page).to_have_title("Notifications")

        proxy.cut()
        await send("one")
        await send("two")
        await expect(first.locator("#unread")).to_have_text("2")
        proxy.restore()
        await expect(second.locator("#unread")).to_have_text("2", timeout=BACK)
        await expect(second.locator("#latest")).to_have_text("ann: hello")  # no fuss about what was missed
        await expect(second.locator("#state")).to_be_empty()
        proxy.cut()
        await second.locator("#read").click()  # it is said when there is somebody to say it to
        proxy.restore()
        await expect(first.locator("#unread")).to_have_text("0", timeout=BACK)
        await expect(cleo.locator("#list li")).to_have_count(0)
        await send("three")
        await expect(first.locator("#unread")).to_have_text("1")
    async with recipe("notifications", tmp_path, port=port) as server:
        async with api(server, "ann") as http:
            assert (await http.post("/messages", json={"to": "bob", "text": "four"})).status_code == 201
        expected = [f"ann: {text}" for text in ("four", "three", "two", "one", "hello")]
        await expect(first.locator("#list li")).to_have_text(expected, timeout=BACK)
        await expect(first.locator("#unread")).to_have_text("2")
    await pages.close()


async def test_notifications_are_for_their_user_alone(tmp_path: Path) -> None:
    async with recipe("notifications", tmp_path) as server, api(server, "ann") as http:
        assert (await http.post("/messages", json={"to": "nobody", "text": "hello"})).status_code == 404
        assert (await http.post("/messages", json={"to": "bob", "text": ""})).status_code == 422
        sent = 0
        while (answer := await http.post("/messages", json={"to": "bob", "text": f"{sent}"})).status_code == 201:
            sent += 1
        assert answer.status_code == 429
        assert 18 <= sent < 100
        async with api(server, "bob") as bobs:
            state = (await bobs.get("/notifications")).json()
        assert [each["text"] for each in state["notifications"]] == [f"ann: {n}" for n in range(sent)][-50:]
        assert state["read"] == 0
        async with person(server, "bob") as bob:
            for last in (7, 3):
                await bob.send("read", last)
            with pytest.raises(Refused, match="invalid_payload"):
                await bob.send("read", -1)
        async with api(server, "bob") as bobs:
            assert (await bobs.get("/notifications")).json()["read"] == 7
        async with httpx2.AsyncClient(base_url=server.url) as somebody:
            assert (await somebody.get("/api/notifications")).status_code == 401
            assert (await somebody.get("/token", params={"name": "dan"})).status_code == 403


def test_an_inbox_keeps_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("recipes/notifications.md", tmp_path)
    module = load(tmp_path / "inbox.py")
    monkeypatch.setattr(module, "KEPT", 5)
    inbox = module.Inbox(str(tmp_path / "test.db"))
    for count in range(8):
        inbox.add("ann", str(count))
    inbox.add("bob", "hello")
    assert [each.text for each in inbox.state("ann").notifications] == ["3", "4", "5", "6", "7"]
    assert len(inbox.state("bob").notifications) == 1


# --- a live dashboard -----------------------------------------------------------------------------------------------


async def shown(page: Page) -> list[int]:
    """The numbers of the points that a dashboard shows."""
    numbers: list[str] = await page.eval_on_selector_all("rect", "bars => bars.map((bar) => bar.dataset.n)")
    return [int(each) for each in numbers]


def is_whole(points: list[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(points))


async def test_a_dashboard_has_a_past_and_no_holes(tmp_path: Path, pages: Pages) -> None:
    async with recipe("dashboard", tmp_path) as server, Proxy(HOST, server.port) as proxy:
        ann = await visit(pages, proxy.port, "ann")
        await expect(ann.locator("#connections")).to_have_text("1")
        await expect(ann.locator("rect")).not_to_have_count(0)
        await eventually(lambda: has(ann, 3))
        bob = await visit(pages, server.port, "bob")
        await eventually(lambda: has(bob, 3))
        assert (await shown(bob))[0] == (await shown(ann))[0] == 1  # what there was before bob
        await expect(ann.locator("#connections")).to_have_text("2")
        await expect(bob.locator("#rooms li")).to_have_text(["dashboard: 2"])
        proxy.cut()
        await expect(ann.locator("body")).to_have_class("away")
        last = (await shown(bob))[-1]
        await eventually(lambda: has(bob, last + 2))
        proxy.restore()
        await eventually(lambda: has(ann, last + 3))
        points = await shown(ann)
        assert points[0] == 1
        assert is_whole(points)
        cleo = await visit(pages, server.port, "cleo")
        await expect(cleo.locator("#state")).to_contain_text("not allowed")
        await expect(cleo.locator("rect")).to_have_count(0)
        last = (await shown(ann))[-1]
        await eventually(lambda: has(ann, last + 2))
        await expect(ann.locator("#connections")).to_have_text("2")  # her page has gone
        await pages.close()


async def has(page: Page, last: int) -> bool:
    """Whether a dashboard has come to a point."""
    return (await shown(page) or [0])[-1] >= last


# --- a small game ---------------------------------------------------------------------------------------------------


async def follow(room: Room, user: str) -> AsyncIterator[float]:
    """How far to the right a player is, tick by tick."""
    async for event in room:
        if isinstance(event, Event):
            for dot in event.data["players"]:
                if dot["user"] == user:
                    yield dot["x"]


async def test_players_see_each_other_move_and_come_back(tmp_path: Path, pages: Pages) -> None:
    async with (
        recipe("game", tmp_path) as server,
        Proxy(HOST, server.port) as proxy,
        person(server, "cleo") as cleo,
        asyncio.timeout(3 * LONG),
    ):
        ann, bob = await visit(pages, server.port, "ann"), await visit(pages, proxy.port, "bob")
        for page in (ann, bob):
            await expect(page.locator(".dot")).to_have_count(2)
            await expect(page.locator("#scores li")).to_have_count(2)
        await expect(bob.locator(".me")).to_have_attribute("title", "bob")
        await bob.locator("#field").hover(position={"x": 100, "y": 250})
        await expect(ann.locator(".pointer[title=bob]")).to_have_attribute("style", "left: 20%; top: 50%;")
        await expect(bob.locator(".pointer")).to_have_count(0)

        await bob.keyboard.down("ArrowRight")
        await expect(ann.locator(".dot[title=bob]")).to_have_attribute("style", re.compile("left: 100%"))  # the wall
        await bob.keyboard.up("ArrowRight")
        places = follow(await cleo.join("game:1"), "bob")
        await bob.keyboard.down("ArrowLeft")
        way = [await anext(places)]
        while way[-1] > 90:
            way.append(await anext(places))
        proxy.cut()
        while len(way) < 15 or len(set(way[-15:])) > 1:  # nobody says anything for it, and it stops
            way.append(await anext(places))
        assert way[-1] > 0
        await expect(bob.locator("#field")).to_have_class("away")
        proxy.restore()
        while way[-1] > 0:
            way.append(await anext(places))
        assert max(abs(after - before) for before, after in pairwise(way)) <= 2.01  # one step a tick: it never left
        await bob.keyboard.up("ArrowLeft")
        await bob.close()
        await expect(ann.locator(".dot[title=bob]")).to_have_count(0, timeout=BACK)
        await pages.close()


async def test_the_bot_runs_for_the_coin_and_nobody_gets_out_of_the_rules(tmp_path: Path, pages: Pages) -> None:
    async with recipe("game", tmp_path) as server:
        ann = await visit(pages, server.port, "ann")
        bot = await asyncio.create_subprocess_exec(sys.executable, "bot.py", server.url, cwd=tmp_path)
        try:
            await expect(ann.locator("#scores li").first).to_have_text(re.compile("bot: [1-9]"), timeout=BACK)
        finally:
            bot.terminate()
            await bot.wait()
        async with person(server, "cleo") as cleo:
            room = await cleo.join("game:1")
            for payload in ({"x": 7, "y": 0}, {"x": "fast"}, {"pointer": [50, 101]}):
                with pytest.raises(Refused, match="invalid_payload"):
                    await room.send("input", payload)
            with pytest.raises(Refused, match="forbidden"):
                await cleo.join("game:11")
        await pages.close()


async def test_who_comes_too_late_is_told_that_the_game_is_full(tmp_path: Path, pages: Pages) -> None:
    async with recipe("game", tmp_path) as server, AsyncExitStack() as stack:
        for count in range(16):
            await (await stack.enter_async_context(person(server, f"p{count}"))).join("game:1")
        ann = await visit(pages, server.port, "ann")
        await expect(ann.locator("#state")).to_have_text("The game is full.")
        async with person(server, "bob") as bob:
            await bob.join("game:2")
        await pages.close()


def test_the_game_is_fair(tmp_path: Path) -> None:
    write("recipes/game.md", tmp_path)
    module = load(tmp_path / "game.py")
    game = module.Game()
    game.join("ann")
    game.join("bob")
    ann, bob = game.players["ann"], game.players["bob"]
    ann.x = ann.y = bob.x = bob.y = 10.0
    game.steer("ann", module.Input(1, 1))
    game.steer("bob", module.Input(1, 0))
    game.step(0.05)
    assert ((ann.x - 10) ** 2 + (ann.y - 10) ** 2) ** 0.5 == pytest.approx(bob.x - 10) == pytest.approx(2.0)
    for _ in range(200):
        game.step(0.05)
    assert bob.x == pytest.approx(30.0)  # a direction holds for ten ticks


# --- progress of jobs -----------------------------------------------------------------------------------------------


async def start(page: Page, rows: list[str]) -> str:
    """Start a job; its fragment of the address."""
    await page.get_by_label("Rows").fill("\n".join(rows))
    before = await page.evaluate("location.hash")
    await page.get_by_role("button", name="Add up").click()
    await page.wait_for_function("before => location.hash !== before", arg=before)
    fragment: str = await page.evaluate("location.hash")
    return fragment


async def test_a_jobs_owner_sees_all_of_it_and_nobody_else_any(tmp_path: Path, pages: Pages) -> None:
    rows = [f"row {n},{n}" for n in range(1, 61)]
    lines = [*(f"{n}/60 row {n}" for n in range(1, 61)), "the sum is 1830"]
    async with recipe("jobs", tmp_path) as server, Proxy(HOST, server.port) as proxy:
        ann = await visit(pages, proxy.port, "ann")
        job = await start(ann, rows)
        bob = await visit(pages, server.port, "bob", job)
        await expect(bob.locator("#status")).to_have_text("There is no such job of yours.")
        await expect(ann.locator("#lines li").nth(3)).to_be_visible()
        proxy.cut()
        await expect(ann.locator("#link")).to_have_text("waiting")
        other = await visit(pages, server.port, "ann", job)  # in the middle of it
        await expect(other.locator("#lines li").nth(20)).to_be_visible()
        proxy.restore()
        for page in (ann, other):
            await expect(page.locator("#status")).to_have_text("done", timeout=BACK)
            await expect(page.locator("#lines li")).to_have_text(lines)
        late = await visit(pages, server.port, "ann", job)
        await expect(late.locator("#status")).to_have_text("done")
        await expect(late.locator("#lines li")).to_have_text(lines)
        await expect(late.locator("#cancel")).to_be_hidden()
        await expect(bob.locator("#lines li")).to_have_count(0)
        await pages.close()


async def test_a_job_may_fail_and_be_cancelled(tmp_path: Path, pages: Pages) -> None:
    async with recipe("jobs", tmp_path) as server:
        ann = await visit(pages, server.port, "ann")
        await start(ann, ["apples,3", "pears"])
        await expect(ann.locator("#status")).to_have_text("failed")
        await expect(ann.locator("#lines li")).to_have_text(["1/2 apples", "row 2 has no amount"])
        await start(ann, ["apples,3"] * 500)
        await expect(ann.locator("#lines li").nth(2)).to_be_visible()
        await ann.locator("#cancel").click()
        await expect(ann.locator("#status")).to_have_text("cancelled")
        await expect(ann.locator("#lines li").last).to_have_text("cancelled by you")
        async with api(server, "bob") as http:
            answers = [await http.post("/jobs", json={"rows": ["apples,3"] * 500}) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
            assert (await http.post("/jobs", json={"rows": []})).status_code == 422
        async with person(server, "bob") as bob:
            room = await bob.join(f"job:{answers[0].json()['id']}")
            event = await anext(room.events())
            assert isinstance(event, Event)
            assert event.data["status"] == "running"
        await pages.close()  # and the server stops, though jobs are running
