"""The commands of the documentation name what there is: files, options, packages and their extras."""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shlex
import tomllib
from pathlib import PurePosixPath

import click
import pytest
from packaging.requirements import Requirement
from uvicorn.main import main as uvicorn_command

from starlette_realtime.command import parser as own_command
from tests.support.pages import ROOT, Block, blocks, names, parse

TOOLS = json.loads((ROOT / "package.json").read_text())["devDependencies"]
BINARIES = {"tsc": "typescript"}  # what npx runs, where the package has another name
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(block: Block) -> list[list[str]]:
    """The words of each line that starts with `$`; lines without one are what is printed."""
    source = block.source.replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in source.splitlines() if line.startswith("$ ")]
    assert lines, f"{block.where}: a command starts with `$ `; make it a `text` block where there is none"
    return [shlex.split(line, comments=True) for line in lines]


def complaint(words: list[str], files: set[str]) -> str:
    """What is wrong with a command; `files` are those of its page."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]  # the environment's
    match words:
        case ["pip", "install", *requirements]:
            return "; ".join(filter(None, map(_requirement, requirements)))
        case ["python", "-m", "pip", *rest]:
            return complaint(["pip", *rest], files)
        case ["python", "-m", "pytest", *rest] | ["pytest", *rest]:
            return "; ".join(f"no {name}" for name in rest if not name.startswith("-") and not _file(name, files))
        case ["python", "-m", "starlette_realtime", *rest]:
            return _own(rest, files)
        case ["python", "-m", module, *_]:
            known = f"{module.replace('.', '/')}.py" in files or importlib.util.find_spec(module) is not None
            return "" if known else f"no module {module}"
        case ["python", file, *_]:
            return "" if _file(file, files) else f"no {file}"
        case ["npm", "install", *packages]:
            named = [name for name in packages if not name.startswith("-")]
            return "; ".join(f"no {name} in package.json" for name in named if name not in TOOLS)
        case ["npx", tool, *rest]:
            lacking = [] if BINARIES.get(tool, tool) in TOOLS else [tool]
            lacking += [name for name in rest if not name.startswith("-") and not _file(name, files)]
            return "; ".join(f"no {name}" for name in lacking)
        case ["uvicorn", *options]:
            return _uvicorn(options, files)
        case ["mkdir", *_] | ["cd", *_] | ["export", *_]:
            return ""
        case [file, *_] if file.startswith("scripts/"):
            return "" if os.access(ROOT / file, os.X_OK) else f"{file} can't be executed"
        case _:
            return "a command that no test knows: add what checks it to tests/docs/test_commands.py"


def _file(name: str, files: set[str]) -> bool:
    return name in files or (ROOT / name).exists()


def _requirement(text: str) -> str:
    name = text.replace(".[", "starlette-realtime[", 1) if text.startswith(".[") else text
    requirement = Requirement(name)
    if requirement.name == PROJECT["name"]:
        unknown = requirement.extras - PROJECT["optional-dependencies"].keys()
        return f"no extra {', '.join(unknown)}" if unknown else ""
    try:
        importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not among what the tests have installed"
    return ""


def _uvicorn(options: list[str], files: set[str]) -> str:
    try:
        context = uvicorn_command.make_context("uvicorn", list(options))
    except click.ClickException as exc:
        return exc.format_message()
    module = context.params["app"].partition(":")[0].replace(".", "/")
    return "" if _file(f"{module}.py", files) else f"no {module}.py"


def _own(words: list[str], files: set[str]) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = own_command().parse_args(words[: words.index("<")] if "<" in words else words)
    except SystemExit:
        return said.getvalue()
    module = (options.rooms or "").partition(":")[0].replace(".", "/")
    return f"no {module}.py" if module and not _file(f"{module}.py", files) else ""


@pytest.mark.parametrize("page", names())
def test_commands_name_what_there_is(page: str) -> None:
    # The quick start has the README's files, by inclusion; elsewhere an `app.py` may be the reader's own.
    files = {"app.py", *(block.title for block in blocks(page) if block.title)}
    files |= {PurePosixPath(name).name for name in files}
    for block in blocks(page):
        if block.language == "console":
            for words in commands(block):
                assert (found := complaint(words, files)) == "", f"{block.where}: {shlex.join(words)}: {found}"


def test_every_extra_that_prose_names_is_one() -> None:
    for page in names():
        text = (ROOT / "README.md" if page == "README.md" else ROOT / "docs" / page).read_text()
        for extras in re.findall(r"starlette-realtime\[([\w,]+)\]", text):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), page


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("pip install 'starlette-realtime[uvicorn,jwt]' fastapi", ""),
        ("pip install 'starlette-realtime[no]'", "no extra no"),
        ("pip install not-a-package-of-ours", "not among what the tests have installed"),
        ("uvicorn app:app --ws websockets-sansio", ""),
        ("uvicorn app:app --wss", "No such option"),
        ("uvicorn other:app", "no other.py"),
        ("python bot.py", "no bot.py"),
        ("npm install --save-dev typescript", ""),
        ("npm install left-pad", "no left-pad in package.json"),
        ("npx tsc --noEmit", ""),
        ("npx esbuild other.jsx --bundle", "no other.jsx"),
        ("npx no-such-tool", "no no-such-tool"),
        ("pytest test_chat.py -q", "no test_chat.py"),
        ("python -m no_such_module", "no module"),
        ("python -m starlette_realtime publish --rooms app:realtime chat:1 hello", ""),
        ("python -m starlette_realtime publish --rooms other:ROOMS chat:1 hello", "no other.py"),
        ("python -m starlette_realtime publish --no chat:1 hello", "unrecognized arguments"),
        ("REALTIME_SECRET=x scripts/demo --port 8001", ""),
        ("scripts/nothing", "can't be executed"),
        ("sudo reboot", "no test knows"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(command: str, found: str) -> None:
    (block,) = parse(f"```console\n$ {command}  # and why\n```\n", page="made-up.md")
    (words,) = commands(block)
    said = complaint(words, {"app.py"})
    assert found in said
    assert bool(found) == bool(said)
