"""Every fenced block of the documentation is something that a test looks at."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.support.pages import blocks, names, parse, write

# Language → how a file of it ends, and who looks at it.
LANGUAGES = {
    "python": (".py", "test_python, test_apps and the test of its page"),
    "js": (".js", "test_browser_code"),
    "jsx": (".jsx", "tests/browser/test_page.py, with esbuild"),
    "ts": (".ts", "tests/browser/test_page.py, with tsc"),
    "html": (".html", "test_browser_code, test_apps and the test of its page"),
    "css": (".css", "the test of its page"),
    "json": (".json", "here, and test_frames"),
    "toml": (".toml", "here"),
    "console": ("", "test_commands"),
    "text": ("", "whoever reads it: frames, output, the text of a log; test_frames reads conversations"),
    "nginx": ("", "whoever reads it"),
}


@pytest.mark.parametrize("page", names())
def test_every_block_has_a_language_that_a_test_knows(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, (
            f"{block.where}: nobody checks a block in {block.language!r}: take one of {', '.join(LANGUAGES)}, "
            "or have tests/docs check it and add it to LANGUAGES"
        )
        ending, _ = LANGUAGES[block.language]
        if block.title is not None:
            assert ending, f'{block.where}: a title="…" makes a block a file; {block.language} is none'
            assert block.title.endswith(ending), f"{block.where}: {block.title} does not end with {ending}"


@pytest.mark.parametrize("page", names())
def test_data_can_be_read(page: str) -> None:
    for block in blocks(page):
        try:
            if block.language == "json":
                json.loads(block.source)
            if block.language == "toml":
                tomllib.loads(block.source)
        except ValueError as exc:
            raise AssertionError(f"{block.where}: {exc}") from exc


PAGE = """
# Page

```python title="app.py"
# ## no heading
```

## More

1. Indented:

    ````html title="static/index.html" hl_lines="1"
    ```
      text
    ````
"""


def test_a_block_knows_its_language_title_section_and_place() -> None:
    first, second = parse(PAGE, page="made-up.md")
    assert (first.language, first.title, first.section, first.source) == ("python", "app.py", "", "# ## no heading\n")
    assert (second.language, second.title, second.section) == ("html", "static/index.html", "More")
    assert (second.source, second.where) == ("```\n  text\n", "docs/made-up.md:13")


def test_a_block_that_never_ends_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"made-up\.md:1: .* never closed"):
        parse("```python\n", page="made-up.md")


def test_a_pages_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made-up.md").write_text(PAGE)
    monkeypatch.setattr("tests.support.pages.DOCS", tmp_path)
    monkeypatch.setattr("tests.support.pages.ROOT", tmp_path)
    write("made-up.md", tmp_path / "all")
    write("made-up.md", tmp_path / "more", section="More")
    assert (tmp_path / "all" / "app.py").read_text() == "# ## no heading\n"
    assert (tmp_path / "all" / "static" / "index.html").read_text() == "```\n  text\n"
    assert [file.name for file in (tmp_path / "more").iterdir()] == ["static"]
    with pytest.raises(ValueError, match='no block with a title="…" below ## Else'):
        write("made-up.md", tmp_path / "else", section="Else")
    (tmp_path / "made-up.md").write_text(PAGE + PAGE)
    with pytest.raises(ValueError, match="is there twice"):
        write("made-up.md", tmp_path / "twice")
    (tmp_path / "made-up.md").write_text('```python title="../app.py"\n```\n')
    with pytest.raises(ValueError, match="lies outside"):
        write("made-up.md", tmp_path / "outside")
