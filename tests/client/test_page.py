"""The page about the client: its files run against a real server, in an empty folder."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from starlette_realtime import SignedTokens
from starlette_realtime.client import Event, connect
from tests.support.pages import blocks, write
from tests.support.server import serve_process

PAGE = "python-client.md"


async def test_the_bot_answers_what_the_script_publishes(tmp_path: Path) -> None:
    write(PAGE, tmp_path)
    async with asyncio.timeout(30.0), serve_process("app:app", cwd=tmp_path) as server:
        env = {**os.environ, "SITE": server.url}
        bot = await asyncio.create_subprocess_exec(
            sys.executable, "bot.py", cwd=tmp_path, env=env, stdout=PIPE, stderr=STDOUT
        )
        try:
            assert bot.stdout is not None
            assert await bot.stdout.readline() == b"bot-echo is in chat:42\n"
            tokens = SignedTokens("at least sixteen bytes, from your configuration")
            async with connect(f"{server.url}/realtime", token=tokens.issue("ann")) as ann:
                room = await ann.join("chat:42")
                script = await asyncio.create_subprocess_exec(
                    *(sys.executable, "publish.py", "good morning", "good night"),
                    cwd=tmp_path,
                    env=env,
                    stdout=PIPE,
                    stderr=STDOUT,
                )
                output, _ = await script.communicate()
                assert output.startswith(b"published at 1\npublished at "), output
                assert script.returncode == 0
                heard = [(await anext(aiter(room))) for _ in range(4)]
            texts = [event.data["text"] for event in heard if isinstance(event, Event)]
            assert sorted(texts) == [
                "bot-news said good morning",
                "bot-news said good night",
                "good morning",
                "good night",
            ]
        finally:
            bot.terminate()
            await bot.wait()


async def test_the_pages_own_test_passes(tmp_path: Path) -> None:
    write(PAGE, tmp_path)
    (snippet,) = [block.source for block in blocks(PAGE) if "def test_" in block.source]
    script = f"{snippet}\nimport asyncio\nasyncio.run(test_the_room_acknowledges())\n"
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=tmp_path, stdout=PIPE, stderr=STDOUT, env={**os.environ, "PYTHONPATH": "."}
    )
    output, _ = await run.communicate()
    assert run.returncode == 0, output
