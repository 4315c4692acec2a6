"""The documentation says what the code does."""

import json
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", ["quickstart.md"])
def test_the_python_blocks_run_in_their_order(page: str) -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for source in blocks:
        if re.search(r"^await ", source, re.MULTILINE):
            source = "async def block():\n" + "".join(f"    {line}\n" for line in source.splitlines())
        exec(compile(source, page, "exec"), namespace)  # noqa: S102 - our own documentation
