"""A server at the other end of wires that carry frames at once, for the client's core."""

import json
from collections.abc import Callable
from typing import Any

from starlette_realtime import Refused
from starlette_realtime.client import StateChange, TokenError
from starlette_realtime.client.core import Core
from starlette_realtime.client.exchange import Exchange
from starlette_realtime.client.inbox import End, Inbox, Mark, News
from starlette_realtime.client.ports import Answer, Token
from starlette_realtime.client.stay import Stay
from starlette_realtime.client.values import Reset
from starlette_realtime.errors import RealtimeError
from starlette_realtime.messages import NULL, Event, Limits
from starlette_realtime.testing import FakeClock


def at(offset: int, epoch: str = "e") -> dict[str, Any]:
    return {"epoch": epoch, "offset": offset, "id": f"{epoch}{offset}"}


class Outcome:
    """What became of a command."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.data: Any = None

    def __call__(self, error: Exception | None, data: Any) -> None:
        self.calls += 1
        self.error = error
        self.data = None if error is not None else json.loads(bytes(data if data is not NULL else b"null"))

    @property
    def code(self) -> str:
        return "" if self.error is None else getattr(self.error, "code", type(self.error).__name__)


class Wire:
    """One socket, as the server sees it."""

    def __init__(self, url: str, exchange: Exchange) -> None:
        self.url = url
        self.exchange = exchange
        self.sent: list[dict[str, Any]] = []
        self.dropped: int | None = None
        self.waiting = 0

    def write(self, text: str) -> None:
        assert self.dropped is None, "sent to a socket that is closed"
        self.sent.append(json.loads(text))

    def drop(self, code: int, reason: str) -> None:
        self.dropped = code

    # what the server does

    def say(self, kind: str, **fields: Any) -> None:
        self.exchange.received(json.dumps({"type": kind, **fields}))

    def close(self, code: int = 1006, reason: str = "") -> None:
        self.exchange.end(code, reason)

    def welcome(self, *, heartbeat: float = 25.0, message_bytes: int = 65536, connection: str = "c1") -> None:
        limits = {"message_bytes": message_bytes, "rooms": 100}
        self.say("welcome", connection=connection, heartbeat=heartbeat, limits=limits, server="test")

    def accept(self, user: str | None = "ann", session: str = "s1", **welcome: Any) -> None:
        """Open, welcome, and answer `auth`."""
        self.exchange.opened()
        self.welcome(**welcome)
        self.reply(self.last("auth"), {"user": user, "expires_in": 600.0, "session": session})

    def reply(self, command: dict[str, Any], data: Any = None) -> None:
        self.say("reply", id=command["id"], data=data)

    def refuse(self, command: dict[str, Any], code: str, **fields: Any) -> None:
        self.say("reply", id=command["id"], error={"code": code, "message": "", **fields})

    def joined(self, room: str = "chat", **data: Any) -> None:
        self.reply(self.last("join", room), {"recovered": False, "events": [], "position": at(1), **data})

    def event(self, data: Any, *, room: str | None = "chat", event: str = "message", **fields: Any) -> None:
        self.say("event", event=event, data=data, **({} if room is None else {"room": room}), **fields)

    def all(self, kind: str, room: str | None = None) -> list[dict[str, Any]]:
        return [frame for frame in self.sent if frame["type"] == kind and room in (None, frame.get("room"))]

    def last(self, kind: str, room: str | None = None) -> dict[str, Any]:
        return self.all(kind, room)[-1]


class World:
    """A core, its clock, and what it asked for; `chance` is what its randomness gives."""

    def __init__(
        self,
        urls: tuple[str, ...] = ("ws://test/ws",),
        *,
        tokens: bool = False,
        queue: int = 256,
        inbox: int = 1024,
        clock: FakeClock | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.chance = 0.5
        self.wires: list[Wire] = []
        self.states: list[StateChange] = []
        self.errors: list[RealtimeError] = []
        self.asked: list[Token] = []
        self.served_rooms: list[str] = []
        self.stale_calls: list[bool] = []
        self.limits_seen: list[Limits] = []
        self.questions: list[tuple[Event, Answer]] = []
        self.people_calls = 0
        self._tokens = tokens
        self.core = Core(
            urls,
            self,
            clock=self.clock,
            random=random or (lambda: self.chance),
            prefix="test",
            renews=tokens,
            queue=queue,
            inbox=inbox,
            timeout=10.0,
            backoff=(0.5, 20.0),
        )
        self.core.start()

    @property
    def wire(self) -> Wire:
        return self.wires[-1]

    @property
    def state(self) -> str:
        return self.core.dialer.state

    # the core's port

    def ask(self, done: Token) -> None:
        if self._tokens:
            self.asked.append(done)
        else:
            done(None, None)

    def give(self, token: str | None = "t", error: TokenError | None = None) -> None:
        self.asked.pop(0)(error, None if error else token)

    def open(self, url: str, exchange: Exchange) -> Wire:
        self.wires.append(Wire(url, exchange))
        return self.wires[-1]

    def state_changed(self, change: StateChange) -> None:
        self.states.append(change)

    def failed(self, error: RealtimeError) -> None:
        self.errors.append(error)

    def served(self, stay: Stay) -> None:
        self.served_rooms.append(stay.name)

    def changed(self, stay: Stay) -> None:
        pass

    def people(self, stay: Stay) -> None:
        self.people_calls += 1

    def stale(self, stay: Stay | None, away: bool) -> None:
        self.stale_calls.append(away)

    def limits(self, limits: Limits) -> None:
        self.limits_seen.append(limits)

    def question(self, stay: Stay | None, event: Event, answer: Answer) -> None:
        self.questions.append((event, answer))

    # what the application does

    def joined(self, name: str = "chat", **data: Any) -> Stay:
        """Online and joined."""
        if self.state != "online":
            self.wire.accept()
        stay = self.core.join(name)
        self.wire.joined(name, **data)
        return stay

    def send(self, stay: Stay | None, data: Any, **options: Any) -> Outcome:
        outcome = Outcome()
        options = {"event": "message", "key": None, "timeout": None, **options}
        self.core.send(stay, options.pop("event"), data, outcome, **options)
        return outcome

    async def relink(self, **accept: Any) -> None:
        """Break the link, and come back."""
        count = len(self.wires)
        self.wire.close()
        await self.clock.advance(self.states[-1].retry_in or 0.0)
        assert len(self.wires) == count + 1
        self.wire.accept(**accept)


def take(inbox: Inbox) -> list[Any]:
    """Everything that waits to be read: data of events (a tuple where recovered), reasons of resets, and the end."""
    found: list[Any] = []
    while (item := inbox.take()) is not None:
        match item:
            case News():
                data = json.loads(bytes(item.event.data))
                found.append((data,) if item.recovered else data)
            case Reset():
                found.append(f"reset: {item.reason}")
            case End():
                found.append(f"end: {item.error.code if isinstance(item.error, Refused) else item.error}")
            case Mark():
                pass
    return found
