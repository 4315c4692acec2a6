"""Listener: the channels of one server over one pub/sub connection, which is known to be alive."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection

from redis.exceptions import ResponseError

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.line import Connect, Line, pack

__all__ = ["Heard", "Listener"]

logger = logging.getLogger("starlette_realtime.store")

MANY = 256
"""How many channels one command names."""

Heard = Callable[[bytes, bytes], object]
"""Hears a channel and what was published there."""


class Listener(Line):
    """
    The channels that are wanted from one server; whatever the connection goes through, it comes back to them.

    A channel is confirmed while the server delivers it. `lost` hears of those that were confirmed and are no more:
    messages may be missing from then on, until the channel is confirmed again. `heard` gets the messages. `astray`
    hears that the server has given a channel up by itself: it is another server's now. With `sharded`, channels are
    those of Redis 7's sharded pub/sub.

    When nothing has come for `probe` seconds, the connection has to answer, and `publish`, which publishes an
    empty message to a channel of its own, has to be heard, within the time limit: a link that is half open tells
    nothing by itself. `echo` names that channel, or None where this server can have none; `choose` asks it again.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        clock: Clock,
        timeout: float,
        name: str,
        probe: float,
        echo: Callable[[], bytes | None],
        publish: Callable[[bytes], Awaitable[object]],
        heard: Heard,
        lost: Callable[[Collection[bytes]], object],
        astray: Callable[[bytes], object],
        sharded: bool,
    ) -> None:
        super().__init__(connect, clock=clock, timeout=timeout, name=name)
        self.echo: bytes | None = None
        """The channel on which it hears itself."""
        self._probe_interval = probe
        self._own_channel = echo
        self._publish = publish
        self._on_heard = heard
        self._on_lost = lost
        self._on_astray = astray
        self._subscribe, self._unsubscribe, self._message = (
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"smessage") if sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE", b"message")
        )
        self._wanted: dict[bytes, set[asyncio.Future[None]]] = {}  # channel → who waits for its confirmation
        self._confirmed: set[bytes] = set()
        self._asked: Counter[bytes] = Counter()  # subscriptions under way
        self._left: Counter[bytes] = Counter()  # the ends of subscriptions under way
        self._out: deque[tuple[bytes, bytes]] = deque()
        self._unanswered: deque[tuple[bytes, list[bytes]]] = deque()  # commands, and the channels to be answered yet
        self._last = 0.0
        self._timer: Timer | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._answered = asyncio.Event()
        self._echoed = asyncio.Event()
        self._hears = False  # whether the server delivers what is published to `echo`

    @property
    def channels(self) -> Collection[bytes]:
        """Those that are wanted here."""
        return self._wanted.keys()

    def add(self, channel: bytes) -> None:
        """Want a channel."""
        if channel not in self._wanted:
            self._wanted[channel] = set()
            self._say(self._subscribe, channel)

    def discard(self, channel: bytes) -> None:
        """Want a channel no more."""
        waiters = self._wanted.pop(channel, None)
        if waiters is None:
            return
        self._confirmed.discard(channel)
        self._say(self._unsubscribe, channel)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(StoreError("the channel is not wanted any more"))

    def again(self, channel: bytes) -> None:
        """Ask anew for a channel that the server has given up and may take again."""
        if channel in self._wanted and channel not in self._confirmed and not self._asked[channel]:
            self._say(self._subscribe, channel)

    def choose(self) -> None:
        """See whether its own channel is another one by now: it moves between servers as others do."""
        echo = self._own_channel()
        if not self.connected or (echo == self.echo and (self._hears or echo is None or self._asked[echo])):
            return
        if self.echo is not None and self._hears:
            self._say(self._unsubscribe, self.echo)
        self._deaf()
        self.echo = echo
        if echo is not None:
            self._say(self._subscribe, echo)

    def suspect(self) -> None:
        """The server fails to answer elsewhere: ask now whether this connection is alive."""
        if self.connected and self._timer is not None and not self._probes:
            self._timer.cancel()
            self._begin_probe()

    async def ready(self, channel: bytes) -> None:
        """Wait until the server delivers the channel. Raises `StoreError` when it doesn't in time."""
        if channel in self._confirmed:
            return
        waiters = self._wanted.get(channel)
        if waiters is None:
            raise StoreError("the channel is not wanted here")
        self.again(channel)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.add(waiter)
        try:
            async with self._clock.timeout(self._timeout):
                await waiter
        except TimeoutError:
            raise StoreError(f"no subscription within {self._timeout} s") from self.trouble
        finally:
            waiters.discard(waiter)

    async def close(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        probes = tuple(self._probes)
        for probe in probes:
            probe.cancel()
        if probes:
            await asyncio.wait(probes)
        await super().close()
        for channel in tuple(self._wanted):
            self.discard(channel)

    # --- the line ---

    def _say(self, command: bytes, channel: bytes) -> None:
        if not self.connected:
            return  # all that is wanted is asked for when it is
        (self._asked if command == self._subscribe else self._left)[channel] += 1
        self._out.append((command, channel))
        self._wake.set()

    def _opened(self) -> None:
        self._last = self._clock.now()
        self.echo = self._own_channel()
        if self.echo is not None:
            self._say(self._subscribe, self.echo)
        for channel in self._wanted:
            self._say(self._subscribe, channel)
        self._timer = self._clock.call_later(self._probe_interval, self._probe_soon)

    def _lost(self, trouble: BaseException) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._out.clear()
        self._unanswered.clear()
        self._asked.clear()
        self._left.clear()
        self._hears = False
        confirmed, self._confirmed = self._confirmed, set()
        gone = [channel for channel in confirmed if channel in self._wanted]
        if gone:
            self._on_lost(gone)

    def _outgoing(self) -> bytes:
        out, parts = self._out, list[bytes]()
        while out and len(parts) < 16:
            command, first = out.popleft()
            channels = [first]
            # One command for many channels, except where each is in a slot of its own.
            while out and len(channels) < MANY and out[0][0] == command and self._message == b"message":
                channels.append(out.popleft()[1])
            if command == b"PING":
                parts.append(pack((command,)))
            else:
                parts.append(pack((command, *channels)))
                self._unanswered.append((command, channels))
        return b"".join(parts)

    def _incoming(self, reply: object) -> None:
        self._last = self._clock.now()
        if isinstance(reply, ResponseError):
            self._refused(reply)
            return
        if not isinstance(reply, list) or len(reply) < 2:
            self._answered.set()  # PONG, where nothing is subscribed to
            return
        kind, channel = reply[0], reply[1]
        if kind == self._message:
            if channel == self.echo:
                self._echoed.set()
            elif channel in self._wanted:
                self._on_heard(channel, reply[2])
        elif kind == self._subscribe.lower():
            self._confirm(channel)
        elif kind == self._unsubscribe.lower():
            self._ended(channel)
        elif kind == b"pong":
            self._answered.set()

    def _refused(self, error: ResponseError) -> None:
        """A command failed: the channels belong to another server by now, or aren't permitted."""
        command, channels = self._unanswered.popleft()
        logger.info("%s doesn't deliver a channel: %s", self.name, error)
        for channel in channels:
            if command != self._subscribe:
                self._left[channel] -= 1
                continue
            self._asked[channel] -= 1
            if channel == self.echo:
                self._deaf()
            for waiter in self._wanted.get(channel, ()):
                if not waiter.done():
                    refusal = StoreError(f"the store doesn't deliver: {error}")
                    refusal.__cause__ = error
                    waiter.set_exception(refusal)
            self._on_astray(channel)

    def _answer(self, channel: bytes) -> None:
        """One of the channels of the oldest command was answered."""
        channels = self._unanswered[0][1]
        channels.remove(channel)
        if not channels:
            self._unanswered.popleft()

    def _confirm(self, channel: bytes) -> None:
        self._answer(channel)
        self._asked[channel] -= 1
        if self._asked[channel] > 0:
            return  # it was left and wanted again meanwhile: the last confirmation counts
        del self._asked[channel]
        if channel == self.echo:
            self._hears = True
        waiters = self._wanted.get(channel)
        if waiters is None:
            return
        self._confirmed.add(channel)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _ended(self, channel: bytes) -> None:
        if self._left[channel] > 0:
            self._answer(channel)
            self._left[channel] -= 1
            if not self._left[channel]:
                del self._left[channel]
            return
        del self._left[channel]
        if channel == self.echo:
            self._deaf()
            self._on_astray(channel)
        elif channel in self._wanted:
            self._confirmed.discard(channel)
            self._on_lost((channel,))
            self._on_astray(channel)

    # --- is it alive? ---

    def _deaf(self) -> None:
        """Nothing is heard on its own channel, and no probe waits for it."""
        self._hears = False
        self._echoed.set()

    def _probe_soon(self) -> None:
        idle = self._clock.now() - self._last
        if idle < self._probe_interval:
            self._timer = self._clock.call_later(self._probe_interval - idle, self._probe_soon)
            return
        self._begin_probe()

    def _begin_probe(self) -> None:
        task = asyncio.get_running_loop().create_task(self._probe())
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self) -> None:
        since = self.since
        self._answered.clear()
        self._echoed.clear()
        self._out.append((b"PING", b""))
        self._wake.set()
        try:
            async with self._clock.timeout(self._timeout):
                await self._answered.wait()
                if self.echo is not None and self._hears:
                    await self._publish(self.echo)
                    await self._echoed.wait()
        except StoreError as exc:
            logger.debug("a probe could not be sent: %s", exc)  # the store is away: the other connection says so
        except TimeoutError:
            if self.since == since and since is not None:
                self.drop(TimeoutError(f"nothing was heard for {self._timeout} s"))
            return
        if self.since == since and since is not None and self._timer is not None:
            self._timer = self._clock.call_later(self._probe_interval, self._probe_soon)
