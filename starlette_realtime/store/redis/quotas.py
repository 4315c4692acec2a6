"""Quotas: the storage of `limits` on Redis, over the connections that the store has anyway."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge

from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.scripts import Script

__all__ = ["RedisQuotas"]

FLAGS = b"#!lua flags=allow-oom\n"
"""
What the scripts of `limits` are declared as: counting goes on when the server's memory is full.

What they keep for a key is a number, or as many entries as the rate allows, and lapses after two windows at the latest.
"""


class _Client:
    """
    As much of a redis-py client as `limits` uses, over a link.

    So its questions are pipelined with the store's own, find the master and the slots' owners as those do, and are
    bounded by the same time limit. A question that is repeated because its answer was lost may charge twice.
    """

    def __init__(self, link: Link, check: Callable[[], None]) -> None:
        self._link = link
        self._check = check

    def register_script(self, source: str | bytes) -> Callable[..., Awaitable[Any]]:
        text = source.encode() if isinstance(source, str) else source
        script = Script("limits", text if text.startswith(b"#!") else FLAGS + text)

        async def run(keys: Sequence[str], args: Sequence[float | str] = ()) -> Any:
            self._check()
            return await self._link.run(script, [key.encode() for key in keys], [str(arg).encode() for arg in args])

        return run

    async def get(self, key: str) -> Any:
        return await self._call(b"GET", key)

    async def delete(self, key: str) -> Any:
        return await self._call(b"DEL", key)

    async def ttl(self, key: str) -> float:
        # In milliseconds: whole seconds are rounded, and a refusal would end too early.
        return float(await self._call(b"PTTL", key)) / 1000

    async def ping(self) -> Any:
        self._check()
        return await self._link.call(b"PING", key=b"")

    async def _call(self, command: bytes, key: str) -> Any:
        self._check()
        name = key.encode()
        return await self._link.call(command, name, key=name)


class RedisQuotas(RedisStorage):
    """
    The asynchronous storage interface of the `limits` package on Redis: its own scripts and layout of keys.

    Keys begin with the store's prefix and `:quotas`. Two keys of one window share a slot of a cluster: `limits` puts
    braces around the name, in which there are none, as the rate limiter encodes names. Errors are `StoreError`;
    `check` is called before each question, and may raise one of its own.
    """

    # Without a scheme it is in no registry: `limits` makes none by an address.
    STORAGE_SCHEME = None  # type: ignore[assignment]
    DEPENDENCIES = {"redis": RedisStorage.DEPENDENCIES["redis"]}  # noqa: RUF012 - as it is there

    def __init__(self, link: Link, keys: Keys, check: Callable[[], None]) -> None:
        self._client = _Client(link, check)
        super().__init__("redis://", implementation="redispy", key_prefix=f"{keys.prefix}:quotas")

    def configure_bridge(self) -> None:
        """Have the driver's part of `limits` speak over the link."""
        bridge = cast(RedispyBridge, self.bridge)
        bridge.connection_getter = lambda readonly: cast(Any, self._client)

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What says that the server doesn't answer."""
        return StoreError

    async def reset(self) -> int | None:
        """Not offered: a cluster has no one place where all keys are. Raises `NotImplementedError`."""
        raise NotImplementedError(f"delete the keys that begin with {self.bridge.key_prefix}: on each server")
