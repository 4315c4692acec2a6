"""Watching: topics whose presence is followed in this process, each once for however many watchers."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Fresh, Gap, PresenceDiff, Stale
from starlette_realtime.presence.changes import Diff, Snapshot, StoreAway, StoreBack, Watched
from starlette_realtime.presence.roster import Change, Roster
from starlette_realtime.presence.users import UserPresence, by_user, view
from starlette_realtime.store import Store
from starlette_realtime.tasks import Tasks

__all__ = ["ALL", "BACKLOG", "SAMPLE", "Watch", "Watching"]

logger = logging.getLogger("starlette_realtime.presence")

ALL = 2**31 - 1
"""A limit that is none."""

SAMPLE = 20
"""How many members are told of a topic that has more than is shown."""

BACKLOG = 16
"""How many differences wait for one watcher; one that is further behind gets a snapshot in their place."""

FIRST_RETRY = 0.05
"""Seconds until a snapshot is asked for again; each further time twice as long."""

LAST_RETRY = 5.0
"""Seconds that no attempt waits longer than."""


class Watch:
    """
    One watcher of one topic: `async with tracker.watch(topic) as changes: async for change in changes: …`.

    It begins with a `Snapshot`; then each `Diff` follows on what came before, or another `Snapshot` takes its place.
    Entering raises `StoreError` when the store is away. It ends when the tracker is closed. One task iterates, once.
    """

    def __init__(self, watching: "Watching", topic: str) -> None:
        self._watching = watching
        self._topic = topic
        self._following: _Following | None = None
        self._diffs: deque[Diff] = deque()
        self._anew = True  # a snapshot is due, in the place of any diffs
        self._told_away = False
        self._closed = False
        self._woken = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._following is not None or self._closed:
            raise RuntimeError("a watch is entered once: call watch() again")
        self._following = await self._watching.attach(self._topic, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Watched:
        while not self._closed:
            change = self._next()
            if change is not None:
                return change
            self._woken.clear()
            await self._woken.wait()
        raise StopAsyncIteration

    def users(self) -> list[UserPresence]:
        """
        The users that this process knows of at this moment, without asking the store.

        That may be a little more than what the iteration has told. It takes time that grows with the members.
        """
        if self._following is None:
            raise RuntimeError("enter it first: async with tracker.watch(topic) as changes")
        return by_user(self._following.roster.entries(ALL))

    # --- what the followed topic calls ------------------------------------------------------------------------------

    def put(self, diff: Diff) -> None:
        """Tell a difference, unless a snapshot has it anyway."""
        if not self._anew:
            if len(self._diffs) >= BACKLOG:
                self.restart()
            else:
                self._diffs.append(diff)
        self._woken.set()

    def restart(self) -> None:
        """Tell a snapshot next."""
        self._diffs.clear()
        self._anew = True
        self._woken.set()

    def wake(self) -> None:
        """Look whether the store is there."""
        self._woken.set()

    def close(self) -> None:
        """Tell nothing more."""
        if not self._closed:
            self._closed = True
            self._woken.set()
            if self._following is not None:
                self._watching.detach(self._following, self)

    def _next(self) -> Watched | None:
        following = self._following
        if following is None:
            raise RuntimeError("enter it first: async with tracker.watch(topic) as changes")
        if self._told_away and not following.away:
            self._told_away = False
            return StoreBack()
        if self._diffs:
            return self._diffs.popleft()
        if self._anew and following.roster.settled:  # else the batch that is being gathered comes first
            self._anew = False
            return following.snapshot()
        if following.away and not self._told_away:
            self._told_away = True
            return StoreAway()
        return None


class _Following:
    """One topic: its roster, and who watches it."""

    def __init__(self, watching: "Watching", name: str, *, clock: Clock, interval: float, shown: int) -> None:
        self.name = name
        self.roster = Roster(clock=clock, interval=interval, changed=self._changed, gap=self._lost)
        self.watches: dict[Watch, None] = {}
        self.away = False
        self.started: asyncio.Task[None] | None = None
        self.loader: asyncio.Task[None] | None = None
        self._watching = watching
        self._shown = shown
        self._sampled = False
        self._snapshot: Snapshot | None = None

    def deliver(self, delivery: Delivery) -> None:
        """Hear the store."""
        if not self.watches:
            return
        if isinstance(delivery, PresenceDiff):
            self.roster.apply(delivery)
        elif isinstance(delivery, Stale | Fresh):
            self.away = isinstance(delivery, Stale)
            for watch in tuple(self.watches):
                watch.wake()
        if isinstance(delivery, Fresh | Gap):
            self.roster.restart()
            self._lost()

    def snapshot(self) -> Snapshot:
        """All that was told up to now, or a sample."""
        if self._snapshot is None:
            roster = self.roster
            total = len(roster)
            complete = total <= self._shown
            entries = roster.entries(self._shown if complete else min(SAMPLE, self._shown))
            self._snapshot = Snapshot(roster.seq, total, tuple(map(view, entries)), complete)
            self._sampled = not complete
        return self._snapshot

    def _changed(self, change: Change) -> None:
        self._snapshot = None
        total, size = len(self.roster), len(change.joined) + len(change.updated) + len(change.left)
        before, self._sampled = self._sampled, total > self._shown
        watches = tuple(self.watches)
        # A sample can't be added to, a store that was wound back has another past, and what is large isn't kept twice.
        if before or self._sampled or change.seq <= change.prev or size > max(self._shown, SAMPLE):
            for watch in watches:
                watch.restart()
            return
        joined, updated = tuple(map(view, change.joined)), tuple(map(view, change.updated))
        diff = Diff(change.prev, change.seq, total, joined, updated, tuple(change.left))
        for watch in watches:
            watch.put(diff)

    def _lost(self) -> None:
        self._watching.reload(self)


class Watching:
    """The topics that somebody in this process watches. `interval` and `shown` are those of `PresenceTracker`."""

    def __init__(self, *, store: Store, clock: Clock, interval: float, shown: int) -> None:
        self._store = store
        self._clock = clock
        self._interval = interval
        self._shown = shown
        self._followed: dict[str, _Following] = {}
        self._tasks = Tasks("following presence failed", logger=logger, expected=(StoreError,))

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment."""
        followed = self._followed.values()
        return {
            "watched": len(followed),
            "watchers": sum(len(following.watches) for following in followed),
            "tasks": len(self._tasks),
        }

    async def attach(self, name: str, watch: Watch) -> _Following:
        """Follow a topic, whose members are known then. Raises `StoreError`: nothing is left then."""
        following = self._followed.get(name)
        if following is None:
            following = _Following(self, name, clock=self._clock, interval=self._interval, shown=self._shown)
            self._followed[name] = following
            following.started = self._tasks.start(self._start(following))
        following.watches[watch] = None
        assert following.started is not None
        try:
            await asyncio.shield(following.started)
        except BaseException:
            self.detach(following, watch)
            raise
        return following

    def detach(self, following: _Following, watch: Watch) -> None:
        """Undo `attach`; with the last one the subscription ends."""
        if watch not in following.watches:
            return
        del following.watches[watch]
        if following.watches:
            return
        self._forget(following)
        following.roster.close()
        if following.loader is not None:
            following.loader.cancel()
        self._tasks.start(self._stop(following))

    def reload(self, following: _Following) -> None:
        """Have a snapshot mend what was missed."""
        if following.loader is None and following.watches:
            following.loader = self._tasks.start(self._load(following))

    async def close(self) -> None:
        """End all watches."""
        for following in tuple(self._followed.values()):
            for watch in tuple(following.watches):
                watch.close()
        await self._tasks.ended()

    async def _start(self, following: _Following) -> None:
        try:
            await self._store.subscribe(following.name, following.deliver)
            following.roster.load(await self._store.members(following.name, limit=ALL))
        except BaseException:
            self._forget(following)  # whoever comes next starts anew
            raise

    async def _stop(self, following: _Following) -> None:
        if following.started is not None:
            await asyncio.wait((following.started,))
        await self._store.unsubscribe(following.name, following.deliver)

    async def _load(self, following: _Following) -> None:
        roster, delay = following.roster, FIRST_RETRY
        try:
            while not roster.loaded:
                try:
                    roster.load(await self._store.members(following.name, limit=ALL))
                except Exception as exc:
                    if not isinstance(exc, StoreError):
                        logger.exception("the store failed with something else than a StoreError")
                if not roster.loaded:
                    await self._clock.sleep(delay)
                    delay = min(delay * 2, LAST_RETRY)
                    roster.forget()
        finally:
            following.loader = None

    def _forget(self, following: _Following) -> None:
        if self._followed.get(following.name) is following:
            del self._followed[following.name]
