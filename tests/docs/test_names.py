"""What the documentation's prose names is there: options, methods, files, tests, anchors of other pages."""

import importlib
import inspect
import pkgutil
import re
from functools import cache

import pytest

import starlette_realtime
from scripts.generate import constructor
from tests.support.pages import ROOT, locate, names

QUALIFIED = re.compile(r"`@?(?P<name>[A-Za-z]+)\.(?P<member>[a-z_]\w*)")
CALLED = re.compile(r"`(?P<name>[A-Z]\w+)\((?P<arguments>[^`]*)\)")
OBJECTS = {"realtime": "Realtime", "member": "Member", "connection": "Connection", "tokens": "SignedTokens"}
ELSEWHERE = re.compile(r"`(tests/[\w/.]+|scripts/\w[\w.]*|starlette_realtime/[\w/.]+|demo/[\w/.]+)`")


@cache
def classes() -> dict[str, type]:
    """Every class of the package by its name; the public ones go first."""
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(starlette_realtime.__path__, "starlette_realtime."):
        if "contract" in module.name or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__.startswith("starlette_realtime"):
                found.setdefault(name, value)
    return found | {n: v for n in starlette_realtime.__all__ if isinstance(v := getattr(starlette_realtime, n), type)}


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *(`{3,}).*?^ *\1 *$", "", locate(page).read_text(), flags=re.DOTALL | re.MULTILINE)


def has(kind: type, member: str) -> bool:
    """Whether a class has that member: on it, among its options, or in what it says of its attributes."""
    options = {option.name.lstrip("*") for option in constructor(kind)}
    kept = re.findall(r"\bself\.(\w+)", "".join(map(source, kind.__mro__)))
    return hasattr(kind, member) or member in options or member in kept


def source(kind: type) -> str:
    """The source of a class of this package."""
    return inspect.getsource(kind) if kind.__module__.startswith("starlette_realtime") else ""


@pytest.mark.parametrize("page", names())
def test_members_that_are_named_are_there(page: str) -> None:
    for found in QUALIFIED.finditer(prose(page)):
        kind = classes().get(OBJECTS.get(found["name"], found["name"]))
        assert kind is None or has(kind, found["member"]), found[0]


@pytest.mark.parametrize("page", names())
def test_options_that_are_named_are_there(page: str) -> None:
    for found in CALLED.finditer(prose(page)):
        kind = classes().get(found["name"])
        if kind is not None and kind.__module__.startswith("starlette_realtime"):
            options = {option.name.lstrip("*") for option in constructor(kind)}
            given = set(re.findall(r"(?:^|[(,] ?)(\w+)=", found["arguments"].split("(")[0]))
            assert given <= options, found[0]


@pytest.mark.parametrize("page", names())
def test_files_that_are_named_are_there(page: str) -> None:
    assert [path for path in ELSEWHERE.findall(locate(page).read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", names())
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        other = (locate(page).parent / path).resolve() if path else locate(page)
        assert other.exists(), target
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors or other.name == "reference.md", target
