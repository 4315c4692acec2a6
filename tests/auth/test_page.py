"""The page of AuthGuard: its application and its client, as they stand there."""

import asyncio
import sys
from pathlib import Path

from tests.support.pages import blocks, write
from tests.support.server import serve_process


async def test_the_client_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    write("auth-guard.md", tmp_path)
    (said,) = [block.source for block in blocks("auth-guard.md") if block.language == "text"]
    async with serve_process("app:app", cwd=tmp_path) as server:
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "client.py", server.url),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30.0):
            output, _ = await client.communicate()
        assert client.returncode == 0, output.decode()
        lines = output.decode().splitlines()
        reply = lines[3]
        assert 590.0 < float(reply.partition('"expires_in":')[2].rstrip("}")) <= 600.0
        lines[3] = reply.partition('"expires_in":')[0] + '"expires_in":600.0}}'
        assert lines == said.splitlines()
        assert "rtt1." not in "".join(server.output)
