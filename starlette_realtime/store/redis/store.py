"""RedisStore: the whole contract for many processes, on Redis 7.0 or later and Valkey."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import limits.aio.storage
import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import Entry, History, Members, Node, Page, Position, Recovery
from starlette_realtime.store.base import READ_BYTES, REVOCATIONS, Store
from starlette_realtime.store.redis.address import Address, Remap
from starlette_realtime.store.redis.cluster import Cluster
from starlette_realtime.store.redis.inspection import inspect, translate
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.lease import LONGEST
from starlette_realtime.store.redis.link import Link, Single
from starlette_realtime.store.redis.presence import decode_diff
from starlette_realtime.store.redis.process import Process
from starlette_realtime.store.redis.publications import Publications, decode_publication
from starlette_realtime.store.redis.quotas import RedisQuotas
from starlette_realtime.store.redis.revocations import Revocations
from starlette_realtime.store.redis.sentinel import Sentinel
from starlette_realtime.store.redis.slots import claim

__all__ = ["RedisStore"]

logger = logging.getLogger("starlette_realtime.store")

PAUSE = 0.1
"""Seconds between two attempts to start."""

NOT_ENTERED = (
    "the RedisStore is not running: pass lifespan=realtime.lifespan to the application, or use `async with store:`"
)


class RedisStore(Store):
    """
    State on a Redis or Valkey server, for as many processes as there are: `RedisStore("redis://localhost")`.

    `url` is one of `redis://[user:password@]host[:port][/db]`, `rediss://` (TLS), `unix:///path?db=0`,
    `redis+sentinel://host[:port][,host…]/service[?db=0]`, `redis+cluster://host[:port][,host…]`, the last two also
    with `rediss`. Options of redis-py's connections may follow: `?ssl_ca_certs=/path/ca.pem`. `prefix` starts all keys
    and channels, with the number of the database where that isn't 0: several applications may share a server.

    Durations are seconds. `timeout`: within which every operation succeeds or raises `StoreError`; until then it is
    repeated after a lost connection, without harm. `start_timeout`: for how long the start is tried again while the
    servers are not there yet, or slow; 0: it is tried once. `lease`: after its last sign of life, a process's presence
    and slots stand for so long, 300 s at most; `beat` and `sweep`: between two signs, and between two looks for dead
    processes. `dedupe`: how long an idempotency key is known, at least. `forget`: until a topic's position is
    forgotten, from its last publication, at least ten times its history's ttl; `forget_joined`: where it was only read.
    `revocation_life`: the longest life of a token. `probe`: silence after which the link has to prove that it is alive.
    `history_bytes`: data that the history of one topic holds. `remap`: from the address that a sentinel or a cluster's
    node tells to the one to connect to, for tunnels and containers. The rest is `Store`'s.

    It has to be entered: `Realtime`'s lifespan does that. One object serves one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "rt",
        timeout: float = 1.5,
        start_timeout: float = 5.0,
        lease: float = 15.0,
        beat: float = 5.0,
        sweep: float = 3.0,
        dedupe: float = 120.0,
        forget: float = 86_400.0,
        forget_joined: float = 60.0,
        revocation_life: float = 86_400.0,
        probe: float = 5.0,
        history_bytes: int = 33_554_432,
        remap: Remap | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        check_interval: float = 10.0,
        **options: Any,
    ) -> None:
        if not 0 < beat < lease:
            raise ConfigurationError("a lease must be longer than the beat that renews it: set lease > beat > 0")
        if lease > LONGEST:
            raise ConfigurationError(f"a lease is of {LONGEST:g} seconds at most, so that the dead are found")
        if not timeout > 0:
            raise ConfigurationError("timeout is in seconds and positive")
        if not prefix:
            raise ConfigurationError("prefix is what all keys start with, 'rt' by default: it can't be empty")
        rng = rng if rng is not None else random.SystemRandom()
        super().__init__(clock=clock, rng=rng, check_interval=check_interval, **options)
        _check_parser()
        self.address = Address.parse(url)
        """Where it is."""
        self._keys = Keys(prefix, self.address.db)
        self._topics: dict[bytes, str] = {}
        # A topic that is heard must not be forgotten between two checks, one of which may fail.
        self._keep = max(forget_joined, 4 * check_interval)
        kind = {"single": Single, "sentinel": Sentinel, "cluster": Cluster}[self.address.kind]
        self._link: Link = kind(
            self.address,
            keys=self._keys,
            name=f"{rng.getrandbits(96):024x}",
            clock=self.clock,
            timeout=timeout,
            probe=probe,
            remap=remap,
            heard=self._heard,
            lost=self._lost,
        )
        self._publications = Publications(
            self._link,
            self._keys,
            rng=rng,
            timeout=timeout,
            dedupe=dedupe,
            forget=max(forget, dedupe),
            forget_joined=forget_joined,
            history_bytes=history_bytes,
        )
        self._process = Process(
            self._link,
            self._keys,
            clock=self.clock,
            rng=rng,
            timeout=timeout,
            lease=lease,
            beat=beat,
            sweep=sweep,
            changed=self._presence_changed,
            watched=lambda: bool(self._presence_watchers),
            addressed=self._addressed,
            receiving=lambda: bool(self._receivers),
            renamed=self._renamed,
        )
        self._quotas = RedisQuotas(self._link, self._keys, self._check)
        self._revocations = Revocations(self._link, self._keys, life=revocation_life)
        self._wake = b""  # the channel on which this process hears that something waits for it
        self._waking: set[asyncio.Task[None]] = set()
        self._start_timeout = start_timeout
        self._open = False

    @property
    def node(self) -> str:  # type: ignore[override]
        """This process, as an incarnation: after a missed lease it is another one."""
        return self._process.lease.node

    @property
    def limits(self) -> limits.aio.storage.Storage:  # type: ignore[override]
        """The rate limiter's storage, on the same servers and connections."""
        return self._quotas

    # --- publications ---

    async def publish(
        self, topic: str, data: bytes, *, history: History, producer: str = "", key: str = "", n: int = 0
    ) -> Position:
        """See `Store.publish`. What is published without waiting in between goes to the server together."""
        self._check()
        return await self._publications.publish(topic, data, history, producer, key, n)

    async def publish_volatile(self, topic: str, data: bytes) -> None:
        """See `Store.publish_volatile`."""
        self._check()
        await self._publications.publish_volatile(topic, data)

    async def read(self, topic: str, *, since: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Recovery:
        """See `Store.read`."""
        self._check()
        return await self._publications.read(topic, since, limit, limit_bytes)

    async def page(self, topic: str, *, before: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Page:
        """See `Store.page`."""
        self._check()
        return await self._publications.page(topic, before, limit, limit_bytes)

    async def _where(self, topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
        return await self._publications.where(topics, self._keep)

    # --- presence ---

    async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """See `Store.enter`."""
        self._check()
        return await self._process.presence.enter(topic, entries)

    async def leave(self, topic: str, connections: Sequence[str]) -> tuple[Entry, ...]:
        """See `Store.leave`."""
        self._check()
        return await self._process.presence.leave(topic, connections)

    async def members(self, topic: str, *, limit: int) -> Members:
        """See `Store.members`."""
        self._check()
        return await self._process.presence.members(topic, limit)

    # --- connections, tickets, revocations ---

    async def admit(self, key: str, slot: str, *, limit: int) -> bool:
        """See `Store.admit`."""
        self._check()
        return await self._process.slots.admit(key, slot, limit)

    async def release(self, key: str, slot: str) -> None:
        """See `Store.release`."""
        self._check()
        await self._process.slots.release(key, slot)

    async def claim(self, key: str, *, ttl: float) -> bool:
        """See `Store.claim`."""
        self._check()
        return await claim(self._link, self._keys, self._rng, key, ttl)

    async def revoke(self, subject: str, *, issued_before: float) -> None:
        """
        See `Store.revoke`. It stands when this returns, also where it could not be published: then the other processes
        find it when they read all of them, every 10 s unless they are told otherwise.
        """
        self._check()
        await self._revocations.add(subject, issued_before)
        try:
            await self.publish(REVOCATIONS, msgspec.json.encode((subject, issued_before)), history=History())
        except StoreError as exc:
            logger.warning("a revocation stands, but could not be published: others hear of it when they read: %s", exc)

    async def revocations(self) -> Mapping[str, float]:
        """See `Store.revocations`."""
        self._check()
        return await self._revocations.read()

    # --- processes ---

    async def send(self, node: str, data: bytes) -> None:
        """See `Store.send`."""
        self._check()
        await self._process.inbox.send(node, data)

    async def receive(self, deliver: Callable[[bytes], object]) -> None:
        """See `Store.receive`."""
        self._check()
        await super().receive(deliver)
        self._process.inbox.woken()

    async def nodes(self) -> Sequence[Node]:
        """See `Store.nodes`."""
        self._check()
        return await self._process.lease.nodes()

    # --- deliveries ---

    async def _listen(self, topic: str) -> None:
        self._check()
        channel = self._keys.topic(topic)
        self._topics[channel] = topic
        await self._link.subscribe(channel)

    async def _unlisten(self, topic: str) -> None:
        channel = self._keys.topic(topic)
        self._topics.pop(channel, None)
        self._link.unsubscribe(channel)

    async def _ready(self, topic: str) -> None:
        await self._link.ready(self._keys.topic(topic))

    def _heard(self, channel: bytes, payload: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is None:
            if channel == self._wake:
                self._process.inbox.woken()
            return
        try:
            self._received(topic, (decode_diff if payload.startswith(b"d ") else decode_publication)(payload))
        except (ValueError, RecursionError):
            logger.error("something was published on a topic's channel that no store has sent: it is left out")

    def _lost(self, channels: Collection[bytes]) -> None:
        for channel in channels:
            topic = self._topics.get(channel)
            if topic is not None:
                self._interrupted(topic)

    # --- life ---

    def _check(self) -> None:
        if not self._open:
            raise ConfigurationError(NOT_ENTERED)

    async def _start(self) -> None:
        until = self.clock.now() + self._start_timeout
        while not self._open:
            try:
                await self._begin()
            except StoreError as exc:
                if (wrong := translate(exc, self.address)) is not None:
                    raise wrong from exc
                if self.clock.now() >= until:
                    raise
                logger.debug("the store can't be used yet, and is tried again: %s", exc)
                await self.clock.sleep(PAUSE)

    async def _begin(self) -> None:
        try:
            await self._link.start()
            await inspect(self._link, self._keys.nodes)
            await self._process.start()
            if self._waking:
                await asyncio.wait(tuple(self._waking))
        except BaseException:
            await self._end(self._process.abandon)
            raise
        self._open = True

    async def _stop(self) -> None:
        self._open = False
        await self._end(self._process.stop)

    async def _end(self, leave: Callable[[], Awaitable[None]]) -> None:
        for task in tuple(self._waking):
            task.cancel()
        if self._waking:
            await asyncio.wait(tuple(self._waking))
        try:
            await leave()
        finally:
            await self._link.stop()
            self._topics.clear()
            self._wake = b""

    def _renamed(self, node: str) -> None:
        """This process has a new id: it is to be woken under that one."""
        task = asyncio.get_running_loop().create_task(self._await_wake(self._keys.node(node, "wake")))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def _await_wake(self, channel: bytes) -> None:
        before, self._wake = self._wake, channel
        if before:
            self._link.unsubscribe(before)
        try:
            await self._link.subscribe(channel)
        except StoreError as exc:
            logger.debug("nobody wakes this process for now: %s", exc)  # it looks by itself, at every beat

    def gauges(self) -> dict[str, int]:
        """What this process holds."""
        return {**super().gauges(), **self._link.gauges(), **self._process.gauges()}


def _check_parser() -> None:
    try:
        from hiredis import __version__ as version
    except ImportError:
        return  # redis-py's own parser does, at half the speed
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 5):
        raise ConfigurationError(f"hiredis {version} leaks memory: pip install 'hiredis>=3.5', or uninstall it")
