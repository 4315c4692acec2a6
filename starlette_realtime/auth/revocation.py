"""Revocation: what the store says of users and tokens that are not let in any more, heard at once and read again."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf

import msgspec

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConfigurationError, StoreError, Unavailable
from starlette_realtime.messages import Gap, Identity, Publication
from starlette_realtime.store import REVOCATIONS, Delivery, Store

__all__ = ["OnRevocation", "Revocations", "token_subject", "user_subject"]

logger = logging.getLogger("starlette_realtime.auth")

PATIENCE = 60.0
"""How long revocations may be unreadable until nobody new is let in, in seconds."""

RETRY = 1.0
"""How long after a failure the store isn't asked again, in seconds: or each handshake would wait for it."""

DOUBT = 0.001
"""How much later than a revocation, in seconds, still counts as before it: times are rounded."""

OnRevocation = Callable[[Mapping[str, float]], object]
"""Hears what was revoked: subject (`u:` and the user, `t:` and the token's id) → issued up to that Unix time."""


def user_subject(user: str) -> str:
    """What a user's revocation is kept under."""
    return f"u:{user}"


def token_subject(jti: str) -> str:
    """What a token's revocation is kept under."""
    return f"t:{jti}"


class Revocations:
    """
    The standing revocations of a store, as this process knows them.

    Started, it hears of new ones at once, and reads all of them every `interval` seconds, so that a message that was
    lost costs no more. Otherwise it reads when it is asked and hasn't for that long; and by a timer, while something
    is watched.
    """

    def __init__(self, store: Store, clock: Clock, *, interval: float) -> None:
        if not interval > 0:
            raise ConfigurationError(f"revocation_interval is in seconds and positive, not {interval!r}")
        self._store = store
        self._clock = clock
        self._interval = interval
        self._known: dict[str, float] = {}
        self._heard: dict[str, float] = {}  # since the last reading began: it may not have them
        self._read_at: float | None = None
        self._retry_at = -inf
        self._failing = False
        self._reading: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._started = 0
        self._watched: dict[str, set[Callable[[], object]]] = {}
        self._callbacks: list[OnRevocation] = []

    # --- asking -----------------------------------------------------------------------------------------------------

    def revoked(self, identity: Identity, since: float) -> bool:
        """
        Whether what `identity` came with, at `since` (Unix seconds), is revoked as far as this process knows.

        A token's id is revoked for good; a user with all that was issued up to a moment, and in doubt with it.
        """
        if not self._known:
            return False
        jti = identity.claims.get("jti")
        if isinstance(jti, str) and token_subject(jti) in self._known:
            return True
        until = self._known.get(user_subject(identity.user)) if identity.user is not None else None
        if until is None:
            return False
        for issued in (identity.issued_at, identity.claims.get("iat")):
            if isinstance(issued, int | float):
                since = min(since, issued)  # issued later than it was used: clocks that are apart
        return since < until + DOUBT

    async def ready(self) -> None:
        """Know what stands, or raise `Unavailable`: it was never read, or not for `PATIENCE`."""
        if self._age() >= (self._interval if self._timer is None else PATIENCE):
            await self._read()
            if self._age() >= PATIENCE:
                raise Unavailable("nobody can tell now whether these credentials were revoked")

    def _age(self) -> float:
        return inf if self._read_at is None else self._clock.now() - self._read_at

    # --- revoking ---------------------------------------------------------------------------------------------------

    async def revoke(self, subject: str, issued_before: float) -> None:
        """Revoke, here at once and everywhere within the bound. Raises `StoreError`: then it may be revoked or not."""
        await self._store.revoke(subject, issued_before=issued_before)
        self._learn(subject, issued_before)

    # --- being told -------------------------------------------------------------------------------------------------

    def watch(self, identity: Identity, check: Callable[[], object]) -> Callable[[], None]:
        """Call `check()` whenever something of `identity` is revoked, until the function that this returns is."""
        subjects = [user_subject(identity.user)] if identity.user is not None else []
        jti = identity.claims.get("jti")
        if isinstance(jti, str):
            subjects.append(token_subject(jti))
        for subject in subjects:
            self._watched.setdefault(subject, set()).add(check)
        self._arm()

        def unwatch() -> None:
            for subject in subjects:
                checks = self._watched.get(subject, set())
                checks.discard(check)
                if not checks:
                    self._watched.pop(subject, None)
            self._disarm()

        return unwatch

    def on(self, callback: OnRevocation) -> None:
        """Call `callback` with what is revoked from now on."""
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def off(self, callback: OnRevocation) -> None:
        """Undo `on`."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def gauges(self) -> dict[str, int]:
        """What is held now."""
        return {"revocations_known": len(self._known), "revocations_watched": len(self._watched)}

    # --- start, stop ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Enter the store and listen. Raises `StoreError` when it is away."""
        await self._store.__aenter__()
        if self._started == 0:
            try:
                await self._store.subscribe(REVOCATIONS, self._deliver)
            except BaseException:
                await self._store.__aexit__(None, None, None)
                raise
        self._started += 1
        self._arm()
        await self._read()

    async def stop(self) -> None:
        """Undo `start`, when it is undone as often."""
        self._started -= 1
        if self._started == 0:
            self._disarm()
            if self._reading is not None and not self._reading.done():
                self._reading.cancel()
                await asyncio.wait((self._reading,))
            await self._store.unsubscribe(REVOCATIONS, self._deliver)
        await self._store.__aexit__(None, None, None)

    def _arm(self) -> None:
        if self._timer is None and (self._started or self._watched):
            self._timer = self._clock.call_later(self._interval, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None and not (self._started or self._watched):
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        self._begin()
        self._arm()

    # --- reading, hearing -------------------------------------------------------------------------------------------

    def _begin(self) -> "asyncio.Task[None] | None":
        """Start to read, unless that is under way, or has just failed."""
        task, loop = self._reading, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            if self._clock.now() < self._retry_at:
                return None
            task = self._reading = loop.create_task(self._load())
        return task

    async def _read(self) -> None:
        task = self._begin()
        if task is not None:
            await asyncio.wait((task,))  # who gives up waiting doesn't take it away from the others

    async def _load(self) -> None:
        began = self._clock.now()
        self._heard = {}
        try:
            known = dict(await self._store.revocations())
        except StoreError as exc:
            self._retry_at = self._clock.now() + RETRY
            if not self._failing:
                logger.warning("revocations can't be read; those that are known hold, and in %g s nobody new", PATIENCE)
                logger.info("why revocations can't be read: %s", exc)
            self._failing = True
            return
        for subject, until in self._heard.items():
            known[subject] = max(until, known.get(subject, -inf))
        fresh = {subject: until for subject, until in known.items() if until > self._known.get(subject, -inf)}
        self._known, self._read_at, self._failing = known, began, False
        self._announce(fresh)

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery, Publication):
            try:
                subject, until = msgspec.json.decode(delivery.data, type=tuple[str, float])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                logger.warning("a revocation was published that can't be read")
                return
            self._learn(subject, until)
        elif isinstance(delivery, Gap):
            self._begin()

    def _learn(self, subject: str, until: float) -> None:
        if until > self._known.get(subject, -inf):
            self._known[subject] = self._heard[subject] = until
            self._announce({subject: until})

    def _announce(self, fresh: Mapping[str, float]) -> None:
        if not fresh:
            return
        for subject in fresh:
            for check in tuple(self._watched.get(subject, ())):
                check()
        for callback in tuple(self._callbacks):
            try:
                callback(fresh)
            except Exception:
                logger.exception("a callback of on_revocation failed; the others are called")
