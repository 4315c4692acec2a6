"""The documentation says what the code does."""

import ast
import importlib
import inspect
import json
import re
from contextlib import AsyncExitStack
from typing import Any

import starlette_realtime
from tests.support.pages import DOCS, blocks


async def test_the_quick_starts_blocks_run_in_their_order() -> None:
    page: dict[str, Any] = {}
    snippets = [block for block in blocks("quickstart.md") if block.language == "python"]
    assert snippets
    async with AsyncExitStack() as running:
        for block in snippets:
            code = compile(block.source, block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
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


def test_every_public_name_has_its_entry_in_the_reference() -> None:
    entries = set(re.findall(r"^::: starlette_realtime\.(\S+)$", (DOCS / "reference.md").read_text(), re.MULTILINE))
    assert entries >= set(starlette_realtime.__all__)
    for prefix in ("client", "presence", "store", "testing", "webtokens"):
        module = importlib.import_module(f"starlette_realtime.{prefix}")
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
