"""Feed: one topic's local subscribers, and how far they are."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from starlette_realtime.clock import Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Gap, Publication
from starlette_realtime.replay import Replay
from starlette_realtime.store.ring import Ring, Rings

__all__ = ["Deliver", "Feed"]

logger = logging.getLogger("starlette_realtime.store")

Deliver = Callable[[Delivery], object]
"""Hears one topic: called in the event loop, in the topic's order; must not block, and should not raise."""


class Feed:
    """
    The state of one topic: who hears it here, how far they are, and what is being done about it.

    At most one worker task at a time makes what is (`listening`, `replay`) what is wanted.
    """

    __slots__ = (
        "_subscribers",
        "_targets",
        "failures",
        "listening",
        "presence",
        "replay",
        "retry",
        "ring",
        "stale",
        "stale_timer",
        "topic",
        "waiters",
        "worker",
    )

    def __init__(self, topic: str, replay: Replay, rings: Rings | None) -> None:
        self.topic = topic
        self.replay = replay
        self.ring = Ring(rings) if rings is not None else None  # its last publications, up to the replay's position
        self.listening = False  # whether the backend delivers, or has been asked to
        self.waiters: set[asyncio.Future[None]] = set()  # subscribers that wait until it is live
        self.worker: asyncio.Task[None] | None = None
        self.failures = 0  # of the worker, in a row
        self.retry: Timer | None = None
        self.stale = False  # whether the subscribers were told
        self.stale_timer: Timer | None = None
        self.presence = 0  # the last presence sequence that was delivered
        self._subscribers: dict[Deliver, None] = {}
        self._targets: tuple[Deliver, ...] | None = ()

    @property
    def subscribers(self) -> int:
        """How many callbacks hear it."""
        return len(self._subscribers)

    @property
    def wanted(self) -> bool:
        """Whether anybody hears it or waits to."""
        return bool(self._subscribers or self.waiters)

    @property
    def live(self) -> bool:
        """Whether everything that is published from now on will be delivered."""
        return self.listening and not self.replay.needs_read

    def add(self, deliver: Deliver) -> None:
        """Let `deliver` hear what comes from now on; the same one again changes nothing."""
        self._subscribers[deliver] = None
        self._targets = None

    def remove(self, deliver: Deliver) -> None:
        """Let `deliver` hear nothing more, except what is being delivered at this moment."""
        self._subscribers.pop(deliver, None)
        self._targets = None

    def deliver(self, delivery: Delivery) -> None:
        """Tell all subscribers; one that fails is logged and harms no other."""
        targets = self._targets
        if targets is None:  # a snapshot: a callback may change who hears
            targets = self._targets = tuple(self._subscribers)
        for target in targets:
            try:
                target(delivery)
            except Exception:
                logger.exception("a subscriber failed; the others are served")

    def deliver_all(self, deliveries: Sequence[Publication | Gap]) -> None:
        """Tell all subscribers each of them, in order, once the ring has them all."""
        ring = self.ring
        if ring is not None:
            for delivery in deliveries:
                if isinstance(delivery, Gap):
                    ring.clear()
                elif delivery.position is not None:
                    ring.add(delivery)
        for delivery in deliveries:
            self.deliver(delivery)

    def forget(self) -> None:
        """Hold nothing any more."""
        self.replay.discard()
        if self.ring is not None:
            self.ring.clear()

    def refuse(self, error: Exception) -> None:
        """Let whoever waits for the feed to be live fail with a `StoreError`."""
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            if not waiter.done():
                refusal = StoreError(f"the store cannot be subscribed to: {error}")
                refusal.__cause__ = error
                waiter.set_exception(refusal)

    def rest(self) -> None:
        """Forget the timers."""
        for timer in (self.retry, self.stale_timer):
            if timer is not None:
                timer.cancel()
        self.retry = self.stale_timer = None
