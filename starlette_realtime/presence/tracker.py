"""PresenceTracker: who is connected to plain WebSocket routes, by topic, and how that changes."""

import inspect
import logging
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from starlette.requests import HTTPConnection

from starlette_realtime.asgi import scope_user
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.messages import Entry
from starlette_realtime.patterns import check_user
from starlette_realtime.presence.callbacks import Callbacks, Heard
from starlette_realtime.presence.changes import Snapshot
from starlette_realtime.presence.handle import PresenceHandle, encode_meta
from starlette_realtime.presence.users import UserPresence, by_user, view
from starlette_realtime.presence.visits import Visits
from starlette_realtime.presence.watching import ALL, Watch, Watching
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send
from starlette_realtime.workers import several

__all__ = ["PresenceTracker"]

logger = logging.getLogger("starlette_realtime.presence")

PREFIX = "rt:presence:"
"""What a topic's name in the store begins with: no room's does."""

CLEAN = frozenset({1000, 1001})
"""Close codes of a client that meant to go (RFC 6455 section 7.4.1)."""

F = TypeVar("F", bound=Heard)


class PresenceTracker:
    """
    Tracks which users are connected to which topic, as ASGI middleware around WebSocket routes.

        tracker = PresenceTracker(topic=lambda conn: f"document:{conn.path_params['document']}")
        route = WebSocketRoute("/documents/{document}", edit, middleware=[Middleware(tracker.wrap)])

    A connection is present from the moment when the application accepts it: one that is refused never is. It leaves
    when it ends; after an end that nobody announced it stays for `linger` seconds, and the same user, coming back
    within them, was never gone. The tracker sends nothing to clients; the application does, with `members`, `users`,
    `status` and `watch`, and finds its own connection's `PresenceHandle` in `scope["presence"]`.

    `topic` names the topic of a connection (1 to 128 characters), or None for one that isn't tracked. `user` says who
    it is, by default whom an authentication outside has put into the scope; who is anonymous is counted by
    connection, and doesn't linger. `meta` is shown with the connection: a JSON value of at most 4 KiB. These three are
    asked when the application accepts; what they raise is raised there.

    `store` is what processes share; by default a memory of its own. `interval`: seconds that lie at least between
    two changes for a watcher. `shown`: over so many connections, watchers of a topic get the total and a sample.
    `clock` and `rng` are for tests. HTTP requests pass through.

    Trackers on one store share its topics. While the store is away nothing here breaks a connection: presence is told
    when it is back. `async with tracker` enters the store and, at the end, lets nobody linger; a memory store works
    without.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        topic: Callable[[HTTPConnection], str | None],
        store: Store | None = None,
        user: Callable[[HTTPConnection], str | None] | None = None,
        meta: Callable[[HTTPConnection], Any] | None = None,
        linger: float = 5.0,
        interval: float = 0.1,
        shown: int = 200,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        functions: tuple[tuple[str, Any], ...] = (("topic", topic), ("user", user), ("meta", meta))
        for name, function in functions:
            if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
                raise ConfigurationError(f"{name}= takes a plain function of an HTTPConnection, not {function!r}")
        self.app = app
        self.clock = clock if clock is not None else Clock()
        self.store = store if store is not None else MemoryStore(clock=self.clock)
        self.shown = shown
        self._topic = topic
        self._user = user if user is not None else _authenticated
        self._meta = meta
        self._rng = rng if rng is not None else random.SystemRandom()
        self._callbacks = Callbacks(self.clock)
        self._visits = Visits(store=self.store, clock=self.clock, rng=self._rng, linger=linger, told=self._told)
        self._watching = Watching(store=self.store, clock=self.clock, interval=interval, shown=shown)
        self._entered = 0
        self._checked = False
        self.store.on_presence(self._changed)

    # --- who is there -----------------------------------------------------------------------------------------------

    async def members(self, topic: str, *, limit: int | None = None) -> Snapshot:
        """
        The connections that are present, at most `limit` (by default `shown`), the longest present first.

        Raises `StoreError` when the store is away, `ValueError` for what can't be a topic.
        """
        members = await self.store.members(_name(topic), limit=self.shown if limit is None else limit)
        shown = tuple(map(view, members.entries))
        return Snapshot(members.seq, members.total, shown, len(shown) == members.total)

    async def users(self, topic: str) -> list[UserPresence]:
        """
        The users who are present, each over all their connections, the longest present first. Raises as `members`.

        It reads the whole topic: who needs it often watches instead, and asks the watch.
        """
        return by_user((await self.store.members(_name(topic), limit=ALL)).entries)

    async def status(self, topic: str, user: str) -> Literal["online", "away", "offline"]:
        """Whether a user is online, away or offline. Raises as `members`, and reads as much as `users`."""
        statuses = {each.status for each in await self.users(topic) if each.user == user}
        return statuses.pop() if statuses else "offline"

    def watch(self, topic: str) -> Watch:
        """
        Hear how a topic's presence changes: `async with tracker.watch(topic) as changes: async for change in changes`.

        First comes a `Snapshot`, then a `Diff` at most every `interval`, each from where the last one ended; or a
        `Snapshot` instead, for a watcher that fell behind, above `shown`, and where nothing else mends what was
        missed. `StoreAway` and `StoreBack` say that what is known may be old. Entering it raises `StoreError` when
        the store is away. Raises `ValueError` for what can't be a topic.
        """
        return Watch(self._watching, _name(topic))

    def on_join(self, function: F) -> F:
        """
        Call `function(topic, connection)` for each user's first connection in a topic, exactly once over all processes.

        It may be async; otherwise it runs in a thread. It has 30 s. What it raises is logged.
        """
        self._callbacks.arrivals.append(function)
        return function

    def on_leave(self, function: F) -> F:
        """As `on_join`, after each user's last connection, also where a process died with it."""
        self._callbacks.departures.append(function)
        return function

    def gauges(self) -> dict[str, int]:
        """What this process holds at the moment: all 0 when everybody has gone."""
        visits, watching = self._visits.gauges, self._watching.gauges
        tasks = visits["tasks"] + watching["tasks"]
        return {**visits, **watching, **self._callbacks.gauges, "tasks": tasks}

    # --- as middleware ----------------------------------------------------------------------------------------------

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Track the WebSockets of `app` here, too: `Middleware(tracker.wrap)` on any number of routes."""

        async def tracked(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return tracked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self.app is None:
            raise ConfigurationError(
                "this PresenceTracker has no application: use PresenceTracker(app, …), or Middleware(tracker.wrap)"
            )
        await self._serve(self.app, scope, receive, send)

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        self.store.on_presence(self._changed)
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        try:
            if not self._entered:
                await self._visits.close()
                await self._watching.close()
                await self._callbacks.close()
        finally:
            await self.store.__aexit__(kind, error, traceback)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope.get("presence")
        if scope["type"] != "websocket" or (isinstance(known, PresenceHandle) and known.visits is self._visits):
            await app(scope, receive, send)  # who is tracked by this one already isn't counted twice
            return
        handle = scope["presence"] = PresenceHandle(self._visits)

        async def tracked_receive() -> Message:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                handle.end(clean=message.get("code") in CLEAN)
            return message

        async def tracked_send(message: Message) -> None:
            kind = message["type"]
            if kind == "websocket.close":
                handle.end(clean=True)
            # Before it is sent: a mistake in the application's functions is then answered as any other, with a 500.
            visit = self._identify(scope) if kind == "websocket.accept" else None
            try:
                await send(message)
            except OSError:
                handle.end(clean=False)
                raise
            if visit is not None:
                await handle.begin(*visit)

        try:
            await app(scope, tracked_receive, tracked_send)
        except BaseException:
            handle.end(clean=False)
            raise
        handle.end(clean=True)

    def _identify(self, scope: Scope) -> tuple[str, str, Entry] | None:
        """The topic, its name in the store and the record of a connection; None for one that isn't to be tracked."""
        conn = HTTPConnection(scope)
        topic = self._topic(conn)
        if topic is None:
            return None
        user = self._user(conn)
        for option, value in (("topic", topic), ("user", user)):
            if not isinstance(value, str | None):
                raise ConfigurationError(f"{option}= answers with a string or None, not with {value!r}")
        meta = self._meta(conn) if self._meta is not None else None
        try:
            name, shown = _name(topic), encode_meta(meta)
            if user is not None:
                check_user(user)
        except ValueError as exc:
            logger.warning("a connection isn't tracked: %s", exc)
            return None
        self._prepare()
        connection = f"{self._rng.getrandbits(96):024x}"
        who = f"u:{user}" if user is not None else f"s:{connection}"
        return topic, name, Entry(connection, who, user, meta=shown, since=int(self.clock.time() * 1000))

    def _prepare(self) -> None:
        self.store.on_presence(self._changed)  # it was forgotten where the store has been left meanwhile
        if not self._checked:
            self._checked = True
            if isinstance(self.store, MemoryStore) and several():
                logger.warning(
                    "this server runs several workers, and each knows its own connections only: give the "
                    "PresenceTracker a store that they share, or run one worker"
                )

    # --- what the store tells ---------------------------------------------------------------------------------------

    def _told(self, name: str, entry: Entry, arrived: bool) -> None:
        self._callbacks.tell(name.removeprefix(PREFIX), entry, arrived=arrived)

    def _changed(self, name: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        """The store itself brought users back or removed them."""
        if name.startswith(PREFIX):
            for entry in joined:
                self._told(name, entry, True)
            for entry in left:
                self._told(name, entry, False)


def _authenticated(conn: HTTPConnection) -> str | None:
    return scope_user(conn.scope)


def _name(topic: str) -> str:
    """A topic's name in the store; raises `ValueError` for what can't be a topic."""
    try:
        check_user(topic)
    except ValueError:
        raise ValueError("a topic has 1 to 128 characters, in NFC, without control characters") from None
    return PREFIX + topic
