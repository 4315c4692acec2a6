"""Visits: the presence records of this process's connections, and bringing the store to what they should be."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry
from starlette_realtime.store import Store

__all__ = ["LINGERING", "Told", "Visit", "Visits"]

logger = logging.getLogger("starlette_realtime.presence")

LINGERING = 10_000
"""How many connections that have ended stay present at most; over it, the longest gone leaves early."""

FIRST_RETRY = 0.1
"""Seconds until the store is tried again; each further time twice as long, less up to half at random."""

LAST_RETRY = 5.0
"""Seconds that no attempt waits longer than."""

Told = Callable[[str, Entry, bool], object]
"""Hears of a user who came (True) to a topic of the store, or went (False)."""


class Visit:
    """One connection's record: what it should be, and whether the store may have it."""

    __slots__ = ("entry", "person", "present", "sent", "timer", "waiters")

    def __init__(self, person: "_Person", entry: Entry) -> None:
        self.person = person
        self.entry = entry
        self.present = True
        self.sent = False
        self.timer: Timer | None = None  # while it lingers
        self.waiters: list[asyncio.Future[None]] = []

    def wanted(self) -> Entry | None:
        """What the store should have."""
        return self.entry if self.present else None


class _Person:
    """One user's visits of one topic: what the store is told of them, it is told in order."""

    __slots__ = ("dirty", "failures", "lingering", "retry", "task", "topic", "visits", "who")

    def __init__(self, topic: str, who: str) -> None:
        self.topic = topic
        self.who = who
        self.visits: dict[Visit, None] = {}
        self.dirty: dict[Visit, None] = {}  # those that the store doesn't have as they are
        self.lingering: deque[Visit] = deque()
        self.task: asyncio.Task[None] | None = None
        self.retry: Timer | None = None
        self.failures = 0  # in a row


