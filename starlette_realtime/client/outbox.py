"""
What waits to be sent and acknowledged: bounded, in order, across links, nothing accepted twice.

Entries of one lane (a room's, say) go out one at a time, each after the answer to the one before it. With several
under way, the server could refuse one for its rate and accept the next, and order would be lost.
"""

from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Raw

from starlette_realtime.client.values import QueueFull, Uncertain
from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConnectionClosed, RateLimited, Refused
from starlette_realtime.messages import NULL

__all__ = ["RETRIED", "Done", "Entry", "Gate", "Outbox", "Sink"]

UNCERTAIN: Final = 100.0
"""Seconds from the first write: the server knows a key for 120 s, and a repetition has to arrive within that."""

WINDOW: Final = 16
"""Lanes under way at once."""

PACED: Final = 64
"""Events whose pace the server has told."""

RETRIED: Final = frozenset({"rate_limited", "unavailable", "expired"})
"""What the server refuses for the moment only."""

Done = Callable[[Exception | None, Raw], None]
"""Called once: with why not, or with the data of the reply."""


class Gate(Protocol):
    """The room that an entry goes to: it waits until that is joined."""

    @property
    def joined(self) -> bool:
        """Whether the server has joined this connection to it."""
        ...

    @property
    def error(self) -> Exception | None:
        """Why it is over; None: it isn't."""
        ...


class Sink(Protocol):
    """The authenticated link."""

    def request(self, body: str, done: Done) -> None:
        """Write a command; raises `Refused` where it is too large."""
        ...


class Entry:
    """One command and its way: `flying` while it is written and unanswered, in `doubt` if an answer was lost."""

    __slots__ = ("body", "deadline", "done", "doubt", "event", "flying", "gate", "lane", "timers", "tries", "until")

    def __init__(self, body: str, done: Done, lane: object, gate: Gate | None, event: str | None) -> None:
        self.body = body
        self.done = done
        self.lane = lane
        self.gate = gate
        self.event = event
        self.flying = False
        self.doubt = False  # it may have been accepted
        self.until = 0.0  # clock time before which it rests
        self.tries = 0
        self.deadline: float | None = None  # clock time from which a repetition could be accepted twice
        self.timers: list[Timer] = []


