"""MemoryStore: the whole contract within one process, on an injected clock, with faults for tests."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import limits.aio.storage
import msgspec

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import Delivery, Entry, History, Members, Node, Page, Position, Recovery
from starlette_realtime.store.backend import Lease, MemoryBackend
from starlette_realtime.store.base import READ_BYTES, REVOCATIONS, Store
from starlette_realtime.store.faults import Faults
from starlette_realtime.store.inbox import Inbox

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """
    The default store: one process, or several that are only played by siblings in one event loop.

    Deliveries happen within `publish`, so that nothing is slower or can be lost. It works without being entered: then
    there is no lease, and nothing to beat or to reap. `faults` breaks it on purpose.

    `timeout`: seconds that an operation may wait while the store is stalled. `lease`: seconds after its last sign of
    life that a process's presence and slots stand; `beat` and `sweep`: seconds between two signs, and between two
    looks for dead processes. `rng` makes ids; they are unique and not secret. Everything else is `Store`'s.

    The backend's options are used where no `backend` is given. `dedupe`: seconds that an idempotency key is known.
    `forget`: seconds from a topic's last publication until its position is forgotten, at least ten times its history's
    ttl, and never while somebody listens or is present; `forget_joined` where it was only read. `revocation_life`:
    seconds, the longest life of a token. `max_keys`: over so many idempotency keys, the oldest is forgotten early, with
    a warning; over so many claims or revocations, a further one is refused with `StoreError`.

    `history_bytes`: data that one topic's history holds, whatever its size; `total_bytes`: data that all of them hold;
    `max_topics`: how many topics there are. (A topic takes about 2 kB besides, and a publication 300 bytes.) Over
    either of these two, with a warning, the longest unused of the topics where nobody listens or is present are
    forgotten early: whoever comes back to one is told `forgotten`. Where there is none, a further topic is refused with
    `StoreError`, and a further publication drops the oldest ones of its own topic's history: `trimmed`.
    """

    _rings = False

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        backend: MemoryBackend | None = None,
        rng: random.Random | None = None,
        timeout: float = 2.0,
        lease: float = 15.0,
        beat: float = 5.0,
        sweep: float = 3.0,
        dedupe: float = 120.0,
        forget: float = 86_400.0,
        forget_joined: float = 60.0,
        revocation_life: float = 86_400.0,
        history_bytes: int = 33_554_432,
        max_keys: int = 200_000,
        max_topics: int = 100_000,
        total_bytes: int = 268_435_456,
        **options: Any,
    ) -> None:
        if not 0 < beat < lease:
            raise ConfigurationError("a lease must be longer than the beat that renews it: set lease > beat > 0")
        if clock is None and backend is not None:
            clock = backend.clock
        super().__init__(clock=clock, rng=rng, **options)
        if backend is None:
            backend = MemoryBackend(
                clock=self.clock,
                rng=self._rng,
                dedupe=dedupe,
                forget=forget,
                forget_joined=forget_joined,
                revocation_life=revocation_life,
                history_bytes=history_bytes,
                max_keys=max_keys,
                max_topics=max_topics,
                total_bytes=total_bytes,
            )
        self._options = {"timeout": timeout, "lease": lease, "beat": beat, "sweep": sweep, **options}
        self.backend = backend
        self.faults = Faults(self)
        self._timeout = timeout
        self._lease_time = lease
        self._beat_interval = beat
        self._sweep_interval = sweep
        self._lease = self._incarnation()
        self._entered: dict[str, dict[str, Entry]] = {}  # what to announce anew: topic → connection → entry
        self._held: Counter[tuple[str, str]] = Counter()  # (key, slot) → how many of this process hold it
        self._leaving: list[tuple[str, str]] = []  # (topic, connection): left while the store was away
        self._releasing: list[tuple[str, str]] = []  # (key, slot): released meanwhile
        self._timers: dict[Callable[[], None], Timer] = {}
        self._inbox = Inbox(self._addressed, self._receives)

    @property
    def limits(self) -> limits.aio.storage.Storage:  # type: ignore[override]
        """The rate limiter's storage, shared by siblings."""
        return self.backend.limits

    def sibling(self) -> "MemoryStore":
        """Another process on the same backend, with the same options."""
        rng = random.Random(self._rng.getrandbits(64))
        return MemoryStore(clock=self.clock, backend=self.backend, rng=rng, **self._options)

    # --- publications ---

    async def publish(
        self, topic: str, data: bytes, *, history: History, producer: str = "", key: str = "", n: int = 0
    ) -> Position:
        """See `Store.publish`."""
        faults = self.faults
        if faults.active:
            await self._answer()
        position = self.backend.publish(topic, data, history, (producer, topic, key, n) if key else None)
        if faults.active:
            faults.answer()
        return position

    async def publish_volatile(self, topic: str, data: bytes) -> None:
        """See `Store.publish_volatile`."""
        if self.faults.active:
            await self._answer()
        self.backend.publish_volatile(topic, data)
        self.faults.answer()

    async def read(self, topic: str, *, since: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Recovery:
        """See `Store.read`."""
        await self._answer()
        return self.backend.topics.touch(topic).stream.read(since, limit, limit_bytes)

    async def page(self, topic: str, *, before: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Page:
        """See `Store.page`."""
        await self._answer()
        return self.backend.topics.touch(topic).stream.page(before, limit, limit_bytes)

    # --- presence ---

    async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """See `Store.enter`."""
        await self._answer()
        lease = self._standing()
        joined = self.backend.enter(topic, lease, entries)
        try:
            self.faults.answer()
        except StoreError:  # nobody was told that somebody came, so nobody did
            before = self._entered.get(topic, {})
            self.backend.leave(topic, lease, [each.connection for each in entries if each.connection not in before])
            old = [before[each.connection] for each in entries if each.connection in before]
            self.backend.enter(topic, lease, old)
            raise
        if entries:
            mine = self._entered.setdefault(topic, {})
            mine.update((entry.connection, entry) for entry in entries)
        return joined

    async def leave(self, topic: str, connections: Sequence[str]) -> tuple[Entry, ...]:
        """See `Store.leave`."""
        mine = self._entered.get(topic, {})
        leaving = [connection for connection in connections if mine.pop(connection, None) is not None]
        if topic in self._entered and not mine:
            del self._entered[topic]
        try:
            await self._answer()
        except BaseException:
            self._leaving.extend((topic, connection) for connection in leaving)
            raise
        left = self.backend.leave(topic, self._standing(), leaving)
        try:
            self.faults.answer()
        except StoreError:
            if left:
                self._presence_changed(topic, (), left)
            raise
        return left

    async def members(self, topic: str, *, limit: int) -> Members:
        """See `Store.members`."""
        await self._answer()
        return self.backend.members(topic, limit)

    # --- connections, tickets, revocations ---

    async def admit(self, key: str, slot: str, *, limit: int) -> bool:
        """See `Store.admit`."""
        await self._answer()
        lease = self._standing()
        admitted = self.backend.admit(key, slot, lease, limit)
        try:
            self.faults.answer()
        except StoreError:
            if (key, slot) not in self._held:
                self.backend.release(key, slot, lease)
            raise
        if admitted:
            self._held[key, slot] += 1
        return admitted

    async def release(self, key: str, slot: str) -> None:
        """See `Store.release`."""
        held = self._held.pop((key, slot), 0)
        if held > 1:
            self._held[key, slot] = held - 1
        elif held:
            try:
                await self._answer()
            except BaseException:
                self._releasing.append((key, slot))
                raise
            if (key, slot) not in self._held:
                self.backend.release(key, slot, self._standing())
                self.faults.answer()

    async def claim(self, key: str, *, ttl: float) -> bool:
        """See `Store.claim`."""
        await self._answer()
        claimed = self.backend.claim(key, ttl)
        self.faults.answer()
        return claimed

    async def revoke(self, subject: str, *, issued_before: float) -> None:
        """See `Store.revoke`."""
        await self._answer()
        self.backend.revoke(subject, issued_before)
        self.faults.answer()
        await self.publish(REVOCATIONS, msgspec.json.encode((subject, issued_before)), history=History())

    async def revocations(self) -> Mapping[str, float]:
        """See `Store.revocations`."""
        await self._answer()
        return self.backend.revocations()

    # --- processes ---

    async def send(self, node: str, data: bytes) -> None:
        """See `Store.send`."""
        await self._answer()
        lease = self.backend.leases.get(node)
        if lease is None or lease.dead or lease.until <= self.clock.now() or lease.store.faults.killed:
            raise StoreError(f"there is no process {node}: it is gone")
        lease.store._inbox.post(data)

    async def receive(self, deliver: Callable[[bytes], object]) -> None:
        """See `Store.receive`."""
        self._standing()
        await super().receive(deliver)
        self._inbox.drain_soon()

    async def nodes(self) -> Sequence[Node]:
        """See `Store.nodes`."""
        await self._answer()
        self._standing()
        now = self.clock.now()
        leases = self.backend.leases.values()
        return [Node(lease.node, max(0.0, now - lease.beaten)) for lease in leases if now < lease.until]

    # --- observation ---

    def gauges(self) -> dict[str, int]:
        """What this process holds, and what it shares."""
        inbox = {"inbox": len(self._inbox), "inbox_bytes": self._inbox.size, "timers": self.clock.timers}
        return {**super().gauges(), **self.backend.gauges(), **inbox}

    # --- the link ---

    async def _answer(self) -> None:
        """Wait for the store to answer, if it is going to."""
        faults = self.faults
        if not faults.active:
            return
        if faults.stalled:
            try:
                async with self.clock.timeout(self._timeout):
                    await faults.until_resumed()
            except TimeoutError:
                raise StoreError(f"the store did not answer within {self._timeout} s") from None
        if faults.killed:
            raise StoreError("this process was killed")

    def _hear(self, topic: str, delivery: Delivery) -> None:
        """Take a delivery from the backend, as often as the faults let it arrive."""
        if not self.faults.active:
            self._feeds.received(topic, delivery)
            return
        for _ in range(self.faults.copies()):
            self._feeds.received(topic, delivery)

    async def _listen(self, topic: str) -> None:
        await self._answer()
        self.backend.topics.listen(topic, self)

    async def _unlisten(self, topic: str) -> None:
        # Also while stalled: the server would notice that nobody is there any more.
        self.backend.topics.unlisten(topic, self)

    def _back(self) -> None:
        """The link is there again."""
        self._standing()
        self._interrupted()
        self._inbox.drain_soon()

    def _receives(self) -> bool:
        """Whether what is sent to this process arrives, and is awaited."""
        return bool(self._receivers) and not (self.faults.stalled or self.faults.killed)

    # --- the lease ---

    def _incarnation(self) -> Lease:
        lease = Lease(f"{self._rng.getrandbits(96):024x}", self, self.clock.now())
        self.node = lease.node
        return lease

    def _standing(self) -> Lease:
        """This process's lease; after a missed one, that of a new incarnation, with everything announced anew."""
        lease = self._lease
        if lease.dead or lease.until <= self.clock.now():
            lease.dead = True  # whatever of it is not announced anew will be reaped
            lease = self._lease = self._incarnation()
            self.backend.leases[lease.node] = lease
            self._renew()
            self._announce(lease)
        elif lease.node not in self.backend.leases:
            self.backend.leases[lease.node] = lease
        if self._leaving or self._releasing:
            self._make_up(lease)
        return lease

    def _announce(self, lease: Lease) -> None:
        for key, slot in self._held:
            self.backend.admit(key, slot, lease, len(self._held) + len(self.backend.slots.get(key, ())))
        for topic, entries in self._entered.items():
            joined = self.backend.enter(topic, lease, entries.values(), anew=True)
            if joined:
                self._presence_changed(topic, joined, ())

    def _make_up(self, lease: Lease) -> None:
        """Leave and release what could not be left and released, unless it has been entered or taken since."""
        leaving, self._leaving = self._leaving, []
        for topic, connection in leaving:
            if connection not in self._entered.get(topic, {}):
                last = self.backend.leave(topic, lease, (connection,))
                if last:
                    self._presence_changed(topic, (), last)
        releasing, self._releasing = self._releasing, []
        for key, slot in releasing:
            if (key, slot) not in self._held:
                self.backend.release(key, slot, lease)

    def _renew(self) -> None:
        self._lease.beaten = self.clock.now()
        if self._started:
            self._lease.until = self._lease.beaten + self._lease_time

    async def _start(self) -> None:
        self._started = True
        self._standing()
        self._renew()
        self._repeat(self._beat, self._beat_interval)
        self._repeat(self._sweep, self._sweep_interval)

    async def _stop(self) -> None:
        self._rest()
        if not self.faults.killed:
            while self._lease.node in self.backend.leases:
                self.backend.reap(self._lease)
        self._lease.dead = True
        for state in (self._entered, self._held, self._leaving, self._releasing):
            state.clear()
        self._inbox.clear()

    def _die(self) -> None:
        self._rest()
        for feed in self._feeds.abandon():
            self.backend.topics.unlisten(feed.topic, self)

    def _rest(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _repeat(self, call: Callable[[], None], interval: float) -> None:
        def again() -> None:
            self._timers[call] = self.clock.call_later(interval, again)
            if not self.faults.stalled and not self.faults.killed:
                call()

        self._timers[call] = self.clock.call_later(interval, again)

    def _beat(self) -> None:
        self._standing()
        self._renew()

    def _sweep(self) -> None:
        """Reap processes whose lease is over, step by step, each step on its own turn of the event loop."""
        self._standing()  # first of all this process itself: it may have been frozen
        now = self.clock.now()
        more = False
        for lease in list(self.backend.leases.values()):
            if lease.dead or lease.until <= now:
                for topic, left in self.backend.reap(lease):
                    if left:
                        self._presence_changed(topic, (), left)
                more = more or lease.node in self.backend.leases
        if more and self._started:
            self._timers[self._sweep_on] = self.clock.call_later(0.0, self._sweep_on)

    def _sweep_on(self) -> None:
        del self._timers[self._sweep_on]
        if not self.faults.stalled and not self.faults.killed:
            self._sweep()
