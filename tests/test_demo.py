"""The demo's server: who may come in, what its rooms take, and what its page may do."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from demo.app import COOKIE, STATIC, app
from tests.support.server import RunningServer, serve

NAMES = ["Ann", "  Ann ", "李小龍", "Zoë", "n" * 32, "Anna  Maria", "🐈"]
NO_NAMES = ["", "   ", "n" * 33, "a\nb\x00", "zero\u200bwidth", "\u202etxt", 5, None, ["Ann"]]


@pytest.fixture(scope="module")
async def demo(anyio_backend: str) -> AsyncIterator[RunningServer]:
    """The demo, served to all tests here: each has a room and names of its own."""
    async with serve(app) as server:
        yield server


@pytest.fixture
async def http(demo: RunningServer) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser's other half: it keeps cookies."""
    async with httpx2.AsyncClient(base_url=demo.url) as client:
        yield client


class Peer:
    """One client on the wire, at the level of frames."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.waiting: list[dict[str, Any]] = []  # frames that came while another one was awaited
        self.last = 0

    async def ask(self, **command: object) -> dict[str, Any]:
        """Send a command; its reply."""
        self.last += 1
        await self.websocket.send(json.dumps({"id": self.last, **command}))
        return await self.hears(type="reply", id=self.last)

    async def says(self, room: str, event: str, data: object) -> dict[str, Any]:
        """Send an event to a room; its reply."""
        return await self.ask(type="event", room=room, event=event, data=data)

    async def hears(self, **fields: object) -> dict[str, Any]:
        """The first frame with these fields."""

        def matches(frame: Mapping[str, Any]) -> bool:
            return all(frame.get(name) == value for name, value in fields.items())

        for frame in self.waiting:
            if matches(frame):
                self.waiting.remove(frame)
                return frame
        while True:
            frame = json.loads(await self.websocket.recv())
            if matches(frame):
                return dict(frame)
            self.waiting.append(frame)


async def token_for(demo: RunningServer, name: str) -> str:
    """Sign in, as a client without cookies does."""
    async with httpx2.AsyncClient(base_url=demo.url) as client:
        answer = await client.post("/session", json={"name": name})
    return str(answer.json()["token"])


@asynccontextmanager
async def peer(demo: RunningServer, name: str, *rooms: str) -> AsyncIterator[Peer]:
    """Somebody who has signed in and joined."""
    token = await token_for(demo, name)
    protocols = [Subprotocol("starlette-realtime.v1.json")]
    async with connect(f"{demo.ws_url}/realtime/ws", subprotocols=protocols) as websocket:
        someone = Peer(websocket)
        assert (await someone.ask(type="auth", token=token))["data"]["user"] == name
        for room in rooms:
            assert "data" in await someone.ask(type="join", room=room)
        yield someone


# --- signing in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_whoever_gives_a_name_is_signed_in_and_stays_so(http: httpx2.AsyncClient, name: str) -> None:
    answer = await http.post("/session", json={"name": name})
    assert answer.status_code == 200
    clean = " ".join(name.split())
    assert answer.json()["name"] == clean
    assert answer.json()["token"]
    assert answer.headers["cache-control"] == "no-store"
    again = await http.get("/session")
    assert again.status_code == 200
    assert again.json()["name"] == clean
    assert again.headers["cache-control"] == "no-store"


async def test_two_spellings_of_one_name_are_one_user(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/session", json={"name": "Zoe\u0308"})
    assert answer.json()["name"] == "Zo\u00eb"


@pytest.mark.parametrize("name", NO_NAMES)
async def test_what_is_no_name_is_refused(http: httpx2.AsyncClient, name: object) -> None:
    answer = await http.post("/session", json={"name": name})
    assert answer.status_code == 422
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_a_form_of_another_site_signs_nobody_in(http: httpx2.AsyncClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await http.post("/session", content=b'{"name": "Mallory"}', headers=headers)
    assert answer.status_code == 415
    assert "set-cookie" not in answer.headers


async def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/session", json={"name": "Ann"})
    (morsel,) = SimpleCookie(answer.headers["set-cookie"]).values()
    assert morsel.key == COOKIE
    assert morsel["httponly"]
    assert morsel["samesite"].lower() == "lax"
    assert morsel["path"] == "/"
    assert not morsel["secure"]  # over http it would be lost


async def test_nobody_is_signed_in_without_a_cookie_or_with_a_forged_one(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/session")).status_code == 401
    await http.post("/session", json={"name": "Ann"})
    forged = http.cookies[COOKIE][:-1] + ("A" if http.cookies[COOKIE][-1] != "A" else "B")
    http.cookies.clear()
    assert (await http.get("/session", headers={"cookie": f"{COOKIE}={forged}"})).status_code == 401


async def test_signing_out_takes_the_cookie_away(http: httpx2.AsyncClient) -> None:
    await http.post("/session", json={"name": "Ann"})
    assert (await http.delete("/session")).status_code == 204
    assert COOKIE not in http.cookies
    assert (await http.get("/session")).status_code == 401


async def test_the_cookie_opens_a_connection_for_our_own_page_alone(
    demo: RunningServer, http: httpx2.AsyncClient
) -> None:
    await http.post("/session", json={"name": "Ann"})
    headers = {"cookie": f"{COOKIE}={http.cookies[COOKIE]}"}
    url = f"{demo.ws_url}/realtime/ws"
    async with connect(url, additional_headers=headers, origin=Origin(demo.url)) as websocket:
        assert (await Peer(websocket).ask(type="auth"))["data"]["user"] == "Ann"
    async with connect(url, additional_headers=headers, origin=Origin("http://evil.example")) as websocket:
        await websocket.wait_closed()
        assert websocket.close_code == 4403


# --- rooms ----------------------------------------------------------------------------------------------------------


async def test_there_are_the_rooms_of_the_list_and_no_others(demo: RunningServer, http: httpx2.AsyncClient) -> None:
    rooms = (await http.get("/rooms")).json()
    assert "chat:lobby" in rooms
    async with peer(demo, "Rita", *rooms) as rita:
        for unknown in ("chat:cellar", "chat:Lobby", "chat:lobby ", "chat:"):
            assert "error" in await rita.ask(type="join", room=unknown)


async def test_a_message_is_acknowledged_with_its_offset_and_kept(demo: RunningServer) -> None:
    async with peer(demo, "Ann", "chat:kitchen") as ann, peer(demo, "Bob", "chat:kitchen") as bob:
        first = await ann.says("chat:kitchen", "message", {"text": "hello", "id": "1"})
        second = await ann.says("chat:kitchen", "message", {"text": "there"})
        assert second["data"]["offset"] == first["data"]["offset"] + 1
        for someone in (ann, bob):
            event = await someone.hears(type="event", event="message")
            assert event["data"] == {"text": "hello", "id": "1"}
            assert event["from"]["user"] == "Ann"
            assert event["position"]["offset"] == first["data"]["offset"]
        page = await bob.ask(type="history", room="chat:kitchen", limit=2)
        assert [event["data"]["text"] for event in page["data"]["events"]] == ["hello", "there"]


@pytest.mark.parametrize("text", ["", "x" * 4001, None, 5])
async def test_a_message_has_1_to_4000_characters(demo: RunningServer, text: object) -> None:
    async with peer(demo, "Ann", "chat:garden") as ann:
        refused = await ann.says("chat:garden", "message", {"text": text})
        assert refused["error"]["code"] == "invalid_payload"
        assert "text" in refused["error"]["fields"]
        assert "data" in await ann.says("chat:garden", "message", {"text": "🐈" * 4000})


async def test_typing_and_cursors_are_for_the_others_and_not_kept(demo: RunningServer) -> None:
    async with peer(demo, "Tom", "chat:library") as tom, peer(demo, "Uma", "chat:library") as uma:
        assert "data" in await tom.says("chat:library", "typing", None)
        assert "data" in await tom.says("chat:library", "cursor", {"x": 0.25, "y": 1})
        typing = await uma.hears(type="event", event="typing")
        cursor = await uma.hears(type="event", event="cursor")
        assert typing["from"]["user"] == "Tom"
        assert cursor["data"] == {"x": 0.25, "y": 1.0}
        assert "position" not in typing
        assert "position" not in cursor
        # What comes after is there: so what was to come before was not for the sender.
        await tom.says("chat:library", "message", {"text": "done"})
        await tom.hears(type="event", event="message")
        assert not [frame for frame in tom.waiting if frame.get("event") in ("typing", "cursor")]


@pytest.mark.parametrize("at", [{"x": -0.1, "y": 0}, {"x": 0, "y": 1.1}, {"x": 0}, None])
async def test_a_cursor_is_within_the_message_area(demo: RunningServer, at: object) -> None:
    async with peer(demo, "Vera", "chat:library") as vera:
        assert (await vera.says("chat:library", "cursor", at))["error"]["code"] == "invalid_payload"


async def test_a_direct_message_reaches_all_pages_of_two_users_and_nobody_else(demo: RunningServer) -> None:
    async with (
        peer(demo, "Wim", "chat:lobby") as wim,
        peer(demo, "Wim", "chat:lobby") as wims_phone,
        peer(demo, "Xenia") as xenia,
        peer(demo, "Yann", "chat:lobby") as yann,
    ):
        sent = await wim.says("chat:lobby", "direct", {"to": "Xenia", "text": "psst"})
        for someone in (wim, wims_phone, xenia):
            event = await someone.hears(type="event", event="direct")
            assert event["data"] == {"to": "Xenia", "text": "psst", "id": ""}
            assert event["from"]["user"] == "Wim"
        assert (await wims_phone.ask(type="history", room="user:Wim"))["data"]["events"][-1]["position"][
            "offset"
        ] == sent["data"]["offset"]
        await yann.says("chat:lobby", "message", {"text": "anything?"})
        await yann.hears(type="event", event="message")
        assert not [frame for frame in yann.waiting if frame.get("event") == "direct"]


@pytest.mark.parametrize("to", ["", "a\x00b", "n" * 33])
async def test_a_direct_message_to_what_is_no_name_is_refused(demo: RunningServer, to: str) -> None:
    async with peer(demo, "Zoe", "chat:lobby") as zoe:
        refused = await zoe.says("chat:lobby", "direct", {"to": to, "text": "hello?"})
        assert refused["error"]["code"] == "invalid_payload"


async def test_a_note_to_oneself_comes_once(demo: RunningServer) -> None:
    async with peer(demo, "Solo", "chat:lobby") as solo:
        sent = await solo.says("chat:lobby", "direct", {"to": "Solo", "text": "milk"})
        page = await solo.ask(type="history", room="user:Solo")
        assert [event["position"]["offset"] for event in page["data"]["events"]] == [sent["data"]["offset"]]


# --- the page -------------------------------------------------------------------------------------------------------


async def test_the_page_runs_its_own_files_only_and_in_no_frame(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    directives = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    for inline in ("<style", " style=", "<script>", "javascript:", " onclick="):
        assert inline not in answer.text


@pytest.mark.parametrize("file", sorted(path.name for path in STATIC.iterdir()))
async def test_what_the_page_is_made_of_is_served_as_what_it_is(http: httpx2.AsyncClient, file: str) -> None:
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
    answer = await http.get(f"/static/{file}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kinds[file.rpartition(".")[2]])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/static/../app.py", "/static/%2e%2e/app.py"])
async def test_there_is_nothing_else(http: httpx2.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404