class Outbox:
    """
    At most `limit` entries; `link` gives the authenticated link, `pause` the seconds to wait after a refusal.
    """

    def __init__(
        self, clock: Clock, *, limit: int, link: Callable[[], Sink | None], pause: Callable[[Refused, int], float]
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._link = link
        self._pause = pause
        self._entries: list[Entry] = []
        self._window = WINDOW
        self._paces: dict[str | None, float] = {}  # event (None: any command) → when the next may go
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def push(
        self,
        body: str,
        done: Done,
        *,
        lane: object,
        gate: Gate | None = None,
        event: str | None = None,
        timeout: float | None = None,
    ) -> Entry:
        """Take a command in, and write it if it may go. Raises `QueueFull`, or why its room is over."""
        if gate is not None and gate.error is not None:
            raise gate.error.with_traceback(None)  # it is raised as often as it is asked for
        if len(self._entries) >= self._limit:
            raise QueueFull(f"{self._limit} commands wait already: await what you send, or raise `queue`")
        entry = Entry(body, done, lane, gate, event)
        if timeout is not None:
            self._expire(entry, timeout, TimeoutError(f"no answer within {timeout} s; it may still have arrived"))
        self._entries.append(entry)
        self.pump()
        return entry

    def forget(self, entry: Entry) -> None:
        """Nobody waits for it any more: what was not written never is."""
        if entry in self._entries and not entry.flying:
            self._settle(entry, None)
            self.pump()

    def pump(self) -> None:
        """Write whatever may go out now, and come back when the first of the rest may."""
        link = self._link()
        if link is None:
            return
        busy: set[int] = set()
        now = self._clock.now()
        first: float | None = None
        flying = sum(entry.flying for entry in self._entries)
        for entry in tuple(self._entries):
            if id(entry.lane) in busy or entry not in self._entries:
                continue
            if not entry.flying:
                rest = max(entry.until - now, self.rest(entry.event))
                # By the clock, not by the timer alone: timers may be late.
                if entry.deadline is not None and now >= entry.deadline:
                    self._fail(entry, uncertain())
                elif rest >= UNCERTAIN:  # so long a wait is the application's to decide on
                    self._fail(entry, RateLimited(retry_after=rest))
                elif rest > 0:
                    first = rest if first is None else min(first, rest)
                elif flying < self._window and (entry.gate is None or entry.gate.joined):
                    flying += self._write(entry, link, now)
                if entry not in self._entries:
                    continue
            busy.add(id(entry.lane))
        self._rouse(first)

    def drop(self, error: Exception, gate: Gate | None = None) -> None:
        """Give up what waits for `gate`, or for anything. What is under way to a room still gets its answer."""
        for entry in tuple(self._entries):
            if gate is None:
                self._fail(entry, uncertain() if entry.flying else error)
            elif entry.gate is gate and not entry.flying:
                self._fail(entry, error)

    def close(self, error: Exception) -> None:
        """Give everything up, for good."""
        self.unpace()
        self.drop(error)

    def supersede(self, lane: object) -> None:
        """A newer state makes those of `lane` that still wait superfluous."""
        for entry in [entry for entry in self._entries if entry.lane is lane and not entry.flying]:
            self._settle(entry, lambda done: done(None, Raw(b"{}")))

    def pace(self, event: str | None, remaining: int, retry_after: float) -> None:
        """What the link still takes of an event, or of all commands: `remaining`, or nothing for so many seconds."""
        if retry_after > 0:
            # An event too many is refused by the server, and that is waited out, too.
            if event in self._paces or len(self._paces) < PACED:
                self._paces[event] = self._clock.now() + retry_after
        else:
            self._paces.pop(event, None)
        if event is None:
            self._window = max(1, min(self._window, remaining))
        self.pump()

    def unpace(self) -> None:
        """The link is over: the next one begins without."""
        self._paces.clear()
        self._rouse(None)

    def rest(self, event: str | None) -> float:
        """Seconds until such a command may go out; 0 or less: now."""
        return max(self._paces.get(None, 0.0), self._paces.get(event, 0.0)) - self._clock.now()

    def _rouse(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.call_later(seconds, self.pump)

    def _write(self, entry: Entry, link: Sink, now: float) -> bool:
        entry.flying = True
        try:
            link.request(entry.body, lambda error, data: self._answered(entry, error, data))
        except Refused as exc:
            refused = exc
            self._settle(entry, lambda done: done(refused, NULL))
            return False
        if entry.deadline is None:
            entry.deadline = now + UNCERTAIN
            self._expire(entry, UNCERTAIN, uncertain())
        return True

    def _answered(self, entry: Entry, error: Exception | None, data: Raw) -> None:
        entry.flying = False
        if error is None:
            self._window = min(WINDOW, self._window + 1)
            self._settle(entry, lambda done: done(None, data))
        elif entry in self._entries:
            self._refused(entry, error)
        self.pump()

    def _refused(self, entry: Entry, error: Exception) -> None:
        over = entry.gate.error if entry.gate is not None else None
        if isinstance(error, ConnectionClosed):  # the link broke before the answer
            entry.doubt = True
            if over is not None:
                self._fail(entry, over)
            return
        assert isinstance(error, Refused)
        # A store that failed may have stored; a rate limit has not.
        entry.doubt = entry.doubt or error.code == "unavailable"
        if error.code == "not_joined" and entry.gate is not None and over is None and not entry.gate.joined:
            return
        if error.code == "rate_limited":
            # One limit often holds for many lanes: feel the way, one command at a time.
            self._window = 1
        wait = self._pause(error, entry.tries)
        entry.tries += 1
        again = self._clock.now() + wait
        if over is not None or error.code not in RETRIED:
            self._settle(entry, lambda done: done(error, NULL))
        elif entry.deadline is not None and again < entry.deadline:
            entry.until = again
        elif entry.doubt:
            self._fail(entry, uncertain())
        else:
            self._settle(entry, lambda done: done(error, NULL))

    def _expire(self, entry: Entry, seconds: float, error: Exception) -> None:
        def expired() -> None:
            self._fail(entry, error)
            self.pump()

        entry.timers.append(self._clock.call_later(seconds, expired))

    def _fail(self, entry: Entry, error: Exception) -> None:
        lost = entry.doubt and not isinstance(error, TimeoutError)
        self._settle(entry, lambda done: done(uncertain() if lost else error, NULL))

    def _settle(self, entry: Entry, how: Callable[[Done], None] | None) -> None:
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        for timer in entry.timers:
            timer.cancel()
        entry.timers.clear()
        if how is not None:
            how(entry.done)


def uncertain() -> Uncertain:
    """The error of what was written, and never answered."""
    return Uncertain("sent, but never answered: it may have arrived, or not")
