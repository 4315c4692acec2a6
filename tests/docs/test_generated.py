"""What is told in two places is told alike, and no option goes without a word."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import msgspec
import pytest

import starlette_realtime
from scripts import generate
from starlette_realtime import CLOSE_CODES, ERROR_CODES
from tests.support.pages import DOCS, ROOT

NOT_MADE_BY_HAND = {"Connection", "Member", "Store"}  # but by the kit, and by whoever writes one


def test_nothing_is_stale_or_unsaid() -> None:
    stale, complaints = generate.generate()
    assert complaints == []
    assert [str(file.relative_to(ROOT)) for file in stale] == [], "run python scripts/generate.py"


def takes_options(kind: object) -> bool:
    """Whether a class is made with keyword-only arguments; errors aside."""
    return (
        isinstance(kind, type)
        and not issubclass(kind, Exception)
        and any(each.kind is each.KEYWORD_ONLY for each in inspect.signature(kind).parameters.values())
    )


def test_every_class_that_takes_options_has_a_table() -> None:
    tables = re.findall(r"<!-- generate: options\.(\S+) -->", (DOCS / "options.md").read_text())
    public = {name for name in starlette_realtime.__all__ if takes_options(getattr(starlette_realtime, name))}
    assert {table.rpartition(".")[2] for table in tables} >= public - NOT_MADE_BY_HAND


def test_the_browsers_codes_are_the_servers() -> None:
    script = (ROOT / generate.CODES).read_text()
    table = json.loads(script[script.index("{", script.index("CLOSE_CODES =")) : script.rindex("}") + 1])
    assert table == {
        str(row.code): {"code": row.code, "name": row.name, "reconnect": row.reconnect} for row in CLOSE_CODES.values()
    }


def test_the_pages_have_every_code() -> None:
    for page in ("errors.md", "wire-protocol.md"):
        text = (DOCS / page).read_text()
        assert set(re.findall(r"^\| (\d{4}) \|", text, re.MULTILINE)) == {str(code) for code in CLOSE_CODES}
        errors = text.split("\n## Errors\n")[1].split("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", errors, re.MULTILINE)) == set(ERROR_CODES)


class Example:
    """A class with options of every kind."""

    def __init__(
        self, app: object = None, *, wait: float = 1.5, most_bytes: int = 4096, ways: tuple[str, ...] = ()
    ) -> None:
        """It keeps nothing."""


class Derived(Example):
    """It passes the rest on."""

    def __init__(self, *names: str, several: int | None = None, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]


class Fields(msgspec.Struct):
    """Its fields are options."""

    first: str
    """The first
    of them."""
    second: float = 60.0


@dataclasses.dataclass
class Data:
    """As here."""

    rate: str = "5/second"
    """How often."""


def test_options_are_read_from_signatures_and_the_strings_below_fields() -> None:
    assert [*generate.constructor(Derived)] == [
        ("*names", "`str`", "none", ""),
        ("several", "number", "`None`", ""),
        ("app", "`object`", "`None`", ""),
        ("wait", "seconds", "1.5 s", ""),
        ("most_bytes", "bytes", "4 KiB", ""),
        ("ways", "`tuple[str, ...]`", "none", ""),
    ]
    assert [*generate.constructor(Fields)] == [
        ("first", "`str`", "required", "The first of them."),
        ("second", "seconds", "60 s", ""),
    ]
    assert [*generate.constructor(Data)] == [("rate", "`str`", '`"5/second"`', "How often.")]


def test_what_a_writer_said_is_kept_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starlette_realtime, "Example", Example, raising=False)
    page = "<!-- generate: options.Example -->\n| `wait` | 1 s | By hand \\| kept. |\n| `gone` | x | y |\n<!-- end -->"
    complaints: list[str] = []
    filled = generate.fill(page, "docs/made-up.md", complaints)
    assert "| `wait` | seconds | 1.5 s | By hand \\| kept. |\n" in filled
    assert "gone" not in filled
    assert generate.fill(filled, "docs/made-up.md", []) == filled
    assert complaints == [
        "docs/made-up.md: say what `most_bytes` of options.Example is, in the last cell of its row",
        "docs/made-up.md: say what `ways` of options.Example is, in the last cell of its row",
    ]


def test_the_command_writes_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*generate.PAGES, generate.CODES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    codes = tmp_path / generate.CODES
    codes.write_text(codes.read_text().replace("slow_consumer", "slow"))
    assert generate.main(["--check"]) == 1
    assert "codes.js is stale: run python scripts/generate.py" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert generate.main(["--what"]) == 2
    assert codes.read_text() == (ROOT / generate.CODES).read_text()
