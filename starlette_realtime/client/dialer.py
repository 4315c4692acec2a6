"""One link after the other: the token, the opening, `auth`, the end, and when to come back. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Raw

from starlette_realtime.client.exchange import Exchange
from starlette_realtime.client.frames import encode, expect
from starlette_realtime.client.outbox import Done
from starlette_realtime.client.ports import Port
from starlette_realtime.client.values import ClientState, Closed, StateChange, TokenError
from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import CLOSE_CODES, RealtimeError, Refused
from starlette_realtime.messages import (
    NULL,
    Authenticated,
    Error,
    Expiring,
    Position,
    Reconnect,
    ServerEvent,
    Welcome,
)

__all__ = ["Dialer", "Owner"]

STABLE: Final = 10.0
"""Seconds online after which the backoff starts over: a server that drops at once isn't hammered."""

LONGEST: Final = 86_400.0
"""Seconds that a server's announcement may hold a client back."""

REFUSED: Final = {"unauthenticated": 4401, "expired": 4401, "forbidden": 4403, "rate_limited": 4429, "bad_frame": 4400}
"""How a refused `auth` ends the link, where the server doesn't close by itself."""

MEANINGS: Final = {
    "connection_lost": "the connection was lost",
    "max_size": "the server sent a frame that is larger than the client's `max_size`",
    "not_found": "nothing is here: connect() takes the address where the kit is mounted, like https://host/realtime",
}
"""Reasons of this side."""

OUTSIDE: Final = (
    "the server refused this user or origin, or the kit is not mounted here: "
    "connect() takes the address where it is, like https://host/realtime"
)
"""What `forbidden` means before the welcome, when the server can't say it better."""


class Owner(Protocol):
    """Whose links these are."""

    def since(self) -> Mapping[str, Position]:
        """How far the rooms were heard that the server joins."""
        ...

    def online(self, *, same_user: bool) -> None:
        """A link is through."""
        ...

    def offline(self) -> None:
        """It is over, and another one follows."""
        ...

    def frame(self, frame: ServerEvent, exchange: Exchange) -> None:
        """A frame came that is not about the link itself."""
        ...

    def finished(self, closed: Closed) -> None:
        """No link follows."""
        ...


