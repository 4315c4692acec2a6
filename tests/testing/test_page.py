"""The page on testing: its files, in an empty folder, are tests that pass, and that notice what they are to notice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks, locate, write

PAGE = "testing.md"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest there, as a reader would."""
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_tests_of_the_page_pass_in_an_empty_folder(tmp_path: Path) -> None:
    write(PAGE, tmp_path)
    done = run(tmp_path, "-q")
    written = sum(block.source.count("\nasync def test_") for block in blocks(PAGE) if block.title)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{written} passed", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize(
    ("broken", "instead", "test"),
    [
        ("others_only=True", "others_only=False", "test_chat.py"),
        ("room_id <= 100", "room_id <= 1000", "test_chat.py"),
        ("presence=True", "presence=True, linger=0.0", "test_presence.py"),
        ("presence=True", "presence=True, history=None", "test_links.py"),
    ],
)
def test_they_notice_an_application_that_is_wrong(broken: str, instead: str, test: str, tmp_path: Path) -> None:
    write(PAGE, tmp_path)
    app = tmp_path / "app.py"
    source = app.read_text()
    assert broken in source
    app.write_text(source.replace(broken, instead))
    done = run(tmp_path, "-q", "-x", test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def test_every_tool_is_named_on_the_page() -> None:
    import starlette_realtime.testing

    text = locate(PAGE).read_text()
    silent = {name for name in starlette_realtime.testing.__all__ if not re.search(rf"\b{name}\b", text)}
    assert silent == {"Closed", "ClientRoom", "Received", "Response"}  # which one has without naming them
