"""Process: all that one process has in Redis besides publications, from its start to its end."""

import logging
import random
from collections.abc import Callable

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.inbox import Inbox
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.lease import Lease
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.presence import Presence, PresenceChanged
from starlette_realtime.store.redis.reaper import Reaper
from starlette_realtime.store.redis.slots import Slots

__all__ = ["Process"]

logger = logging.getLogger("starlette_realtime.store")


class Process:
    """
    A process's lease, and what stands and falls with it: presence, slots, inbox.

    `changed` hears of presence that no call returned; `watched` says whether that reaches anybody. `addressed` hears of
    what was sent to this process, as long as `receiving` says so; `renamed` of its id, at every start and after every
    missed lease.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        clock: Clock,
        rng: random.Random,
        timeout: float,
        lease: float,
        beat: float,
        sweep: float,
        changed: PresenceChanged,
        watched: Callable[[], bool],
        addressed: Callable[[bytes], object],
        receiving: Callable[[], bool],
        renamed: Callable[[str], object],
    ) -> None:
        self._renamed = renamed
        self.lease = Lease(
            link, keys, clock=clock, rng=rng, lease=lease, beat=beat, renewed=self._renewed, beaten=self._beaten
        )
        self.presence = Presence(link, keys, self.lease, clock=clock, timeout=timeout, changed=changed)
        self.slots = Slots(link, keys, self.lease, clock=clock)
        self.inbox = Inbox(link, keys, rng=rng, timeout=timeout, deliver=addressed, wanted=receiving)
        self._reaper = Reaper(
            link, keys, self.lease, clock=clock, rng=rng, sweep=sweep, changed=changed, watched=watched
        )

    async def start(self) -> None:
        """Take a lease. Raises `StoreError`."""
        await self.lease.start()
        self._reaper.start()
        self._named(self.lease.node)

    async def stop(self) -> None:
        """Give everything back. When the store is away, its members leave when the lease has been missed."""
        await self._rest()
        try:
            await self.presence.stop()
            await self.slots.stop()
            await self.lease.give_up()
        except StoreError as exc:
            logger.warning("this process could not give back what it had in the store: others will clear it away")
            logger.info("why it could not: %s", exc)
        await self.abandon()

    async def abandon(self) -> None:
        """End without a word to the store."""
        await self._rest()
        await self.presence.discard()
        await self.slots.discard()

    def gauges(self) -> dict[str, int]:
        """What is held."""
        return {**self.presence.gauges(), **self.slots.gauges()}

    async def _rest(self) -> None:
        await self._reaper.stop()
        await self.inbox.stop()
        await self.lease.stop()

    def _named(self, node: str) -> None:
        self._renamed(node)
        self.inbox.own(node)

    def _renewed(self, node: str) -> None:
        self._named(node)
        self.presence.renewed()
        self.slots.renewed()

    def _beaten(self, waits: bool) -> None:
        self.presence.refresh()
        self.slots.refresh()
        if waits:
            self.inbox.woken()
