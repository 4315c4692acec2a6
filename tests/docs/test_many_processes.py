"""The page on many processes: its application over two workers, which share a server, and two clients."""

import secrets
from pathlib import Path

from starlette_realtime import SignedTokens
from starlette_realtime.client import Event, connect
from tests.support.pages import write
from tests.support.redis import server
from tests.support.server import serve_process

PEOPLE = 6


async def test_two_workers_are_one_service(tmp_path: Path) -> None:
    write("many-processes.md", tmp_path)
    secret = secrets.token_hex()
    tokens = SignedTokens(secret)
    async with server() as store:
        environment = {"REALTIME_STORE": store.url, "REALTIME_SECRET": secret}
        # Which worker takes a connection is the kernel's choice: so some more than two come.
        async with serve_process("app:app", "--workers", "2", cwd=tmp_path, env=environment) as served:
            heard: list[list[object]] = []
            clients = [
                connect(f"{served.url}/realtime", token=lambda n=n: tokens.issue(f"user {n}")) for n in range(PEOPLE)
            ]
            rooms = []
            for client in clients:
                await client.__aenter__()
                rooms.append(await client.join("chat:1"))
            for number, room in enumerate(rooms):
                assert await room.send("message", f"from {number}") == number + 1
            for room in rooms:
                words: list[object] = []
                async for event in room:
                    assert isinstance(event, Event)
                    words.append(event.data)
                    if len(words) == PEOPLE:
                        break
                heard.append(words)
            for client in clients:
                await client.close()
    assert heard == [[f"from {number}" for number in range(PEOPLE)]] * PEOPLE
