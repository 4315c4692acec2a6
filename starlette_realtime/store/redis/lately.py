"""Lately: what a process has just given back, in case that the server has it again."""

from collections import OrderedDict
from collections.abc import Callable

from starlette_realtime.clock import Clock

__all__ = ["Lately"]

NAMES = 4_096
"""How many are remembered, the latest ones."""


class Lately:
    """
    Names of which this process has nothing any more, for `keep` seconds.

    A server that was set back, or a replica that takes over, may not know that yet. Then the connection is another
    one: `since` tells from when on the present one to a key's server stands.
    """

    def __init__(self, since: Callable[[bytes], float | None], *, clock: Clock, keep: float) -> None:
        self._since = since
        self._clock = clock
        self._keep = keep
        self._names: OrderedDict[str, tuple[bytes, float, float | None]] = OrderedDict()

    def add(self, name: str, key: bytes, since: float | None) -> None:
        """It was given back, over the connection to the server of `key` that stood `since` then."""
        self._names[name] = key, self._clock.now(), since
        self._names.move_to_end(name)
        if len(self._names) > NAMES:
            self._names.popitem(last=False)

    def suspects(self) -> list[str]:
        """Those that the server may have again: they are forgotten here, and to be given back once more."""
        now = self._clock.now()
        found = []
        for name, (key, given, since) in list(self._names.items()):
            current = self._since(key)
            if current is None:
                continue  # it is away
            if current != since:
                found.append(name)
            elif now - given < self._keep:
                continue
            del self._names[name]
        return found

    def clear(self) -> None:
        """Forget them all."""
        self._names.clear()
