"""Scripts: the Lua files of `lua/`, and the digests that a server knows them by."""

from functools import cache
from hashlib import sha1
from importlib.resources import files

__all__ = ["Script", "script"]


class Script:
    """A script: its name, its text, and the SHA-1 that `EVALSHA` takes."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: bytes) -> None:
        self.name = name
        self.source = source
        self.sha = sha1(source, usedforsecurity=False).hexdigest().encode()

    def __repr__(self) -> str:
        return f"Script({self.name!r})"


@cache
def script(name: str) -> Script:
    """The script `lua/<name>.lua`. Each runs atomically, and may be run again when its answer was lost."""
    return Script(name, (files(__package__) / "lua" / f"{name}.lua").read_bytes())