class Dialer:
    """
    `urls` are tried in turn. `renews`: there is a token function, to be asked again before a token expires. Retries
    wait a random part of `backoff[0]` seconds, doubled up to `backoff[1]`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        owner: Owner,
        port: Port,
        *,
        clock: Clock,
        random: Callable[[], float],
        renews: bool,
        backoff: tuple[float, float],
    ) -> None:
        self.state: ClientState = "connecting"
        self.closed: Closed | None = None
        self.user: str | None = None
        self.connection: str | None = None
        self.link: Exchange | None = None
        self._urls = urls
        self._owner = owner
        self._port = port
        self._clock = clock
        self._random = random
        self._renews = renews
        self._backoff = backoff
        self._session: str | None = None
        self._token: str | None = None
        self._turn = 0  # which opening is the present one
        self._attempt = 0  # unstable links and failures in a row
        self._online: float | None = None  # since when; None: the link isn't through yet
        self._ever = False  # a link was through
        self._rejected = False  # a 4401, and no `auth` since
        self._said: Refused | None = None  # the last complaint on the present link
        self._resume: float | None = None  # clock time that a draining server gave us
        self._retry: Timer | None = None
        self._timers: set[Timer] = set()  # of the present link

    @property
    def live(self) -> Exchange | None:
        """The link, where it is through."""
        return self.link if self.state == "online" else None

    def dial(self) -> None:
        """Open a link."""
        url = self._urls[self._turn % len(self._urls)]
        self._turn += 1
        turn = self._turn
        self._said = None
        self._set("connecting")

        # The token comes before the socket: once that is open, the server waits for `auth` for seconds only.
        def asked(error: TokenError | None, token: str | None) -> None:
            if turn != self._turn:
                return
            if error is not None:
                self._port.failed(error)
                self._over(1006, "token_failed", str(error))
                return
            self._token = token
            self.link = Exchange(self._clock, self)
            self.link.start(lambda exchange: self._port.open(url, exchange))

        self._port.ask(asked)

    def finish(self, closed: Closed) -> None:
        """Close, for good."""
        if self.closed is not None:
            return
        self._turn += 1  # whatever is opening is too late
        if self._retry is not None:
            self._retry.cancel()
        self._stop()
        self.closed = closed
        self.state = "closed"
        self.connection = None
        link, self.link = self.link, None
        self._owner.finished(closed)
        if link is not None:
            link.end(closed.code, closed.reason)
        self._set("closed", code=closed.code, reason=closed.reason, message=closed.message)

    def refresh(self, done: Done) -> None:
        """Ask for a token and give it to the server; offline it is asked for anyway."""
        link = self.live
        if link is None:
            done(None, NULL)
            return

        def asked(error: TokenError | None, token: str | None) -> None:
            if error is None:
                link.request(encode({"type": "auth", "token": token, "session": self._session}), answered)
            else:
                done(error, NULL)

        def answered(error: Exception | None, data: Raw) -> None:
            if error is None:
                self._session = expect(data, Authenticated).session
            done(error, data)

        self._port.ask(asked)

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back, unless the present link ends before."""

        def due() -> None:
            self._timers.discard(timer)
            callback(*args)

        timer = self._clock.call_later(seconds, due)
        self._timers.add(timer)

    def pause(self, error: Exception, tries: int) -> float:
        """Seconds to wait after a refusal."""
        return getattr(error, "retry_after", None) or self._jitter(tries)

    # --- the exchange's side ----------------------------------------------------------------------------------------

    def opened(self, exchange: Exchange) -> None:
        """The socket is open: say who we are."""
        since = dict(self._owner.since())
        body = encode({"type": "auth", "token": self._token, "session": self._session, "since": since or None})

        def answered(error: Exception | None, data: Raw) -> None:
            if isinstance(error, Refused):
                self._complain(error)
                exchange.end(REFUSED.get(error.code, 1013), f"{error.code};{error.retry_after or ''}", error.message)
            elif error is None:
                self._authenticated(exchange, expect(data, Authenticated))

        exchange.request(body, answered)

    def frame(self, frame: ServerEvent, exchange: Exchange) -> None:
        """What the server says of its own accord."""
        match frame:
            case Welcome():
                self.connection = frame.connection
            case Expiring():
                if self._renews:
                    self._renew(0)
            case Reconnect():
                wait = self._spread(frame.after)
                self._resume = self._clock.now() + wait
                self.later(wait, exchange.end, 1012, frame.reason)
            case Error():
                self._complain(
                    Refused(frame.code, frame.message or None, retry_after=frame.retry_after, fields=frame.fields)
                )
            case _:
                self._owner.frame(frame, exchange)

    def ended(self, exchange: Exchange, code: int, reason: str, message: str) -> None:
        """The link is over: come back, or not."""
        if exchange is self.link:
            self._over(code, reason, message)

    # --- within -----------------------------------------------------------------------------------------------------

    def _authenticated(self, exchange: Exchange, data: Authenticated) -> None:
        exchange.live()
        self._online = self._clock.now()
        self._rejected = False
        self._ever = True
        same_user = self._session is None or data.user == self.user
        self._session, self.user = data.session, data.user
        self._set("online")
        self._owner.online(same_user=same_user)

    def _over(self, code: int, reason: str, message: str) -> None:
        now = self._clock.now()
        through = self._online is not None
        stable = self._online is not None and now - self._online >= STABLE
        drained = stable and self._resume is not None
        row = CLOSE_CODES.get(code)
        name, _, after = reason.partition(";")
        why = name or (row.name if row else "connection_lost")
        told = self._said is not None and self._said.code == why
        text = self._said.message if self._said is not None and told else self._meaning(why, message)
        asked = max(self._spread(_seconds(after)), 0.0 if self._resume is None else self._resume - now)
        self.link = self._online = self._resume = None
        self.connection = None
        self._stop()
        self._owner.offline()
        # A server that was there before may be in the middle of a deployment.
        reconnect = "yes" if row is None or (why == "not_found" and self._ever) else row.reconnect
        if reconnect == "no" or (reconnect == "token" and self._rejected):
            if not told:
                self._port.failed(Refused(why, text))
            self.finish(Closed(code, why, text))
            return
        self._rejected = self._rejected or reconnect == "token"
        if stable:
            self._attempt = 0
        if message and not (told or through or self._attempt) and why != "token_failed":
            self._port.failed(Refused(why, text))  # nobody would know why it doesn't come online
        wait = asked  # a draining server says when
        if not drained:
            wait = max(asked, self._jitter(self._attempt))
            self._attempt += 1
        self._retry = self._clock.call_later(wait, self.dial)
        self._set("waiting", code=code, reason=why, message=text, retry_in=wait)

    def _set(
        self,
        state: ClientState,
        *,
        code: int | None = None,
        reason: str = "",
        message: str = "",
        retry_in: float | None = None,
    ) -> None:
        self.state = state
        self._port.state_changed(StateChange(state, code, reason, message, retry_in))

    def _stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _renew(self, tries: int) -> None:
        """Refresh, until it works or the link ends."""
        link = self.live

        def done(error: Exception | None, data: Raw) -> None:
            if error is None or link is not self.link:
                return
            if isinstance(error, RealtimeError):
                self._port.failed(error)
            self.later(self.pause(error, tries), self._renew, tries + 1)

        if link is not None:
            self.refresh(done)

    def _complain(self, error: Refused) -> None:
        self._said = error
        self._port.failed(error)

    def _meaning(self, why: str, message: str) -> str:
        if why == "forbidden" and self.connection is None:
            return OUTSIDE
        row = next((row for row in CLOSE_CODES.values() if row.name == why), None)
        return MEANINGS.get(why) or (row.meaning if row else message or why)

    def _jitter(self, tries: int) -> float:
        shortest, longest = self._backoff
        return self._random() * min(longest, shortest * 2.0 ** min(tries, 64))

    def _spread(self, seconds: float) -> float:
        """What the server says to everybody at once must not bring everybody back at once."""
        return seconds + self._random() * max(0.25, seconds / 5) if seconds > 0 else 0.0


def _seconds(text: str) -> float:
    try:
        return min(max(float(text), 0.0), LONGEST)
    except ValueError:
        return 0.0
