"""Load: processes that run, who reads in them, and who publishes steadily, whatever happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Fresh, History, Position, Publication, Stale
from starlette_realtime.store import Store
from starlette_realtime.testing import Leaks
from starlette_realtime.testing.contract.harness import Heard
from tests.store.redis.support import FaultyStore, Servers, stores
from tests.support.waiting import until

WIDE = History(size=1_000, ttl=60.0)
"""Enough to make up for a second of what `publishing` publishes."""

NUMBERS = count(100)
PACE = 0.004
"""Seconds between two publications."""

PATIENCE = 30.0
"""Seconds until whoever repeats gives up."""


@asynccontextmanager
async def running(servers: Servers, count: int, **options: Any) -> AsyncIterator[list[FaultyStore]]:
    """So many processes' stores, entered; in the end they are reachable again, and hold nothing any more."""
    options = {"dedupe": 60.0, **options}  # longer than anything here is repeated, on any machine
    async with Leaks(timeout=5.0), stores(servers, count, **options) as made, AsyncExitStack() as stack:
        for store in made:
            await stack.enter_async_context(store)
        baseline = [store.gauges() for store in made]
        yield made
        for store in made:
            store.restore()
        await until(
            lambda: all(_within(store.gauges(), before) for store, before in zip(made, baseline, strict=True)),
            what=f"{baseline} again",
        )


@asynccontextmanager
async def readers(topic: str, *where: Store) -> AsyncIterator[list[Heard]]:
    """One subscriber in each of these stores; the same store again has another one."""
    heard = [Heard() for _ in where]
    for store, reader in zip(where, heard, strict=True):
        await store.subscribe(topic, reader)
    yield heard
    for store, reader in zip(where, heard, strict=True):
        await store.unsubscribe(topic, reader)


def _within(now: Mapping[str, int], before: Mapping[str, int]) -> bool:
    return all(count <= before[name] for name, count in now.items())


class Sent:
    """What a publisher has sent."""

    def __init__(self) -> None:
        self.acknowledged: dict[bytes, Position] = {}
        self.refused: set[bytes] = set()
        """What was refused the last time, and may have been made or not."""
        self.attempts = 0


@asynccontextmanager
async def publishing(
    store: Store, topic: str, *, pace: float = PACE, repeat: bool = True, history: History = WIDE
) -> AsyncIterator[Sent]:
    """
    Publish numbers that nobody else publishes, one every `pace` seconds, without waiting for each other.

    Each has a key of its own; with `repeat`, what is refused is published again. The block's end waits for all answers.
    """
    sent, over, loop = Sent(), asyncio.Event(), asyncio.get_running_loop()

    async def publish(data: bytes) -> None:
        deadline = loop.time() + PATIENCE
        while True:
            sent.attempts += 1
            try:
                position = await store.publish(topic, data, history=history, producer="u", key=data.decode())
            except StoreError:
                if not repeat or loop.time() > deadline:
                    sent.refused.add(data)
                    return
                await asyncio.sleep(0.02)
            else:
                sent.acknowledged[data] = position
                return

    async with asyncio.TaskGroup() as group:

        async def publish_all() -> None:
            while not over.is_set():
                group.create_task(publish(b"%d" % next(NUMBERS)))
                await asyncio.sleep(pace)

        group.create_task(publish_all())
        yield sent
        over.set()


async def more(sent: Sent, count: int = 100, *, within: float = 10.0) -> None:
    """Wait until so many more are acknowledged."""
    enough = len(sent.acknowledged) + count
    await until(lambda: len(sent.acknowledged) >= enough, within=within, what=f"{count} acknowledgements")


async def all_was_heard(heard: Sequence[Heard], sent: Sent, *, within: float = 10.0) -> None:
    """Wait until every reader has all that was acknowledged, and see that it came in order, once, without a gap."""
    await until(
        lambda: all(sent.acknowledged.keys() <= set(reader.data) for reader in heard),
        within=within,
        what="everything that was acknowledged",
    )
    for reader in heard:
        assert reader.gaps == []
        positions = {publication.data: publication.position for publication in reader.publications}
        assert len(positions) == len(reader.publications), "something came twice"
        found = offsets(reader)
        assert found == list(range(found[0], found[0] + len(positions))), "out of order, or with a hole"
        assert sent.acknowledged.items() <= positions.items()
        assert positions.keys() - sent.acknowledged.keys() <= sent.refused


def offsets(deliveries: Sequence[Delivery]) -> list[int]:
    """Those of the publications among them."""
    return [each.position.offset for each in deliveries if isinstance(each, Publication) and each.position is not None]


def told(heard: Heard, kind: type[Stale | Fresh]) -> int:
    """How often a reader was told that the store is away, or back."""
    return sum(isinstance(delivery, kind) for delivery in heard)
