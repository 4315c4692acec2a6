"""One link from its opening to its end: frames out and in, replies matched to commands, silence noticed."""

from collections.abc import Callable
from typing import Final, Protocol

from msgspec import UNSET

from starlette_realtime.client.frames import BadFrame, decode, refusal
from starlette_realtime.client.outbox import Done
from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConnectionClosed, Refused
from starlette_realtime.messages import NULL, Ping, Reply, ServerEvent, Welcome

__all__ = ["GRACE", "Exchange", "Owner", "Wire"]

GRACE: Final = 15.0
"""Seconds without a frame beyond the heartbeat; also for the opening with `auth`."""

VOLATILE: Final = 65_536
"""Characters that wait to be written above which volatile events are dropped."""

STUCK: Final = 8 * 1024 * 1024
"""Characters that wait to be written above which the link is given up."""


class Wire(Protocol):
    """The socket, as the exchange sees it: nothing here waits."""

    @property
    def waiting(self) -> int:
        """Characters that were not written yet."""
        ...

    def write(self, text: str) -> None:
        """Write a frame, later."""
        ...

    def drop(self, code: int, reason: str) -> None:
        """Close without waiting; nothing comes from it any more. 1000 says goodbye."""
        ...


class Owner(Protocol):
    """Who holds the exchange."""

    def opened(self, exchange: "Exchange") -> None:
        """The socket is open."""
        ...

    def frame(self, frame: ServerEvent, exchange: "Exchange") -> None:
        """Something other than a reply or a ping came."""
        ...

    def ended(self, exchange: "Exchange", code: int, reason: str, message: str) -> None:
        """The link is over; replies that are still awaited fail after this."""
        ...


class Exchange:
    """The driver calls `opened`, `received` and `end`; the rest is the client's."""

    def __init__(self, clock: Clock, owner: Owner) -> None:
        self._clock = clock
        self._owner = owner
        self._wire: Wire | None = None
        self._heard = clock.now()
        self._silence: float | None = GRACE
        self._live = False
        self._ended = False
        self._last = 0
        self._message_bytes = 0
        self._pending: dict[int, Done] = {}
        self._timer: Timer | None = None

    def start(self, open_wire: Callable[["Exchange"], Wire]) -> None:
        """Open the socket."""
        self._watch()
        self._wire = open_wire(self)

    # --- the driver's side ------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """The socket is open."""
        if not self._ended:
            self._heard = self._clock.now()
            self._owner.opened(self)

    def received(self, text: str) -> None:
        """A frame came."""
        if self._ended:
            return
        try:
            self._take(decode(text))
        except BadFrame as exc:
            # It may have been an event: connect again, and resume.
            self.end(1006, "bad_frame", f"the server sent what this client can't read: {exc}")

    def _take(self, frame: ServerEvent | None) -> None:
        if self._live:
            self._heard = self._clock.now()
        match frame:
            case None:
                pass
            case Ping():
                self.send('{"type":"pong"}')
            case Reply():
                self._replied(frame)
            case Welcome():
                self._message_bytes = frame.limits.message_bytes
                # 0: no ping will come, so that silence says nothing.
                self._silence = GRACE + frame.heartbeat if frame.heartbeat else None
                self._owner.frame(frame, self)
            case _:
                self._owner.frame(frame, self)

    def _replied(self, reply: Reply) -> None:
        done = self._pending.pop(reply.id, None)
        if done is None:
            return
        if reply.error is not UNSET:
            done(refusal(reply.error), NULL)
        else:
            done(None, NULL if reply.data is UNSET else reply.data)

    def end(self, code: int, reason: str, message: str = "") -> None:
        """The link is over, now: a dead network may not let the socket say so for minutes."""
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._wire is not None:
            self._wire.drop(code, reason)
        # First the owner, so that nobody writes to this link because of what follows.
        self._owner.ended(self, code, reason, message)
        pending, self._pending = self._pending, {}
        for done in pending.values():
            done(ConnectionClosed(code, reason), NULL)

    # --- the client's side ------------------------------------------------------------------------------------------

    def live(self) -> None:
        """After `auth` every frame is a sign of life; before, all of the opening has one grace."""
        self._live = True
        self._heard = self._clock.now()
        self._watch()

    def send(self, body: str, *, volatile: bool = False) -> bool:
        """Send what wants no answer; whether it went out. Raises `Refused` for what the server would close at."""
        if self._ended or self._wire is None or (volatile and self._wire.waiting > VOLATILE):
            return False
        limit = self._message_bytes
        if limit and len(body) * 4 > limit and len(body.encode()) > limit:
            raise Refused("too_large", f"the server takes at most {limit} bytes: send less, or raise its limit")
        if self._wire.waiting > STUCK:
            self.end(1006, "stuck", "the server does not read")
            return False
        self._wire.write(body)
        return True

    def request(self, body: str, done: Done) -> None:
        """
        Send a command. `done` is called once: in the order of frames, or with `ConnectionClosed` when the link ends.

        Raises `Refused` as `send` does.
        """
        self._last += 1
        self._pending[self._last] = done
        try:
            sent = self.send(f'{{"id":{self._last},{body[1:]}')
        except Refused:
            del self._pending[self._last]
            raise
        if not sent and self._pending.pop(self._last, None) is not None:
            done(ConnectionClosed(1006, "disconnected"), NULL)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        limit = self._silence if self._live else GRACE
        if limit is None or self._ended:
            return
        left = self._heard + limit - self._clock.now()
        if left > 0:
            self._timer = self._clock.call_later(left, self._watch)
        else:
            self.end(1006, "silent", "nothing was heard from the server in time")
