"""Caps: how many connections a user and an address have, counted as leased slots in the store."""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, Mapping
from urllib.parse import quote

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import RateLimited, StoreError
from starlette_realtime.ratelimit.shared import SharedQuotas
from starlette_realtime.store import Store

__all__ = ["Caps"]

logger = logging.getLogger("starlette_realtime.ratelimit")

COME_BACK = 5.0
"""What who is over a cap is told to wait, in seconds: nobody knows when another connection ends."""

HEAL = 5.0
"""Seconds between two attempts to tell the store of slots that were taken while it was away."""

ANYHOW = 2**31
"""A limit that is none: for slots that are taken already."""


class Caps:
    """
    Slots of this process under keys, such as a user's and an address's.

    While the store is away, a cap is this process's own, divided by the last known number of processes. What was
    taken meanwhile is made known as soon as the store is back.
    """

    def __init__(self, store: Store, clock: Clock, quotas: SharedQuotas) -> None:
        self._store = store
        self._clock = clock
        self._quotas = quotas
        self._held: dict[str, dict[str, int]] = {}  # key → slot → how many connections of this process hold it
        self._unknown: dict[tuple[str, str], int] = {}  # (key, slot) that the store has not heard of, and how often
        self._timer: Timer | None = None
        self._healing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # that outlive who waits for them

    @property
    def held(self) -> int:
        """How many slots this process holds."""
        return sum(len(slots) for slots in self._held.values())

    @property
    def untold(self) -> int:
        """How many of them the store has not heard of yet."""
        return len(self._unknown)

    async def admit(self, slot: str, caps: Mapping[str, int]) -> None:
        """
        Take `slot` under each of these keys, or under none. Raises `RateLimited`.

        When cancelled, what it takes all the same is given back as soon as the store has said so.
        """
        if not caps:
            return
        admitting = self._start(self._admit_all(slot, caps))
        try:
            await asyncio.shield(admitting)
        except asyncio.CancelledError:
            admitting.add_done_callback(lambda task: self._undo(task, slot, caps))
            raise

    async def release(self, slot: str, keys: Collection[str]) -> None:
        """Give `slot` back under each of these keys; when cancelled, that goes on by itself."""
        if keys:
            await asyncio.shield(self._start(self._release_all(slot, keys)))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have it done whatever becomes of who asked for it: a slot must not be taken unknown to us."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _undo(self, admitted: asyncio.Task[None], slot: str, caps: Mapping[str, int]) -> None:
        if not admitted.cancelled() and admitted.exception() is None:
            self._start(self._release_all(slot, caps))

    async def _admit_all(self, slot: str, caps: Mapping[str, int]) -> None:
        taken: list[str] = []
        try:
            for key, limit in caps.items():
                if not await self._admit(key, slot, limit):
                    raise RateLimited("too many connections", retry_after=COME_BACK)
                taken.append(key)
        except BaseException:
            await self._release_all(slot, taken)
            raise

    async def _release_all(self, slot: str, keys: Iterable[str]) -> None:
        for key in keys:
            await self._release(slot, key)

    async def _release(self, slot: str, key: str) -> None:
        slots = self._held.get(key, {})
        count = slots.pop(slot, 0)
        if count > 1:
            slots[slot] = count - 1
        elif key in self._held and not slots:
            del self._held[key]
        unknown = self._unknown.pop((key, slot), 0)
        if unknown > 1:
            self._unknown[key, slot] = unknown - 1
        if unknown:
            return
        try:
            await self._store.release(key, slot)
        except StoreError as exc:  # the store makes up for it
            logger.debug("a connection's slot is given back later: %r", exc)

    async def _admit(self, key: str, slot: str, limit: int) -> bool:
        admitted = await self._ask(key, slot, limit)
        if admitted is None:  # the store is away
            slots = self._held.get(key, {})
            admitted = slot in slots or len(slots) < max(1, limit // self._quotas.nodes)
            if admitted:
                self._unknown[key, slot] = self._unknown.get((key, slot), 0) + 1
                self._heal_later()
        if admitted:
            slots = self._held.setdefault(key, {})
            slots[slot] = slots.get(slot, 0) + 1
        return admitted

    async def _ask(self, key: str, slot: str, limit: int) -> bool | None:
        if not self._quotas.may_ask():
            return None
        try:
            admitted = await self._store.admit(key, slot, limit=limit)
        except StoreError as exc:
            self._quotas.failed(exc)
            return None
        self._quotas.answered()
        self._quotas.count_nodes()
        return admitted

    def _heal_later(self) -> None:
        if self._timer is None and self._healing is None:
            self._timer = self._clock.call_later(HEAL, self._heal_now)

    def _heal_now(self) -> None:
        self._timer = None
        self._healing = self._start(self._heal())

    async def _heal(self) -> None:
        try:
            while self._unknown:
                key, slot = next(iter(self._unknown))
                await self._store.admit(key, slot, limit=ANYHOW)
                count = self._unknown.pop((key, slot), 0)
                if count > 1:
                    self._unknown[key, slot] = count - 1
                elif not count:  # released meanwhile
                    await self._store.release(key, slot)
        except StoreError as exc:
            logger.debug("the store is still away: %r", exc)
            self._timer = self._clock.call_later(HEAL, self._heal_now)
        finally:
            self._healing = None

    async def close(self) -> None:
        """Tell the store no more of slots that were taken while it was away; what is being given back is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._healing is not None:
            self._healing.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))


def user_key(user: str) -> str:
    """What a user's connections are counted under."""
    return "connections:user:" + quote(user.encode(errors="surrogatepass"), safe="")


def address_key(group: str) -> str:
    """What an address's connections are counted under."""
    return "connections:address:" + group
