"""Imports run downward through the layers, and nobody imports a sibling."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "starlette_realtime"
FOLDER = Path(__file__).resolve().parents[1] / PACKAGE

LAYERS = (
    ("types", "errors"),
    ("clock", "messages", "patterns", "asgi", "workers", "counters", "scripts", "tasks"),
    ("replay", "protocols", "tokens", "webtokens", "server"),
    ("store",),
    ("auth", "ratelimit", "presence", "connection", "payloads"),
    ("fanout",),
    ("rooms", "transports"),
    ("publisher", "router"),
    ("drain", "metrics"),
    ("realtime",),
    ("testing", "command"),
    ("__main__",),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# Units that may import less than what lies below them.
ONLY = {
    "client": {"types", "errors", "clock", "messages", "protocols"},
    "server": {"types", "errors"},
}
# Libraries that a unit keeps clear of: the pure ones do no I/O.
NEVER = {unit: {"asyncio", "anyio", "starlette"} for unit in ("protocols", "replay")}


def imported(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Yield the absolute name of whatever `source`, the text of `module`, imports, anywhere in it."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import unit` names a unit, `from package.unit import name` does not.
            yield from (f"{origin}.{alias.name}" if origin == PACKAGE else origin for alias in node.names)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Say which imports of `source`, the text of `module`, the layers forbid."""
    unit = module.split(".")[1] if "." in module else None
    if unit is None:  # the package itself, which names what is public
        return []
    if unit not in LEVEL and unit not in ONLY:
        return [f"{module}: no layer is declared for {unit!r}; give it one in {Path(__file__).name} and in the design"]
    found = []
    for name in sorted(set(imported(module, source, is_package=is_package))):
        library, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if library != PACKAGE:
            if library in NEVER.get(unit, ()):
                found.append(f"{module} imports {library}, but {unit} does no I/O")
        elif other not in LEVEL and other not in ONLY:
            found.append(f"{module} imports {name}, which is no module of a declared layer")
        elif other == unit:
            continue
        elif unit in ONLY:
            if other not in ONLY[unit]:
                found.append(f"{module} imports {other}; {unit} may import {', '.join(sorted(ONLY[unit]))} only")
        elif other not in LEVEL:
            found.append(f"{module} imports {other}, which stands beside the layers")
        elif LEVEL[other] == LEVEL[unit]:
            found.append(f"{module} imports its sibling {other}")
        elif LEVEL[other] > LEVEL[unit]:
            found.append(f"{module} imports {other}, which lies above it")
    return found


def sources() -> Iterator[tuple[str, str, bool]]:
    """Yield name, text and whether it is a package's own file, for every module of the library."""
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if is_package else parts), path.read_text(), is_package


def test_imports_run_downward_only() -> None:
    found = [line for name, text, is_package in sources() for line in violations(name, text, is_package=is_package)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("messages", "from starlette_realtime.rooms import Room", "rooms, which lies above it"),
        ("messages", "from starlette_realtime import rooms", "rooms, which lies above it"),
        ("messages", "import starlette_realtime.store.memory as memory", "store, which lies above it"),
        ("messages", "from .rooms import Room", "rooms, which lies above it"),
        ("messages", "from . import rooms", "rooms, which lies above it"),
        ("store.memory", "from ..auth import AuthGuard", "auth, which lies above it"),
        ("rooms", "from starlette_realtime.transports.websocket import serve", "sibling transports"),
        ("transports.websocket", "from starlette_realtime.rooms import Room", "sibling rooms"),
        ("errors", "from starlette_realtime.types import Frame", "sibling types"),
        ("auth", "if TYPE_CHECKING:\n    from starlette_realtime.presence import X", "sibling presence"),
        ("replay", "def later():\n    import asyncio.queues", "imports asyncio"),
        ("protocols.native", "from starlette.websockets import WebSocket", "imports starlette"),
        ("protocols.base", "from starlette_realtime.store.base import Store", "store, which lies above it"),
        ("client", "from starlette_realtime.patterns import Pattern", "client may import"),
        ("server.websocket", "from starlette_realtime.messages import Event", "server may import"),
        ("realtime", "from starlette_realtime.client import connect", "beside the layers"),
        ("realtime", "from starlette_realtime import Realtime", "no module of a declared layer"),
        ("realtime", "from starlette_realtime.testing import FakeClock", "testing, which lies above it"),
        ("utils", "import os", "no layer is declared for 'utils'"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, complaint: str) -> None:
    (found,) = violations(f"{PACKAGE}.{module}", source)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rooms", "from starlette_realtime.errors import Refused\nimport asyncio, starlette.types"),
        ("store.memory", "from .base import Store\nfrom starlette_realtime.store import base"),
        ("client", "from starlette_realtime.protocols.native import NativeProtocol"),
        ("protocols.native", "from starlette_realtime.protocols.base import WireProtocol"),
        ("testing.peers", "from starlette_realtime.realtime import Realtime"),
    ],
)
def test_a_downward_import_is_fine(module: str, source: str) -> None:
    assert violations(f"{PACKAGE}.{module}", source) == []


def test_the_package_itself_may_name_everything() -> None:
    assert violations(PACKAGE, "from starlette_realtime.realtime import Realtime", is_package=True) == []
