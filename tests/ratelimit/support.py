"""What tests of the rate limiter share: subjects, processes, and a store whose quotas lie behind a link."""

import asyncio
from typing import Any

import limits.aio.storage
from limits.aio.storage import MovingWindowSupport, SlidingWindowCounterSupport

from starlette_realtime.ratelimit import Rate, Subject
from starlette_realtime.ratelimit.counting import Ask, Quota
from starlette_realtime.ratelimit.limit import Strategy
from starlette_realtime.ratelimit.shared import SharedQuotas
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.quotas import MemoryQuotas
from starlette_realtime.testing import FakeClock
from starlette_realtime.types import Scope

PUBLIC = ("203.0.113.7", 40_000)
OTHER = ("203.0.113.8", 40_000)


def scope(client: tuple[str, int] | None = PUBLIC, *, kind: str = "http", **headers: str) -> Scope:
    """A request or handshake from there; `x_name="value"` becomes a header."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": kind, "client": client, "headers": raw, "path": "/", "query_string": b"", "method": "GET"}


def subject(user: str | None = None, *, connection: str = "", client: tuple[str, int] | None = PUBLIC) -> Subject:
    """Somebody."""
    return Subject(scope(client), user, connection)


class Gone(Exception):
    """A driver's own error."""


class RemoteQuotas(limits.aio.storage.Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Quotas as a server has them: asked over a link, which may fail or hang."""

    STORAGE_SCHEME = None

    def __init__(self, quotas: MemoryQuotas) -> None:
        super().__init__()
        self.quotas = quotas
        self.asked = 0
        self.error: Exception | None = None
        self.hangs = False
        self.slow: asyncio.Event | None = None

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What the driver raises."""
        return Gone

    async def _ask(self, name: str, *arguments: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.slow is not None:
            await self.slow.wait()
        if self.error is not None:
            raise self.error
        return await getattr(self.quotas, name)(*arguments)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        return int(await self._ask("incr", key, expiry, amount))

    async def get(self, key: str) -> int:
        return int(await self._ask("get", key))

    async def get_expiry(self, key: str) -> float:
        return float(await self._ask("get_expiry", key))

    async def check(self) -> bool:
        return bool(await self._ask("check"))

    async def reset(self) -> int | None:
        return int(await self._ask("reset"))

    async def clear(self, key: str) -> None:
        await self._ask("clear", key)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return bool(await self._ask("acquire_entry", key, limit, expiry, amount))

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        start, count = await self._ask("get_moving_window", key, limit, expiry)
        return float(start), int(count)

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return bool(await self._ask("acquire_sliding_window_entry", key, limit, expiry, amount))

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        before, before_left, count, left = await self._ask("get_sliding_window", key, expiry)
        return int(before), float(before_left), int(count), float(left)

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        await self._ask("clear_sliding_window", key, expiry)


class RemoteStore(MemoryStore):
    """A memory store whose quotas are asked as those of a server are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        quotas = self.backend.limits
        assert isinstance(quotas, MemoryQuotas)
        self.remote = RemoteQuotas(quotas)

    @property
    def limits(self) -> limits.aio.storage.Storage:  # type: ignore[override]
        """The link to the quotas."""
        return self.remote


class Hand(FakeClock):
    """A clock that is moved where nothing runs: outside of the event loop."""

    def move(self, seconds: float) -> None:
        self._now += seconds


class Process:
    """What one process knows of a quota."""

    def __init__(self, store: RemoteStore, rate: Rate, strategy: Strategy, *, count: int = 1) -> None:
        self.clock = store.clock
        self.quotas = SharedQuotas(store, store.clock)
        self.several = [Quota(f"things:{number}", rate, strategy) for number in range(count)]

    async def take(self, cost: float = 1, who: str = "ada") -> bool:
        """Whether that passes."""
        decisions = await self.quotas.take([Ask(quota, who, cost) for quota in self.several])
        return all(decision is None or decision.allowed for decision in decisions)


def alone(rate: Rate, strategy: Strategy = "moving-window", count: int = 1) -> tuple[Hand, RemoteQuotas, Process]:
    """A clock, the link to the store and one process."""
    store = RemoteStore(clock=(clock := Hand()))
    return clock, store.remote, Process(store, rate, strategy, count=count)
