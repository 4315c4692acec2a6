"""The documentation's applications start, answer, and have nothing to complain about."""

import ast
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx2
import pytest

from tests.support.pages import Block, blocks, names, write
from tests.support.redis import server as redis_server
from tests.support.server import serve_process

CONNECTS = re.compile(r"""connect\(["'](/[^"']*)["']""")
COMPLAINT = re.compile(r"^(Traceback|ERROR|WARNING|\w*Warning)", re.MULTILINE)


def applications() -> Iterator[tuple[str, str, str | None]]:
    """Every page, the module of an application there, and its section where the page has several of that title."""
    for page in names():
        found = [block for block in blocks(page) if block.title and block.language == "python" and binds_app(block)]
        titles = [block.title for block in found]
        for block in found:
            module = str(block.title).removesuffix(".py").replace("/", ".")
            yield page, module, block.section if titles.count(block.title) > 1 else None


def binds_app(block: Block) -> bool:
    """Whether a module has an `app`."""
    assignments = [node for node in ast.parse(block.source).body if isinstance(node, ast.Assign)]
    return any(isinstance(each, ast.Name) and each.id == "app" for node in assignments for each in node.targets)


@pytest.fixture(scope="module")
async def environment(anyio_backend: str) -> AsyncIterator[Mapping[str, str]]:
    """What the applications read of their environment."""
    async with redis_server() as store:
        yield {"REALTIME_STORE": store.url, "REALTIME_SECRET": secrets.token_hex()}


@pytest.mark.parametrize(("page", "module", "section"), [*applications()])
async def test_it_starts_and_answers(
    page: str, module: str, section: str | None, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    write(page, tmp_path, section=section)
    files = [block for block in blocks(page) if block.title and section in (None, block.section)]
    mounts = {path for block in files for path in CONNECTS.findall(block.source)}
    async with (
        serve_process(f"{module}:app", cwd=tmp_path, env=environment) as server,
        httpx2.AsyncClient(base_url=server.url, follow_redirects=True) as client,
    ):
        answer = await client.get("/")
        assert answer.status_code < 500, answer.text
        assert answer.is_success or "index.html" not in {block.title for block in files}, answer.text
        for mount in mounts:
            assert (await client.get(f"{mount}/client.js")).is_success, f"nothing serves the client at {mount}"
    assert not COMPLAINT.search("".join(server.output)), "".join(server.output)
