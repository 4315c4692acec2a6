"""The documentation says what the code does."""

import ast
import importlib
import inspect
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import starlette_realtime
import starlette_realtime.store
import starlette_realtime.testing
from starlette_realtime import CLOSE_CODES, ERROR_CODES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RECONNECT = {"yes": "yes", "no": "no", "token": "with a new token", "after": "after the announced delay"}


def section(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    text = (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_close_codes_are_those_of_the_code() -> None:
    assert section("wire-protocol.md", "Close codes") == [
        [str(row.code), f"`{row.name}`", row.meaning, RECONNECT[row.reconnect]] for row in CLOSE_CODES.values()
    ]


def test_the_errors_are_those_of_the_code() -> None:
    rows = section("wire-protocol.md", "Errors")
    assert [code.strip("`") for code, _ in rows] == list(ERROR_CODES)
    for code, meaning in rows:
        assert meaning.startswith(ERROR_CODES[code.strip("`")])


def test_the_browser_client_has_the_same_close_codes() -> None:
    script = (ROOT / "starlette_realtime" / "browser" / "codes.js").read_text()
    table = json.loads(script[script.index("{", script.index("CLOSE_CODES =")) : script.rindex("}") + 1])
    assert table == {
        str(row.code): {"code": row.code, "name": row.name, "reconnect": row.reconnect} for row in CLOSE_CODES.values()
    }


async def test_the_quick_starts_blocks_run_in_their_order() -> None:
    page: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "quickstart.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    async with AsyncExitStack() as running:
        for source in blocks:
            code = compile(source, "quickstart.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:  # what awaits runs in the application
                await running.enter_async_context(page["realtime"])
                await eval(code, page)
            else:
                exec(code, page)
        (event,) = (await page["chat"].at(room_id=42).history()).events
        assert (event.event, json.loads(bytes(event.data))) == ("message", {"user": "clock", "text": "noon"})
        store = page["realtime"].store
        (notification,) = (await store.page("user:ann", before=None, limit=10)).publications
        assert b"your order has shipped" in notification.data


def test_no_other_page_has_python_that_nobody_runs() -> None:
    pages = [page.name for page in DOCS.glob("*.md") if "```python" in page.read_text()]
    assert sorted(pages) == ["quickstart.md", "wire-protocol.md"]  # the latter's is in test_python_client.py


def test_every_public_name_has_its_entry_in_the_reference() -> None:
    entries = set(re.findall(r"^::: starlette_realtime\.(\S+)$", (DOCS / "reference.md").read_text(), re.MULTILINE))
    assert entries >= set(starlette_realtime.__all__)
    for module in (starlette_realtime.store, starlette_realtime.testing):
        prefix = module.__name__.removeprefix("starlette_realtime.")
        missing = {name for name in module.__all__ if not {name, f"{prefix}.{name}"} & entries}
        assert missing == set(), f"of {module.__name__}"


def test_the_reference_names_members_that_there_are() -> None:
    for block in (DOCS / "reference.md").read_text().split("\n::: ")[1:]:
        path, _, options = block.partition("\n")
        listed = re.search(r"^ +members:(?: \[(.*)\]|((?:\n +- \w+)+))$", options, re.MULTILINE)
        if listed is None:
            continue
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        bases = [base for base in kind.__mro__ if base.__module__.startswith("starlette_realtime")]
        source = "".join(map(inspect.getsource, bases))
        for member in re.findall(r"\w+", listed[1] or listed[2] or ""):
            assert re.search(rf"^ +(async )?(def |self\.){member}\b|^ +{member}:", source, re.MULTILINE), (path, member)