class Visits:
    """
    Who is present from this process.

    `linger` is how long, in seconds, a user stays present whose connection broke: one that comes back within it takes
    the record over. While the store is away nothing here fails: it is tried again until it is back.
    """

    def __init__(self, *, store: Store, clock: Clock, rng: random.Random, linger: float, told: Told) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._linger = linger
        self._told = told
        self._people: dict[tuple[str, str], _Person] = {}
        self._lingering: dict[Visit, None] = {}
        self._away = False
        self._closing = False

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment."""
        people = self._people.values()
        return {
            "present": sum(len(person.visits) for person in people),
            "lingering": len(self._lingering),
            "tasks": sum(person.task is not None for person in people),
            "retries": sum(person.retry is not None for person in people),
        }

    # --- coming and going -------------------------------------------------------------------------------------------

    def begin(self, topic: str, entry: Entry) -> Visit:
        """A connection is there; what lingers for the same user goes on as this one, by its id and `since`."""
        key = (topic, entry.who)
        person = self._people.get(key)
        if person is None:
            person = self._people[key] = _Person(*key)
        if person.lingering:
            visit = person.lingering[0]
            self._rouse(visit)
            old = visit.entry
            visit.entry = msgspec.structs.replace(entry, connection=old.connection, since=old.since)
        else:
            visit = Visit(person, entry)
            person.visits[visit] = None
        self._wake(visit)
        return visit

    def update(self, visit: Visit, entry: Entry) -> None:
        """Show something else."""
        visit.entry = entry
        self._wake(visit)

    def end(self, visit: Visit, *, clean: bool) -> None:
        """The connection has ended; who is known and didn't say goodbye lingers."""
        if clean or self._linger <= 0 or visit.entry.user is None:
            self._depart(visit)
            return
        if len(self._lingering) >= LINGERING:
            self._lingered(next(iter(self._lingering)))
        self._lingering[visit] = None
        visit.person.lingering.append(visit)
        visit.timer = self._clock.call_later(self._linger, self._lingered, visit)

    async def attempted(self, visit: Visit) -> None:
        """Wait until the store has been told, or could not be; not at all while it is known to be away."""
        if not self._away and visit.person.task is not None and visit in visit.person.dirty:
            waiter = asyncio.get_running_loop().create_future()
            visit.waiters.append(waiter)
            await waiter

    async def close(self) -> None:
        """Let nobody linger, and wait until the store knows or doesn't answer."""
        self._closing = True
        try:
            for visit in tuple(self._lingering):
                self._lingered(visit)
            while owed := [person for person in self._people.values() if self._owes(person)]:
                for person in owed:
                    if person.task is None:
                        self._retry(person)
                await asyncio.wait([person.task for person in owed if person.task is not None])
        finally:
            self._closing = False

    def _owes(self, person: _Person) -> bool:
        """Whether somebody has yet to leave; who stays, and could not be told to the store, is not tried again."""
        if person.task is None:
            person.dirty = {visit: None for visit in person.dirty if not visit.present}
            if person.retry is not None:
                person.retry.cancel()
                person.retry = None
        return bool(person.dirty or person.task is not None)

    def _lingered(self, visit: Visit) -> None:
        self._rouse(visit)
        self._depart(visit)

    def _rouse(self, visit: Visit) -> None:
        del self._lingering[visit]
        visit.person.lingering.remove(visit)
        if visit.timer is not None:
            visit.timer.cancel()
            visit.timer = None

    def _depart(self, visit: Visit) -> None:
        visit.present = False
        self._wake(visit)

    # --- the store --------------------------------------------------------------------------------------------------

    def _wake(self, visit: Visit) -> None:
        person = visit.person
        person.dirty[visit] = None
        if person.task is None and person.retry is None:
            self._start(person)

    def _start(self, person: _Person) -> None:
        person.task = asyncio.get_running_loop().create_task(self._work(person))

    def _retry(self, person: _Person) -> None:
        if person.retry is not None:
            person.retry.cancel()
            person.retry = None
        self._start(person)

    async def _work(self, person: _Person) -> None:
        """Bring the store to what is wanted, visit by visit; stop at the first failure, for a while."""
        try:
            while person.dirty:
                visit = next(iter(person.dirty))
                waiters, visit.waiters = visit.waiters, []
                try:
                    await self._bring(visit)
                finally:
                    _release(waiters)
                person.failures = 0
                self._answered()
        except Exception as exc:
            self._failed(person, exc)
        finally:
            person.task = None
            for visit in person.dirty:
                _release(visit.waiters)
                visit.waiters.clear()
            if not person.visits:
                self._people.pop((person.topic, person.who), None)

    async def _bring(self, visit: Visit) -> None:
        person, wanted = visit.person, visit.wanted()
        if wanted is not None:
            visit.sent = True  # whatever comes of it: a request that failed may have been served
            came = await self._store.enter(person.topic, (wanted,))
            if visit.wanted() is wanted:
                del person.dirty[visit]
            for each in came:
                self._told(person.topic, each, True)
            return
        person.dirty.pop(visit)
        person.visits.pop(visit, None)
        if visit.sent:  # after a StoreError the store makes it up, and `Store.on_presence` tells what came of it
            for each in await self._store.leave(person.topic, (visit.entry.connection,)):
                self._told(person.topic, each, False)

    def _answered(self) -> None:
        if self._away:
            self._away = False
            logger.info("the store is back, and is told who is present")

    def _failed(self, person: _Person, error: Exception) -> None:
        if not isinstance(error, StoreError):
            logger.error("the store failed with something else than a StoreError", exc_info=error)
        elif not self._away:
            logger.warning("the store can't be told who is present, and is tried again until it is back: %s", error)
        self._away = True
        if person.dirty and not self._closing:
            delay = min(LAST_RETRY, FIRST_RETRY * 2**person.failures) * self._rng.uniform(0.5, 1.0)
            person.failures = min(person.failures + 1, 16)
            person.retry = self._clock.call_later(delay, self._retry, person)


def _release(waiters: list["asyncio.Future[None]"]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
