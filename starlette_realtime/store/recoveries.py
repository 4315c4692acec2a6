"""Recoveries: what those who join have missed, from the topic's ring, or by one read of the store for all of them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import History, Page, Position, Publication, Recovery
from starlette_realtime.store.feed import Feed
from starlette_realtime.store.gate import Gate
from starlette_realtime.store.ring import Rings, after

__all__ = ["Recoveries"]

T = TypeVar("T")

Question = tuple[str, Position | None, int, int]


class Source(Protocol):
    """What the recoveries ask of a backend."""

    async def read(self, topic: str, *, since: Position | None, limit: int, limit_bytes: int = ...) -> Recovery:
        """As `Store.read`."""

    async def page(self, topic: str, *, before: Position | None, limit: int, limit_bytes: int = ...) -> Page:
        """As `Store.page`."""


class _Tail:
    """A read of a topic's whole history, as much of it as a ring may have."""

    __slots__ = ("begun", "several", "since", "task")

    def __init__(self, since: Position, task: "asyncio.Task[Page | None]") -> None:
        self.since = since
        self.several = False  # whether it is asked for by readers who are at different positions
        self.begun = False
        self.task = task


class Recoveries:
    """
    Answers `Store.recover`.

    A reader who asks holds back what this process's subscribers hear meanwhile. So where the process is, right now, is
    as good an answer as the store's own position, and what the ring has is all that the reader has missed until there.
    What the ring can't tell is the store's to say: the reader may be ahead of this process, or of another past. A read
    is shared by those who asked for it before it began, since an older one may lack what a reader has seen already.
    `rings` say how much is read at once for several.
    """

    def __init__(self, source: Source, feed: Callable[[str], Feed | None], *, gate: Gate, rings: Rings) -> None:
        self._source = source
        self._feed = feed
        self._gate = gate
        self._rings = rings
        self._tails: dict[str, _Tail] = {}
        self._reads: dict[Question, asyncio.Task[Recovery]] = {}  # those that haven't begun
        self.tasks: set[asyncio.Task[Any]] = set()
        """The reads that are under way."""

    async def recover(
        self, topic: str, *, since: Position | None, limit: int, limit_bytes: int, history: History | None
    ) -> Recovery:
        """See `Store.recover`."""
        while True:
            feed = self._feed(topic)
            if feed is not None and feed.live and feed.ring is not None and feed.replay.position is not None:
                position = feed.replay.position
                if since is None:
                    return Recovery((), position, complete=True)
                found = feed.ring.answer(since, position, limit, limit_bytes, history)
                if found is not None:
                    return found
                if feed.ring.deep:
                    return await self._read(topic, since, limit, limit_bytes)
            if since is None:
                return await self._read(topic, None, 0, 0)
            tail = self._tails.get(topic)
            if tail is None or not tail.begun:
                break
            await asyncio.wait((tail.task,))  # what it brings may be enough, and if not, the next one will tell
        if tail is None:
            tail = self._tails[topic] = _Tail(since, self._spawn(self._read_tail(topic)))
        elif tail.since != since:
            tail.several = True
        page = await self._shared(tail.task)
        found = _judge(page, since, limit, limit_bytes) if page is not None else None
        return found if found is not None else await self._read(topic, since, limit, limit_bytes)

    def abandon(self) -> None:
        """Give up what is under way."""
        for task in self.tasks:
            task.cancel()
        self._tails.clear()
        self._reads.clear()

    # --- the store ---

    async def _read_tail(self, topic: str) -> Page | None:
        """The history; None where it takes no such thing to answer the only one who asks."""
        tail, rings = self._tails[topic], self._rings
        try:
            async with self._gate:
                tail.begun = True
                feed = self._feed(topic)
                if not tail.several and (feed is None or feed.ring is None or not feed.ring.asked):
                    if feed is not None and feed.ring is not None:
                        feed.ring.asked = True
                    return None
                page = await self._source.page(topic, before=None, limit=rings.entries, limit_bytes=rings.size)
        finally:
            self._tails.pop(topic, None)
        self._fill(topic, page.publications, whole=not page.more)
        feed = self._feed(topic)
        if feed is not None and feed.ring is not None and feed.replay.position is not None:
            feed.ring.asked = feed.ring.deep = True
        return page

    async def _read(self, topic: str, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        """Exactly this, for all who ask exactly this."""
        question = (topic, since, limit, limit_bytes)
        task = self._reads.get(question)
        if task is None:
            task = self._reads[question] = self._spawn(self._ask(question))
        return await self._shared(task)

    async def _ask(self, question: Question) -> Recovery:
        topic, since, limit, limit_bytes = question
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._gate)
            finally:
                self._reads.pop(question, None)  # whoever asks from now on needs a later read
            recovery = await self._source.read(topic, since=since, limit=limit, limit_bytes=limit_bytes)
        self._fill(topic, recovery.publications, whole=False)
        return recovery

    def _fill(self, topic: str, found: Sequence[Publication], *, whole: bool) -> None:
        feed = self._feed(topic)
        if found and feed is not None and feed.ring is not None and feed.replay.position is not None:
            feed.ring.fill(found, feed.replay.position, whole=whole)

    # --- tasks ---

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked hears it, unless they have all gone

    async def _shared(self, task: "asyncio.Task[T]") -> T:
        """Its result; whoever is cancelled leaves it to the others."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StoreError("the store was closed") from None
            raise
        except StoreError as exc:
            raise StoreError(str(exc)) from exc  # one for each of them


def _judge(page: Page, since: Position, limit: int, limit_bytes: int) -> Recovery | None:
    """What `Store.read` would have answered at that moment; None where the page doesn't tell."""
    if not page.publications:
        return None
    top = page.publications[-1].position
    assert top is not None
    found = after(page.publications, top, since, limit, limit_bytes)
    if found is None and not page.more:
        return Recovery((), top, complete=False, reason="trimmed")
    return found
