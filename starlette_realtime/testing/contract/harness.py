"""What the contract's tests stand on: how to make stores, move their time, and break them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Gap, History, PresenceDiff, Publication
from starlette_realtime.store.base import Store
from starlette_realtime.testing.clock import FakeClock

__all__ = ["KEPT", "Heard", "StoreHarness"]

T = TypeVar("T")

KEPT = History(size=64, ttl=60.0)


class Heard(list[Delivery]):
    """A subscriber that keeps what it hears."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # each is a subscriber of its own

    def __call__(self, delivery: Delivery) -> None:
        """Hear it."""
        self.append(delivery)

    @property
    def publications(self) -> list[Publication]:
        """What was published, kept or not."""
        return [delivery for delivery in self if isinstance(delivery, Publication)]

    @property
    def data(self) -> list[bytes]:
        """The publications' data."""
        return [publication.data for publication in self.publications]

    @property
    def gaps(self) -> list[Gap]:
        """The gaps that were told."""
        return [delivery for delivery in self if isinstance(delivery, Gap)]

    @property
    def diffs(self) -> list[PresenceDiff]:
        """How presence changed."""
        return [delivery for delivery in self if isinstance(delivery, PresenceDiff)]


class StoreHarness:
    """
    Override `make_stores`, set the durations to what those stores have, and, unless they are driven by the clock that
    is given and have the `faults` of a `MemoryStore`, override the rest.
    """

    lease: float = 15.0
    """Seconds that a dead process's presence and slots stand."""

    sweep: float = 3.0
    """Seconds between two looks for dead processes."""

    dedupe: float = 120.0
    """Seconds that an idempotency key is known."""

    check_interval: float = 10.0
    """Seconds between two checks of every topic's position."""

    stale_after: float = 2.0
    """Seconds until a store that is away is called stale, plus what it takes to notice."""

    clock: FakeClock

    async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
        """Make `count` processes' stores that share one fresh backend; not entered yet."""
        raise NotImplementedError("say how to make stores that share a backend: override make_stores()")

    async def advance(self, seconds: float) -> None:
        """Let time pass, for the stores."""
        await self.clock.advance(seconds)

    async def drop(self, store: Store, count: int) -> None:
        """Lose the next `count` deliveries to this process, in a way that it does not notice."""
        self._faults(store, "drop").drop(count)

    async def duplicate(self, store: Store, count: int) -> None:
        """Deliver each of the next `count` deliveries to this process twice."""
        self._faults(store, "duplicate").duplicate(count)

    async def lose_answers(self, store: Store, count: int) -> None:
        """Let the backend make the next `count` changes of this process, and lose its answers."""
        self._faults(store, "lose_answers").unanswered(count)

    async def rewind(self, store: Store, topic: str, count: int) -> None:
        """Take the topic's last `count` publications back, in the same epoch."""
        self._faults(store, "rewind").rewind(topic, count)

    async def lose(self, store: Store, topic: str) -> None:
        """Lose the topic's publications and position."""
        self._faults(store, "lose").lose(topic)

    async def stall(self, store: Store) -> None:
        """Cut this process off from the backend."""
        self._faults(store, "stall").stall()

    async def resume(self, store: Store) -> None:
        """End `stall`."""
        self._faults(store, "resume").resume()

    async def kill(self, store: Store) -> None:
        """End this process without a word to the backend."""
        self._faults(store, "kill").kill()

    # --- for the tests ---

    @asynccontextmanager
    async def nodes(self, count: int) -> AsyncIterator[Sequence[Store]]:
        """So many processes, entered."""
        self.clock = FakeClock()
        async with AsyncExitStack() as stack:
            stores = await self.make_stores(count, self.clock)
            for store in stores:
                await stack.enter_async_context(store)
            yield stores

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Store]:
        """One process, entered."""
        async with self.nodes(1) as (store,):
            yield store

    async def until(self, condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
        """Wait for the condition, in the stores' time."""
        step = 0.05
        for _ in range(round(seconds / step)):
            if condition():
                return
            await self.advance(step)
        assert condition(), f"not within {seconds} s"

    async def repeated(self, operation: Callable[[], Awaitable[T]]) -> T:
        """What comes of the operation, asked for again for as long as nobody knows what came of it."""
        for _ in range(8):
            task = asyncio.ensure_future(operation())
            await self.until(task.done)
            if not isinstance(task.exception(), StoreError):
                break
        return task.result()

    async def quiet(self) -> None:
        """Wait long enough for what must not happen to happen."""
        await self.advance(0.3)

    @staticmethod
    def name(prefix: str = "t") -> str:
        """A topic or key of its own."""
        return f"{prefix}:{uuid4().hex}"

    @staticmethod
    def _faults(store: Store, name: str) -> Any:
        faults = getattr(store, "faults", None)
        if faults is None:
            raise NotImplementedError(f"the contract needs this fault: override {name}() to bring it about")
        return faults
